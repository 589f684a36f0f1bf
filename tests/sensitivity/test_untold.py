"""The fastest plan on a provider that tells no times of nodes, with made-up times."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxq.graph import load
from onnxq.runtime import prepare
from onnxq.sensitivity import untold
from onnxq.sensitivity.limits import Limits
from onnxq.sensitivity.maker import key_of
from onnxq.sensitivity.options import CountOptions
from onnxq.sensitivity.race import Time
from onnxq.sensitivity.search import search_plan
from onnxq.sensitivity.untold import fastest_of
from onnxq.targets import Provider
from onnxq.types import Precision

MODELS = Path(__file__).parents[2] / "models"
INT8, WEIGHTS = Precision.INT8, Precision.INT8_WEIGHTS


@pytest.fixture(scope="module")
def digits(study, noise):
    model = prepare(load(MODELS / "digits_cnn.onnx"))
    return study(model, noise(model, samples=8))


@pytest.fixture
def race(digits, monkeypatch):
    """Run with made-up ratios of plans on integers and of stored weights alone."""

    def start(integers: float, stored: float, limits: Limits | None = None, **options):
        asked: list[Provider] = []

        def made_up(_floating, models, _feed, *, provider, **_options) -> dict[str, Time]:
            asked.append(provider)
            return {
                key: Time(1.0, stored if set(trials.attempts[key].nodes) <= {"float", WEIGHTS}
                          else integers, 0.0)
                for key in models
            }  # fmt: skip

        monkeypatch.setattr(untold, "race", made_up)
        trials = digits.trials(limits or Limits(min_sqnr=20))
        costs = dict.fromkeys(trials.maker.whole(INT8).named(INT8), 1.0)
        found = search_plan(trials, CountOptions(costs, INT8), digits.noise)
        feed = digits.evaluator.batches[0].feed
        made = fastest_of(trials, feed, found, provider=Provider("openvino"), **options)
        assert asked == [Provider("openvino")]
        return found, made

    return start


def test_what_is_faster_is_taken(race) -> None:
    found, made = race(3.0, 1.0)
    assert key_of(made.found.plan) == key_of(found.plan)
    assert made.found.plan.count(INT8)
    assert made.time.ratio == 3.0


def test_weights_alone_where_integers_are_slower(race) -> None:
    _, made = race(0.5, 1.0)
    assert made.found.within
    assert made.found.plan.count(WEIGHTS)
    assert not made.found.plan.count(INT8)
    assert made.time.ratio == 1.0
    assert {"int8 weights alone"} <= {attempt.name for attempt in made.found.attempts}


def test_not_where_the_precision_was_said(race) -> None:
    found, made = race(0.5, 1.0, storage=False)
    assert key_of(made.found.plan) == key_of(found.plan)


def test_nothing_within_stays_without(race) -> None:
    _, made = race(3.0, 1.0, Limits(min_sqnr=500))
    assert not made.found.within
