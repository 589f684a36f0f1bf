"""Calibrate: compare methods that choose ranges, read statistics, bring a method of your own.

Shows ``onnxq.calibrate_model``: one pass over the samples serves all methods. A network on MNIST;
handwritten digits with ``--quick``, or where MNIST cannot be had. Takes 13 s on two cores, 3 s
with ``--quick``.

What it prints, where ``0.28~0.02`` may be off by 0.02, ``2.4~any`` depends on the machine, and
``...`` is any text::

    $ python examples/custom_calibration.py --quick
    minmax: 42.0~6 dB, top1 0.9950~0.005
    percentile: 40.0~6 dB, top1 0.9950~0.005
    sigma: 37.2~6 dB, top1 0.9950~0.005
    entropy: 42.0~6 dB, top1 0.9950~0.005
    mse: 41.8~6 dB, top1 0.9950~0.005
    PowerOfTwo: 38.3~6 dB, top1 0.9950~0.005
    200 samples by mse
    image: 0.00 to 1.00 of 0.00 to 1.00, clipped 0.000%, 56.3~0.5 dB
    /Relu_output_0: 0.00 to 1.77~0.05 of 0.00 to 1.89~0.01, clipped 0.002~0.01%, 45.9~0.5 dB
    /Relu_1_output_0: 0.00 to 2.48~0.05 of 0.00 to 2.67~0.01, clipped 0.001~0.01%, 43.3~0.5 dB
    /MaxPool_output_0: 0.00 to 2.54~0.05 of 0.00 to 2.67~0.01, clipped 0.003~0.01%, 44.8~0.5 dB
    /Relu_2_output_0: 0.00 to 3.05~0.05 of 0.00 to 3.16~0.01, clipped 0.001~0.01%, 43.8~0.5 dB
    /MaxPool_1_output_0: 0.00 to 3.10~0.05 of 0.00 to 3.16~0.01, clipped 0.004~0.01%, 45.3~0.5 dB
    /Flatten_output_0: 0.00 to 3.10~0.05 of 0.00 to 3.16~0.01, clipped 0.004~0.01%, 45.3~0.5 dB
    /Relu_3_output_0: 0.00 to 3.98~0.05 of 0.00 to 4.01~0.01, clipped 0.008~0.01%, 47.2~0.5 dB
    logits: -2.53~0.05 to 6.38~0.05 of -2.55~0.01 to 6.40~0.01, clipped 0.100~0.05%, 44.9~0.5 dB
    the ranges still moved by 0.7~0.5% at most
    not settled: none
    kept and read: 200 samples, 9 tensors

    $ python examples/custom_calibration.py
    minmax: 30.9~3 dB, top1 0.9918~0.002
    percentile: 36.0~3 dB, top1 0.9920~0.002
    sigma: 21.2~3 dB, top1 0.9904~0.002
    entropy: 37.9~3 dB, top1 0.9920~0.002
    mse: 35.5~3 dB, top1 0.9921~0.002
    PowerOfTwo: 30.6~3 dB, top1 0.9918~0.002
    200 samples by mse
    image: 0.00 to 1.00 of 0.00 to 1.00, clipped 0.000~0.05%, 74.1~3 dB
    /features/features.2/Relu_output_0: 0.00 to 2.11~0.1 of 0.00 to 3.15~0.1, ...
    /features/features.5/Relu_output_0: 0.00 to 3.05~0.1 of 0.00 to 3.44~0.1, ...
    /features/features.8/Relu_output_0: 0.00 to 2.37~0.1 of 0.00 to 2.66~0.1, ...
    /features/features.11/Relu_output_0: 0.00 to 9.19~0.1 of 0.00 to 10.38~0.1, ...
    /ReduceMean_output_0_pooled: 0.00 to 1.40~0.1 of 0.00 to 1.42~0.1, ...
    /ReduceMean_output_0: 0.00 to 1.40~0.1 of 0.00 to 1.42~0.1, ...
    /Relu_output_0: 0.00 to 2.32~0.1 of 0.00 to 2.34~0.1, clipped 0.008~0.05%, 48.7~3 dB
    logits: -2.63~0.1 to 6.33~0.1 of -2.65~0.1 to 6.35~0.1, clipped 0.100~0.05%, 44.7~3 dB
    the ranges still moved by 1.7~1.5% at most
    not settled: none
    kept and read: 200 samples, 9 tensors
"""

import math
from typing import Self

from msgspec.structs import replace
from shipped_models import Subject, output, quick_asked, shipped

import onnxq
from onnxq.calibrate import Calibration, ObserverSpec, Tap, describe
from onnxq.plan import Budgets, CalibrationSettings, VerifySettings
from onnxq.types import Grid


class PowerOfTwo:
    """A symmetric range that ends at a power of two, for hardware that scales by shifting.

    A calibrator is a class with these three methods. On the command line it is named as
    ``--calibrator examples/custom_calibration.py:PowerOfTwo``.
    """

    wants_values = False  # the smallest and largest value of each sample are enough

    def __init__(self) -> None:
        self.largest = 0.0

    def observe(self, tap: Tap) -> None:
        """Take some samples in."""
        self.largest = max(self.largest, float(-tap.lows.min()), float(tap.highs.max()))

    def merge(self, other: Self) -> None:
        """Fold in what another observer has seen."""
        self.largest = max(self.largest, other.largest)

    def range(self, grid: Grid) -> tuple[float, float]:
        """Tell the range to quantize for, whatever the grid."""
        del grid
        end = 2.0 ** math.ceil(math.log2(self.largest)) if self.largest else 0.0
        return -end, end


def score(name: str, subject: Subject, seen: Calibration) -> None:
    """Quantize with ranges that were observed before, and print what that costs."""
    # All layers in int8, whatever that costs, and no time spent on measuring speed: ranges alone
    # are compared.
    recipe = replace(
        subject.recipe, precision="int8", budgets=Budgets(), verify=VerifySettings(seconds=0)
    )
    result = onnxq.quantize(subject.model, test_data=subject.test, recipe=recipe, ranges=seen)
    measured = result.receipt.measured
    assert measured.metric is not None  # the test samples have labels
    print(f"{name}: {measured.outputs['logits'].sqnr_db:.1f} dB, top1 {measured.metric.output:.4f}")


def main() -> None:
    """Run the example."""
    subject = shipped("mnist_cnn", quick=quick_asked(__doc__))

    # 1. One pass over 200 samples. Histograms are kept, so that every method of onnxq can be asked
    #    for its ranges afterwards.
    seen = onnxq.calibrate_model(subject.model, subject.data, recipe=subject.recipe, samples=200)

    # 2. Strategies compared, by what they make of the whole model.
    for method in ("minmax", "percentile", "sigma", "entropy", "mse"):
        score(method, subject, seen.with_observer(ObserverSpec(method)))

    # 3. A calibrator of one's own sees other things, so that it takes a pass of its own.
    own = replace(subject.recipe, calibration=CalibrationSettings(method=f"{__file__}:PowerOfTwo"))
    powers = onnxq.calibrate_model(subject.model, subject.data, recipe=own, samples=200)
    score("PowerOfTwo", subject, powers)

    # 4. Statistics of every tensor: the range that was chosen of what was seen, how much of it lies
    #    outside, and the noise of rounding this tensor alone to 8 bits.
    statistics = describe(seen.with_observer(ObserverSpec("mse")), Grid(bits=8))
    print(f"{statistics.samples} samples by {statistics.observer}")
    for name, tensor in statistics.tensors.items():
        print(
            f"{name}: {tensor.lo:.2f} to {tensor.hi:.2f} of {tensor.min:.2f} to {tensor.max:.2f}, "
            f"clipped {tensor.clipped or 0:.3%}, {tensor.sqnr_db or 0:.1f} dB"
        )

    # 5. Were the samples enough? The ranges' last move, over the last tenth of the samples, tells.
    print(f"the ranges still moved by {statistics.moved or 0:.1%} at most")
    print(f"not settled: {', '.join(statistics.unsettled) or 'none'}")

    # 6. Ranges can be kept, gone on with, and merged with those of other samples.
    onnxq.save_ranges(seen, output("calibration.ranges.json"))
    kept = onnxq.load_ranges(output("calibration.ranges.json"))
    print(f"kept and read: {kept.samples} samples, {len(kept.tensors)} tensors")


if __name__ == "__main__":
    main()
