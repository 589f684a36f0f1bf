"""Searches: few evaluations, the limits kept, and what the recipe pins left alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from scipy.stats import entropy

from onnxq.data import Batch
from onnxq.graph import Editor, Model, load
from onnxq.plan import LayerRule, Recipe
from onnxq.runtime import Session, prepare
from onnxq.sensitivity import Evaluator, fastest
from onnxq.sensitivity.fastest import Fastest, find_fastest
from onnxq.sensitivity.journal import Journal
from onnxq.sensitivity.ladder import ladder
from onnxq.sensitivity.limits import Limits
from onnxq.sensitivity.maker import Maker, key_of
from onnxq.sensitivity.options import CountOptions
from onnxq.sensitivity.search import Found, Trials, search_plan
from onnxq.sensitivity.storage import stored, with_storage
from onnxq.types import Precision
from onnxq.verify import MetricChoice

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


def trials_of(found, limits: Limits, journal: Path | None = None) -> Trials:
    return Trials(Maker(found.model, found.subject), found.evaluator, limits, Journal(journal, ""))


def screened(found) -> Callable[[Precision, Collection[str]], Mapping[str, float]]:
    """The noise of single layers, as the screen measures it."""

    def of(precision: Precision, names: Collection[str]) -> dict[str, float]:
        report = found.analyze(precision, method="screen", rest=False, layers=names)
        return {layer.name: 10 ** (-layer.only.sqnr_db / 10) for layer in report.layers}

    return of


def unasked(_precision: Precision, _names: Collection[str]) -> dict[str, float]:
    raise AssertionError("the noise of single layers was asked for")


def everywhere(trials: Trials) -> CountOptions:
    """Int8 wherever it can be, as ``--objective int8-everywhere`` has it."""
    names = set(trials.maker.whole(INT8).named(INT8)) - trials.maker.pins
    return CountOptions(dict.fromkeys(sorted(names), 1.0), INT8)


def search(found, limits: Limits) -> tuple[Found, Trials]:
    trials = trials_of(found, limits)
    return search_plan(trials, everywhere(trials), screened(found)), trials


def kept_float(found: Found, trials: Trials) -> set[str]:
    """Layers with weights that int8 everywhere would have in int8."""
    whole = trials.maker.whole(INT8).named(INT8)
    view, plan = trials.maker.view, found.plan.precision()
    return {n for n in whole if plan[n] is FLOAT and any(map(view.is_constant, node_of(view, n)))}


def node_of(view, name: str) -> tuple[str, ...]:
    return view.by_name[name].inputs


def decibels(found, trials: Trials, assignment) -> float:
    """SQNR of an assignment, computed from nothing but outputs."""
    model = trials.maker.build(trials.plan(assignment))
    signal = error = 0.0
    for batch, expected in zip(found.evaluator.batches, found.evaluator.expected, strict=True):
        made = Session(model).run(batch.feed)
        for name, values in expected.items():
            signal += float((values.astype(np.float64) ** 2).sum())
            error += float(((values.astype(np.float64) - made[name]) ** 2).sum())
    return 10 * math.log10(signal / error)


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
    assert decibels(study_of, trials, found.assignment) >= 25
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
    assert decibels(study_of, trials, found.assignment) >= 30
    assert found.attempts[0].loss.sqnr_db < 25
    assert found.evaluations <= 4
    (reason,) = (n.reason for n in found.plan.nodes if n.name == layer)
    assert "int8 of this layer alone leaves 2" in reason.sentence  # 20.9 dB


# How a search goes.


def test_the_first_plan_within_the_limits_is_taken(build, study) -> None:
    """Nothing else is measured, neither other plans nor the noise of layers."""
    trials = trials_of(study(build(chain())), Limits(min_sqnr=10))
    found = search_plan(trials, everywhere(trials), unasked)
    assert found.within
    assert found.evaluations == 1
    assert found.front == ()
    assert key_of(found.plan) == key_of(trials.maker.whole(INT8))


def test_a_given_plan_is_tried_first(build, study) -> None:
    trials = trials_of(study(build(chain())), Limits(min_sqnr=10))
    given = {"fc": INT8}
    found = search_plan(trials, everywhere(trials), unasked, [{"conv0": INT8}, given])
    assert found.assignment == {"conv0": INT8}
    assert found.evaluations == 1


@pytest.mark.parametrize("db", [30, 33, 36, 39, 42, 45, 50])
def test_limits_are_kept_with_few_evaluations(build, study, db) -> None:
    """Steps that double and then bisection: twice the logarithm of the rungs, and the first plan.

    Every layer that goes back to integers is one evaluation, of at most eight.
    """
    study_of = study(build(chain()))
    found, trials = search(study_of, Limits(min_sqnr=db))
    steps = [attempt for attempt in found.attempts if attempt.name.startswith("step")]
    assert len(steps) <= 2 * math.log2(len(found.front)) + 1
    assert found.evaluations <= len(steps) + 9
    assert found.within
    assert found.plan.count(INT8) > 0
    assert decibels(study_of, trials, found.assignment) >= db - 1e-6
    (chosen,) = (a for a in found.attempts if a.key == key_of(found.plan))
    assert chosen.within
    # of all that was tried and is within, it is the cheapest
    assert chosen.cost == min(a.cost for a in found.attempts if a.within)


def test_no_layer_can_be_given_back_that_was_tried(build, study) -> None:
    """What was given back is in the plan; a rung alone would have had more layers in float."""
    study_of = study(build(chain()))
    gained = 0
    for db in range(30, 50, 2):
        found, trials = search(study_of, Limits(min_sqnr=db))
        rungs = [a for a in found.attempts if a.within and a.name.startswith("step")]
        if rungs and min(a.cost for a in rungs) > everywhere(trials).cost(found.assignment):
            gained += 1
            names = [a.name for a in found.attempts if a.key == key_of(found.plan)]
            assert names == ["layers given back"]
    assert gained > 0


def test_where_nothing_is_within_the_least_lossy_plan_comes_back(build, study) -> None:
    found, trials = search(study(build(chain())), Limits(min_sqnr=150))
    assert not found.within
    assert found.plan.count(INT8) > 0
    tried = {a.key: a.loss.sqnr_db for a in found.attempts}
    assert tried[key_of(found.plan)] == max(tried.values())
    assert all(a.nodes != {"float": len(found.plan.nodes)} for a in found.attempts)
    assert not any(a.within for a in found.attempts)


def test_the_float_model_is_no_answer(build, study) -> None:
    trials = trials_of(study(build(chain())), Limits(min_sqnr=150))
    attempt = trials.attempt("float", {})
    assert attempt.loss.sqnr_db == 200
    assert not attempt.within


def test_pins_of_the_recipe_stay(build, study) -> None:
    """What is kept float, and what has 16 bits, is so in every plan that is tried."""
    rule = LayerRule(name="conv1", precision="int16")
    recipe = Recipe(keep_float=("conv3",), layers=(rule,))
    study_of = study(build(f'<ir_version: 10, opset_import: ["" : 21]>\n{chain()}'), recipe=recipe)
    trials = trials_of(study_of, Limits(min_sqnr=38))
    assert trials.maker.pins == {"conv1", "conv3"}
    planned = []
    build_one = Maker.build

    class Watched(Maker):
        def build(self, plan):
            planned.append(plan.precision())
            return build_one(self, plan)

    trials = replace(trials, maker=Watched(study_of.model, study_of.subject))
    found = search_plan(trials, everywhere(trials), screened(study_of))
    assert len(planned) > 2
    for precisions in (*planned, found.plan.precision()):
        assert precisions["conv3"] is FLOAT
        assert precisions["conv1"] is Precision.INT16
    told = {n.name: n.reason for n in found.plan.nodes}
    assert "recipe" in told["conv3"].sentence


def test_reasons_are_told(build, study) -> None:
    """Layers that went back say what int8 costs; others keep the reason that they always have."""
    text = """g (float[N,8,6,6] x) => (float[N,8,6,6] y)
      <float[8,8,3,3] v = seeded, float[8,8,3,3] w = seeded> {
        [a] p = Conv <pads = [1,1,1,1]> (x, v) [b] q = Conv <pads = [1,1,1,1]> (p, w)
        [odd] s = Erf (q) [moves] y = Transpose <perm = [0,1,3,2]> (s) }"""
    study_of = study(build(text))
    noise = screened(study_of)(INT8, ("a", "b"))
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
    assert all(one < other for one, other in zip(kept, kept[1:], strict=False))


def test_rungs_are_optima() -> None:
    """A layer goes back in the order of its noise per cost."""
    options = CountOptions({"a": 1.0, "b": 2.0, "c": 1.0}, INT8)
    rungs = ladder(options, {INT8: {"a": 0.1, "b": 0.1, "c": 0.01}})
    assert [set(rung) for rung in rungs] == [{"a", "b", "c"}, {"b", "c"}, {"c"}, set()]


# The journal.


def test_what_was_tried_is_remembered(build, study, tmp_path, monkeypatch) -> None:
    first = study(build(chain()))
    expected = search_plan(
        trials := trials_of(first, Limits(min_sqnr=38), tmp_path / "j"),
        everywhere(trials),
        noise := remembered(screened(first)),
    )
    again = study(build(chain()))
    trials = trials_of(again, Limits(min_sqnr=38), tmp_path / "j")
    again.evaluator.floating  # noqa: B018 - runs the float model, which the search asks nothing of
    refuse_sessions(monkeypatch)
    assert search_plan(trials, everywhere(trials), noise) == expected


def remembered(noise_of):
    known = {}

    def of(precision, names):
        if precision not in known:
            known[precision] = noise_of(precision, names)
        return known[precision]

    return of


def refuse_sessions(monkeypatch) -> None:
    def refuse(*_args, **_options):
        raise AssertionError("a session was opened")

    monkeypatch.setattr(ort, "InferenceSession", refuse)


# The fastest plan.


@pytest.fixture(scope="module")
def digits(study, noise):
    model = prepare(load(MODELS / "digits_cnn.onnx"))
    return study(model, noise(model, samples=8))


def hunt(found, journal: Path | None = None, limits: Limits | None = None, **options) -> Fastest:
    trials = trials_of(found, limits or Limits(min_sqnr=20), journal)
    feed = found.evaluator.batches[0].feed
    precisions = (INT8, Precision.INT8_DYNAMIC)
    return find_fastest(trials, feed, screened(found), precisions, seconds=0.2, **options)


def test_the_fastest_plan_is_within_and_was_timed(digits) -> None:
    found = hunt(digits)
    assert found.found.within
    assert found.time is not None
    attempts = {a.key: a for a in found.found.attempts}
    chosen = attempts[key_of(found.found.plan)]
    assert chosen.within
    assert chosen.loss.sqnr_db >= 20
    timed = {key: time for key, time in found.times.items() if key in attempts}
    assert len(timed) >= 2
    for time in timed.values():
        assert time.ms > 0
        assert time.ratio > 0
        assert time.noise >= 0
    # nothing that is within the limits and was timed is faster by more than what is called equal
    rivals = [found.times[a.key].ratio for a in attempts.values() if a.within and a.key in timed]
    assert found.time.ratio >= max(rivals) * (1 - 2 * fastest._SAME)  # noqa: SLF001
    assert "all int8" in {a.name for a in attempts.values()}


def test_every_node_has_its_times(digits) -> None:
    layers = hunt(digits, storage=False).layers
    view = digits.model.view()
    heavy = {n.name for n in view.nodes if n.op in ("Conv", "Gemm")}
    assert heavy <= layers.floating.keys()
    assert heavy <= layers.quantized[INT8].keys()
    assert all(spent >= 0 for spent in layers.floating.values())
    feed = digits.evaluator.batches[0].feed
    assert layers.elements["image"] == feed["image"].size
    assert layers.elements["/Relu_output_0"] == 32 * feed["image"].size


def test_the_same_hunt_measures_nothing(digits, tmp_path, monkeypatch) -> None:
    limits = Limits(min_sqnr=38)  # int8 everywhere is not within: the noise is asked for
    noise = remembered(screened(digits))
    monkeypatch.setattr(f"{__name__}.screened", lambda _: noise)
    expected = hunt(digits, tmp_path / "j", limits)
    content = (tmp_path / "j").read_bytes()
    digits.evaluator.floating  # noqa: B018 - its answers are kept

    def refuse(*_args, **_options):
        raise AssertionError("something was measured")

    for name in ("race", "measure_times"):
        monkeypatch.setattr(fastest, name, refuse)
    refuse_sessions(monkeypatch)
    assert hunt(digits, tmp_path / "j", limits) == expected
    assert (tmp_path / "j").read_bytes() == content


def test_a_hunt_without_an_answer_says_so(digits) -> None:
    found = hunt(digits, limits=Limits(min_sqnr=150), storage=False)
    assert not found.found.within
    assert not found.found.plan.empty
    tried = {a.key: a.loss.sqnr_db for a in found.found.attempts if set(a.nodes) != {"float"}}
    assert tried[key_of(found.found.plan)] == max(tried.values())


# Weights of layers that stay float.


def test_layers_that_stay_float_store_int8(digits) -> None:
    trials = trials_of(digits, Limits(min_sqnr=30))
    given = {"/conv2/Conv": INT8, "/Relu_1": INT8}
    found = with_storage(trials, given, screened(digits), "stored")
    heavy = {n.name for n in digits.model.view().nodes if n.op in ("Conv", "Gemm")}
    assert {n: p for n, p in found.items() if n in given} == given
    extra = {n for n in found if n not in given}
    assert extra == heavy - given.keys()
    assert {found[n] for n in extra} == {Precision.INT8_WEIGHTS}
    assert trials.attempt("", found).within


def test_storage_keeps_the_limits(digits) -> None:
    """Between what all weights lose and what few lose, the noisier half stays float."""
    trials = trials_of(digits, Limits())
    heavy = {n.name for n in digits.model.view().nodes if n.op in ("Conv", "Gemm")}
    full = trials.attempt("", dict.fromkeys(heavy, Precision.INT8_WEIGHTS)).loss.sqnr_db
    trials = trials_of(digits, Limits(min_sqnr=full + 1))
    found = with_storage(trials, {}, screened(digits), "stored")
    assert 0 < len(found) < len(heavy)
    assert trials.attempt("", found).within
    noise = screened(digits)(Precision.INT8_WEIGHTS, heavy)
    assert max(noise[n] for n in found) < min(noise[n] for n in heavy - found.keys())
    none = trials_of(digits, Limits(min_sqnr=150))
    assert with_storage(none, {}, screened(digits), "stored") == {}


def test_a_plan_outside_the_limits_gets_no_storage(digits) -> None:
    trials = trials_of(digits, Limits(min_sqnr=150))
    given = {"/conv2/Conv": INT8}
    assert with_storage(trials, given, unasked, "stored") == given


def test_what_was_found_with_storage(digits) -> None:
    trials = trials_of(digits, Limits(min_sqnr=30))
    plain = search_plan(trials, CountOptions({"/fc1/Gemm": 1.0}, INT8), unasked)
    found = stored(trials, plain, unasked)
    assert found.plan.count(Precision.INT8_WEIGHTS) == 4
    assert found.plan.count(INT8) == plain.plan.count(INT8) == 1
    assert found.evaluations == plain.evaluations + 1
    assert found.within


# The evaluator.


def classifier(build, scores: str = "") -> Model:
    softmax = f" [probabilities] y = Softmax ({scores})" if scores else ""
    return build(f"""g (float[N,16] x) => (float[N,5] y) <float[16,5] w = seeded> {{
      [fc] {scores or "y"} = MatMul (x, w){softmax} }}""")


@pytest.mark.parametrize("scores", ["", "s"], ids=["logits", "probabilities"])
def test_losses_are_what_independent_formulas_say(build, noise, scores) -> None:
    model = classifier(build, scores)
    batches = [replace(b, labels=np.arange(b.count) % 5) for b in noise(model, samples=6)]
    evaluator = Evaluator(model, batches)
    rng = np.random.RandomState(1)
    expected = np.concatenate([outputs["y"] for outputs in evaluator.expected]).astype(np.float64)
    made = []
    for outputs in evaluator.expected:
        shaken = outputs["y"] * rng.uniform(0.5, 1.5, outputs["y"].shape).astype(np.float32)
        made.append({"y": shaken / shaken.sum(1, keepdims=True) if scores else shaken})
    found = np.concatenate([outputs["y"] for outputs in made]).astype(np.float64)
    loss = evaluator.judge(made)

    def probabilities(values: np.ndarray) -> np.ndarray:
        return values if scores else np.exp(values) / np.exp(values).sum(1, keepdims=True)

    # float32 probabilities add up to 1 within 1e-7, which scipy divides by
    divergence = entropy(probabilities(expected), probabilities(found), axis=1).mean()
    assert loss.kl == pytest.approx(divergence, rel=1e-5)
    ratio = (expected**2).sum() / ((expected - found) ** 2).sum()
    assert loss.sqnr_db == pytest.approx(10 * math.log10(ratio), abs=1e-6)
    labels = np.concatenate([batch.labels for batch in batches])
    assert loss.agreement == (expected.argmax(1) == found.argmax(1)).mean()
    assert loss.metric == (found.argmax(1) == labels).mean()
    assert evaluator.float_metric() == (expected.argmax(1) == labels).mean()
    assert evaluator.floating.kl == 0
    assert evaluator.floating.sqnr_db == 200


def test_a_metric_of_ones_own(build, noise) -> None:
    model = classifier(build)
    batches = [replace(batch, labels=np.zeros(batch.count)) for batch in noise(model)]
    choice = MetricChoice("mean", lambda outputs, labels: float(outputs["y"].mean()))
    evaluator = Evaluator(model, batches, metric=choice)
    values = np.concatenate([batch.feed["x"] for batch in batches]) @ model.view().constant("w")
    assert evaluator.float_metric() == pytest.approx(values.mean(), rel=1e-5)
    assert evaluator.metric_name == "mean"


def test_states_are_fed_back(build, noise) -> None:
    """A running sum: its state is the sum of all steps before, from zero on."""
    model = build("""g (float[1,4] x, float[1,4] h) => (float[1,4] y, float[1,4] n) {
      [sum] n = Add (x, h) [out] y = Identity (n) }""")
    batches = [
        Batch({"x": b.feed["x"]}, None, 1, b.numbers[:1])
        for b in noise(model, batches=5, samples=1)
    ]
    evaluator = Evaluator(model, batches, state={"n": "h"})
    steps = np.stack([batch.feed["x"] for batch in batches])
    for found, sums in zip(evaluator.expected, np.cumsum(steps, axis=0), strict=True):
        np.testing.assert_allclose(found["y"], sums, rtol=1e-6)
    assert evaluator.stateful
    assert evaluator.loss(model).sqnr_db == 200
