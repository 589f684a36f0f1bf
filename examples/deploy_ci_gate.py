"""Deploy with a gate in CI: a new export must quantize as well as the last one, or the build fails.

Makes a baseline, checks an export that is as good, and then plants a regression that no test of the
float model sees: one channel is scaled up by 300, and down again in the next layer. The float
answers stay the same, but 8 bits are too few for the layer's activations now. ``onnxq.check_model``
(``onnxq check`` on the command line) and the fixture of onnxq's pytest plugin both catch it. Always
takes the shipped digits. Needs pytest. Takes 5 s on two cores.

What it prints, where ``41.8~6`` may be off by 6::

    $ python examples/deploy_ci_gate.py
    baseline: top1 0.9950~0.005
    same export: no worse than the baseline in all 6 figures that can be compared
    float scores: the same to 1e-4
    bad export: worse than the baseline in 2 of 6 figures: sqnr, ranges
      SQNR: 41.8~6 dB to 16.7~6 dB, worse by +25.2~8 dB (tolerance 3.0 dB); output 'logits'
      ranges: worse by +8594.6~2000% (tolerance 50.0%); '/Relu_output_0': 0..1.773 to 0..154.1~30
    pytest, good export: exit code 0
    pytest, bad export: exit code 1
"""

import io
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from shipped_models import output, shipped

import onnxq
from onnxq.data import open_data
from onnxq.graph import Model, with_constants
from onnxq.plan import VerifySettings
from onnxq.report import sentence, verdict
from onnxq.runtime import Session

# What a project would have among its tests: one line for each model.
TEST = """
def test_export_is_no_worse(onnxq):
    onnxq.assert_unchanged({export!r}, {baseline!r}, data={data!r}, test_data={test!r})
"""


def scaled_channel(model: Model, factor: float) -> Model:
    """The same function with other weights, as Relu(factor * x) / factor is Relu(x)."""
    view, constants = model.view(), {}
    for name in ("conv1.weight", "conv1.bias", "conv2.weight"):
        value = view.constant(name)
        assert value is not None
        constants[name] = value.copy()
    constants["conv1.weight"][0] *= factor
    constants["conv1.bias"][0] *= factor
    constants["conv2.weight"][:, 0] /= factor
    return with_constants(model, constants)


def main() -> None:
    """Run the example."""
    subject = shipped("digits_cnn", quick=True)
    samples = {"data": subject.data, "test_data": subject.test}
    good = onnxq.load(subject.model)
    export, baseline = output("export.onnx"), output("export.baseline.json")

    # 1. Once: the receipt of a run becomes the baseline, which is committed beside the model. It is
    #    made without latency, which only means something on one and the same machine.
    recipe = replace(subject.recipe, precision="int8", verify=VerifySettings(seconds=0))
    onnxq.save(good, export)
    made = onnxq.check_model(export, baseline, **samples, recipe=recipe, update=True)
    assert made.receipt.measured.metric is not None  # the test samples have labels
    print(f"baseline: top1 {made.receipt.measured.metric.output:.4f}")

    # 2. On every export: the baseline's plan is applied to it, and every figure is held against the
    #    baseline's.
    found = onnxq.check_model(export, baseline, **samples, recipe=recipe).check
    print(f"same export: {verdict(found)}")

    # 3. An export that computes the same in float ...
    bad = scaled_channel(good, 300)
    reader = open_data(subject.test, good.view().inputs)
    feed = next(iter(reader.batches(597))).feed
    scores = [Session(model).run(feed)["logits"] for model in (good, bad)]
    print(f"float scores: {'the same' if np.allclose(*scores, atol=1e-4) else 'others'} to 1e-4")

    # 4. ... fails the gate. "onnxq check" ends with exit code 1 here, and writes reports for
    #    GitHub, GitLab and pull requests.
    onnxq.save(bad, export)
    found = onnxq.check_model(export, baseline, **samples, recipe=recipe).check
    print(f"bad export: {verdict(found)}")
    for gate in found.gates:
        if gate.status == "failed":
            print(f"  {sentence(gate)}")

    # 5. The same from a project's own tests, by the fixture "onnxq" of its pytest plugin.
    Path(output("pytest.ini")).touch()  # no settings of the folders above
    test = Path(output("test_export.py"))
    wanted = {"export": export, "baseline": baseline, "data": subject.data, "test": subject.test}
    test.write_text(TEST.format(**wanted), encoding="utf-8")
    for name, model in (("good", good), ("bad", bad)):
        onnxq.save(model, export)
        with redirect_stdout(io.StringIO()):
            code = pytest.main(["-p", "no:cacheprovider", str(test)])
        print(f"pytest, {name} export: exit code {int(code)}")


if __name__ == "__main__":
    main()
