"""Latency: the arithmetic on made-up samples, and the order in which models are run."""

from __future__ import annotations

from itertools import pairwise

import pytest

from onnxq.runtime import Latency, measure_latency
from onnxq.runtime.latency import LEAST_ROUNDS, WARM_UP


def latency(*samples: tuple[float, ...]) -> Latency:
    return Latency((0.0,) * len(samples), len(samples[0]), samples)


def test_ratio_is_the_median_of_the_rounds() -> None:
    """One slow round moves neither the ratio nor, as both models meet it, the spread."""
    found = latency((2.0, 200.0, 6.0), (1.0, 100.0, 2.0))
    assert found.ratio(0, 1) == 2.0
    assert found.ratio(1, 0) == 0.5


def test_ratio_pairs_the_rounds() -> None:
    # the medians, 3 and 2, would say 1.5
    assert latency((1.0, 3.0, 9.0), (1.0, 2.0, 3.0)).ratio(0, 1) == 1.5
    assert latency((1.0, 3.0, 9.0), (3.0, 2.0, 1.0)).ratio(0, 1) == 1.5
    assert latency((3.0, 3.0, 9.0), (1.0, 2.0, 3.0)).ratio(0, 1) == 3.0


def test_spread_is_half_the_quartile_distance() -> None:
    ratios = (1.0, 2.0, 3.0, 4.0, 5.0)
    found = latency(ratios, (1.0,) * 5)
    assert found.ratio(0, 1) == 3.0
    assert found.spread(0, 1) == pytest.approx((4 - 2) / 2 / 3, rel=1e-12)
    assert latency((2.0,) * 9, (1.0,) * 9).spread(0, 1) == 0


class Recorder:
    """Stands in for a session, and writes down that it was run."""

    def __init__(self, name: str, log: list[str]) -> None:
        self._name, self._log = name, log

    def run(self, _feed: object) -> None:
        self._log.append(self._name)


def clock(monkeypatch: pytest.MonkeyPatch, tick: float) -> None:
    """A clock that moves on by so many seconds at every look."""
    ticks = iter(range(1_000_000))
    monkeypatch.setattr("onnxq.runtime.latency.time.perf_counter", lambda: next(ticks) * tick)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No run is short enough to be repeated, or for caches to matter."""
    clock(monkeypatch, 0.1)
    return []


def test_caches_are_filled_before_a_short_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the first and the last model, which run twice in a row, would seem faster."""
    clock(monkeypatch, 0.01)
    log: list[str] = []
    measure_latency([Recorder(name, log) for name in "abc"], {}, seconds=0)
    measured = log[3 * WARM_UP + 3 :]
    assert len(measured) == 2 * 3 * LEAST_ROUNDS
    assert measured[::2] == measured[1::2]


def test_models_take_turns(log: list[str]) -> None:
    sessions = [Recorder(name, log) for name in "abc"]
    found = measure_latency(sessions, {}, seconds=0)
    assert found.rounds == LEAST_ROUNDS
    assert all(len(times) == LEAST_ROUNDS for times in found.samples)
    assert found.ms == pytest.approx((100.0, 100.0, 100.0))
    measured = log[3 * WARM_UP + 3 :]
    rounds = ["".join(measured[at : at + 3]) for at in range(0, len(measured), 3)]
    # every second round runs backwards, so that no model always follows the same one
    assert set(rounds) == {"abc", "cba"}
    assert all(one != other for one, other in pairwise(rounds))


def test_more_time_more_rounds(log: list[str]) -> None:
    sessions = [Recorder(name, log) for name in "ab"]
    assert measure_latency(sessions, {}, seconds=20).rounds > LEAST_ROUNDS
