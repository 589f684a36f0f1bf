"""The pass over the data: every tensor of every sample is seen, and how it is cut does not matter.

The models only compare and copy, so that no rounding depends on the batch.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from onnxq.calibrate import OBSERVERS, Setup, collect
from onnxq.calibrate.registry import ObserverSpec
from onnxq.data import open_data
from onnxq.errors import DataError
from onnxq.types import Grid

GRIDS = (Grid(), Grid(symmetric=True))
EACH_OBSERVER = pytest.mark.parametrize("observer", OBSERVERS)

# A row of t holds 10,240 values, more than a sample of it does.
NET = """g (float[N,128,80] x) => (float[N,10240] y)
    { [a] t = Relu (x) [b] y = Flatten (t) }"""
TAPS = ("x", "t", "y")


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def ranges(calibration) -> list:
    return [calibration.ranges(grid) for grid in GRIDS]


@EACH_OBSERVER
def test_ranges_do_not_depend_on_the_batch_size(build, observe, runs, observer) -> None:
    x = normal(30, 128, 80)
    x[7] *= 9
    found = {}
    for batch_size in (1, 4, 7, 30, 64):
        runs.clear()
        found[batch_size] = ranges(
            observe(build(NET), {"x": x}, TAPS, observer, batch_size=batch_size)
        )
        assert max(runs) == min(batch_size, 27)  # the tail begins there
        assert sum(runs) == 30
    assert list(found[1][0].tensors) == list(TAPS)
    assert all(other == found[1] for other in found.values())


@pytest.mark.parametrize("observer", ["mse", "percentile", "entropy", "sigma", "trimmed"])
def test_exact_ranges_do_not_depend_on_the_batch_size(build, observe, observer) -> None:
    x = normal(12, 128, 80)
    found = [
        ranges(observe(build(NET), {"x": x}, TAPS, observer, exact=True, batch_size=batch_size))
        for batch_size in (1, 5, 12)
    ]
    assert found[0] == found[1] == found[2]


@EACH_OBSERVER
def test_minmax_and_ends_are_those_of_the_data(build, observe, observer) -> None:
    x = normal(20, 128, 80)
    found = observe(build(NET), {"x": x}, TAPS, observer, batch_size=3).ranges(Grid())
    for tensor, values in {"x": x, "t": np.maximum(x, 0), "y": np.maximum(x, 0)}.items():
        range_ = found.tensors[tensor]
        assert (range_.min, range_.max, range_.finite) == (values.min(), values.max(), True)
        assert range_.min <= range_.lo <= range_.hi <= range_.max
    assert found.samples == 20


@EACH_OBSERVER
def test_tensor_whose_first_axis_is_not_the_batch(build, observe, runs, observer) -> None:
    """Its values cannot be told apart by sample, so that samples are run one by one."""
    model = build("g (float[N,50] x) => (float[50,N] y) { t = Relu (x) y = Transpose (t) }")
    x = normal(20, 50)
    found = [
        ranges(observe(model, {"x": x}, ("x", "t", "y"), observer, batch_size=n)) for n in (1, 8)
    ]
    assert found[0] == found[1]
    assert set(runs) == {1}
    one = found[0][0].tensors
    assert one["t"] == one["y"]


def test_percentile_sees_outlier_channels(build, observe) -> None:
    """Three of 768 channels are a share of 0.4 %, far more than the 0.01 % that are left out."""
    model = build("g (float[N,128,768] x) => (float[N,128,768] t) { t = Identity (x) }")
    x = normal(16, 128, 768)
    x[..., [5, 101, 333]] *= 40
    found = observe(model, {"x": x}, ["t"], "percentile").ranges(Grid()).tensors["t"]
    # Tails are taken whole: what is left is the width of a bin, a thousandth, twice.
    np.testing.assert_allclose([found.lo, found.hi], np.percentile(x, [0.01, 99.99]), rtol=2e-3)


@EACH_OBSERVER
def test_variable_shapes(build, observe, observer) -> None:
    """Feeds of other lengths see the same as one long array of the same samples would."""
    model = build("g (float[N,S] x) => (float[N,S] y) { t = Relu (x) y = Neg (t) }")
    feeds = [{"x": normal(1, length, seed=length)} for length in range(1, 40)]
    found = [ranges(observe(model, feeds, ("t", "y"), observer, batch_size=n)) for n in (1, 8)]
    assert found[0] == found[1]
    values = np.concatenate([np.maximum(feed["x"], 0).ravel() for feed in feeds])
    t, y = found[0][0].tensors["t"], found[0][0].tensors["y"]
    assert (t.min, t.max) == (values.min(), values.max())
    assert (y.min, y.max) == (-values.max(), -values.min())


MIXED = """g (float[N,6] x, int64[N,6] i, bool[N,6] m) => (float[N,6] y)
    <float zero = {0}>
    { [a] f = Cast <to = 1> (i) [b] t = Where (m, x, f) [c] y = Max (t, zero) }"""


@EACH_OBSERVER
def test_several_inputs_of_other_types(build, observe, observer) -> None:
    rng = np.random.RandomState(0)
    feed = {"x": normal(40, 6), "i": rng.randint(-9, 9, (40, 6)), "m": rng.rand(40, 6) < 0.5}
    feed["i"] = feed["i"].astype(np.int64)
    found = [ranges(observe(build(MIXED), feed, "xfty", observer, batch_size=n)) for n in (1, 7)]
    assert found[0] == found[1]
    tensors = found[0][0].tensors
    t = np.where(feed["m"], feed["x"], feed["i"])
    for name, values in {"x": feed["x"], "f": feed["i"], "t": t, "y": np.maximum(t, 0)}.items():
        assert (tensors[name].min, tensors[name].max) == (values.min(), values.max())


@EACH_OBSERVER
def test_fixed_batch_drops_the_remainder(build, observe, runs, observer) -> None:
    fixed = build("g (float[4,6] x) => (float[4,6] t) { t = Identity (x) }")
    free = build("g (float[N,6] x) => (float[N,6] t) { t = Identity (x) }")
    x = normal(11, 6)
    x[8:] = 1000
    found = observe(fixed, {"x": x}, ["t"], observer)
    assert set(runs) == {4}
    assert found.samples == 8
    assert ranges(found) == ranges(observe(free, {"x": x[:8]}, ["t"], observer))


@EACH_OBSERVER
def test_whole_feeds_count_as_one_sample(build, observe, observer) -> None:
    model = build("g (float[N,6] x) => (float[N,6] t) { t = Identity (x) }")
    feeds = [{"x": normal(rows, 6, seed=rows)} for rows in (3, 1, 8, 5)]
    found = [observe(model, feeds, ["t"], observer, batch_size=n) for n in (1, 3)]
    assert ranges(found[0]) == ranges(found[1])
    assert found[0].samples == 4
    values = np.concatenate([feed["x"] for feed in feeds])
    range_ = found[0].ranges(Grid()).tensors["t"]
    assert (range_.min, range_.max) == (values.min(), values.max())


def test_scalars(build, observe) -> None:
    model = build("g (float x) => (float y) { y = Neg (x) }")
    feeds = [{"x": np.array(value, np.float32)} for value in (2, -3, 5)]
    found = observe(model, feeds, ["x", "y"]).ranges(Grid()).tensors
    assert (found["x"].min, found["x"].max) == (-3, 5)
    assert (found["y"].min, found["y"].max) == (-5, 3)


@EACH_OBSERVER
@pytest.mark.parametrize("batch_size", [1, 4, 12])
def test_nan_names_tensor_and_sample(build, observe, observer, batch_size) -> None:
    model = build("g (float[N,9000] x) => (float[N,9000] y) { r = Sqrt (x) y = Neg (r) }")
    x = np.ones((12, 9000), np.float32)
    x[5, 4321] = -1
    with pytest.raises(DataError, match="tensor 'r' became NaN at sample 5;"):
        observe(model, {"x": x}, ["x", "r"], observer, batch_size=batch_size)


# The rows whose first value is positive.
SELECT = """g (float[N,4] x) => (float[K,4] y)
    <int64[1] first = {0}, int64[1] axis = {1}, float zero = {0}>
    {
      f = Gather <axis = 1> (x, first)
      s = Squeeze (f, axis)
      c = Greater (s, zero)
      r = Compress <axis = 0> (x, c)
      y = Neg (r)
    }"""


@EACH_OBSERVER
def test_empty_runs_do_not_count(build, observe, observer) -> None:
    x = np.full((6, 4), -9, np.float32)
    x[4] = [1, 2, 3, 4]
    found = observe(build(SELECT), {"x": x}, ["x", "r", "y"], observer).ranges(Grid())
    assert found.samples == 6
    r = found.tensors["r"]
    assert (r.min, r.max, r.finite) == (1, 4, True)


@EACH_OBSERVER
def test_tensor_that_is_always_empty_has_no_range(build, observe, observer) -> None:
    x = np.full((6, 4), -9, np.float32)
    found = observe(build(SELECT), {"x": x}, ["x", "r", "y"], observer).ranges(Grid())
    assert list(found.tensors) == ["x"]


IDENTITY = "g (float[N,4] x) => (float[N,4] t) { t = Identity (x) }"


@EACH_OBSERVER
@pytest.mark.parametrize("samples", [1, 2, 9])
def test_few_samples(build, observe, observer, samples) -> None:
    x = normal(samples, 4)
    found = observe(build(IDENTITY), {"x": x}, ["t"], observer).ranges(Grid()).tensors["t"]
    assert (found.min, found.max) == (x.min(), x.max())


@EACH_OBSERVER
@pytest.mark.parametrize("value", [0.0, -0.0, 2.5, -3.25])
def test_constant_tensors(build, observe, observer, value) -> None:
    x = np.full((40, 4), value, np.float32)
    for found in ranges(observe(build(IDENTITY), {"x": x}, ["t"], observer)):
        range_ = found.tensors["t"]
        assert (range_.lo, range_.hi, range_.min, range_.max) == (value,) * 4


MASKED = "g (float[N,C] x, float[N,C] factor) => (float[N,C] t) { t = Mul (x, factor) }"


def with_masks(t: np.ndarray) -> dict[str, np.ndarray]:
    """A feed that makes t: data themselves may not hold infinities."""
    infinite = np.isinf(t)
    x = np.where(infinite, np.copysign(np.float32(3e38), t), t)
    return {"x": x, "factor": np.where(infinite, 9, 1).astype(np.float32)}


@EACH_OBSERVER
@pytest.mark.parametrize("mask", [-np.inf, np.inf, -3.4e38])
def test_masks_are_left_out(build, observe, observer, mask) -> None:
    x = normal(40, 4)
    plain = ranges(observe(build(IDENTITY), {"x": x}, ["t"], observer))
    feed = with_masks(np.concatenate([x, np.full((40, 2), mask, np.float32)], axis=1))
    found = [ranges(observe(build(MASKED), feed, ["t"], observer, batch_size=n)) for n in (1, 8)]
    assert found[0] == found[1]
    for with_mask, without in zip(found[0], plain, strict=True):
        one, other = with_mask.tensors["t"], without.tensors["t"]
        assert (one.lo, one.hi, one.min, one.max) == (other.lo, other.hi, other.min, other.max)
        assert not one.finite
        assert other.finite


@EACH_OBSERVER
def test_tensor_of_nothing_but_masks(build, observe, observer) -> None:
    feed = with_masks(np.full((20, 4), -np.inf, np.float32))
    found = observe(build(MASKED), feed, ["t"], observer).ranges(Grid()).tensors["t"]
    assert (found.lo, found.hi, found.finite) == (0, 0, False)


def test_taps_that_are_inputs_and_outputs_only(build, observe) -> None:
    x = normal(10, 4)
    model = build("g (float[N,4] x) => (float[N,4] y) { t = Relu (x) y = Neg (t) }")
    for taps in (["x"], ["y"], ["x", "y"]):
        found = observe(model, {"x": x}, taps).ranges(Grid())
        assert list(found.tensors) == taps
        assert found.samples == 10


def test_what_goes_by_row(build) -> None:
    model = build(
        """g (float[N,4] x, float[N,2] z) => (float[4,N] y)
        <int64[1] flat = {-1}> { a = Relu (x) b = Reshape (a, flat) y = Transpose (x) }"""
    )
    setup = Setup.of(model.view(), ("x", "a", "b", "y"), ObserverSpec("minmax"))
    assert setup.by_row == {"x", "a"}


def test_memory_does_not_grow_with_the_samples(build, observe, monkeypatch) -> None:
    # body and tail are several portions each: there is something to merge with from the second on
    monkeypatch.setattr("onnxq.calibrate.run.PORTION", 8)
    model = build("g (float[N,20000] x) => (float[N,20000] y) { t = Relu (x) y = Neg (t) }")

    def peak(samples: int) -> int:
        def feeds():
            rng = np.random.RandomState(0)
            for _ in range(samples):
                yield {"x": rng.standard_normal((1, 20000)).astype(np.float32)}

        reader = open_data(feeds, model.view().inputs)
        tracemalloc.start()
        try:
            observe(model, reader, ("x", "t", "y"), "mse")
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(8)  # what is made once: caches, imports
    few, many = peak(256), peak(1024)
    # 768 samples more are 61 MB of inputs alone; 3.6 MB were measured for both. Allowed: a fifth,
    # for when garbage is collected.
    assert many < 1.2 * few


@EACH_OBSERVER
def test_whole_feeds_with_rows_of_nothing_but_masks(build, observe, observer) -> None:
    """A row that is left out leaves the feed the one sample that it is."""
    model = build("g (float[N,4] x, float f) => (float[N,4] t) { t = Mul (x, f) }")
    feeds = [{"x": normal(3, 4, seed=n), "f": np.array(2, np.float32)} for n in range(10)]
    plain = ranges(observe(model, feeds, ["t"], observer))
    feeds[5]["x"] = np.insert(feeds[5]["x"], 1, np.float32(3e38), axis=0)
    found = ranges(observe(model, feeds, ["t"], observer))
    for with_mask, without in zip(found, plain, strict=True):
        one, other = with_mask.tensors["t"], without.tensors["t"]
        assert (one.lo, one.hi, one.min, one.max) == (other.lo, other.hi, other.min, other.max)
        assert not one.finite


class Lane:
    """A thread that runs what is asked of it when that is looked at, and is told when it is done.

    Attributes:
        ready: For each run but the last, whether it is done when the next one is handed out.
        used: The lane of every run.
    """

    made: int
    ready: list[bool]
    used: list[int]

    def __init__(self, threads: int, _name: str) -> None:
        assert threads == 1
        self.number, Lane.made = Lane.made, Lane.made + 1

    def __enter__(self) -> Lane:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, read: Callable, feed: object) -> Run:
        Lane.used.append(self.number)
        return Run(read, feed)


class Run:
    def __init__(self, read: Callable, feed: object) -> None:
        self.result = lambda: read(feed)

    def done(self) -> bool:
        return Lane.ready.pop(0)


class Echo:
    """A session whose outputs are what it is fed."""

    def read(self, feed: object) -> object:
        return feed


@pytest.mark.parametrize(
    ("waited", "lanes"),
    [
        ("no no no no no", "0 0 0 0 0 0"),  # who never waits needs no second run
        ("yes yes", "0 0 0"),
        ("yes yes yes yes yes", "0 0 0 1 0 1"),  # from the third time on, in turns
        ("yes no yes yes no yes yes", "0 0 0 0 0 0 0 0"),  # never three times in a row
        ("yes yes no yes yes yes yes", "0 0 0 0 0 0 1 0"),  # counted anew
        ("yes yes yes no yes yes yes", "0 0 0 1 0 0 0 1"),  # and taken back
    ],
)
def test_a_second_run_is_added_for_who_waits_again_and_again(monkeypatch, waited, lanes) -> None:
    assert collect._PATIENCE == 2
    Lane.made, Lane.used = 0, []
    Lane.ready = [said == "no" for said in waited.split()]
    monkeypatch.setattr(collect, "ThreadPoolExecutor", Lane)
    feeds = [({"x": number}, (number,)) for number in range(len(lanes.split()))]
    readings = list(collect._readings(Echo(), feeds, 2))
    assert Lane.used == [int(lane) for lane in lanes.split()]
    assert Lane.made == 2
    assert readings == feeds  # in order, each with its names
