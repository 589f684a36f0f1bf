"""The stages by hand: each is a function from values to a value.

Load, prepare, classify, calibrate, plan, rewrite, save: what ``onnxq.quantize`` does before it
measures. Takes 1 s. What it prints::

    $ python examples/stages.py
    13 quantized tensors, 2 groups that share a scale
"""

from onnxq.calibrate import ObserverSpec, Setup, calibrate
from onnxq.data import open_data
from onnxq.graph import load, save
from onnxq.ops import classify
from onnxq.plan import LayerRule, Recipe, make_plan, readings, tensors_to_observe
from onnxq.rewrite import rewrite
from onnxq.runtime import prepare
from onnxq.targets import get_target
from onnxq.types import Grid

model = load("models/digits_cnn.onnx")
target = get_target("cpu-x86")
recipe = Recipe(precision="int8", layers=(LayerRule(position="last", observer="minmax"),))

prepared = prepare(model)
view = prepared.view()
census = classify(view, target)
reader = open_data("models/digits_calibration.npz", model.view().inputs)
taps = tensors_to_observe(view, census, recipe)
seen = calibrate(prepared, reader, Setup.of(view, taps, ObserverSpec("mse")))

# One look at the data serves all: every layer may have its own method, and its own width.
ranges = {}
for tensor, reading in readings(view, census, recipe).items():
    observed = seen.with_observer(ObserverSpec(reading.observer)) if reading.observer else seen
    qtype = target.activation16 if reading.wide else target.activation
    grid = Grid(qtype.bits, target.symmetric_activations)
    ranges[tensor] = observed.ranges(grid).tensors[tensor]

plan = make_plan(view, census, ranges, recipe, target)
quantized = rewrite(prepared, plan)
save(quantized, "digits.qdq.onnx")

print(f"{len(plan.tensors)} quantized tensors, {len(plan.groups)} groups that share a scale")
