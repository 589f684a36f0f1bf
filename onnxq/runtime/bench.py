"""What a comparison of latencies found: plain values, made by ``onnxq.api.bench``."""

from __future__ import annotations

import msgspec

# Above this, the machine did too much else for speeds to be told apart.
TOO_NOISY = 0.1


class ModelTime(msgspec.Struct, frozen=True):
    """Latency of one model on one execution provider.

    Attributes:
        model: Its path, or a name.
        provider: The provider's name.
        speed: Latency of the first model per latency of this one: the median over the rounds.
        noise: Four standard errors of ``speed``, relative to it; of ``ms`` for the first model.
        ms: Median milliseconds of a run.
        low: The lower quartile.
        high: The upper quartile.
        per_second: Samples per second, at the median.
        peak_bytes: The most memory that opening and running it took, in a process of its own; None
            where that was not asked for, or is not told here.
        fallback: Nodes that ran on the CPU provider instead; None where that is not told.
    """

    model: str
    provider: str
    speed: float
    noise: float
    ms: float
    low: float
    high: float
    per_second: float
    peak_bytes: int | None = None
    fallback: tuple[str, ...] | None = ()


class NodeTime(msgspec.Struct, frozen=True):
    """What one node of the first model's graph takes.

    Attributes:
        name: The node.
        op: Its operator.
        us: Microseconds in each model; None where no kernel is counted for it: it vanished into
            another's, or is not there.
        kernels: What it became in each model; empty where ``us`` is None.
    """

    name: str
    op: str
    us: tuple[float | None, ...]
    kernels: tuple[str, ...]

    @property
    def gain(self) -> float:
        """Microseconds that the last model saves."""
        return (self.us[0] or 0.0) - (self.us[-1] or 0.0)


class BenchRun(msgspec.Struct, frozen=True):
    """Models that ran interleaved, on one feed, with as many threads.

    Attributes:
        batch: Samples in the feed.
        threads: Threads inside an operator.
        rounds: How many rounds were measured; in a round every model runs.
        models: Their latencies; the first one is what speeds are told against.
    """

    batch: int
    threads: int
    rounds: int
    models: tuple[ModelTime, ...]

    @property
    def noise(self) -> float:
        """The worst of all."""
        return max(model.noise for model in self.models)

    @property
    def too_noisy(self) -> bool:
        """Whether speeds cannot be told apart."""
        return self.noise > TOO_NOISY


class BenchReport(msgspec.Struct, frozen=True):
    """What was measured, for every batch size and number of threads.

    Attributes:
        runs: One for each combination.
        made_up: Whether the feeds were noise.
        nodes: What nodes take, in the order of the first model's graph; empty where that was not
            asked for.
        conversions: Microseconds in kernels that only change types or layouts, by model.
        environment: What machine and versions the figures come from.
    """

    runs: tuple[BenchRun, ...]
    made_up: bool
    nodes: tuple[NodeTime, ...]
    conversions: tuple[float, ...]
    environment: dict[str, str]

    def total(self, index: int) -> float:
        """Microseconds in all kernels of one of the profiled models."""
        return sum(node.us[index] or 0.0 for node in self.nodes) + self.conversions[index]
