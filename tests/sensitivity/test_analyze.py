"""``analyze``: what the report says of each layer, against independent computations."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from onnxq import make_job
from onnxq.api.stages import draft
from onnxq.graph import Model, load
from onnxq.numerics import fake_quantize
from onnxq.plan import LayerRule, Recipe
from onnxq.rewrite import rewrite
from onnxq.runtime import prepare
from onnxq.sensitivity import Evaluator, analyze, recipe_for
from onnxq.sensitivity.analyze import KEPT_BYTES, SCREEN_SAMPLES
from onnxq.sensitivity.facts import look
from onnxq.sensitivity.plans import Subject
from onnxq.sensitivity.spread import losses
from onnxq.sensitivity.work import Work
from onnxq.targets import get_target
from onnxq.types import Precision

MODELS = Path(__file__).parents[2] / "models"
HEAD = '<ir_version: 10, opset_import: ["" : 21]>\n'
MLP = """g (float[N,64] x) => (float[N,32] y)
  <float[64,64] w = seeded, float[64] b = seeded, float[64,32] v = seeded> {
    [first] a = Gemm (x, w, b) [clamp] r = Relu (a) [second] y = MatMul (r, v) }"""


def by_name(report) -> dict:
    return {layer.name: layer for layer in report.layers}


def decibels(signal: float, noise: float) -> float:
    return 10 * math.log10(signal / noise)


def test_parts_are_what_numpy_computes(build, study) -> None:
    """Rounded constants, rounded activations and both, of a layer in float64."""
    model = build(MLP)
    found = study(model)
    view, plan = model.view(), found.subject.plan(Precision.INT8)
    w, b, v = (view.constant(name).astype(np.float64) for name in "wbv")
    x = np.concatenate([batch.feed["x"] for batch in found.evaluator.batches])
    y = np.maximum(x @ w + b, 0) @ v

    def sqnr(*parts: str) -> float:
        read = fake_quantize(x, plan.tensors["x"]) if "activations" in parts else x
        weight = fake_quantize(w, plan.tensors["w"]) if "weights" in parts else w
        made = np.maximum(read @ weight.astype(np.float64) + b, 0)
        made = fake_quantize(made, plan.tensors["r"]) if "activations" in parts else made
        return decibels((y**2).sum(), ((made @ v - y) ** 2).sum())

    layer = by_name(found.analyze(Precision.INT8))["first"]
    assert layer.op == "Gemm"
    assert layer.weights.sqnr_db == pytest.approx(sqnr("weights"), abs=1e-3)
    assert layer.activations.sqnr_db == pytest.approx(sqnr("activations"), abs=0.1)
    # the kernel adds a bias that is rounded to a step of the products, a 256th of the others' error
    assert layer.only.sqnr_db == pytest.approx(sqnr("weights", "activations"), abs=0.1)


def test_parts_add_up(study, noise) -> None:
    """Errors of weights and of activations are independent: their powers add up.

    Both are rounded once, so that each is about uniform; 1.5 dB (1.4 times) is room for what they
    have in common on 64 samples.
    """
    model = prepare(load(MODELS / "digits_cnn.onnx"))
    report = study(model, noise(model, samples=32)).analyze(Precision.INT8, rest=False)
    checked = [layer for layer in report.layers if layer.weights is not None]
    assert len(checked) == 5
    for layer in checked:
        powers = [10 ** (-part.sqnr_db / 10) for part in (layer.weights, layer.activations)]
        assert decibels(1, sum(powers)) == pytest.approx(layer.only.sqnr_db, abs=1.5), layer.name


def test_layers_without_constants_have_activations_alone(build, study) -> None:
    model = build("""g (float[N,64] x) => (float[N,32] y)
      <float[64,64] w = seeded, float[64,64] u = seeded, float[64,32] v = seeded> {
        [a] p = MatMul (x, w) [b] q = MatMul (x, u) [sum] s = Add (p, q)
        [c] y = MatMul (s, v) }""")
    report = study(model).analyze(Precision.INT8, Precision.INT8_WEIGHTS)
    layers = {(layer.name, layer.precision): layer for layer in report.layers}
    added = layers["sum", Precision.INT8]
    assert (added.weights, added.activations, added.parameters) == (None, added.only, 0)
    stored = layers["a", Precision.INT8_WEIGHTS]
    assert (stored.weights, stored.activations) == (stored.only, None)
    assert ("sum", Precision.INT8_WEIGHTS) not in layers


def test_dynamic_layers_have_parts_too(build, study) -> None:
    """The scale of a dynamic layer's input is that of each batch; weights are as in the plan."""
    model = build(MLP.replace("64,32", "64,64").replace("N,32", "N,64"))
    found = study(model)
    layer = by_name(found.analyze(Precision.INT8_DYNAMIC))["second"]
    view = model.view()
    w, b, v = (view.constant(name).astype(np.float64) for name in "wbv")
    signal = error = 0.0
    for batch in found.evaluator.batches:
        r = np.maximum(batch.feed["x"] @ w + b, 0)
        scale = np.float32(r.max()) / 255  # no value is negative, so that the zero point is 0
        signal += ((r @ v) ** 2).sum()
        error += ((np.round(r / scale) * scale @ v - r @ v) ** 2).sum()
    assert layer.activations.sqnr_db == pytest.approx(decibels(signal, error), abs=0.1)
    assert layer.only.sqnr_db < min(layer.weights.sqnr_db, layer.activations.sqnr_db)


def test_rest_is_everything_but_a_layer(build, study) -> None:
    """With one layer of two kept float, what is lost is what the other one loses alone."""
    found = study(build(MLP))
    report = found.analyze(Precision.INT8)
    layers = by_name(report)
    assert set(layers) == {"first", "second"}
    for name, other in (("first", "second"), ("second", "first")):
        # behind another layer that computes on integers, float32 is rounded otherwise
        assert layers[name].rest.sqnr_db == pytest.approx(layers[other].only.sqnr_db, abs=0.3)
    plan = found.subject.plan(Precision.INT8)
    assert report.everything == {"int8": found.evaluator.loss(rewrite(found.model, plan))}


def test_a_recipe_may_say_something_of_layers(build, study) -> None:
    """A rule on the very layer that is kept float does not get in the way."""
    recipe = Recipe(layers=(LayerRule(op="MatMul", bits=16), LayerRule(op="Gemm", bits=8)))
    found = study(build(HEAD + MLP), recipe=recipe)
    layers = by_name(found.analyze(Precision.INT8))
    assert set(layers) == {"first"}  # the other one has 16 bits
    assert layers["first"].rest.sqnr_db > layers["first"].only.sqnr_db
    kept = Recipe(keep_float=("first",), layers=(LayerRule(op="MatMul", bits=16),))
    assert recipe_for(kept, Precision.INT8_WEIGHTS).layers == ()
    assert recipe_for(kept, Precision.INT8_WEIGHTS).keep_float == ("first",)


def test_float16_is_tried_where_the_float_part_has_it_anyway(build, study) -> None:
    found = study(build(MLP), recipe=Recipe(float_type="fp16"))
    layers = by_name(found.analyze(Precision.FP16))
    assert {"first", "second"} <= set(layers)
    assert layers["first"].rest.sqnr_db != layers["second"].rest.sqnr_db
    assert by_name(found.analyze(Precision.INT8)).keys() == {"first", "second"}


def test_a_name_that_reads_as_a_glob_is_one_name(build, study) -> None:
    model = build(MLP)
    model = Model(model.ir.clone())
    for node, name in zip(model.ir.graph, ("c*", "cl", "c[a-z]"), strict=True):
        node.name = name
    plan = study(model).subject.plan(Precision.INT8, ["c*"])
    assert {n.name: n.precision for n in plan.nodes} == {
        "c*": Precision.FLOAT, "cl": Precision.FLOAT, "c[a-z]": Precision.INT8,
    }  # fmt: skip


# Facts.


def test_facts_are_those_of_the_graph(build, study) -> None:
    model = build("""g (float[N,4,8,8] x) => (float[N,10] y)
      <float[6,2,3,3] w = seeded, float[6] b = seeded, float[10,96] u = seeded> {
        [conv] c = Conv <group = 2, strides = [2,2], pads = [1,1,1,1]> (x, w, b)
        [clamp] r = Relu (c) [flat] f = Flatten (r) [fc] y = Gemm <transB = 1> (f, u) }""")
    found = study(model)
    report = found.analyze(Precision.INT8)
    layers = by_name(report)
    assert set(layers) == {"conv", "flat", "fc"}
    # 6 channels of 4 x 4 sums of 2 x 3 x 3 products; 10 sums of 96
    assert (layers["conv"].parameters, layers["conv"].macs) == (6 * 2 * 9 + 6, 6 * 16 * 18)
    assert (layers["fc"].parameters, layers["fc"].macs) == (960, 960)
    assert (layers["flat"].parameters, layers["flat"].macs) == (0, 0)
    weights = report.weight_histograms["fc"]
    values = model.view().constant("u")
    counts, edges = np.histogram(values, 64)
    assert weights.counts == tuple(counts)
    assert (weights.lo, weights.hi) == (edges[0], edges[-1])
    assert set(report.weight_histograms) == {"conv", "fc"}
    read = report.activation_histograms["conv"]
    first = np.stack([batch.feed["x"][0] for batch in found.evaluator.batches])
    assert (read.lo, read.hi, sum(read.counts)) == (first.min(), first.max(), first.size)


def test_latency_is_taken_over(build, study) -> None:
    layers = by_name(study(build(MLP)).analyze(Precision.INT8, latency={"first": (2.0, 1.5)}))
    assert (layers["first"].float_ms, layers["first"].quantized_ms) == (2.0, 1.5)
    assert (layers["second"].float_ms, layers["second"].quantized_ms) == (None, None)


def test_labels_give_a_metric(build, study, noise) -> None:
    model = build(MLP)
    batches = [replace(batch, labels=np.arange(4)) for batch in noise(model)]
    report = study(model, batches).analyze(Precision.INT8)
    assert report.metric == "top1"
    assert report.float_metric == study(model, batches).evaluator.float_metric()
    assert all(layer.only.metric is not None for layer in report.layers)


# Which layers come first.


@pytest.mark.parametrize("method", ["exact", "screen"])
def test_a_planted_fragile_layer_comes_first(study, noise, plant, method) -> None:
    """All other channels share the scale of the large one: the two layers at that tensor suffer."""
    model = prepare(load(MODELS / "mnist_cnn.onnx"))
    pair = ("/features/features.3/Conv", "/features/features.6/Conv")
    before = study(model, noise(model)).analyze(Precision.INT8, method=method, rest=False)
    made = plant(model, *pair, channel=3, factor=100.0)
    batches = noise(made)
    for batch, expected in zip(batches, Evaluator(model, batches).expected, strict=True):
        (found,) = Evaluator(made, [batch]).expected
        np.testing.assert_allclose(found["logits"], expected["logits"], rtol=1e-3, atol=1e-3)
    report = study(made, batches).analyze(Precision.INT8, method=method, rest=False)
    assert {layer.name for layer in report.layers[:2]} == set(pair)
    assert report.layers[0].only.sqnr_db < before.layers[0].only.sqnr_db - 10


@pytest.mark.parametrize(
    "name", ["cifar10_resnet", "cifar10_mobilenet", "mnist_cnn", "digits_cnn", "mnist_transformer"]
)
def test_the_screen_ranks_as_the_exact_analysis_does(name) -> None:
    data_set, folder = name.split("_")[0], os.environ.get("ONNXQ_DATA")
    if data_set != "digits" and not (folder and (Path(folder) / f"{data_set}.npz").is_file()):
        pytest.skip(f"ONNXQ_DATA names no folder that holds {data_set}.npz")
    job = make_job(MODELS / f"{name}.onnx", None)
    recipe = msgspec.structs.replace(job.recipe, precision="int8", keep_float=(), layers=())
    made = draft(MODELS / f"{name}.onnx", replace(job, recipe=recipe))
    assert made.test is not None
    evaluator = Evaluator(made.prepared, list(made.test.sample(256, 0).batches(32)))
    model, target = made.prepared, get_target(made.plan.target)
    subject = Subject(model.view(), made.census, made.ranges.tensors, made.recipe, target)
    work = Work(subject, [Precision.INT8], screen=True, rest=False)  # without the parts of layers
    (roll,) = work.rolls(
        model, evaluator.expected[0], look(model, evaluator), (), KEPT_BYTES // evaluator.samples
    )
    exact = {variant.layer: loss.sqnr_db for variant, loss in losses(model, roll, evaluator)}
    report = analyze(
        model, made.census, made.ranges.tensors, made.recipe, target, evaluator,
        [Precision.INT8], method="screen",
    )  # fmt: skip
    assert (report.samples, len(report.layers)) == (SCREEN_SAMPLES, len(exact))
    assert len(exact) >= 6
    screened = [layer.only.sqnr_db for layer in report.layers]
    ranks = [np.argsort(np.argsort(side)) for side in (
        [exact[layer.name] for layer in report.layers], screened,
    )]  # fmt: skip
    assert np.corrcoef(*ranks)[0, 1] >= 0.8
