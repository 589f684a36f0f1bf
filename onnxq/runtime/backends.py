"""Execution providers as they are here, and how fast one model runs on each: plain values."""

from __future__ import annotations

import msgspec

from onnxq.runtime.bench import TOO_NOISY


class Backend(msgspec.Struct, frozen=True):
    """An execution provider, and whether it runs here.

    Attributes:
        name: What ``--ep`` takes.
        provider: ONNX Runtime's name of it.
        runs: Whether it starts here.
        why_not: Why it does not; empty where it does.
        install: How to get it.
        device: What it runs on: as it was found where the provider runs.
        version: Of the package, or of the plugin; empty where it is not here.
        int8: Whether it fuses pairs of Q and DQ into kernels on integers; None: not known.
        fp16: Whether it computes in float16; None: not known.
        int4: Whether a MatMul reads 4 bit weights as they are; None: not known.
        source: Where the last three come from.
    """

    name: str
    provider: str
    runs: bool
    why_not: str
    install: str
    device: str
    version: str
    int8: bool | None
    fp16: bool | None
    int4: bool | None
    source: str


class BackendTime(msgspec.Struct, frozen=True):
    """How one model ran on a provider.

    Attributes:
        name: The provider.
        speed: Latency on the CPU provider per latency on this one; None where it did not run.
        noise: How far ``speed`` may be off by chance, relative to it.
        ms: Median milliseconds of a run.
        fallback: Nodes that ran on the CPU provider instead; None where that is not told.
        why_not: Why the model did not run there; empty where it did.
    """

    name: str
    speed: float | None
    noise: float | None
    ms: float | None
    fallback: tuple[str, ...] | None
    why_not: str = ""


class BackendReport(msgspec.Struct, frozen=True):
    """One model on every provider that runs here, interleaved.

    Attributes:
        model: Its path, or a name.
        best: The fastest provider.
        backends: All of them, the fastest first.
        batch: Samples in the feed.
        threads: Threads inside an operator.
        rounds: How many rounds were measured.
        made_up: Whether the feed was noise.
        nodes: Nodes of the model.
        environment: What machine and versions the figures come from.
    """

    model: str
    best: str
    backends: tuple[BackendTime, ...]
    batch: int
    threads: int
    rounds: int
    made_up: bool
    nodes: int
    environment: dict[str, str]

    @property
    def noise(self) -> float:
        """The worst of all."""
        return max((found.noise for found in self.backends if found.noise is not None), default=0.0)

    @property
    def too_noisy(self) -> bool:
        """Whether the best one cannot be told from the others."""
        times = [found for found in self.backends if found.speed is not None]
        if len(times) < 2 or self.noise <= TOO_NOISY:
            return False
        first, second = times[0].speed or 0.0, times[1].speed or 0.0
        return first < second * (1 + self.noise)
