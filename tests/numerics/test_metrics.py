"""Error metrics against oracles written down independently."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.numerics import ErrorSums, cosine, sqnr_db, top1_agreement

# 0 or large enough that no square underflows in float64.
numbers = st.floats(-1e6, 1e6, width=32).filter(lambda v: v == 0 or abs(v) > 1e-20)
vectors = hnp.arrays(np.float32, st.integers(1, 30), elements=numbers)
pairs = hnp.arrays(np.float32, st.tuples(st.just(2), st.integers(1, 30)), elements=numbers)


@settings(deadline=None)
@given(pairs)
def test_sqnr_and_cosine_equal_the_formulas(pair):
    ref, val = pair.astype(np.float64)
    signal = math.fsum(r * r for r in ref)
    noise = math.fsum((r - v) ** 2 for r, v in zip(ref, val, strict=True))
    if noise == 0 or signal == 0:
        return
    # 30 float64 additions of positive terms err by less than 1e-13 of the sum.
    assert sqnr_db(*pair) == pytest.approx(10 * math.log10(signal / noise), rel=0, abs=1e-11)
    lengths = math.sqrt(signal) * math.sqrt(math.fsum(v * v for v in val))
    expected = math.fsum(ref * val) / lengths if lengths else 0.0
    assert cosine(*pair) == pytest.approx(expected, rel=0, abs=1e-12)


def test_known_values():
    assert sqnr_db([10.0, 0.0], [10.0, 1.0]) == 20.0
    assert cosine([1.0, 0.0], [0.0, 2.0]) == 0.0
    assert cosine([1.0, 1.0], [-2.0, -2.0]) == pytest.approx(-1.0, abs=1e-15)  # two float64 ulps
    sums = ErrorSums()
    sums.add([1.0, -5.0], [1.5, -8.0])
    assert sums.max_abs_error == 3.0


@pytest.mark.parametrize("same", [[0.0, 0.0], [1.0, -3.5], [np.nan, np.inf], []])
def test_equal_tensors(same):
    assert sqnr_db(same, same) == math.inf
    assert cosine(same, same) == 1.0


def test_error_on_a_zero_reference():
    assert sqnr_db([0.0, 0.0], [0.0, 1e-3]) == -math.inf
    assert cosine([0.0, 0.0], [0.0, 1e-3]) == 0.0
    assert cosine([1e-3, 0.0], [0.0, 0.0]) == 0.0


@pytest.mark.parametrize("mask", [np.nan, np.inf, -np.inf, -3.4e38, 1e31])
def test_masks_on_both_sides_say_nothing(mask):
    ref, val = [10.0, mask, 0.0], [10.0, mask, 1.0]
    assert sqnr_db(ref, val) == 20.0
    assert cosine(ref, val) == cosine([10.0, 0.0], [10.0, 1.0])


@pytest.mark.parametrize(
    ("ref", "val"),
    [
        (np.inf, 1.0),
        (1.0, np.inf),
        (np.inf, -np.inf),
        (np.nan, 1.0),
        (1.0, np.nan),
        (np.nan, np.inf),
    ],
)
def test_a_value_that_is_not_finite_on_one_side_is_an_infinite_error(ref, val):
    sums = ErrorSums()
    sums.add([5.0, 5.0], [5.0, 4.0])
    sums.add([5.0, ref], [5.0, val])
    assert (sums.sqnr_db, sums.cosine, sums.max_abs_error) == (-math.inf, 0.0, math.inf)


def test_a_mask_that_changed_is_an_error():
    assert sqnr_db([1.0, -3.4e38], [1.0, 0.0]) == pytest.approx(0.0, abs=1e-12)  # float64 ulps
    assert sqnr_db([1.0, 0.0], [1.0, -3.4e38]) < -700


@settings(deadline=None)
@given(pairs, st.integers(0, 30), st.booleans())
def test_cutting_and_merging_change_only_the_rounding(pair, cut, swap):
    first, second = ErrorSums(), ErrorSums()
    first.add(*pair[:, :cut])
    second.add(*pair[:, cut:])
    if swap:
        first, second = second, first
    first.merge(second)
    whole = ErrorSums()
    whole.add(*pair)
    assert first.max_abs_error == whole.max_abs_error
    # Another order of at most 30 float64 additions; `product` has terms of both signs, so that its
    # error is relative to the lengths of the vectors.
    for name in ("signal", "power", "noise"):
        assert getattr(first, name) == pytest.approx(getattr(whole, name), rel=1e-13, abs=0)
    scale = math.sqrt(whole.signal * whole.power)
    assert first.product == pytest.approx(whole.product, rel=0, abs=1e-13 * scale)


@settings(deadline=None)
@given(vectors)
def test_cosine_stays_within_its_bounds(vector):
    assert -1.0 <= cosine(vector, vector * np.float32(1.0000001)) <= 1.0
    assert -1.0 <= cosine(vector, -vector) <= 1.0


@settings(deadline=None)
@given(pairs)
def test_merging_an_infinite_error_keeps_it(pair):
    broken, sums = ErrorSums(), ErrorSums()
    broken.add([1.0], [np.nan])
    sums.add(*pair)
    sums.merge(broken)
    assert (sums.sqnr_db, sums.max_abs_error) == (-math.inf, math.inf)


def test_integers_and_booleans_are_numbers_too():
    assert sqnr_db(np.array([10, 0], np.uint8), np.array([10, 1], np.uint8)) == 20.0
    # As uint8, 0 - 1 would be 255.
    assert sqnr_db(np.array([True, True]), np.array([True, False])) == pytest.approx(
        10 * math.log10(2), abs=1e-12
    )


def test_top1_agreement():
    ref = np.array([[1.0, 2.0, 0.0], [5.0, 1.0, 1.0], [0.0, 0.0, 3.0], [1.0, 1.0, 0.0]])
    val = np.array([[0.0, 9.0, 8.0], [0.0, 1.0, 0.5], [0.0, 1.0, 3.0], [2.0, 2.0, 0.0]])
    assert top1_agreement(ref, val) == 0.75
    assert top1_agreement(ref.reshape(2, 2, 3), val.reshape(2, 2, 3)) == 0.75
    assert top1_agreement(ref[0], val[0]) == 1.0
    assert top1_agreement(ref[1], val[1]) == 0.0


@pytest.mark.parametrize("metric", [sqnr_db, cosine, top1_agreement])
def test_shapes_must_be_equal(metric):
    with pytest.raises(ValueError, match="shapes differ"):
        metric(np.zeros((2, 3)), np.zeros((1, 3)))


@pytest.mark.parametrize("shape", [(), (0, 3), (3, 0)])
def test_top1_agreement_needs_rows(shape):
    with pytest.raises(ValueError, match="no largest entry"):
        top1_agreement(np.zeros(shape), np.zeros(shape))
