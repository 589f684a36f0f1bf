"""Deploy a transformer: which kind of int8 suits it?

Static int8 fixes the ranges of activations beforehand, dynamic int8 finds them at every run; on
transformers the latter mostly is nearer to float, and as fast. Here both are measured, and then a
search decides node by node. Takes the shipped vision transformer for MNIST; with ``--quick``, or
where MNIST cannot be had, its images are the shipped handwritten digits, enlarged to MNIST's size.
Takes 30 s on two cores, 12 s with ``--quick``.

What it prints, where ``0.28~0.02`` may be off by 0.02, ``2.4~any`` depends on the machine, and
``...`` is any text::

    $ python examples/deploy_transformer.py --quick
    17 MatMul, 1 Gemm, 2 Softmax
    int8: size 0.36~0.02, top1 0.9246~0.004 -> 0.9229~0.02, 33.1~8 dB, speed 1.39~any
    int8-dynamic: size 0.36~0.02, top1 0.9246~0.004 -> 0.9229~0.02, 36.3~8 dB, speed 1.65~any
    int8-weights: size 0.32~0.02, top1 0.9246~0.004 -> 0.9246~0.02, 42.5~9 dB, speed 1.13~any
    auto: size 0.33~0.3, top1 0.9246~0.004 -> 0.9213~0.02, 36.6~15 dB, speed 1.60~any
    auto is ...
    reasons to stay float: ...

    $ python examples/deploy_transformer.py
    17 MatMul, 1 Gemm, 2 Softmax
    int8: size 0.36~0.05, top1 0.9929 -> 0.9930~0.003, 38.6~8 dB, speed 1.34~any
    int8-dynamic: size 0.36~0.05, top1 0.9929 -> 0.9930~0.003, 43.0~8 dB, speed 1.63~any
    int8-weights: size 0.32~0.05, top1 0.9929 -> 0.9929~0.003, 47.5~9 dB, speed 1.11~any
    auto: size 0.33~0.3, top1 0.9929 -> 0.9929~0.003, 42.4~15 dB, speed 1.65~any
    auto is ...
    reasons to stay float: ...
"""

import numpy as np
from msgspec.structs import replace
from shipped_models import data_set, quick_asked

import onnxq
from onnxq.data import Data, Preprocess
from onnxq.plan import DataSettings, Recipe, VerifySettings
from onnxq.types import Precision

MODEL = "models/mnist_transformer.onnx"


def enlarged(path: str) -> dict[str, np.ndarray]:
    """Digits of 8x8 pixels as MNIST has them: twice as large in the middle of 28x28."""
    with np.load(path) as arrays:
        found = dict(arrays)
    larger = np.kron(found["image"][:, 0], np.ones((1, 2, 2), np.float32))
    return found | {"image": np.pad(larger, ((0, 0), (6, 6), (6, 6)))}


def main() -> None:
    """Run the example."""
    quick = quick_asked(__doc__)

    # 1. Samples: MNIST by its name, or arrays by the name of the model's input.
    samples: dict[str, Data]
    if data_set("mnist", quick=quick) == "mnist":
        samples = {"data": "dataset:mnist/train", "test_data": "dataset:mnist/test"}
        settings = DataSettings(batch_size=50, preprocess=Preprocess(scale=1 / 255))
    else:
        samples = {
            "data": enlarged("models/digits_calibration.npz"),
            "test_data": enlarged("models/digits_test.npz"),
        }
        settings = DataSettings(batch_size=50)
    common = Recipe(data=settings, verify=VerifySettings(seconds=0.5 if quick else 3.0))

    # 2. What there is: multiplications with weights, and those of activations in attention.
    counts: dict[str, int] = {}
    for node in onnxq.load(MODEL).view().nodes:
        counts[node.op] = counts.get(node.op, 0) + 1
    print(", ".join(f"{counts[op]} {op}" for op in ("MatMul", "Gemm", "Softmax")))

    # 3. Static, dynamic, and weights alone; then "auto": the fastest mix that is good enough,
    #    found by measurement. The preset "transformer" is dynamic int8.
    for precision in ("int8", "int8-dynamic", "int8-weights", "auto"):
        recipe = replace(common, precision=precision)
        result = onnxq.quantize(MODEL, **samples, recipe=recipe)
        measured = result.receipt.measured
        assert measured.metric is not None  # the test samples have labels
        assert measured.latency is not None  # it was measured
        print(
            f"{precision}: size {measured.size_ratio:.2f}, top1 {measured.metric.source:.4f} -> "
            f"{measured.metric.output:.4f}, {measured.outputs['logits'].sqnr_db:.1f} dB, "
            f"speed {measured.latency.ratio_prepared:.2f}"
        )

    # 4. What the search chose, and why some nodes stay float.
    chosen = {p: result.plan.count(p) for p in Precision if result.plan.count(p)}
    print("auto is " + ", ".join(f"{count} {precision}" for precision, count in chosen.items()))
    codes = sorted({node.reason.code for node in result.plan.nodes if node.reason is not None})
    print(f"reasons to stay float: {', '.join(codes)}")


if __name__ == "__main__":
    main()
