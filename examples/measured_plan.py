"""A plan that is found by measurement, and what every layer of the model costs."""

import numpy as np

import onnxq
from onnxq.plan import Budgets, Recipe, VerifySettings

MODEL = "models/digits_cnn.onnx"
SAMPLES = {"data": "models/digits_calibration.npz", "test_data": "models/digits_test.npz"}
# No precision is named: what is fastest among the plans that keep the budget is found by
# measurement. A second of timing is enough to see how it works; five are usual.
RECIPE = Recipe(budgets=Budgets(max_drop=0.01), verify=VerifySettings(seconds=1.0))

result = onnxq.quantize(MODEL, **SAMPLES, recipe=RECIPE)  # writes nothing without an output
for tried in result.receipt.measured.candidates:
    if tried.within is not None:  # others are no plans: the source, and what it was prepared to
        speed = f"{tried.ratio:.2f}x" if tried.ratio is not None else "not timed"
        print(f"{tried.name}: {tried.nodes}, {speed}{', chosen' if tried.chosen else ''}")
for gate in result.receipt.gates:
    print(f"{gate.name}: {'kept' if gate.passed else 'missed'}")

# Which layers hurt, and what would it cost to keep them float?
report = onnxq.analyze_sensitivity(MODEL, **SAMPLES, recipe=RECIPE)
for layer in report.layers[:3]:
    saved = (layer.float_ms or 0) - (layer.quantized_ms or 0)
    print(f"{layer.name}: {layer.only.sqnr_db:.1f} dB alone, int8 saves {saved:.3f} ms")
for point in report.front:
    if point.loss is not None:
        print(f"{point.ms:.3f} ms at {point.loss.sqnr_db:.1f} dB: {len(point.kept_float)} in float")


def sure(outputs: dict[str, np.ndarray], labels: np.ndarray) -> float:
    """The share of images that are named rightly, a logit ahead of all other names."""
    ranked = np.sort(outputs["logits"], axis=1)
    right = outputs["logits"].argmax(1) == labels
    return float((right & (ranked[:, -1] - ranked[:, -2] > 1)).mean())


# The same search by a metric of your own.
found = onnxq.search_plan(MODEL, metric=sure, **SAMPLES, recipe=RECIPE)
print(f"within {found.limits}: {found.within}")
