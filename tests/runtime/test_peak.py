"""Memory of a model in a process of its own."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from onnxq.errors import RuntimeFailure
from onnxq.graph import Model
from onnxq.runtime import synthetic_feed
from onnxq.runtime.peak import peak_memory

WIDTH = 1024
BYTES = WIDTH * WIDTH * 4
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")


def product(build, width: int) -> Model:
    text = f"g (float[1,{width}] x) => (float[1,{width}] y) "
    return build(f"{text}<float[{width},{width}] w = seeded> {{ y = MatMul (x, w) }}")


def test_weights_count(build) -> None:
    """At least once; ONNX Runtime may hold some copies, but not as much as a whole process."""
    large, small = (product(build, width) for width in (WIDTH, 4))
    found = [peak_memory(m, synthetic_feed(m.view().inputs)) for m in (large, small)]
    assert BYTES < found[0] - found[1] < 10 * BYTES


def test_a_process_that_fails_is_told(build) -> None:
    with pytest.raises(RuntimeFailure, match="failed"):
        peak_memory(product(build, 4), {"x": np.zeros((1, 3), np.float32)})
