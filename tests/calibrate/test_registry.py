"""Observers by name, their options, and a user's own class."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest

from onnxq.calibrate.observers import (
    HistogramObserver,
    MinMaxObserver,
    MovingAverageObserver,
    PercentileObserver,
    Tap,
)
from onnxq.calibrate.registry import ENOUGH_SAMPLES, OBSERVERS, ObserverSpec, auto_observer
from onnxq.errors import DataError, UsageError
from onnxq.types import Grid

# The ten lines that a user writes: the mean of the samples' ends, a little wider.
WIDE = '''
class Wide:
    """Each sample's ends on average, times a factor."""

    def __init__(self, factor=1.0):
        self.factor, self.lo, self.hi, self.seen = factor, 0.0, 0.0, 0

    def observe(self, tap):
        self.lo, self.hi = self.lo + float(tap.lows.sum()), self.hi + float(tap.highs.sum())
        self.seen += len(tap.lows)

    def merge(self, other):
        self.lo, self.hi, self.seen = self.lo + other.lo, self.hi + other.hi, self.seen + other.seen

    def range(self, grid):
        return self.factor * self.lo / self.seen, self.factor * self.hi / self.seen
'''
BROKEN = """
class Fails:
    def __init__(self, size=3):
        raise RuntimeError(f"no room for {size}")

class Anything:
    def __init__(self, **options):
        self.options = options

    def observe(self, tap): ...
    def merge(self, other): ...
    def range(self, grid): ...

not_callable = 3
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "wide.py").write_text(WIDE)
    (tmp_path / "broken.py").write_text(BROKEN)
    return tmp_path


@pytest.mark.parametrize("name", OBSERVERS)
def test_every_name_makes_new_observers(name):
    make = ObserverSpec(name).factory()
    one, other = make(), make()
    assert type(one) is type(other) is OBSERVERS[name]
    assert one is not other


def test_options_reach_the_observer():
    observer = ObserverSpec("percentile", {"percentile": 99.5}).factory()()
    assert isinstance(observer, PercentileObserver)
    assert observer.percentile == 99.5
    observer = ObserverSpec("moving-average", {"momentum": 0, "warmup": 4}).factory()()
    assert isinstance(observer, MovingAverageObserver)
    assert (observer.momentum, observer.warmup) == (0, 4)


def test_a_minmax_observer_may_keep_a_histogram():
    spec = ObserverSpec("minmax", keep_histogram=True)
    assert type(spec.factory()()) is HistogramObserver
    assert type(ObserverSpec("minmax").factory()()) is MinMaxObserver
    kept = ObserverSpec("percentile", {"percentile": 99}, keep_histogram=True).factory()()
    assert type(kept) is PercentileObserver


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("percentle", "percentile"), ("min-max", "minmax"), ("movingaverage", "moving-average")],
)
def test_an_unknown_name_suggests_the_nearest(name, nearest):
    with pytest.raises(UsageError, match=rf"^unknown observer '{name}'; did you mean '{nearest}'"):
        ObserverSpec(name).factory()


def test_a_name_like_no_other_lists_all():
    with pytest.raises(UsageError) as caught:
        ObserverSpec("xyz").factory()
    for name in (*OBSERVERS, "module:Class"):
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options"),
    [("percentile", "percentile"), ("moving-average", "momentum, warmup"), ("sigma", "sigmas"),
     ("minmax", "none"), ("mse", "none"), ("entropy", "none")],
)  # fmt: skip
def test_an_unknown_option_lists_the_options(name, options):
    message = f"observer '{name}' has no option 'percent', its options: {options}"
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        ObserverSpec(name, {"percent": 99}).factory()


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        *[("percentile", "percentile", value) for value in (50, 101, -1, float("nan"))],
        *[("percentile", "percentile", value) for value in ("high", "99", None, [99], True)],
        *[("moving-average", "momentum", value) for value in (1, -0.5, "0.9", None)],
        *[("moving-average", "warmup", value) for value in (0, 2.5, "8", None, False)],
        *[("sigma", "sigmas", value) for value in (0, float("inf"), "6", {})],
    ],
)
def test_a_wrong_value_is_refused_before_any_data_is_read(name, option, value):
    with pytest.raises(UsageError, match=option.replace("warmup", "warm-?up")):
        ObserverSpec(name, {option: value}).factory()


@pytest.mark.parametrize("how", ["absolute", "relative", "module"])
def test_a_users_own_class(own, how, monkeypatch):
    if how == "module":
        monkeypatch.chdir(own)
        monkeypatch.delitem(sys.modules, "wide", raising=False)
    name = {"absolute": f"{own / 'wide.py'}:Wide", "relative": "wide.py:Wide",
            "module": "wide:Wide"}[how]  # fmt: skip
    spec = ObserverSpec(name, {"factor": 2.0})
    make = spec.factory(own)
    one, other = make(), make()
    one.observe(Tap("a", 0, np.float32([-1, -3]), np.float32([1, 5])))
    other.observe(Tap("a", 2, np.float32([-5]), np.float32([3])))
    one.merge(other)
    assert one.range(Grid()) == (-6.0, 6.0)
    sys.modules.pop("wide", None)


def test_options_of_a_users_class(own):
    message = r"observer 'wide.py:Wide' has no option 'size', its options: factor$"
    with pytest.raises(UsageError, match=message):
        ObserverSpec("wide.py:Wide", {"size": 1}).factory(own)
    anything = ObserverSpec("broken.py:Anything", {"size": 1, "of": "all kinds"}).factory(own)
    assert anything().options == {"size": 1, "of": "all kinds"}


def test_a_users_class_that_raises_is_named(own):
    message = (
        r"observer 'broken.py:Fails' cannot be made: RuntimeError: no room for 3 \(broken.py:4\)"
    )
    with pytest.raises(DataError, match=message):
        ObserverSpec("broken.py:Fails").factory(own)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.py:Wide", "missing.py: no such Python file"),
        ("no_such_module:Wide", "no_such_module cannot be imported"),
        ("wide.py:Widest", r"wide.py has no function 'Widest'.*Wide"),
        ("broken.py:not_callable", "has no function 'not_callable'"),
        ("builtins:max", r"observer 'builtins:max' (has no signature|cannot be made)"),
    ],
)
def test_what_cannot_be_imported_is_named(own, name, message):
    with pytest.raises(DataError, match=message):
        ObserverSpec(name).factory(own)


def test_auto_clips_nothing_of_few_samples():
    assert [auto_observer(n) for n in (1, ENOUGH_SAMPLES - 1)] == ["minmax", "minmax"]
    assert [auto_observer(n) for n in (ENOUGH_SAMPLES, 1000)] == ["mse", "mse"]


UNFIT = """
class Base:
    def observe(self, tap): ...
    def merge(self, other): ...
    def range(self, grid): ...

class NoMerge:
    observe = range = Base.observe

class Slots:
    __slots__ = ()
    observe = merge = range = Base.observe

class Circle(Base):
    def __init__(self):
        self.own = self

class Lock(Base):
    def __init__(self):
        self.lock = {1, 2}
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("NoMerge", "has no method 'merge'; it needs observe, merge and range"),
        ("Slots", "has __slots__"),
        ("Circle", "has an attribute that holds itself"),
        ("Lock", "Lock.lock is a set, which cannot be saved"),
    ],
)
def test_a_class_that_cannot_be_used_to_the_end_is_refused_at_once(tmp_path, name, message):
    (tmp_path / "unfit.py").write_text(UNFIT)
    with pytest.raises(UsageError, match=re.escape(message)):
        ObserverSpec(f"unfit.py:{name}").factory(tmp_path)


def test_a_file_is_imported_once_as_long_as_it_stays_as_it_is(tmp_path):
    file = tmp_path / "counted.py"
    text = f"with open({str(tmp_path / 'n')!r}, 'a') as log: log.write('x')\n{WIDE}"
    file.write_text(text)
    spec = ObserverSpec("counted.py:Wide")
    first, second = spec.factory(tmp_path)(), spec.factory(tmp_path)()
    assert type(first) is type(second)
    assert (tmp_path / "n").read_text() == "x"
    file.write_text(text + "\n# another\n")
    assert type(spec.factory(tmp_path)()) is not type(first)
    assert (tmp_path / "n").read_text() == "xx"
