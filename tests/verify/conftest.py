"""What was measured, made up."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from onnxq.runtime import Coverage
from onnxq.types import Reason
from onnxq.verify import Int8Share, LatencyFacts, Measured, MetricFacts, OutputFacts, PreparedFacts

NOTHING = Measured(
    size_ratio=0.25,
    prepared=PreparedFacts(1000, None, ()),
    outputs={},
    samples=0,
    metric=None,
    latency=None,
    int8_coverage=None,
    candidates=(),
)
EVERYTHING = replace(
    NOTHING,
    prepared=PreparedFacts(1000, 2.0, ("folded 9 nodes to 7",)),
    outputs={"scores": OutputFacts(30.0, 0.999, 0.98), "boxes": OutputFacts(20.0, 0.99)},
    samples=100,
    metric=MetricFacts("top1", 0.90, 0.89, 100),
    latency=LatencyFacts(
        source_ms=3.0, output_ms=1.0, ratio=3.0, ratio_prepared=2.0, spread=0.05,
        noise=0.01, rounds=9, batch=8, threads=1, provider="CPUExecutionProvider",
    ),
    int8_coverage=Coverage(8, 7, (Reason("runs-as-float", "runs as Conv on float", "head"),)),
    int8_share=Int8Share(10, 9, (Reason("runs-as-float", "runs as Conv on float", "head"),)),
)  # fmt: skip


@pytest.fixture
def measured() -> Callable[..., Measured]:
    """All figures, some of them replaced."""
    return lambda **fields: replace(EVERYTHING, **fields)


@pytest.fixture
def nothing_measured() -> Measured:
    return NOTHING
