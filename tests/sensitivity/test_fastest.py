"""The fastest plan inside the limits, with made-up and with measured times; stored weights."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest

from onnxq.graph import load
from onnxq.plan import Choice
from onnxq.runtime import Latency, prepare
from onnxq.sensitivity import fastest
from onnxq.sensitivity import race as race_module
from onnxq.sensitivity.costs import LayerTimes
from onnxq.sensitivity.fastest import Fastest, find_fastest
from onnxq.sensitivity.limits import Limits
from onnxq.sensitivity.maker import Maker, key_of
from onnxq.sensitivity.options import CountOptions
from onnxq.sensitivity.race import Time
from onnxq.sensitivity.search import search_plan
from onnxq.sensitivity.storage import stored, with_storage
from onnxq.types import Precision

MODELS = Path(__file__).parents[2] / "models"
INT8, FLOAT = Precision.INT8, Precision.FLOAT


def unasked(_precision: Precision, _names: Collection[str]) -> dict[str, float]:
    raise AssertionError("the noise of single layers was asked for")


@pytest.fixture(scope="module")
def digits(study, noise):
    model = prepare(load(MODELS / "digits_cnn.onnx"))
    return study(model, noise(model, samples=8))


def hunt(found, journal=None, limits=None, noise_of=None, **options) -> Fastest:
    trials = found.trials(limits or Limits(min_sqnr=20), journal)
    feed = found.evaluator.batches[0].feed
    precisions = (INT8, Precision.INT8_DYNAMIC)
    return find_fastest(trials, feed, noise_of or found.noise, precisions, seconds=0.2, **options)


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
    assert "all int8" in {a.name for a in attempts.values()}


@pytest.mark.parametrize("order", [1, -1])
def test_the_winner_of_the_last_race_is_taken(digits, monkeypatch, order) -> None:
    """Whichever that is: here the first or the last of all keys."""
    fields: list[list[str]] = []

    def made_up(_floating, models, _feed, **_options) -> dict[str, Time]:
        fields.append(sorted(models, reverse=order < 0))
        return {key: Time(1.0, 1.1 + place, 0.0) for place, key in enumerate(fields[-1])}

    monkeypatch.setattr(fastest, "race", made_up)
    found = hunt(digits)
    assert len(fields) == 2
    within = {attempt.key for attempt in found.found.attempts if attempt.within}
    assert len(fields[-1]) > 1
    assert key_of(found.found.plan) == [key for key in fields[-1] if key in within][-1]


def test_of_equals_the_one_with_more_integers_is_taken(digits, monkeypatch) -> None:
    def level(_floating, models, _feed, **_options) -> dict[str, Time]:
        return {key: Time(1.0, 1.5, 0.0) for key in models}

    monkeypatch.setattr(fastest, "race", level)
    plan = hunt(digits).found.plan.precision()
    heavy = {n.name for n in digits.model.view().nodes if n.op in ("Conv", "Gemm")}
    assert all(plan[name] is not FLOAT for name in heavy)


def test_a_race_drops_the_slow(digits, monkeypatch) -> None:
    """Three laps: who is far behind the best runs in the first one only; equals stay."""
    maker = Maker(digits.model, digits.subject)
    whole = maker.build(maker.whole(INT8))
    half = maker.build(maker.plan({"/fc2/Gemm": Choice(INT8)}))
    ms = {id(digits.model): 10.0, id(whole): 5.0, id(half): 8.0}
    laps: list[int] = []

    def made_up(models, _feed, **_options) -> Latency:
        laps.append(len(models) - 1)
        spent = tuple(ms[id(model)] for model in models)
        return Latency(spent, 9, tuple((one,) * 9 for one in spent))

    monkeypatch.setattr(race_module, "measure_models", made_up)
    feed = digits.evaluator.batches[0].feed
    models = {"half": half, "whole": whole, "again": whole}
    found = race_module.race(digits.model, models, feed)
    assert laps == [3] + [2] * (race_module._LAPS - 1)
    assert {name: (time.ms, time.ratio, time.noise) for name, time in found.items()} == {
        "half": (8.0, 1.25, 0.0), "whole": (5.0, 2.0, 0.0), "again": (5.0, 2.0, 0.0),
    }  # fmt: skip


def test_a_race_measures_every_model(digits) -> None:
    maker = Maker(digits.model, digits.subject)
    models = {"whole": maker.build(maker.whole(INT8)), "float": digits.model}
    feed = digits.evaluator.batches[0].feed
    found = race_module.race(digits.model, models, feed, seconds=0.05)
    assert found.keys() == models.keys()
    assert all(time.ms > 0 and time.ratio > 0 and time.noise >= 0 for time in found.values())
    assert race_module.race(digits.model, {}, feed) == {}


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


def test_the_same_hunt_measures_nothing(
    digits, remembered, no_sessions, tmp_path, monkeypatch
) -> None:
    limits = Limits(min_sqnr=38)  # int8 everywhere is not within: the noise is asked for
    noise = remembered(digits.noise)
    expected = hunt(digits, tmp_path / "j", limits, noise)
    content = (tmp_path / "j").read_bytes()
    digits.evaluator.floating  # noqa: B018 - its answers are kept

    def refuse(*_args, **_options):
        raise AssertionError("something was measured")

    for name in ("race", "measure_times"):
        monkeypatch.setattr(fastest, name, refuse)
    no_sessions()
    assert hunt(digits, tmp_path / "j", limits, noise) == expected
    assert (tmp_path / "j").read_bytes() == content


def test_a_hunt_without_an_answer_says_so(digits) -> None:
    found = hunt(digits, limits=Limits(min_sqnr=150), storage=False)
    assert not found.found.within
    assert not found.found.plan.empty
    tried = {a.key: a.loss.sqnr_db for a in found.found.attempts if set(a.nodes) != {"float"}}
    assert tried[key_of(found.found.plan)] == max(tried.values())


# Weights of layers that stay float.


def test_layers_that_stay_float_store_int8(digits) -> None:
    trials = digits.trials(Limits(min_sqnr=30))
    given = {"/conv2/Conv": INT8, "/Relu_1": INT8}
    found = with_storage(trials, given, "stored")
    heavy = {n.name for n in digits.model.view().nodes if n.op in ("Conv", "Gemm")}
    assert {n: p for n, p in found.items() if n in given} == given
    extra = {n for n in found if n not in given}
    assert extra == heavy - given.keys()
    assert {found[n] for n in extra} == {Precision.INT8_WEIGHTS}
    assert trials.attempt("", found).within


def test_storage_keeps_the_limits(digits) -> None:
    """Between what all weights lose and what few lose, some stay float: groups are cut in two."""
    trials = digits.trials(Limits())
    heavy = {n.name for n in digits.model.view().nodes if n.op in ("Conv", "Gemm")}
    full = trials.attempt("", dict.fromkeys(heavy, Precision.INT8_WEIGHTS)).loss.sqnr_db
    trials = digits.trials(Limits(min_sqnr=full + 1))
    found = with_storage(trials, {}, "stored")
    assert found.keys() < heavy
    assert len(found) >= len(heavy) // 2
    assert digits.decibels(trials, found) >= full + 1
    none = digits.trials(Limits(min_sqnr=150))
    assert with_storage(none, {}, "stored") == {}


def test_storage_doubles_the_noise_at_most_where_nobody_said_what_may_be_lost(digits) -> None:
    alone = [{n.name: Precision.INT8_WEIGHTS} for n in digits.model.view().nodes
             if n.op in ("Conv", "Gemm")]  # fmt: skip
    given = max(alone, key=lambda one: digits.decibels(digits.trials(Limits()), one))
    found, noise = {}, {}
    for usual in (False, True):
        trials = digits.trials(Limits(min_sqnr=20, usual=usual))
        plain = digits.decibels(trials, given)
        found[usual] = with_storage(trials, given, "stored")
        noise[usual] = plain - digits.decibels(trials, found[usual])
    assert noise[True] <= 3.02 < noise[False]
    assert given.keys() <= found[True].keys() < found[False].keys()


def test_a_plan_outside_the_limits_gets_no_storage(digits) -> None:
    trials = digits.trials(Limits(min_sqnr=150))
    given = {"/conv2/Conv": INT8}
    assert with_storage(trials, given, "stored") == given


def test_what_was_found_with_storage(digits) -> None:
    trials = digits.trials(Limits(min_sqnr=30))
    plain = search_plan(trials, CountOptions({"/conv2/Conv": 1.0, "/Relu_1": 1.0}, INT8), unasked)
    found = stored(trials, plain)
    assert found.plan.count(Precision.INT8_WEIGHTS) == 4
    assert found.plan.count(INT8) == plain.plan.count(INT8) == 2
    assert found.evaluations == plain.evaluations + 1
    assert found.within


def test_reasons_are_said_once_and_compare_what_differs(digits, monkeypatch) -> None:
    """Kernels of no time are told apart by nothing, and a reason is no part of another."""

    def level(_floating, models, _feed, **_options) -> dict[str, Time]:
        return {key: Time(1.0, 1.5, 0.0) for key in models}

    heavy = {n.name for n in digits.model.view().nodes if n.op in ("Conv", "Gemm")}
    able = [n.name for n in digits.census.nodes if n.quantizable]
    times = LayerTimes(
        {name: 1.0 if name in heavy else 0.0 for name in able},
        {INT8: {name: 99.0 if name in heavy else 0.0 for name in able}},
        {},
    )
    monkeypatch.setattr(fastest, "race", level)
    monkeypatch.setattr(fastest, "measure_times", lambda *_args, **_options: times)
    limits = Limits(min_sqnr=150)
    plan = hunt(digits, limits=limits, storage=False).found.plan
    said = {n.name: n.reason.sentence for n in plan.nodes if n.reason is not None}
    assert said
    assert all(sentence.count("stays float: ") == 1 for sentence in said.values())
    assert not any("takes 0 us here" in sentence for sentence in said.values())
