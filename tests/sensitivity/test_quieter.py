"""A quieter plan for whoever set no budget: taken where it is much quieter and little slower."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from msgspec.structs import replace as with_fields

from onnxq.graph import load
from onnxq.plan import Budgets
from onnxq.runtime import prepare
from onnxq.sensitivity import fastest, quieter
from onnxq.sensitivity.costs import LayerTimes
from onnxq.sensitivity.fastest import find_fastest
from onnxq.sensitivity.limits import Limits
from onnxq.sensitivity.options import LatencyOptions
from onnxq.sensitivity.quieter import find_quieter, wants_quiet
from onnxq.sensitivity.race import Time
from onnxq.types import Precision

MODELS = Path(__file__).parents[2] / "models"
INT8, FLOAT = Precision.INT8, Precision.FLOAT
USUAL = Limits(min_agreement=0.5, min_sqnr=5, usual=True)
# Microseconds of layers in float and in int8: only the first two gain little.
SPENT = {
    "/conv1/Conv": (30, 20), "/conv2/Conv": (110, 100), "/conv3/Conv": (600, 100),
    "/fc1/Gemm": (300, 50), "/fc2/Gemm": (100, 20),
}  # fmt: skip
IMAGE = """g (float[N,8,6,6] x) => (float[N,8,6,6] y) <float[8,8,3,3] w = seeded>
    { [conv] y = Conv <pads = [1,1,1,1]> (x, w) }"""
PLANTED = {"/conv1/Conv", "/conv2/Conv"}


@pytest.fixture(scope="module")
def scene(study, noise, plant):
    """Two layers make nearly all of the noise: one channel between them is 30 times the others."""
    model = prepare(load(MODELS / "digits_cnn.onnx"))
    made = plant(model, "/conv1/Conv", "/conv2/Conv", channel=3, factor=30.0)
    return study(made, noise(made, samples=8))


def times_of(scene, spent) -> LayerTimes:
    able = {node.name: (1, 0) for node in scene.census.nodes if node.quantizable}
    both = {name: (float(f), float(q)) for name, (f, q) in (able | spent).items()}
    return LayerTimes(
        {name: f for name, (f, _) in both.items()}, {INT8: {n: q for n, (_, q) in both.items()}}, {}
    )


def found_in(scene, limits=USUAL, spent=SPENT, budgets=None):
    if budgets is not None:
        scene = replace(scene, recipe=with_fields(scene.recipe, budgets=budgets))
    trials = scene.trials(limits)
    times = times_of(scene, spent)
    options = LatencyOptions(trials.maker, times, 1.0)
    cheapest = options.assign(0.0, {})
    return trials, cheapest, find_quieter(trials, options, cheapest, scene.noise)


def test_the_layers_that_make_the_noise_go_to_float(scene) -> None:
    trials, cheapest, found = found_in(scene)
    assert cheapest.keys() >= SPENT.keys()
    assert {name for name in SPENT if name not in found.assignment} == PLANTED
    gained = scene.decibels(trials, found.assignment) - scene.decibels(trials, cheapest)
    assert gained >= quieter.HALF_DB
    assert found.why.keys() == cheapest.keys() - found.assignment.keys()
    for name in PLANTED:
        assert found.why[name].startswith("int8 of this layer alone leaves ")
        assert found.why[name].endswith(" dB, and saves little")
    assert [attempt.name for attempt in trials.attempts.values()] == ["plan", "quieter plan"]


def test_a_plan_that_costs_more_than_a_twelfth_is_not_taken(scene) -> None:
    """Of 275 us in all 30 are more, and 20 are less."""
    assert pytest.approx(23.9, abs=0.1) == 275 / (1 - quieter.SLOWER) - 275
    for more, taken in ((30, False), (20, True)):
        spent = SPENT | {"/conv2/Conv": (100 + more - 10, 100)}
        assert (found_in(scene, spent=spent)[2] is not None) is taken


@pytest.mark.parametrize(
    ("limits", "budgets"),
    [
        (Limits(min_agreement=0.5), None),  # the user's
        (USUAL, Budgets(min_speedup=1.2)),
        (USUAL, Budgets(min_int8=0.5)),
    ],
)
def test_who_set_a_budget_gets_the_fastest(scene, limits, budgets) -> None:
    trials, _, found = found_in(scene, limits, budgets=budgets)
    assert found is None
    assert not wants_quiet(trials)


def test_who_gets_no_answers_gets_the_fastest(build, study) -> None:
    trials = study(build(IMAGE)).trials(Limits(min_sqnr=5, usual=True))
    assert trials.evaluator.floating.agreement is None
    assert not wants_quiet(trials)


def test_few_rungs_are_tried(scene, monkeypatch) -> None:
    """Where the model of noise is wrong, and no rung is as quiet as it says."""
    monkeypatch.setattr(quieter, "HALF_DB", 500.0)
    monkeypatch.setattr(quieter, "QUIET_DB", 500.0)
    monkeypatch.setattr(quieter, "SLOWER", 0.9)
    tried = []
    for most in (1, 2):
        monkeypatch.setattr(quieter, "_TRIALS", most)
        trials, _, found = found_in(scene)
        assert found is None
        tried.append([attempt.name for attempt in trials.attempts.values()])
    assert tried == [["plan", *["quieter plan"] * most] for most in (1, 2)]


def test_a_quiet_model_is_left_alone(scene, monkeypatch) -> None:
    trials, cheapest, _ = found_in(scene)
    db = scene.decibels(trials, cheapest)
    monkeypatch.setattr(quieter, "QUIET_DB", db - 0.1)

    def unasked(*_args):
        raise AssertionError("the noise of single layers was asked for")

    options = LatencyOptions(trials.maker, LayerTimes({}, {INT8: {}}, {}), 1.0)
    assert find_quieter(trials, options, cheapest, unasked) is None


def raced(scene, monkeypatch, slower: float, *, storage: bool, journal: Path | None = None):
    """A hunt with made-up times: what does not compute wholly on integers takes longer."""
    times = times_of(scene, SPENT)

    def made_up(_floating, models, _feed, **_options) -> dict[str, Time]:
        pairs = {
            key: [n.op for n in model.view().nodes].count("QuantizeLinear")
            for key, model in models.items()
        }
        most = max(pairs.values())
        return {
            key: Time(1.0, 2.0 * (1 if n == most else 1 - slower), 0.0) for key, n in pairs.items()
        }

    monkeypatch.setattr(fastest, "measure_times", lambda *_args, **_options: times)
    monkeypatch.setattr(fastest, "race", made_up)
    trials = scene.trials(USUAL, journal)
    feed = scene.evaluator.batches[0].feed
    return find_fastest(trials, feed, scene.noise, (INT8,), storage=storage)


@pytest.mark.parametrize(("slower", "taken"), [(0.0, True), (0.06, True), (0.1, False)])
def test_the_race_has_the_last_word(scene, monkeypatch, slower, taken) -> None:
    """What was measured of whole models decides: not what the quieter plan should take."""
    plan = raced(scene, monkeypatch, slower, storage=False).found.plan
    given_up = {name for name in SPENT if plan.precision()[name] is FLOAT}
    assert given_up == (PLANTED if taken else set())
    if taken:
        reasons = {n.name: n.reason.sentence for n in plan.nodes if n.reason is not None}
        assert all("saves little" in reasons[name] for name in PLANTED)


def test_storing_weights_leaves_a_quieter_plan_quiet(study, noise, plant, monkeypatch) -> None:
    """What layers make noise that went to float: stored as int8, their weights are as noisy."""
    model = prepare(load(MODELS / "digits_cnn.onnx"))
    made = plant(model, "/conv1/Conv", "/conv2/Conv", channel=3, factor=20.0)
    made = plant(made, "/conv2/Conv", "/conv3/Conv", channel=3, factor=7.0)
    both = study(made, noise(made, samples=8))
    plain = raced(both, monkeypatch, 0.0, storage=False).found
    stored = raced(both, monkeypatch, 0.0, storage=True).found
    noisiest = min(attempt.loss.sqnr_db for attempt in plain.attempts if attempt.within)
    for found in (plain, stored):
        db = both.decibels(both.trials(USUAL), found.assignment)
        assert db >= noisiest + quieter.HALF_DB
        assert found.plan.precision()["/conv1/Conv"] is not INT8


def test_the_same_hunt_measures_nothing(
    scene, remembered, no_sessions, monkeypatch, tmp_path
) -> None:
    """A quieter plan was found, and its noise, and its losses are known to the journal."""
    scene = replace(scene)
    object.__setattr__(scene, "noise", remembered(scene.noise))
    first = raced(scene, monkeypatch, 0.0, storage=True, journal=tmp_path / "j")
    content = (tmp_path / "j").read_bytes()
    assert "quieter plan" in {attempt.name for attempt in first.found.attempts}
    no_sessions()
    assert raced(scene, monkeypatch, 0.0, storage=True, journal=tmp_path / "j") == first
    assert (tmp_path / "j").read_bytes() == content
