"""Where the error of a model enters, and how it grows from layer to layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from onnxq.data import Reader
from onnxq.graph import Editor, Model, extract
from onnxq.numerics import ErrorSums
from onnxq.runtime import Session, TappedSession
from onnxq.targets import CPU, Provider
from onnxq.types import Array, Feed
from onnxq.verify.match import Match, match_tensors, sources
from onnxq.verify.models import ROUNDING_DB, Growth, LayerError
from onnxq.verify.receipt import MOST_DB, finite_db

# The layers with the most new error, whose harm at the outputs is measured: each takes one run of
# the float model.
TRIED = 32
# What is read of one model in one run may take, or what several sessions hold.
PIECE_BYTES = 128_000_000
# A session holds its weights, and memory for so many tensors that are in use at once.
_IN_USE = 4
_FLOATS = ("float16", "float32", "float64")


@dataclass(frozen=True)
class Run:
    """How models are run.

    Attributes:
        batch_size: Samples per run; fewer where their tensors would take too much memory.
        threads: Threads inside an operator.
        state: Input by output that is fed back, in each model from its own output.
        progress: Called with (samples run, samples to run), of several passes.
        provider: Where they run.
    """

    batch_size: int = 8
    threads: int = 1
    state: Mapping[str, str] = field(default_factory=dict)
    progress: Callable[[int, int], None] | None = None
    provider: Provider = CPU


class Told(NamedTuple):
    """A tensor in both models, and what the float layer makes of what the other's layer read."""

    expected: Array
    found: Array
    made: Array


def compare_layers(
    reference: Model, other: Model, reader: Reader, run: Run | None = None
) -> Growth:
    """Compare the results of layers, and tell new error from error that only passes through.

    With ``x = f(u)`` what a layer of the float model makes of the tensors ``u``, and ``x'``, ``u'``
    the same tensors in the other model, the error ``x' - x`` is the sum of ``f(u') - f(u)``, which
    came in with ``u'``, and of the *new* error ``x' - f(u')``: the float layer is run on what the
    other model's layer reads. A layer that only passes an error on, however much it amplifies it,
    makes none. What harm new error does is measured for the layers that have the most of it by
    their signal: it alone is added to ``x`` in the float model, which is then run to its outputs.

    Args:
        reference: The float model, its types inferred, without local functions.
        other: Another form of it, with the same inputs and outputs.
        reader: Samples.
        run: How to run them.

    Raises:
        RuntimeFailure: ONNX Runtime refuses a model, or fails on a feed.
    """
    run = run or Run()
    first = next(reader.batches(1))
    pair = _paired(reference, other, first.feed, run)
    taken = {tensor: math.ceil(size / first.count) for tensor, size in pair.rows.items()}
    room = PIECE_BYTES // max(1, sum(taken.values()))
    batch_size = 1 if run.state else max(first.count, min(run.batch_size, room))
    sizes = {tensor: size * batch_size for tensor, size in taken.items()}
    parts = list(_parts(pair.rows, sizes))
    rounds = _rounds(pair, list(pair.rows)[:TRIED], sizes)
    passes = len(parts) + sum(len(chunks) for _, chunks in rounds)
    counted = _Counted(reader, run.progress, batch_size, passes)
    errors = {tensor: (ErrorSums(), ErrorSums()) for tensor in pair.rows}
    for part in parts:
        for tensor, told in _read(pair, part, counted, run):
            _add(errors[tensor][0], told.expected, told.found)
            _add(errors[tensor][1], told.made, told.found)
    ratios = {tensor: finite_db(whole.sqnr_db) for tensor, (whole, _) in errors.items()}
    new = {t: finite_db(_ratio(whole.signal, part.noise)) for t, (whole, part) in errors.items()}
    tried = sorted((t for t in pair.rows if new[t] < ROUNDING_DB), key=lambda t: new[t])[:TRIED]
    alone, output_db = _alone(pair, _rounds(pair, tried, sizes), counted, run)
    counted.finish()
    layers = []
    for tensor in pair.rows:
        match = pair.matches[tensor]
        before = [ratios[source] for source in pair.sources[tensor] if source in ratios]
        layers.append(
            LayerError(
                tensor, match.reading.tensor, match.by, match.node, match.op, ratios[tensor],
                min(before, default=None), new[tensor], alone.get(tensor),
            )
        )  # fmt: skip
    return Growth(tuple(layers), output_db, reader.size, pair.unmatched)


def _read(
    pair: _Pair, tensors: Sequence[str], counted: _Counted, run: Run
) -> Iterator[tuple[str, Told]]:
    """Read some tensors on all samples; their sessions are gone before the next ones open."""
    probe = _Probe(pair, tensors, run)
    for feed in counted.feeds():
        yield from probe.read(feed).items()


def _add(errors: ErrorSums, expected: Array, found: Array) -> None:
    """Sum up; a size that depends on values may be another, and then the error is infinite."""
    if expected.shape == found.shape:
        errors.add(expected, found)
    else:
        errors.noise = math.inf


def _ratio(signal: float, noise: float) -> float:
    return ErrorSums(signal=signal, noise=noise).sqnr_db


@dataclass(frozen=True)
class _Pair:
    """Two models and the tensors that both hold.

    Attributes:
        reference: The float model.
        other: The other one, with nodes that make floats of the integers that are compared.
        layers: The float model, with an input in the place of each tensor that is read.
        inlets: Names of these inputs by the tensors.
        matches: The tensors, by their names in the float model.
        taps: What to read in the other model, by the same names.
        sources: The nearest of them before each.
        rows: Those that are compared, of floats: bytes of the first feed's.
        unmatched: How many more the float model has.
    """

    reference: Model
    other: Model
    layers: Model
    inlets: Mapping[str, str]
    matches: Mapping[str, Match]
    taps: Mapping[str, str]
    sources: Mapping[str, tuple[str, ...]]
    rows: Mapping[str, int]
    unmatched: int


def _paired(reference: Model, other: Model, feed: Feed, run: Run) -> _Pair:
    """Match the tensors, and leave out those that differ in shape on a feed."""
    view = reference.view()
    every = match_tensors(view, other.view())
    known = {match.tensor: match for match in every.found if view.is_tensor(match.tensor)}
    tapped, taps = _with_taps(other, known)
    expected, found = (
        _shapes(reference, known, feed, run),
        _shapes(tapped, taps.values(), feed, run),
    )
    matches = {t: m for t, m in known.items() if expected[t] == found[taps[t]]}
    position = {tensor: place for place, tensor in enumerate(matches)}
    sizes = {t: math.prod(expected[t]) * _width(view.dtype(t)) for t in matches}
    layers, inlets = _cut(reference, matches)
    return _Pair(
        reference, tapped, layers, inlets, matches, taps,
        sources={tensor: sources(view, tensor, position) for tensor in matches},
        rows={tensor: size for tensor, size in sizes.items() if size},
        unmatched=every.unmatched + len(every.found) - len(matches),
    )  # fmt: skip


def _width(dtype: str) -> int:
    """Bytes of a float; 0 of what is none."""
    return np.dtype(dtype).itemsize if dtype in _FLOATS else 0


def _with_taps(other: Model, matches: Mapping[str, Match]) -> tuple[Model, dict[str, str]]:
    """The model with a DequantizeLinear behind what is integers, and what to read for each."""
    editor = Editor(other)
    taps: dict[str, str] = {}
    restored: dict[str, str] = {}
    for tensor, match in matches.items():
        reading = match.reading
        taps[tensor] = reading.tensor
        if not reading.scale:
            continue
        maker = reading.maker
        if reading.tensor not in restored:
            restored[reading.tensor] = name = _free(editor, f"{reading.tensor}_compared")
            inputs = [reading.tensor, reading.scale, *filter(None, [reading.zero_point])]
            kept = {k: v for k, v in maker.attrs.items() if k in _AXES} if maker else {}
            editor.add_node(
                "DequantizeLinear", inputs, [name], name=f"{name}_DQ", attrs=kept,
                domain=maker.domain if maker else "",
            )  # fmt: skip
        taps[tensor] = restored[reading.tensor]
    return editor.finish(), taps


def _free(editor: Editor, name: str) -> str:
    """A name that no tensor has, made from one."""
    while editor.has_tensor(name):
        name += "_"
    return name


# Attributes of QuantizeLinear that DequantizeLinear has as well.
_AXES = ("axis", "block_size")


def _shapes(
    model: Model, tensors: Iterable[str], feed: Feed, run: Run
) -> dict[str, tuple[int, ...]]:
    """Shapes of tensors on a feed, told by the graph: so they are never all in memory at once."""
    editor = Editor(model)
    names = {tensor: _free(editor, f"{tensor}_compared_shape") for tensor in tensors}
    for tensor, name in names.items():
        editor.add_node("Shape", [tensor], [name], name=name)
    found = _tapped(editor.finish(), list(names.values()), run).read(feed)
    return {tensor: tuple(found[name].tolist()) for tensor, name in names.items()}


def _cut(reference: Model, known: Iterable[str]) -> tuple[Model, dict[str, str]]:
    """The model with an input in the place of each known tensor, for all that read it.

    Layers then know nothing of each other: one run makes what each of them makes of what it is
    given.
    """
    view, editor, inlets = reference.view(), Editor(reference), {}
    for tensor in known:
        inlets[tensor] = inlet = _free(editor, f"{tensor}_read")
        editor.add_input(inlet, tensor)
        for use in view.uses(tensor):
            if use.port < 0:
                editor.redirect_captures(use.node, tensor, inlet)
            else:
                editor.redirect(use.node, use.port, inlet)
    return editor.finish(), inlets


def _parts(tensors: Iterable[str], sizes: Mapping[str, int]) -> Iterator[tuple[str, ...]]:
    """Cut the tensors into parts that can be read at once; each takes a pass over the samples."""
    part: list[str] = []
    room = PIECE_BYTES
    for tensor in tensors:
        if part and sizes[tensor] > room:
            yield tuple(part)
            part, room = [], PIECE_BYTES
        part.append(tensor)
        room -= sizes[tensor]
    if part:
        yield tuple(part)


# Tensors that are read at once, in chunks for each of which a whole model may be open.
Rounds = list[tuple[tuple[str, ...], list[tuple[str, ...]]]]


def _rounds(pair: _Pair, tensors: Sequence[str], sizes: Mapping[str, int]) -> Rounds:
    held = pair.reference.weight_bytes + _IN_USE * max(sizes.values(), default=0)
    size = max(1, PIECE_BYTES // max(1, held))
    return [
        (part, [part[start : start + size] for start in range(0, len(part), size)])
        for part in _parts(tensors, sizes)
    ]


class _Counted:
    """Reads the samples several times, and tells how far that is."""

    def __init__(
        self,
        reader: Reader,
        progress: Callable[[int, int], None] | None,
        batch_size: int,
        passes: int,
    ) -> None:
        self._reader, self._progress, self._batch_size = reader, progress, batch_size
        self._done, self._total = 0, passes * reader.size

    def feeds(self) -> Iterator[Feed]:
        for batch in self._reader.batches(self._batch_size):
            yield batch.feed
            self._done += batch.count
            self._tell()

    def finish(self) -> None:
        """Fewer layers than was thought may have had to be tried."""
        self._done = self._total
        self._tell()

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(min(self._done, self._total), self._total)


def _tapped(model: Model, tensors: Sequence[str], run: Run) -> TappedSession:
    return TappedSession(
        model, tensors, state=run.state, provider=run.provider, threads=run.threads
    )


class _Probe:
    """Reads some tensors in both models, and runs the float layers on what the other's read."""

    def __init__(
        self, pair: _Pair, tensors: Sequence[str], run: Run, more: Sequence[str] = ()
    ) -> None:
        self._pair, self._tensors = pair, tensors
        self._reference = _tapped(pair.reference, list(dict.fromkeys([*tensors, *more])), run)
        made = [tensor for tensor in tensors if pair.sources[tensor]]
        self._near = list(dict.fromkeys(near for tensor in made for near in pair.sources[tensor]))
        outputs = [name for name in more if name in pair.other.view().output_names]
        taps = [pair.taps[tensor] for tensor in (*tensors, *self._near)]
        self._other = _tapped(pair.other, list(dict.fromkeys([*taps, *outputs])), run)
        self._layers = None
        if made:
            layers = extract(pair.layers, [pair.inlets[near] for near in self._near], made)
            self._layers = Session(layers, provider=run.provider, threads=run.threads)
        self.expected: Feed = {}
        self.found: Feed = {}

    def restart(self) -> None:
        """Go back to the start of a sequence."""
        self._reference, self._other = self._reference.sequence(), self._other.sequence()

    def read(self, feed: Feed) -> dict[str, Told]:
        """Run once; ``expected`` and ``found`` then hold all that was read of each model."""
        taps = self._pair.taps
        self.expected = self.found = {}  # what was read before, before there is more
        self.expected, self.found = self._reference.read(feed), self._other.read(feed)
        made = self.expected
        if self._layers is not None:
            given = {self._pair.inlets[near]: self.found[taps[near]] for near in self._near}
            specs = self._layers.inputs
            made = made | self._layers.run(
                {spec.name: given[spec.name].astype(spec.dtype, copy=False) for spec in specs}
            )
        return {t: Told(self.expected[t], self.found[taps[t]], made[t]) for t in self._tensors}


class _Effect:
    """What the new error of one tensor alone does to the outputs of the float model."""

    def __init__(self, pair: _Pair, tensor: str, outputs: Sequence[str], run: Run) -> None:
        self._tensor = tensor
        inputs = [spec.name for spec in pair.reference.view().inputs]
        known = [*inputs, tensor, *_siblings(pair, tensor)]
        behind = [name for name in outputs if name not in known]
        self._session = None
        if behind:
            part = extract(pair.reference, list(dict.fromkeys(known)), behind)
            self._session = Session(part, provider=run.provider, threads=run.threads)
        self._errors = {name: ErrorSums() for name in outputs}

    def add(self, expected: Feed, told: Told) -> None:
        if not told.expected.shape == told.found.shape == told.made.shape:
            for errors in self._errors.values():
                errors.noise = math.inf
            return
        before, found, made = (np.asarray(one, np.float64) for one in told)
        changed = (before + found - made).astype(told.expected.dtype)
        values = expected | {self._tensor: changed}
        if self._session is not None:
            fed = {spec.name: values[spec.name] for spec in self._session.inputs}
            values = values | self._session.run(fed)
        for name, errors in self._errors.items():
            _add(errors, expected[name], values[name])

    @property
    def worst_db(self) -> float:
        return min(finite_db(errors.sqnr_db) for errors in self._errors.values())


def _siblings(pair: _Pair, tensor: str) -> list[str]:
    """What the maker of a tensor makes as well, and somebody uses."""
    view = pair.reference.view()
    maker = view.producer(tensor)
    made = maker.outputs if maker is not None else ()
    used = (name for name in made if view.uses(name) or name in view.output_names)
    return [name for name in used if name and name != tensor]


def _alone(
    pair: _Pair, rounds: Rounds, counted: _Counted, run: Run
) -> tuple[dict[str, float], float | None]:
    """By tensor, the SQNR of the worst output with its new error alone; and with all error."""
    view = pair.reference.view()
    both = pair.other.view().output_names
    outputs = [s.name for s in view.outputs if s.dtype in _FLOATS and s.name in both]
    if not outputs:
        return {}, None
    inputs = [spec.name for spec in view.inputs]
    alone: dict[str, float] = {}
    output_db = MOST_DB
    for part, chunks in rounds:
        beside = [name for tensor in part for name in _siblings(pair, tensor)]
        probe = _Probe(pair, part, run, [*inputs, *outputs, *beside])
        for chunk in chunks:
            probe.restart()
            effects = {tensor: _Effect(pair, tensor, outputs, run) for tensor in chunk}
            whole = {name: ErrorSums() for name in outputs}
            for feed in counted.feeds():
                told = probe.read(feed)
                for name, errors in whole.items():
                    _add(errors, probe.expected[name], probe.found[name])
                for tensor, effect in effects.items():
                    effect.add(probe.expected, told[tensor])
            alone |= {tensor: effect.worst_db for tensor, effect in effects.items()}
            output_db = min(finite_db(errors.sqnr_db) for errors in whole.values())
    return alone, output_db
