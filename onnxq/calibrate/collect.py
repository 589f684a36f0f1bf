"""The pass over the data: samples run through a tapped session, and watches look on."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.calibrate.observers import Tap
from onnxq.calibrate.registry import ObserverSpec
from onnxq.calibrate.sample import join_taps, take_tap
from onnxq.calibrate.watch import Watch
from onnxq.graph import GraphView, Model, deserialize, load
from onnxq.runtime import TappedSession
from onnxq.targets import CPU, Provider
from onnxq.types import Array, Feed

# Runs whose taps are joined before observers see them: larger arrays cost less by the value.
_JOINED = 8
# Runs at a time, where there are cores for them: the results of each take memory.
_AT_ONCE = 2
# Times in a row that the caller may wait before a second run is added: first runs are slow.
_PATIENCE = 2

Watches = dict[str, Watch]
Names = tuple[int, ...]
Feeds = Iterable[tuple[Feed, Names]]
_Reading = dict[str, Array]


@dataclass(frozen=True)
class Setup:
    """What it takes to calibrate, but for the samples: the same for every worker.

    Attributes:
        taps: Names of the float32 tensors to observe.
        by_row: Those whose first axis has one entry per sample.
        observer: The observer of every tensor.
        base: Folder that a ``file.py`` of the observer starts from.
        exact: Whether observers see every value.
        state: Input by output that is fed back.
        threads: Threads inside an operator.
        provider: Where the model runs.
    """

    taps: tuple[str, ...]
    by_row: frozenset[str]
    observer: ObserverSpec
    base: Path | None = None
    exact: bool = False
    state: Mapping[str, str] | None = None
    threads: int = 1
    provider: Provider = CPU

    @classmethod
    def of(
        cls,
        view: GraphView,
        taps: Sequence[str],
        observer: ObserverSpec,
        *,
        base: Path | None = None,
        exact: bool = False,
        state: Mapping[str, str] | None = None,
        threads: int = 1,
        provider: Provider = CPU,
    ) -> Setup:
        """The setup for a graph: a tensor goes by row when its first axis is that of an input."""
        axes = {spec.shape[0] for spec in view.inputs if spec.shape} - {None}
        by_row = frozenset(tap for tap in taps if (view.shape(tap) or (None,))[0] in axes)
        return cls(tuple(taps), by_row, observer, base, exact, state, threads, provider)

    def watches(self) -> Watches:
        """A watch for every tensor, which has seen nothing."""
        factory = self.observer.factory(self.base)
        return {tensor: Watch(factory) for tensor in self.taps}

    @property
    def at_once(self) -> int:
        """Runs at a time, as this machine has cores for; states follow one another."""
        cores = _cores()
        room = cores // (self.threads or cores)  # 0 threads are as many as there are cores
        return max(1, min(room, _AT_ONCE)) if self.provider.is_cpu and not self.state else 1

    def open(self, model: Model) -> TappedSession:
        """A session with all taps."""
        return TappedSession(
            model, self.taps, state=self.state, provider=self.provider, threads=self.threads
        )


@dataclass(frozen=True)
class Portion:
    """Some neighbouring samples.

    Attributes:
        stream: Names the data.
        first: Number of the first sample.
        feeds: What the session takes, and what messages call the samples of each.
    """

    stream: str
    first: int
    feeds: Feeds


def watch_portion(
    session: TappedSession, setup: Setup, portion: Portion, at_once: int = 1
) -> Watches:
    """Run a portion of the samples; a sequence of states begins anew with it.

    Args:
        session: The session with all taps.
        setup: How to calibrate.
        portion: The samples.
        at_once: Runs at a time, while nothing is there to be looked at.

    Raises:
        DataError: A tensor holds NaN; the message names it and the sample.
        RuntimeFailure: ONNX Runtime fails on a feed.
    """
    watches = setup.watches()
    waiting: dict[str, list[Tap]] = {tensor: [] for tensor in setup.taps}
    first = portion.first
    sample = any(getattr(w.observer, "wants_values", True) for w in watches.values())
    with closing(_readings(session.sequence(), portion.feeds, at_once)) as readings:
        for number, (found, names) in enumerate(readings):
            for place, tensor in enumerate(setup.taps):
                values = found.pop(tensor).astype(np.float32, copy=False)
                rows = _rows(values, len(names)) if tensor in setup.by_row else 1
                tap, ordinary = take_tap(
                    tensor, values, portion.stream, first, rows, sample=sample, exact=setup.exact,
                    names=names if rows == len(names) else names * rows,
                )  # fmt: skip
                watches[tensor].finite &= ordinary
                if tap is not None:
                    tap = _as_one(tap, first) if rows > len(names) == 1 else tap
                    waiting[tensor].append(tap)
                del values  # the next run needs its room
                # a part of the tensors at each run: else the session would wait for all of them
                if setup.exact or (number + place) % _JOINED == 0:
                    _show(watches[tensor], waiting[tensor])
            first += len(names)
    for tensor in setup.taps:
        _show(watches[tensor], waiting[tensor])
    return watches


def _rows(values: Array, samples: int) -> int:
    """Rows that can be told apart: one per sample, or those of a feed that is one sample."""
    if not values.ndim or samples not in (1, len(values)):
        return 1
    return max(1, len(values))


def _as_one(tap: Tap, number: int) -> Tap:
    """The tap of a feed that holds several rows: the feed is the sample there."""
    lows, highs = tap.lows.min(keepdims=True), tap.highs.max(keepdims=True)
    return replace(tap, first=number, lows=lows, highs=highs, numbers=())


def _cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux has it
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _show(watch: Watch, waiting: list[Tap]) -> None:
    if waiting:
        watch.observe(join_taps(waiting))
        waiting.clear()


def _readings(
    session: TappedSession, feeds: Feeds, at_once: int
) -> Generator[tuple[_Reading, Names], None, None]:
    """Run feeds: one while the caller looks at the last, ``at_once`` while it waits.

    Where the caller never waits, all of them run on one thread, whose memory is warm.
    """
    with ExitStack() as stack:
        lanes = [
            stack.enter_context(ThreadPoolExecutor(1, "onnxq-calibrate")) for _ in range(at_once)
        ]
        lane, waits, under_way = 0, 0, deque[tuple[Future[_Reading], Names]]()
        for feed, names in feeds:
            waits = waits + 1 if under_way and not under_way[0][0].done() else 0
            lane = (lane + 1) % at_once if waits > _PATIENCE else 0
            under_way.append((lanes[lane].submit(session.read, feed), names))
            if len(under_way) > 1:
                yield _next(under_way)
        if under_way:
            yield _next(under_way)


def _next(under_way: deque[tuple[Future[_Reading], Names]]) -> tuple[_Reading, Names]:
    future, names = under_way.popleft()
    return future.result(), names


@dataclass(frozen=True)
class Errand:
    """A portion for a worker, with everything that it needs; it can be pickled.

    Attributes:
        key: Names the run: a worker keeps the session of the last one.
        model: Path of the prepared model, or its bytes where workers do not share a disk; None for
            workers that should know it already.
        setup: How to calibrate.
        portion: What to calibrate with.
    """

    key: str
    model: str | bytes | None
    setup: Setup
    portion: Portion


# The session of the last run that this process worked for, by its key.
_sessions: dict[str, TappedSession] = {}


def run_errand(errand: Errand) -> dict[str, dict[str, Any]] | None:
    """Run a portion in this process.

    Returns:
        The state of every watch, by tensor; None when the errand lacks a model that is not known.

    Raises:
        DataError: A tensor holds NaN.
        RuntimeFailure: ONNX Runtime fails.
    """
    session = _sessions.get(errand.key)
    if session is None:
        source = errand.model
        if source is None:
            return None
        model = deserialize(source) if isinstance(source, bytes) else load(source)
        session = errand.setup.open(model)
        _sessions.clear()
        _sessions[errand.key] = session
    watches = watch_portion(session, errand.setup, errand.portion)
    return {tensor: watch.state() for tensor, watch in watches.items()}
