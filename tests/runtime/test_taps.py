"""Taps: what is told of a tensor, and which of its values are in the sample."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onnxq.runtime import TappedSession
from onnxq.runtime.taps import SAMPLE_SIZE


def identity(build, shape: str):
    """A net whose tensor ``t`` is its input."""
    dims = f"[{shape}]" if shape else ""
    return build(f"g (float{dims} x) => (float{dims} t) {{ t = Identity (x) }}")


def read(model, x, tensor="t", sample=True):
    (reading,) = TappedSession(model, [tensor], sample=sample).read({"x": x})
    return reading


# Each shape is one sample of a batch, with the axis of its channels.
SHAPES = [
    ((128, 768), 1),  # tokens
    ((197, 768), 1),
    ((77, 4096), 1),
    ((7, 7, 2048), 2),  # channels last
    ((112, 112, 64), 2),
    ((64, 56, 56), 0),  # channels first
    ((2048, 7, 7), 0),
    ((1024, 64, 256), 1),  # heads: the stride is a multiple of the inner axes
    ((12, 128, 64), 0),
]


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@pytest.mark.parametrize("dynamic", [False, True])
def test_sample_is_spread_evenly_over_the_channels(build, shape, axis, dynamic) -> None:
    model = identity(build, "N, " + ", ".join("ABC"[: len(shape)] if dynamic else map(str, shape)))
    channel = np.indices(shape, dtype=np.float32)[axis][None]
    values = read(model, channel).values
    assert len(values) == SAMPLE_SIZE
    counts = np.bincount(values.astype(int), minlength=shape[axis])
    # As far from even as 3 standard deviations of a random draw, which would reach 5 here.
    expected = SAMPLE_SIZE / shape[axis]
    assert np.abs(counts - expected).max() <= 3 * math.sqrt(expected)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("columns", [1, 5, SAMPLE_SIZE, SAMPLE_SIZE + 1, 3 * SAMPLE_SIZE - 1])
def test_sample_is_bounded_and_whole_when_it_can_be(build, columns, dynamic) -> None:
    x = np.arange(2 * columns, dtype=np.float32).reshape(2, columns)
    values = read(identity(build, f"N, {'C' if dynamic else columns}"), x).values
    assert len(values) == 2 * min(columns, SAMPLE_SIZE)
    if columns <= SAMPLE_SIZE:
        np.testing.assert_array_equal(values, x.ravel())
    assert np.isin(values, x).all()


@pytest.mark.parametrize("shape", ["N, 128, 768", "N, S, D"])
def test_sample_does_not_depend_on_the_batch(build, shape) -> None:
    session = TappedSession(identity(build, shape), ["t"], sample=True)
    x = np.random.default_rng(0).standard_normal((8, 128, 768)).astype(np.float32)

    def values(cut: int) -> np.ndarray:
        parts = [next(session.read({"x": x[i : i + cut]})).values for i in range(0, 8, cut)]
        return np.concatenate(parts)

    np.testing.assert_array_equal(values(1), values(8))
    np.testing.assert_array_equal(values(3), values(8))


def test_tensor_without_a_batch_axis_is_sampled_as_a_whole(build) -> None:
    model = build("""g (float[N,4] x) => (float[3,5000] t, float[N,4] y)
        <float[3,1] column = {1, 2, 3}, int64[2] shape = {3, 5000}>
        { t = Expand (column, shape) y = Identity (x) }""")
    values = read(model, np.zeros((2, 4), np.float32)).values
    assert len(values) == SAMPLE_SIZE
    assert set(values) == {1, 2, 3}


@pytest.mark.parametrize("value", [3.0, -2.5])
def test_scalar(build, value) -> None:
    reading = read(identity(build, ""), np.array(value, np.float32))
    assert (reading.min, reading.max, reading.values.tolist()) == (value, value, [value])


def test_ends_alone(build) -> None:
    reading = read(identity(build, "N"), np.array([1, -math.inf, 3], np.float32), sample=False)
    assert (reading.min, reading.max) == (-math.inf, 3)
    assert reading.values.size == 0
    assert not reading.empty


@pytest.mark.parametrize("place", [0, 1, 499, 999])
def test_nan_is_seen_anywhere(build, place) -> None:
    x = np.ones((1, 1000), np.float32)
    x[0, place] = math.nan
    reading = read(identity(build, "N, 1000"), x, sample=False)
    assert math.isnan(reading.min)
    assert math.isnan(reading.max)
    assert not reading.empty


@pytest.mark.parametrize(
    "values", [[math.inf, -math.inf, 0], [3.4e38] * 100 + [-3.4e38] * 100, [-math.inf] * 3]
)
def test_infinities_and_masks_are_not_nan(build, values) -> None:
    x = np.array([values], np.float32)
    reading = read(identity(build, "N, C"), x, sample=False)
    assert (reading.min, reading.max) == (x.min(), x.max())


@pytest.mark.parametrize("shape", [(0, 4), (2, 0), (0, 9000)])
@pytest.mark.parametrize("sample", [False, True])
def test_empty_tensor(build, shape, sample) -> None:
    reading = read(identity(build, "N, C"), np.zeros(shape, np.float32), sample=sample)
    assert reading.empty
    assert reading.values.size == 0


def test_empty_batch_of_a_static_row(build) -> None:
    reading = read(identity(build, "N, 9000"), np.zeros((0, 9000), np.float32))
    assert reading.empty
    assert reading.values.size == 0


def test_names_of_taps_are_free(build) -> None:
    """The model has tensors and a node, one in a subgraph, that are called like taps."""
    model = build("""g (float[N,9000] x, bool c) => (float[N,9000] y) {
        [tap] t = Relu (x)
        [tap_] "tap/min/t" = Neg (t)
        "t/max" = Neg ("tap/min/t")
        y = If (c) <
            then_branch = one () => (z) { "tap__/flat/t" = Neg ("t/max") z = Neg ("tap__/flat/t") },
            else_branch = two () => (z) { z = Neg (t) }>
    }""")
    tensors = ["t", "tap/min/t", "t/max"]
    feed = {"x": np.full((1, 9000), 2, np.float32), "c": np.array(True)}
    found = list(TappedSession(model, tensors, sample=True).read(feed))
    assert [(r.tensor, r.min, r.max) for r in found] == [
        ("t", 2, 2), ("tap/min/t", -2, -2), ("t/max", 2, 2)
    ]  # fmt: skip
