"""The stages by hand: each is a function from values to a value."""

from onnxq.calibrate import ObserverSpec, Setup, calibrate
from onnxq.data import open_data
from onnxq.graph import load, save
from onnxq.ops import classify
from onnxq.plan import Recipe, make_plan, tensors_to_observe
from onnxq.rewrite import rewrite
from onnxq.runtime import prepare
from onnxq.targets import get_target

model = load("models/digits_cnn.onnx")
target = get_target("cpu-x86")
recipe = Recipe(precision="int8")

prepared = prepare(model)
census = classify(prepared.view(), target)
reader = open_data("models/digits_calibration.npz", model.view().inputs)
taps = tensors_to_observe(prepared.view(), census, recipe)
seen = calibrate(prepared, reader, Setup.of(prepared.view(), taps, ObserverSpec("mse")))
ranges = seen.ranges(target.activation_grid)
plan = make_plan(prepared.view(), census, ranges.tensors, recipe, target)
quantized = rewrite(prepared, plan)
save(quantized, "digits.qdq.onnx")

print(f"{len(plan.tensors)} quantized tensors, {len(plan.groups)} groups that share a scale")
