"""``Calibration``: what was observed of every tensor, on which samples."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace as with_fields

from onnxq.calibrate.observers import HistogramObserver, MinMaxObserver
from onnxq.calibrate.registry import AUTO, OBSERVERS, ObserverSpec, auto_observer
from onnxq.calibrate.state import from_json, to_json
from onnxq.calibrate.watch import Factory, Watch
from onnxq.errors import DataError, OnnxqError, UsageError
from onnxq.types import Grid, TensorRange

SCHEMA = 1
# What reading and merging a state may raise that is well-formed JSON and nothing else.
_DAMAGE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
Span = tuple[int, int]


class Ranges(msgspec.Struct, frozen=True):
    """The ranges that calibration chose.

    Attributes:
        samples: How many samples were seen.
        tensors: The range of every tapped tensor; one that was empty all the time is missing.
        schema: Version of this structure.
    """

    samples: int
    tensors: dict[str, TensorRange]
    schema: int = SCHEMA


@dataclass(frozen=True)
class Pair:
    """Two watches of one tensor.

    Attributes:
        body: Saw the first nine tenths of the samples of each run.
        tail: Saw the last tenth: what it still changed tells whether the data were enough.
    """

    body: Watch
    tail: Watch


@dataclass(frozen=True)
class Calibration:
    """What was observed.

    Attributes:
        model: SHA-256 of the model.
        observer: The observer of every tensor.
        exact: Whether observers saw every value.
        tensors: What was observed of each tensor, in the graph's order.
        seen: Samples that were seen: spans of numbers, by the digest of the data.
        sizes: How many samples the data have, by their digest.
        base: Folder that a ``file.py`` of the observer starts from.
    """

    model: str
    observer: ObserverSpec
    exact: bool
    tensors: Mapping[str, Pair]
    seen: Mapping[str, tuple[Span, ...]] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    base: Path | None = None

    @classmethod
    def empty(
        cls, model: str, observer: ObserverSpec, taps: tuple[str, ...], *, exact: bool,
        base: Path | None = None,
    ) -> Calibration:  # fmt: skip
        """A calibration that has seen nothing.

        Raises:
            UsageError: The observer is not known, or takes no such option.
        """
        factory = observer.factory(base)
        pairs = {tensor: Pair(Watch(factory), Watch(factory)) for tensor in taps}
        return cls(model, observer, exact, pairs, base=base)

    @property
    def samples(self) -> int:
        """How many samples were seen."""
        return sum(stop - start for spans in self.seen.values() for start, stop in spans)

    @property
    def counted(self) -> bool:
        """Whether values were counted, so that any other method can read their ranges."""
        return isinstance(self.observer.factory(self.base)(), HistogramObserver)

    def copy(self) -> Calibration:
        """The same, with observers of its own."""
        tensors = {t: Pair(p.body.copy(), p.tail.copy()) for t, p in self.tensors.items()}
        return replace(self, tensors=tensors)

    def whole(self, tensor: str) -> Watch:
        """Everything that was observed of a tensor."""
        pair = self.tensors[tensor]
        return pair.body.joined(pair.tail)

    def resolved(self) -> Calibration:
        """The same, read by the observer that ``auto`` stands for with so many samples."""
        if self.observer.name != AUTO:
            return self
        return self.with_observer(ObserverSpec(auto_observer(self.samples), keep_histogram=True))

    def ranges(self, grid: Grid) -> Ranges:
        """The range of every tensor for a grid of integers."""
        by = self.resolved()
        found = {tensor: by.whole(tensor).range(grid) for tensor in self.tensors}
        return Ranges(self.samples, {t: r for t, r in found.items() if r is not None})

    def merge(self, other: Calibration) -> Calibration:
        """Both together. The order does not matter.

        Raises:
            UsageError: They are of different models or settings, or saw the same samples.
        """
        for what, own, others in (
            ("models", self.model, other.model),
            ("observers", self.observer, other.observer),
            ("settings of --exact", self.exact, other.exact),
            ("tensors", list(self.tensors), list(other.tensors)),
        ):
            if own != others:
                raise UsageError(f"cannot merge calibrations of different {what}")
        for stream, spans in other.seen.items():
            if shared := _shared(self.seen.get(stream, ()), spans):
                raise UsageError(
                    f"both saw samples {shared[0]} to {shared[1] - 1} of the same data",
                    "merge each sample once",
                )
        tensors = {}
        for tensor, pair in self.tensors.items():
            others_pair = other.tensors[tensor]
            tensors[tensor] = Pair(
                pair.body.joined(others_pair.body), pair.tail.joined(others_pair.tail)
            )
        streams = sorted({*self.seen, *other.seen})
        seen = {
            stream: joined_spans([*self.seen.get(stream, ()), *other.seen.get(stream, ())])
            for stream in streams
        }
        sizes = {**self.sizes, **other.sizes}
        return replace(self, tensors=tensors, seen=seen, sizes=dict(sorted(sizes.items())))

    def with_observer(self, observer: ObserverSpec) -> Calibration:
        """The same observations, read by another observer.

        Raises:
            UsageError: The other needs what was not observed.
        """
        own = self.observer
        if (observer.name, observer.options) == (own.name, own.options):
            return self
        factory = observer.factory()
        source, wanted = own.factory(self.base)(), factory()
        counted = isinstance(source, HistogramObserver) and isinstance(wanted, HistogramObserver)
        # the ends are always known
        if observer.name not in OBSERVERS or not (counted or type(wanted) is MinMaxObserver):
            raise UsageError(
                f"ranges by '{own.name}' cannot be read by '{observer.name}'",
                f"calibrate with --calibrator {observer.name}",
            )

        def read(watch: Watch) -> Watch:
            other = Watch(factory)
            other.ends.min, other.ends.max = watch.ends.ends
            mine, theirs = watch.observer, other.observer
            if isinstance(mine, HistogramObserver) and isinstance(theirs, HistogramObserver):
                theirs.histogram.merge(mine.histogram)
            other.finite = watch.finite
            return other

        pairs = {t: Pair(read(p.body), read(p.tail)) for t, p in self.tensors.items()}
        return replace(self, observer=observer, tensors=pairs)


def joined_spans(spans: list[Span]) -> tuple[Span, ...]:
    """Spans in order, neighbours as one."""
    joined: list[Span] = []
    for start, stop in sorted(spans):
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return tuple(joined)


def _shared(one: tuple[Span, ...], other: tuple[Span, ...]) -> Span | None:
    """The first samples that are in both."""
    for start, stop in one:
        for first, last in other:
            if max(start, first) < min(stop, last):
                return max(start, first), min(stop, last)
    return None


class _Head(msgspec.Struct, frozen=True):
    """What a file of every version holds."""

    schema: int


class _Saved(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file; its checksum is that of everything that is read again."""

    schema: int
    model: str
    observer: ObserverSpec
    exact: bool
    samples: int
    seen: dict[str, list[Span]]
    sizes: dict[str, int]
    ranges: dict[str, Any]
    states: dict[str, dict[str, Any]]
    sha256: str = ""

    def digest(self) -> str:
        bare = with_fields(self, ranges={}, sha256="")
        return hashlib.sha256(msgspec.json.encode(bare)).hexdigest()


def encode(calibration: Calibration, facts: Mapping[str, Any] | None = None) -> bytes:
    """The bytes of a file: the same for the same observations, however they came about.

    Args:
        calibration: What was observed.
        facts: What people want to read of each tensor; not read again.
    """
    states = {
        tensor: {"body": to_json(pair.body.state()), "tail": to_json(pair.tail.state())}
        for tensor, pair in calibration.tensors.items()
    }
    saved = _Saved(
        SCHEMA,
        calibration.model,
        calibration.observer,
        calibration.exact,
        calibration.samples,
        {stream: list(spans) for stream, spans in sorted(calibration.seen.items())},
        dict(sorted(calibration.sizes.items())),
        dict(facts or {}),
        states,
    )
    saved = with_fields(saved, sha256=saved.digest())
    return msgspec.json.format(msgspec.json.encode(saved), indent=1) + b"\n"


def decode(data: bytes, where: str, base: Path | None = None, *, code: str = "") -> Calibration:
    """Read what ``encode`` wrote.

    Args:
        data: The bytes.
        where: What messages call them.
        base: Folder that a ``file.py`` of the observer starts from.
        code: The observer that is expected, if that is Python code. A file by itself never makes
            code run.

    Raises:
        DataError: They are damaged, or of another version.
        UsageError: The observer is code that is not expected.
    """
    saved = _saved(data, where)
    if ":" in saved.observer.name and saved.observer.name != code:
        raise UsageError(
            f"'{where}' was made by '{saved.observer.name}', which is Python code",
            f"to run it, add --calibrator {saved.observer.name}",
        )
    try:
        factory = saved.observer.factory(base)
        tensors = {tensor: _pair(state, factory) for tensor, state in saved.states.items()}
    except (OnnxqError, *_DAMAGE) as error:
        raise DataError(f"'{where}' holds a damaged state: {error}") from error
    seen = {stream: tuple(spans) for stream, spans in saved.seen.items()}
    return Calibration(saved.model, saved.observer, saved.exact, tensors, seen, saved.sizes, base)


def _saved(data: bytes, where: str) -> _Saved:
    try:
        head = msgspec.json.decode(data, type=_Head)
        if head.schema != SCHEMA:
            raise DataError(f"'{where}' has schema {head.schema}, this version reads {SCHEMA}")
        saved = msgspec.json.decode(data, type=_Saved)
    except (ValueError, RecursionError) as error:  # of msgspec and of UTF-8
        raise DataError(
            f"'{where}' holds no ranges of onnxq: {error}", "make them with `onnxq calibrate`"
        ) from error
    ordered = all(
        joined_spans(spans) == tuple(spans) and all(0 <= start < stop for start, stop in spans)
        for spans in saved.seen.values()
    )
    if not ordered or saved.digest() != saved.sha256:
        raise DataError(
            f"'{where}' is damaged: its content is not what its checksum was made of",
            "make it again with `onnxq calibrate`",
        )
    return saved


def _pair(state: Mapping[str, Any], factory: Factory) -> Pair:
    body, tail = (Watch.of(from_json(state[part]), factory) for part in ("body", "tail"))
    for watch in (body, tail):
        watch.ends.check()
        Watch(factory).merge(watch)  # what cannot be merged is no state
    return Pair(body, tail)
