"""Quantize a model from Python, and read the receipt."""

from pathlib import Path

import onnxq
from onnxq.plan import Recipe

MODEL = Path("models/digits_cnn.onnx")

result = onnxq.quantize(MODEL)  # finds the recipe beside the model; writes nothing
measured = result.receipt.measured
print(f"size: {measured.size_ratio:.2f} of the float file")
if measured.metric is not None:
    print(f"top-1: {measured.metric.source:.4f} -> {measured.metric.output:.4f}")

# The last layer stays float, and only half of the samples calibrate: the rest is held back.
recipe = Recipe(keep_float=("/fc2/*",))
data = "models/digits_calibration.npz"
careful = onnxq.quantize(MODEL, data=data, recipe=recipe)
for node in careful.plan.nodes:
    print(node.name, node.precision, node.reason.sentence if node.reason else "")
