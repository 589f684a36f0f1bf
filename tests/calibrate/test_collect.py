"""``calibrate``: every tensor of every sample is seen, and what is wrong with it is told."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.calibrate import MinMaxObserver, PercentileObserver, calibrate
from onnxq.data import open_data
from onnxq.errors import DataError

OBSERVERS = [MinMaxObserver, PercentileObserver]


@pytest.fixture
def ranges(tmp_path):
    """Calibrate the tensors of a model on one array of samples."""

    def run(model, tensors, x, observer=MinMaxObserver, **options):
        path = tmp_path / "data.npz"
        np.savez(path, x=x)
        reader = open_data(str(path), model.view().inputs)
        return calibrate(model, tensors, reader, observer, **options)

    return run


def test_percentile_sees_outlier_channels(build, ranges) -> None:
    """Three of 768 channels are a share of 0.4 %, far more than the 0.01 % that are left out."""
    model = build("g (float[N,128,768] x) => (float[N,128,768] t) { t = Identity (x) }")
    x = np.random.default_rng(0).standard_normal((16, 128, 768)).astype(np.float32)
    x[..., [5, 101, 333]] *= 40
    true = np.percentile(x, [0.01, 99.99])
    found = ranges(model, ["t"], x, PercentileObserver).tensors["t"]
    # The sample holds some 256 outliers, and the percentile is about their third largest on each
    # side: over draws that order statistic scatters by a tenth. Missing the channels gives a
    # twentieth of the range, far outside.
    np.testing.assert_allclose([found.lo, found.hi], true, rtol=0.25)


@pytest.mark.parametrize("observer", OBSERVERS)
def test_ranges_do_not_depend_on_the_batch(build, ranges, observer) -> None:
    model = build("""g (float[N,3,50,50] x) => (float[N,7500] y)
        { [a] r = Relu (x) [b] y = Flatten (r) }""")
    x = np.random.default_rng(0).standard_normal((8, 3, 50, 50)).astype(np.float32)
    found = [ranges(model, ["x", "r", "y"], x, observer, batch_size=n) for n in (1, 3, 8)]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize(("batch_size", "where"), [(1, "sample 5"), (4, "samples 4 to 7")])
def test_nan_names_tensor_and_samples(build, ranges, observer, batch_size, where) -> None:
    model = build("g (float[N,6000] x) => (float[N,6000] y) { r = Sqrt (x) y = Relu (r) }")
    x = np.ones((12, 6000), np.float32)
    x[5, 4321] = -1
    with pytest.raises(DataError, match=f"tensor 'r' became NaN at {where}"):
        ranges(model, ["x", "r"], x, observer, batch_size=batch_size)


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


@pytest.mark.parametrize("observer", OBSERVERS)
def test_empty_batches_do_not_count(build, ranges, observer) -> None:
    x = np.full((6, 4), -9, np.float32)
    x[4] = [1, 2, 3, 4]
    found = ranges(build(SELECT), ["x", "r", "y"], x, observer, batch_size=2)
    assert found.samples == 6
    assert (found.tensors["r"].min, found.tensors["r"].max, found.tensors["r"].finite) == (1, 4, 1)


@pytest.mark.parametrize("observer", OBSERVERS)
def test_tensor_that_is_always_empty_has_no_range(build, ranges, observer) -> None:
    x = np.full((6, 4), -9, np.float32)
    found = ranges(build(SELECT), ["x", "r", "y"], x, observer)
    assert list(found.tensors) == ["x"]
