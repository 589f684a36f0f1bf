"""What is told of a tensor, against the same computed from the raw values."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onnxq.calibrate import OBSERVERS, PICTURE, Statistics, TensorStatistics, describe, movements
from onnxq.types import Grid

IDENTITY = "g (float[N,C] x) => (float[N,C] t) { t = Identity (x) }"
GRIDS = [Grid(), Grid(symmetric=True), Grid(4), Grid(4, symmetric=True)]
COUNTING = ["mse", "percentile", "entropy", "sigma", "trimmed"]


def laplace(samples: int = 200, columns: int = 100, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).laplace(0.3, 1, (samples, columns)).astype(np.float32)


def quantized(values: np.ndarray, lo: float, hi: float, grid: Grid) -> np.ndarray:
    """Quantize and dequantize, written down anew."""
    values = values.astype(np.float64)
    if grid.symmetric:
        step = max(-lo, hi) / (2 ** (grid.bits - 1) - 1)
        limit = 2 ** (grid.bits - 1) - 1
        return np.clip(np.round(values / step), -limit, limit) * step
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    step = (hi - lo) / (2**grid.bits - 1)
    zero = np.round(-lo / step)
    return (np.clip(np.round(values / step) + zero, 0, 2**grid.bits - 1) - zero) * step


@pytest.fixture
def described(build, observe):
    def run(x, observer="mse", grid=GRIDS[0], **options) -> TensorStatistics:
        made = observe(build(IDENTITY), {"x": x}, ["t"], observer, **options)
        return describe(made, grid).tensors["t"]

    return run


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("observer", COUNTING)
@pytest.mark.parametrize("offset", [0, 3, -40])
def test_sqnr_is_that_of_the_raw_values(described, observer, grid, offset) -> None:
    x = laplace() + np.float32(offset)
    found = described(x, observer, grid)
    noise = x - quantized(x, found.lo, found.hi, grid)
    true = 10 * math.log10((x.astype(float) ** 2).sum() / (noise**2).sum())
    # A bin's middle stands for its values. Around -40 bins are a fifth of a step of 8 bits wide:
    # rounding errors are then known to some percent, and 0.25 dB are 6 %.
    assert found.sqnr_db == pytest.approx(true, abs=0.25 if grid.bits == 8 and offset else 0.1)


@pytest.mark.parametrize("observer", COUNTING)
def test_clipped_is_the_share_outside(described, observer) -> None:
    x = laplace()
    found = described(x, observer, Grid(4))
    share = ((x < found.lo) | (x > found.hi)).mean()
    # The bin that an end lies in counts as inside: a thousandth of the value, at a density there
    # below 1 %.
    assert found.clipped == pytest.approx(share, abs=1e-4)
    if observer == "sigma":
        assert share > 1e-4


def test_clipped_counts_both_sides(described) -> None:
    x = np.concatenate([np.linspace(-1, 1, 998), [-50, 50]]).astype(np.float32)[None]
    found = described(np.repeat(x, 20, axis=0), "percentile", options={"percentile": 99.0})
    assert found.clipped == pytest.approx(0.02, abs=2e-3)
    assert found.hi < 1.1


def test_nothing_is_clipped_by_the_ends(described) -> None:
    found = described(laplace(), "minmax", keep_histogram=True)
    assert found.clipped == 0
    assert (found.lo, found.hi) == (found.min, found.max)


@pytest.mark.parametrize("observer", ["minmax", "moving-average"])
def test_without_a_histogram_there_is_less_to_tell(described, observer) -> None:
    x = laplace()
    found = described(x, observer)
    assert (found.min, found.max) == (x.min(), x.max())
    assert (found.clipped, found.sqnr_db, found.picture) == (None, None, ())
    assert found.moved is not None


@pytest.mark.parametrize("observer", COUNTING)
def test_the_picture_is_the_distribution(described, observer) -> None:
    x = laplace()
    found = described(x, observer)
    assert len(found.picture) == PICTURE
    assert sum(found.picture) == pytest.approx(1, abs=1e-12)
    true = np.histogram(x, PICTURE, (x.min(), x.max()))[0] / x.size
    # A bin that a border of the picture lies in goes to one side: a thousandth of the value.
    np.testing.assert_allclose(found.picture, true, atol=2e-3)


@pytest.mark.parametrize("value", [0.0, 2.5, -3.0])
def test_constant_tensors(described, value) -> None:
    found = described(np.full((40, 4), value, np.float32))
    assert found.picture == (1.0,)
    assert found.clipped == 0
    assert found.moved == 0
    # a constant is an end of its range, and hit exactly, but for the middle of its bin
    assert found.sqnr_db is None or found.sqnr_db > 60


# The last tenth of the samples.


@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("grid", GRIDS[:2])
def test_moved_is_what_the_last_tenth_changed(build, observe, observer, grid) -> None:
    """Against two runs: one on the first nine tenths, and one on everything."""
    x = laplace(160)
    x[150:] *= 4
    model = build(IDENTITY)
    made = observe(model, {"x": x}, ["t"], observer)
    before = observe(model, {"x": x[:144]}, ["t"], observer).ranges(grid).tensors["t"]
    after = made.ranges(grid).tensors["t"]
    moved = (abs(after.lo - before.lo) + abs(after.hi - before.hi)) / (after.hi - after.lo)
    assert movements(made, grid) == {"t": pytest.approx(moved, rel=1e-12)}
    assert describe(made, grid).tensors["t"].moved == movements(made, grid)["t"]
    assert moved > 0.02  # minmax and the others saw larger values at the end


def test_moved_of_the_ends_by_hand(build, observe) -> None:
    x = np.zeros((80, 2), np.float32)
    x[:, 0], x[:, 1] = -1, 3
    x[72:, 1] = 7  # the last tenth: from [-1, 3] to [-1, 7] is half of 8
    found = observe(build(IDENTITY), {"x": x}, ["t"])
    assert movements(found, Grid()) == {"t": 0.5}


def test_a_range_that_is_settled_does_not_move(build, observe) -> None:
    x = np.tile(laplace(10), (16, 1))
    assert movements(observe(build(IDENTITY), {"x": x}, ["t"]), Grid()) == {"t": 0}


@pytest.mark.parametrize("samples", [1, 5, 8, 9])
def test_too_few_samples_tell_nothing(build, observe, samples) -> None:
    made = observe(build(IDENTITY), {"x": laplace(samples)}, ["t"])
    assert movements(made, Grid()) == {}
    found = describe(made, Grid())
    assert found.tensors["t"].moved is None
    assert found.moved is None
    assert found.unsettled == ()


def test_a_tensor_that_holds_masks_only_at_the_end(build, observe) -> None:
    model = build("g (float[N,4] x, float[N,4] f) => (float[N,4] t) { t = Mul (x, f) }")
    x = np.ones((80, 4), np.float32)
    f = np.where(np.arange(80)[:, None] < 72, x, np.float32(1e38))
    made = observe(model, {"x": 3 * x, "f": f}, ["t"])
    assert movements(made, Grid()) == {}
    found = describe(made, Grid()).tensors["t"]
    assert (found.min, found.max, found.finite, found.moved) == (3, 3, False, None)


def test_a_tensor_of_nothing_but_masks(build, observe) -> None:
    model = build("g (float[N,4] x, float[N,4] f) => (float[N,4] t) { t = Mul (x, f) }")
    x = np.full((80, 4), -3e38, np.float32)
    made = observe(model, {"x": x, "f": np.full_like(x, 9)}, ["x", "t"], "mse")
    for tensor in describe(made, Grid()).tensors.values():
        assert (tensor.min, tensor.max, tensor.finite, tensor.clipped) == (0, 0, False, None)


def test_a_tensor_that_was_always_empty_is_not_there(build, observe) -> None:
    model = build("g (float[N,C] x) => (float[N,C] t) { t = Identity (x) }")
    made = observe(model, {"x": np.zeros((20, 0), np.float32)}, ["t"], "mse")
    assert describe(made, Grid()).tensors == {}
    assert movements(made, Grid()) == {}


def test_all_tensors_together(build, observe) -> None:
    model = build("g (float[N,C] x) => (float[N,C] y) { t = Relu (x) y = Neg (t) }")
    found = describe(observe(model, {"x": laplace()}, ("x", "t", "y"), "percentile"), Grid(4))
    assert list(found.tensors) == ["x", "t", "y"]
    assert (found.samples, found.observer, found.grid) == (200, "percentile", Grid(4))


def test_unsettled_are_told_by_how_much_they_moved() -> None:
    moved = {"a": 0.021, "b": 0.5, "c": None, "d": 0.02, "e": 0.1}
    tensors = {
        name: TensorStatistics(0, 1, 0, 1, True, moved=share) for name, share in moved.items()
    }
    found = Statistics(1, "mse", Grid(), tensors)
    assert found.unsettled == ("b", "e", "a")
    assert found.moved == 0.5
