"""Searches: few evaluations, the limits kept, and what the recipe pins left alone."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from onnxq.data import Batch
from onnxq.graph import Editor, Model, load
from onnxq.plan import LayerRule, Recipe
from onnxq.runtime import prepare
from onnxq.sensitivity.ladder import ladder
from onnxq.sensitivity.limits import Limits
from onnxq.sensitivity.maker import Maker, key_of
from onnxq.sensitivity.options import CountOptions
from onnxq.sensitivity.search import Found, Trials, search_plan
from onnxq.types import Precision

MODELS = Path(__file__).parents[2] / "models"
INT8, FLOAT = Precision.INT8, Precision.FLOAT
LAYERS = 6


def chain() -> str:
    """Convolutions whose inputs are the wilder the later they come: a ladder of many rungs."""
    shapes = " ".join(f"float[8,8,3,3] w{i} = seeded," for i in range(LAYERS))
    nodes = " ".join(
        f"[conv{i}] c{i} = Conv <pads = [1,1,1,1]> ({'x' if i == 0 else f'r{i - 1}'}, w{i}) "
        f"[relu{i}] r{i} = Relu (c{i})"
        for i in range(LAYERS)
    )
    last = f"r{LAYERS - 1}"
    return f"""g (float[N,8,6,6] x) => (float[N,4] y) <{shapes} float[288,4] u = seeded> {{
      {nodes} [flat] f = Flatten ({last}) [fc] y = MatMul (f, u) }}"""


def unasked(_precision: Precision, _names: Collection[str]) -> dict[str, float]:
    raise AssertionError("the noise of single layers was asked for")


def everywhere(trials: Trials) -> CountOptions:
    """Int8 wherever it can be, as ``--objective int8-everywhere`` has it."""
    names = set(trials.maker.whole(INT8).named(INT8)) - trials.maker.pins
    return CountOptions(dict.fromkeys(sorted(names), 1.0), INT8)


def search(found, limits: Limits) -> tuple[Found, Trials]:
    trials = found.trials(limits)
    return search_plan(trials, everywhere(trials), found.noise), trials


def kept_float(found: Found, trials: Trials) -> set[str]:
    """Layers with weights that int8 everywhere would have in int8."""
    whole = trials.maker.whole(INT8).named(INT8)
    view, plan = trials.maker.view, found.plan.precision()
    return {n for n in whole if plan[n] is FLOAT and any(map(view.is_constant, node_of(view, n)))}


def node_of(view, name: str) -> tuple[str, ...]:
    return view.by_name[name].inputs


# Planted layers.


def test_the_search_keeps_just_the_planted_pair_float(study, noise, plant) -> None:
    """A tensor between two layers is rounded as long as either computes in int8: both go."""
    model = prepare(load(MODELS / "mnist_cnn.onnx"))
    pair = ("/features/features.3/Conv", "/features/features.6/Conv")
    made = plant(model, *pair, channel=3, factor=100.0)
    study_of = study(made, noise(made))
    found, trials = search(study_of, Limits(min_sqnr=25))
    assert kept_float(found, trials) == set(pair)
    assert found.within
    assert study_of.decibels(trials, found.assignment) >= 25
    assert found.attempts[0].loss.sqnr_db < 15  # nothing else is wrong with int8 everywhere
    assert found.evaluations <= 4


def plant_norm(model: Model, norm: str, matmul: str, channel: int, factor: float) -> Model:
    """Make a channel that a normalisation puts out larger; the only MatMul behind it undoes it."""
    view, editor = model.view(), Editor(model)
    for name, port, scale in ((norm, 1, factor), (norm, 2, factor), (matmul, 1, 1 / factor)):
        values = view.constant(view.by_name[name].inputs[port]).copy()
        values[channel] *= scale
        editor.redirect(name, port, editor.add_constant(f"{name}/{port}/planted", values))
    return editor.finish()


def test_the_search_keeps_just_the_planted_layer_float(study) -> None:
    """What makes the wild tensor is float anyway, so that one layer alone is fragile."""
    model = prepare(load(MODELS / "mnist_transformer.onnx"))
    layer = "/layers/layers.0/fc1/MatMul"
    made = plant_norm(model, "/layers/layers.0/norm2/LayerNormalization", layer, 5, 100.0)
    rng = np.random.RandomState(0)
    batches = [
        Batch({"image": rng.uniform(0, 1, (8, 28, 28)).astype(np.float32)}, None, 8, np.arange(8))
        for _ in range(2)
    ]
    study_of = study(made, batches)
    found, trials = search(study_of, Limits(min_sqnr=30))
    assert kept_float(found, trials) == {layer}
    assert found.within
    assert study_of.decibels(trials, found.assignment) >= 30
    assert found.attempts[0].loss.sqnr_db < 25
    assert found.evaluations <= 4
    (reason,) = (n.reason for n in found.plan.nodes if n.name == layer)
    assert "int8 of this layer alone leaves 2" in reason.sentence  # 20.9 dB


# How a search goes.


def test_the_first_plan_within_the_limits_is_taken(build, study) -> None:
    """Nothing else is measured, neither other plans nor the noise of layers."""
    trials = study(build(chain())).trials(Limits(min_sqnr=10))
    found = search_plan(trials, everywhere(trials), unasked)
    assert found.within
    assert found.evaluations == 1
    assert found.front == ()
    assert key_of(found.plan) == key_of(trials.maker.whole(INT8))


def test_a_given_plan_is_tried_first(build, study) -> None:
    trials = study(build(chain())).trials(Limits(min_sqnr=10))
    given = {"conv3": INT8, "relu3": INT8}  # an empty one makes the float model, which is no answer
    found = search_plan(trials, everywhere(trials), unasked, [{}, given, {"fc": INT8}])
    assert found.assignment == given
    assert [attempt.within for attempt in found.attempts] == [False, True]


@pytest.mark.parametrize("db", [36, 38, 41, 44, 46])
def test_limits_are_kept_with_few_evaluations(build, study, db) -> None:
    """Steps that double and then bisection: twice the logarithm of the rungs, and the first plan.

    Every layer that goes back to integers is one evaluation, of at most eight.
    """
    study_of = study(build(chain()))
    found, trials = search(study_of, Limits(min_sqnr=db))
    steps = [attempt for attempt in found.attempts if attempt.name.startswith("step")]
    assert len(steps) <= 2 * math.log2(len(found.front))
    assert found.evaluations <= 1 + len(steps) + 8
    assert found.within
    assert found.plan.count(INT8) > 0
    assert study_of.decibels(trials, found.assignment) >= db - 1e-6
    (chosen,) = (a for a in found.attempts if a.key == key_of(found.plan))
    assert chosen.within
    # of all that was tried and is within, it is the cheapest
    assert chosen.cost == min(a.cost for a in found.attempts if a.within)


def test_layers_are_given_back(build, study) -> None:
    """No rung within the limits has as many layers on integers as what comes out."""
    found, trials = search(study(build(chain())), Limits(min_sqnr=38))
    cost = everywhere(trials).cost
    rungs = [a.cost for a in found.attempts if a.within and a.name.startswith("step")]
    assert min(rungs) > cost(found.assignment)
    (chosen,) = (a for a in found.attempts if a.key == key_of(found.plan))
    assert chosen.name == "layers given back"
    assert chosen.loss.sqnr_db >= 38


def test_where_nothing_is_within_the_least_lossy_plan_comes_back(build, study) -> None:
    found, _ = search(study(build(chain())), Limits(min_sqnr=150))
    assert not found.within
    assert found.plan.count(INT8) > 0
    tried = {a.key: a.loss.sqnr_db for a in found.attempts}
    assert tried[key_of(found.plan)] == max(tried.values())
    assert all(a.nodes.get("int8") for a in found.attempts)  # the float model is not even tried
    assert not any(a.within for a in found.attempts)


def test_the_float_model_is_no_answer(build, study) -> None:
    trials = study(build(chain())).trials(Limits(min_sqnr=150))
    attempt = trials.attempt("float", {})
    assert attempt.loss.sqnr_db == 200
    assert not attempt.within


def test_pins_of_the_recipe_stay(build, study) -> None:
    """What is kept float, and what has 16 bits, is so in every plan that is tried."""
    rule = LayerRule(name="conv1", precision="int16")
    recipe = Recipe(keep_float=("conv3",), layers=(rule,))
    study_of = study(build(f'<ir_version: 10, opset_import: ["" : 21]>\n{chain()}'), recipe=recipe)
    trials = study_of.trials(Limits(min_sqnr=38))
    assert trials.maker.pins == {"conv1", "conv3"}
    planned = []
    build_one = Maker.build

    class Watched(Maker):
        def build(self, plan):
            planned.append(plan.precision())
            return build_one(self, plan)

    trials = replace(trials, maker=Watched(study_of.model, study_of.subject))
    found = search_plan(trials, everywhere(trials), study_of.noise)
    assert len(planned) > 2
    for precisions in (*planned, found.plan.precision()):
        assert precisions["conv3"] is FLOAT
        assert precisions["conv1"] is Precision.INT16
    told = {n.name: n.reason for n in found.plan.nodes}
    assert told["conv3"].code == "kept-float"


def test_reasons_are_told(build, study) -> None:
    """Layers that went back say what int8 costs; others keep the reason that they always have."""
    text = """g (float[N,8,6,6] x) => (float[N,8,6,6] y)
      <float[8,8,3,3] v = seeded, float[8,8,3,3] w = seeded> {
        [a] p = Conv <pads = [1,1,1,1]> (x, v) [b] q = Conv <pads = [1,1,1,1]> (p, w)
        [odd] s = Erf (q) [moves] y = Transpose <perm = [0,1,3,2]> (s) }"""
    study_of = study(build(text))
    noise = study_of.noise(INT8, ("a", "b"))
    found, trials = search(study_of, Limits(min_sqnr=42))
    told = {n.name: n.reason for n in found.plan.nodes if n.reason}
    back = {"a", "b"} - set(found.assignment)
    assert len(back) == 1
    for name in back:
        alone = -10 * math.log10(noise[name])
        assert told[name].sentence == (
            f"stays float: int8 of this layer alone leaves {alone:.1f} dB"
        )
        assert told[name].code == "measured"
    whole = {n.name: n.reason for n in trials.maker.whole(INT8).nodes if n.reason}
    assert told["odd"].sentence == whole["odd"].sentence
    assert whole["moves"].sentence in told["moves"].sentence


def test_the_front_goes_from_the_cheapest_plan_to_float(build, study) -> None:
    found, trials = search(study(build(chain())), Limits(min_sqnr=36))
    kept = [set(point.kept_float) for point in found.front]
    assert kept[0] <= {f"relu{LAYERS - 1}", "flat"}
    assert kept[-1] >= set(everywhere(trials).nodes)
    assert all(one < other for one, other in pairwise(kept))


def test_rungs_are_optima() -> None:
    """A layer goes back in the order of its noise per cost."""
    options = CountOptions({"a": 1.0, "b": 2.0, "c": 1.0}, INT8)
    rungs = ladder(options, {INT8: {"a": 0.1, "b": 0.1, "c": 0.01}})
    assert [set(rung) for rung in rungs] == [{"a", "b", "c"}, {"b", "c"}, {"c"}, set()]


# The journal.


def test_what_was_tried_is_remembered(build, study, remembered, no_sessions, tmp_path) -> None:
    first = study(build(chain()))
    expected = search_plan(
        trials := first.trials(Limits(min_sqnr=38), tmp_path / "j"),
        everywhere(trials),
        noise := remembered(first.noise),
    )
    again = study(build(chain()))
    trials = again.trials(Limits(min_sqnr=38), tmp_path / "j")
    again.evaluator.floating  # noqa: B018 - runs the float model, which the search asks nothing of
    no_sessions()
    assert search_plan(trials, everywhere(trials), noise) == expected
