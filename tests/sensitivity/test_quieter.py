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
from onnxq.sensitivity.quieter import wants_quiet
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
PLANTED = {"/conv1/Conv", "/conv2/Conv"}


@pytest.fixture(scope="module")
def scene(study, noise, plant):
    """Two layers make nearly all of the noise: one channel between them is 30 times the others."""
    model = prepare(load(MODELS / "digits_cnn.onnx"))
    made = plant(model, "/conv1/Conv", "/conv2/Conv", channel=3, factor=30.0)
    return study(made, noise(made, samples=8))


def silent_too(scene):
    """The noise of layers; those that make none of their own are known to make none."""
    return lambda precision, names: dict.fromkeys(names, 0.0) | scene.noise(precision, names)


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
    return trials, cheapest, quieter.quieter(trials, options, cheapest, silent_too(scene))


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
        (Limits(min_sqnr=5, usual=True), None),  # no answers
        (USUAL, Budgets(min_speedup=1.2)),
        (USUAL, Budgets(min_int8=0.5)),
    ],
)
def test_who_set_a_budget_or_wants_no_answers_gets_the_fastest(scene, limits, budgets) -> None:
    trials, _, found = found_in(scene, limits, budgets=budgets)
    assert found is None
    assert not wants_quiet(trials)


def test_a_quiet_model_is_left_alone(scene, monkeypatch) -> None:
    trials, cheapest, _ = found_in(scene)
    db = scene.decibels(trials, cheapest)
    monkeypatch.setattr(quieter, "QUIET_DB", db - 0.1)

    def unasked(*_args):
        raise AssertionError("the noise of single layers was asked for")

    options = LatencyOptions(trials.maker, LayerTimes({}, {INT8: {}}, {}), 1.0)
    assert quieter.quieter(trials, options, cheapest, unasked) is None


@pytest.mark.parametrize(("slower", "taken"), [(0.0, True), (0.06, True), (0.1, False)])
def test_the_race_has_the_last_word(scene, monkeypatch, slower, taken) -> None:
    """What was measured of whole models decides: not what the quieter plan should take."""
    times = times_of(scene, SPENT)
    monkeypatch.setattr(fastest, "measure_times", lambda *_args, **_options: times)
    trials = scene.trials(USUAL)

    def made_up(_floating, models, _feed, **_options) -> dict[str, Time]:
        """The fewer layers compute on integers, the slower."""
        convs = {key: [n.op for n in model.view().nodes].count("QuantizeLinear")
                 for key, model in models.items()}  # fmt: skip
        most = max(convs.values())
        return {key: Time(1.0, 2.0 * (1 if n == most else 1 - slower), 0.0)
                for key, n in convs.items()}  # fmt: skip

    monkeypatch.setattr(fastest, "race", made_up)
    feed = scene.evaluator.batches[0].feed
    found = find_fastest(trials, feed, silent_too(scene), (INT8,), storage=False)
    plan = found.found.plan
    assert {name for name in SPENT if plan.precision()[name] is FLOAT} == (
        PLANTED if taken else set()
    )
    if taken:
        reasons = {n.name: n.reason.sentence for n in plan.nodes if n.reason is not None}
        assert all("saves little" in reasons[name] for name in PLANTED)
