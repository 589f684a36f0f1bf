"""``calibrate``: cut the samples into portions, run them here or on workers, and keep a journal."""

from __future__ import annotations

import hashlib
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import (
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from onnxq.calibrate.calibration import Calibration, Span, decode, encode, joined_spans
from onnxq.calibrate.collect import (
    Errand,
    Names,
    Portion,
    Setup,
    Watches,
    run_errand,
    watch_portion,
)
from onnxq.calibrate.watch import Watch
from onnxq.data import Reader
from onnxq.data.sources import update_digest
from onnxq.errors import DataError, OutputError, RuntimeFailure, UsageError
from onnxq.graph import Model, save, serialize, write_bytes
from onnxq.runtime import TappedSession
from onnxq.types import Feed

Progress = Callable[[int, int], None]
_States = dict[str, dict[str, Any]]
_Feeds = Iterator[tuple[Feed, Names]]
_Pairs = Iterable[tuple["_Part", _Feeds]]
_Results = Generator[tuple["_Part", Watches], None, None]

# Items of a portion: what a worker gets, and what a kill can cost. Fewer would make sending states
# around cost more than running samples.
PORTION = 64
# A sequence of states begins anew with a portion: so it is a long one.
STATEFUL_PORTION = 256
# Bytes of tapped tensors that one run may make. Batches larger than this make nothing faster.
RUN_BYTES = 32_000_000
# The last part of the samples, which tells whether they were enough.
TAIL = 0.1
# The journal is written when it will have cost this share of the time at most.
_JOURNAL_SHARE = 0.05


@dataclass(frozen=True)
class Workers:
    """Who runs the portions.

    Attributes:
        jobs: Processes on this machine; 1 is this one.
        executor: Somebody else's workers instead.
        waiting: Portions that are sent before the first result is back, per worker.

    Raises:
        UsageError: There is no worker.
    """

    jobs: int = 1
    executor: Executor | None = None
    waiting: int = 2

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise UsageError(f"{self.jobs} workers", "use 1 or more")

    @property
    def alone(self) -> bool:
        """Whether this process does it all."""
        return self.jobs == 1 and self.executor is None


def calibrate(
    model: Model,
    reader: Reader,
    setup: Setup,
    start: Calibration | None = None,
    *,
    batch_size: int = 8,
    workers: Workers | None = None,
    journal: Path | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Show every tapped tensor of every sample to an observer of its own.

    Memory holds one run of the session and three observers per tensor, whatever the number of
    samples. Portions and the order in which results are folded in do not depend on the
    workers nor on the size of batches, so that neither does the outcome.

    Args:
        model: The prepared float model.
        reader: The samples. What ``start`` has seen of them is not run again.
        setup: What to observe, and how.
        start: What was observed before, to go on from; it is not changed.
        batch_size: The most samples per run.
        workers: Who runs the portions; this process if None.
        journal: A file that is kept while the run lasts: what is finished outlives a kill, and an
            error costs the portion that it happens in. A journal of the same run that is there
            is continued. It stays, for the caller to delete when the outcome is safe.
        progress: Called with (samples seen, samples in all) after every batch, or every portion of
            a worker.

    Returns:
        ``start`` and all that was observed.

    Raises:
        DataError: The data are unusable, or a tensor holds NaN; the message names it.
        RuntimeFailure: ONNX Runtime fails on a feed, or a worker dies.
        OutputError: The journal cannot be written.
    """
    if start is None:
        start = Calibration.empty(
            "", setup.observer, setup.taps, exact=setup.exact, base=setup.base
        )
    if not setup.taps:
        return start
    # A session opens while the data are read: both leave Python alone.
    with ThreadPoolExecutor(1, "onnxq-digest") as digests:
        identity = digests.submit(reader.identity)
        session = setup.open(model)
        stream = identity.result()
    first = next(reader.batches(1))
    run = _Run(model, setup, stream, workers or Workers(), session)
    size = reader.size - reader.size % reader.fixed_batch
    parts = _parts(size, reader.fixed_batch, run.portion, sequence=bool(setup.state))
    run.choose_rows(reader, first.feed, batch_size)
    sizes = dict(sorted({**start.sizes, stream: reader.size}.items()))
    fresh = replace(start.copy(), sizes=sizes)
    log = _Journal(journal)
    if journal is not None:
        log.name(_key(fresh, setup, stream, parts, first.feed))
    total = _Total(log.read(fresh), stream)
    left = [part for part in parts if not _covers(total.spans, part)]
    done = _Counter(total.done, size, progress)
    with ExitStack() as stack:
        results = stack.enter_context(closing(run.results(reader, left, done, stack)))
        try:
            for part, watches in results:
                total.take(watches, part)
                del watches  # the next portion needs their room
                log.write(total.calibration)
        except BaseException:
            if total.whole:
                log.write_last(total.calibration)
            raise
    return total.calibration


class _Counter:
    """Tells how many samples were run."""

    def __init__(self, done: int, size: int, progress: Progress | None) -> None:
        self._done, self._size, self._progress = done, size, progress
        if done:  # a journal was there
            self.add(0)

    def add(self, samples: int) -> None:
        self._done += samples
        if self._progress is not None:
            self._progress(self._done, self._size)


def _key(start: Calibration, setup: Setup, stream: str, parts: Sequence[_Part], first: Feed) -> str:
    """Names a run: the same key, the same outcome, whatever the workers and the size of batches.

    The first feed tells of preprocessing, which the digest of the data does not cover.
    """
    total = hashlib.sha256(encode(start))
    total.update(repr((stream, sorted((setup.state or {}).items()), parts)).encode())
    for name in sorted(first):
        update_digest(total, name, first[name])
    return total.hexdigest()


class _Total:
    """What was observed so far; portions are folded in."""

    def __init__(self, calibration: Calibration, stream: str) -> None:
        self._stream = stream
        self.calibration = calibration
        self.whole = True  # False while a portion is only partly folded in

    @property
    def spans(self) -> tuple[Span, ...]:
        """What was seen of this run's samples."""
        return tuple(self.calibration.seen.get(self._stream, ()))

    @property
    def done(self) -> int:
        """How many of this run's samples were seen."""
        return sum(stop - start for start, stop in self.spans)

    def take(self, watches: Watches, part: _Part) -> None:
        """Fold a portion in."""
        self.whole = False
        tensors = dict(self.calibration.tensors)
        for tensor, watch in watches.items():
            pair = tensors[tensor]
            known = pair.tail if part.tail else pair.body
            if known.seen or not known.finite:
                known.merge(watch)
            else:  # nothing to merge with
                tensors[tensor] = replace(pair, **{"tail" if part.tail else "body": watch})
        spans = joined_spans([*self.spans, (part.start, part.stop)])
        seen = {**self.calibration.seen, self._stream: spans}
        self.calibration = replace(
            self.calibration, tensors=tensors, seen=dict(sorted(seen.items()))
        )
        self.whole = True


@dataclass(frozen=True)
class _Part:
    """Neighbouring samples that are run as a portion, and whether they belong to the tail."""

    start: int
    stop: int
    tail: bool


def _parts(size: int, unit: int, portion: int, *, sequence: bool) -> list[_Part]:
    """Cut samples into portions of whole units; the tail starts with one of its own.

    The tail of a sequence is whole portions, so that states begin anew nowhere else.
    """
    step = max(unit, portion // unit * unit)
    unit = step if sequence else unit
    cut = (size - int(size * TAIL)) // unit * unit
    cut = cut or size  # one unit has no tail
    return [
        _Part(start, min(start + step, last), first > 0)
        for first, last in ((0, cut), (cut, size))
        for start in range(first, last, step)
    ]


def _covers(spans: Sequence[Span], part: _Part) -> bool:
    return any(start <= part.start and part.stop <= stop for start, stop in spans)


def _batches(reader: Reader, parts: Sequence[_Part], rows: int) -> Iterator[_Feeds]:
    """The batches of each part, in one pass over the reader: take them before the next part's.

    A batch that reaches into the next part is cut in two: every array has a row per sample then.

    Raises:
        DataError: The reader has fewer samples than it said.
    """
    chosen = reader
    if sum(part.stop - part.start for part in parts) < reader.size:
        chosen = reader.select(chain.from_iterable(range(p.start, p.stop) for p in parts))
    batches = chosen.batches(rows)
    rest: list[tuple[Feed, Names]] = []

    def of(part: _Part) -> _Feeds:
        left = part.stop - part.start
        while left > 0:
            batch = None if rest else next(batches, None)
            if batch is not None:
                rest.append((batch.feed, tuple(batch.numbers.tolist())))
            if not rest:
                raise DataError(
                    f"{reader.spec} ends at sample {part.stop - left} of {reader.size}",
                    "every pass must yield the same samples",
                )
            feed, names = rest.pop()
            if len(names) > left:
                rest.append(({name: array[left:] for name, array in feed.items()}, names[left:]))
                feed, names = {name: array[:left] for name, array in feed.items()}, names[:left]
            left -= len(names)
            yield feed, names

    for part in parts:
        yield of(part)


@dataclass
class _Run:
    """One model, one setup, and whoever runs them."""

    model: Model
    setup: Setup
    stream: str
    workers: Workers
    session: TappedSession

    def __post_init__(self) -> None:
        self._rows = 1

    @property
    def portion(self) -> int:
        """Samples of a portion."""
        return STATEFUL_PORTION if self.setup.state else PORTION

    def choose_rows(self, reader: Reader, first: Feed, batch_size: int) -> None:
        """Samples per run: as many as memory is meant to hold.

        That is judged by the shapes that ONNX Runtime infers, or by a run of the first sample.

        No more than a portion, and one at a time where a tensor's values cannot be told apart by
        sample, and where states are fed back from one to the next.
        """
        if reader.fixed_batch > 1:
            self._rows = reader.fixed_batch
        elif (
            batch_size > 1
            and not self.setup.state
            and len(self.setup.by_row) == len(self.setup.taps)
        ):
            size = self.session.bytes_of_row
            if size is None:
                size = sum(values.nbytes for values in self.session.read(first).values())
            self._rows = max(1, min(batch_size, self.portion, RUN_BYTES // max(size, 1)))

    def results(
        self, reader: Reader, parts: Sequence[_Part], done: _Counter, stack: ExitStack
    ) -> _Results:
        """Run all parts.

        Raises:
            DataError: The data are unusable, or a tensor holds NaN.
            RuntimeFailure: A worker died, or ONNX Runtime fails.
        """
        if not parts:
            return
        pairs = zip(parts, _batches(reader, parts, self._rows), strict=True)
        if self.workers.alone:
            yield from self._alone(pairs, done)
            return
        try:
            yield from self._from_workers(pairs, done, stack)
        except (BrokenExecutor, CancelledError) as error:
            raise RuntimeFailure(
                "a worker process died, maybe for want of memory",
                "use fewer --jobs; run again: what was finished is kept",
            ) from error

    def _alone(self, pairs: _Pairs, done: _Counter) -> _Results:
        def counted(feeds: _Feeds) -> _Feeds:
            for feed, names in feeds:
                yield feed, names
                done.add(len(names))

        for part, feeds in pairs:
            portion = Portion(self.stream, part.start, counted(feeds))
            yield part, watch_portion(self.session, self.setup, portion, self.setup.at_once)

    def _from_workers(self, pairs: _Pairs, done: _Counter, stack: ExitStack) -> _Results:
        executor, model = self._employ(stack)
        key = uuid.uuid4().hex
        factory = self.setup.observer.factory(self.setup.base)
        under_way: deque[tuple[_Part, Errand, Future[_States | None]]] = deque()

        def next_result() -> tuple[_Part, Watches]:
            part, errand, future = under_way.popleft()
            states = future.result()
            if states is None:  # by a worker that none of the first errands came to
                states = executor.submit(run_errand, replace(errand, model=model)).result()
            assert states is not None
            done.add(part.stop - part.start)
            return part, {t: Watch.of(state, factory) for t, state in states.items()}

        try:
            for number, (part, feeds) in enumerate(pairs):
                portion = Portion(self.stream, part.start, tuple(feeds))
                # a model may be far larger than the samples: it is not sent with each of them
                sent = number < self.workers.jobs or isinstance(model, str)
                errand = Errand(key, model if sent else None, self.setup, portion)
                under_way.append((part, errand, executor.submit(run_errand, errand)))
                if len(under_way) > self.workers.waiting * self.workers.jobs:
                    yield next_result()
            while under_way:
                yield next_result()
        finally:
            for *_, future in under_way:
                future.cancel()

    def _employ(self, stack: ExitStack) -> tuple[Executor, str | bytes]:
        """The workers, and the model as they can read it."""
        if self.workers.executor is not None:
            return self.workers.executor, serialize(self.model)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="onnxq-")))
        save(self.model, folder / "model.onnx")
        # ONNX Runtime's threads do not survive a fork
        pool = ProcessPoolExecutor(self.workers.jobs, mp_context=get_context("spawn"))
        stack.callback(pool.shutdown, cancel_futures=True)
        return pool, str(folder / "model.onnx")


class _Journal:
    """What is finished, in a file: the key of the run, and its calibration.

    It is written seldom enough to cost little, and once more when the run fails.
    """

    def __init__(self, path: Path | None) -> None:
        self._path, self._next = path, 0.0
        self._head = b""
        self._written: Calibration | None = None

    def name(self, key: str) -> None:
        """Say which run it is of."""
        self._head = f"onnxq journal {key}\n".encode()

    def read(self, start: Calibration) -> Calibration:
        """What an earlier run with the same key finished; the start if there is none."""
        self._written = start
        if self._path is None or not self._path.is_file():
            return start
        try:
            content = self._path.read_bytes()
            if not content.startswith(self._head):
                return start
            body = content[len(self._head) :]
            return decode(body, str(self._path), start.base, code=start.observer.name)
        except (DataError, OSError):
            return start

    def write(self, calibration: Calibration) -> None:
        """Write it, unless that was done a short time ago."""
        if self._path is None or time.monotonic() < self._next:
            return
        began = time.monotonic()
        write_bytes(self._head + encode(calibration), self._path)
        self._written = calibration
        ended = time.monotonic()
        self._next = ended + (ended - began) / _JOURNAL_SHARE

    def write_last(self, calibration: Calibration) -> None:
        """Write what is not there yet; the run fails for another reason, which matters more."""
        if self._written is not calibration:
            self._next = 0.0
            with suppress(OutputError):
                self.write(calibration)
