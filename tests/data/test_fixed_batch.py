"""A model that fixes its batch gets batches of that size, one included."""

import numpy as np
import pytest

from onnxq.data import open_data
from onnxq.types import TensorSpec


@pytest.mark.parametrize(("first", "sizes"), [(1, [1] * 7), (3, [3, 3]), ("N", [4, 3])])
def test_batches_of_the_models_own_size(tmp_path, first, sizes) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((7, 2), np.float32))
    reader = open_data(str(tmp_path / "x.npz"), [TensorSpec("x", "float32", (first, 2))])
    assert [batch.count for batch in reader.batches(4)] == sizes
