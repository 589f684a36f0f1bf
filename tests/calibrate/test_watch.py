"""``Watch``: a tensor's observer and exact ends; a user's observer is guarded."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onnxq.calibrate import HistogramObserver, MinMaxObserver, Tap
from onnxq.calibrate.watch import Watch
from onnxq.errors import DataError, UsageError
from onnxq.types import Grid, TensorRange


def tap(*values: float, first: int = 0) -> Tap:
    ends = np.array(values, np.float32)
    return Tap("data", first, ends, ends)


class Mine:
    """A user's: twice the largest magnitude."""

    def __init__(self) -> None:
        self.largest = 0.0

    def observe(self, tap) -> None:
        self.largest = max(self.largest, float(np.abs(tap.lows).max()))

    def merge(self, other) -> None:
        self.largest = max(self.largest, other.largest)

    def range(self, grid):
        return -2 * self.largest, 2 * self.largest


class Derived(HistogramObserver):
    """A user's, derived from one of onnxq's, that forgets to call it."""

    def observe(self, tap) -> None:
        pass

    def range(self, grid):
        return 1 / 0, 1.0


def test_nothing_seen_is_no_range() -> None:
    for factory in (MinMaxObserver, Mine):
        assert Watch(factory).range(Grid()) is None


def test_nothing_but_masks() -> None:
    watch = Watch(MinMaxObserver)
    watch.finite = False
    assert watch.range(Grid()) == TensorRange(0, 0, 0, 0, finite=False)


@pytest.mark.parametrize(
    ("factory", "lo", "hi"), [(MinMaxObserver, -3, 2), (Mine, -6, 6)], ids=["own", "mine"]
)
def test_ends_are_exact_beside_any_observer(factory, lo, hi) -> None:
    watch = Watch(factory)
    watch.observe(tap(-3, 2))
    assert watch.range(Grid()) == TensorRange(lo, hi, -3, 2)


@pytest.mark.parametrize("factory", [MinMaxObserver, HistogramObserver, Mine])
def test_merging_is_seeing_both(factory) -> None:
    one, other, both = Watch(factory), Watch(factory), Watch(factory)
    other.finite = both.finite = False
    for watch, values in ((one, (1, 2)), (other, (-5, 0)), (both, (1, 2)), (both, (-5, 0))):
        watch.observe(tap(*values))
    one.merge(other)
    assert one.range(Grid()) == both.range(Grid())
    assert not one.finite
    assert other.ends.max == 0  # what was merged stays as it is


@pytest.mark.parametrize("factory", [MinMaxObserver, HistogramObserver, Mine, Derived])
def test_a_state_comes_back(factory) -> None:
    watch = Watch(factory)
    watch.observe(tap(-3, 2))
    watch.finite = False
    again = Watch.of(watch.state(), factory)
    assert again.ends.ends == (-3, 2)
    assert not again.finite
    again.observe(tap(9))
    assert watch.ends.max == 2  # the state is a copy


@pytest.mark.parametrize("factory", [MinMaxObserver, Mine])
@pytest.mark.parametrize(
    "change",
    [{"finite": "yes"}, {"finite": 1}, {"finite": None}, {"more": 1}, {"observer": 3},
     {"observer": {}}, {"ends": []}],
)  # fmt: skip
def test_a_wrong_state_is_refused(factory, change) -> None:
    with pytest.raises(DataError):
        Watch.of(Watch(factory).state() | change, factory)


def test_a_state_without_ends_is_refused() -> None:
    state = Watch(Mine).state()
    del state["ends"]
    with pytest.raises(DataError):
        Watch.of(state, Mine)


def test_a_state_of_another_observer_is_refused() -> None:
    with pytest.raises(DataError):
        Watch.of(Watch(MinMaxObserver).state(), HistogramObserver)


def failing(method: str):
    def fail(self, *args):
        raise KeyError("oh")

    return type("Failing", (Mine,), {method: fail})


@pytest.mark.parametrize("method", ["observe", "merge", "range"])
def test_an_error_of_a_users_observer_is_one_line(method) -> None:
    watch = Watch(failing(method))
    with pytest.raises(DataError, match=r"observer Failing failed: KeyError: 'oh'") as caught:
        watch.observe(tap(1))
        watch.merge(watch)
        watch.range(Grid())
    assert "\n" not in str(caught.value)


def test_a_class_derived_from_onnxqs_is_a_users() -> None:
    watch = Watch(Derived)
    watch.observe(tap(-3, 2))
    assert watch.ends.ends == (-3, 2)
    with pytest.raises(DataError, match="observer Derived failed: ZeroDivisionError"):
        watch.range(Grid())


@pytest.mark.parametrize(
    "returned",
    [(1, 0), (0, math.inf), (-math.inf, 0), (math.nan, 1), (0, math.nan), None, (1,), (1, 2, 3),
     ("a", "b"), 3],
)  # fmt: skip
def test_what_is_no_range_is_refused(returned) -> None:
    kind = type("Odd", (Mine,), {"range": lambda self, grid: returned})
    watch = Watch(kind)
    watch.observe(tap(1))
    with pytest.raises(DataError, match="observer Odd"):
        watch.range(Grid())


def test_attributes_that_come_late_are_refused_before_anything_is_saved() -> None:
    class Late(Mine):
        def observe(self, tap) -> None:
            super().observe(tap)
            self.seen = True

    watch = Watch(Late)
    watch.observe(tap(1.0))
    with pytest.raises(UsageError, match=r"observer Late gained or lost .* set all of them in __i"):
        watch.state()
