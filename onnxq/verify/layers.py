"""Where the error of a model enters, and how it grows from layer to layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from onnxq.data import Reader
from onnxq.graph import Editor, Model, extract
from onnxq.numerics import ErrorSums
from onnxq.runtime import Session, TappedSession
from onnxq.types import Array, Feed
from onnxq.verify.match import Match, match_tensors, sources
from onnxq.verify.models import ROUNDING_DB, Growth, LayerError
from onnxq.verify.receipt import MOST_DB, finite_db

# The layers with the most new error, whose harm at the outputs is measured: each takes one run of
# the float model.
TRIED = 32
# What the tensors of one pass over the samples, or the weights of several sessions, may take.
PIECE_BYTES = 256_000_000
# Tensors of one pass: the layer of each is a session of its own, open all the time.
PIECE_TENSORS = 256
_FLOATS = ("float16", "float32", "float64")


@dataclass(frozen=True)
class Run:
    """How models are run.

    Attributes:
        batch_size: Samples per run.
        threads: Threads inside an operator.
        state: Input by output that is fed back, in each model from its own output.
        progress: Called with (samples run, samples to run), of several passes.
    """

    batch_size: int = 8
    threads: int = 1
    state: Mapping[str, str] = field(default_factory=dict)
    progress: Callable[[int, int], None] | None = None


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
    pair, sizes = _paired(reference, other, reader, run)
    parts = list(_parts(pair.rows, sizes, run.batch_size))
    passes = len(parts) + len(list(_chunks(reference, pair.rows[:TRIED])))
    counted = _Counted(reader, run, passes)
    errors = {tensor: (ErrorSums(), ErrorSums()) for tensor in pair.rows}
    for part in parts:
        for tensor, told in _read(pair, part, counted, run):
            _add(errors[tensor][0], told.expected, told.found)
            _add(errors[tensor][1], told.made, told.found)
    ratios = {tensor: finite_db(whole.sqnr_db) for tensor, (whole, _) in errors.items()}
    new = {t: finite_db(_ratio(whole.signal, part.noise)) for t, (whole, part) in errors.items()}
    tried = sorted((t for t in pair.rows if new[t] < ROUNDING_DB), key=lambda t: new[t])[:TRIED]
    alone, output_db = _alone(pair, tried, counted, run)
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
        matches: The tensors, by their names in the float model.
        taps: What to read in the other model, by the same names.
        position: Where each of them stands in their order.
        sources: The nearest of them before each.
        rows: Those that are compared: of floats.
        unmatched: How many more the float model has.
    """

    reference: Model
    other: Model
    matches: Mapping[str, Match]
    taps: Mapping[str, str]
    position: Mapping[str, int]
    sources: Mapping[str, tuple[str, ...]]
    rows: tuple[str, ...]
    unmatched: int


def _paired(
    reference: Model, other: Model, reader: Reader, run: Run
) -> tuple[_Pair, dict[str, int]]:
    """Match the tensors, and leave out those that differ in shape on the first sample.

    Returns:
        The models, and what each tensor takes on that feed in bytes per sample.
    """
    view = reference.view()
    every = match_tensors(view, other.view())
    known = {match.tensor: match for match in every.found if view.is_tensor(match.tensor)}
    tapped, taps = _with_taps(other, known)
    first = next(reader.batches(1))
    expected = TappedSession(reference, list(known), state=run.state).read(first.feed)
    found = TappedSession(tapped, _names(taps, known), state=run.state).read(first.feed)
    matches = {t: m for t, m in known.items() if expected[t].shape == found[taps[t]].shape}
    rows = tuple(t for t in matches if str(expected[t].dtype) in _FLOATS and expected[t].size)
    position = {tensor: place for place, tensor in enumerate(matches)}
    near = {tensor: sources(view, [tensor], position) for tensor in matches}
    lost = [match for match in every.found if match.tensor not in matches]
    unmatched = every.unmatched + len(lost)
    pair = _Pair(reference, tapped, matches, taps, position, near, rows, unmatched)
    return pair, {t: expected[t].nbytes // first.count for t in rows}


def _with_taps(other: Model, matches: Mapping[str, Match]) -> tuple[Model, dict[str, str]]:
    """The model with a DequantizeLinear behind what is integers, and what to read for each."""
    editor, taps = Editor(other), {}
    for tensor, match in matches.items():
        reading = match.reading
        taps[tensor] = reading.tensor
        if not reading.scale:
            continue
        taps[tensor] = name = f"{reading.tensor}_compared"
        maker = reading.maker
        if not editor.has_tensor(name):
            inputs = [reading.tensor, reading.scale, *filter(None, [reading.zero_point])]
            kept = {k: v for k, v in maker.attrs.items() if k in _AXES} if maker else {}
            editor.add_node(
                "DequantizeLinear", inputs, [name], name=f"{name}_DequantizeLinear", attrs=kept,
                domain=maker.domain if maker else "",
            )  # fmt: skip
    return editor.finish(), taps


# Attributes of QuantizeLinear that DequantizeLinear has as well.
_AXES = ("axis", "block_size")


def _names(taps: Mapping[str, str], tensors: Mapping[str, object] | Sequence[str]) -> list[str]:
    return list(dict.fromkeys(taps[tensor] for tensor in tensors))


def _parts(
    tensors: Sequence[str], sizes: Mapping[str, int], batch_size: int
) -> Iterator[tuple[str, ...]]:
    """Cut the tensors into parts that can be read at once; each takes a pass over the samples."""
    part: list[str] = []
    room = PIECE_BYTES
    for tensor in tensors:
        room -= sizes[tensor] * batch_size
        if part and (room < 0 or len(part) == PIECE_TENSORS):
            yield tuple(part)
            part, room = [], PIECE_BYTES - sizes[tensor] * batch_size
        part.append(tensor)
    if part:
        yield tuple(part)


def _chunks(reference: Model, tensors: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Cut the tensors into parts for each of which a whole model may be open."""
    size = max(1, min(TRIED, PIECE_BYTES // max(1, reference.weight_bytes)))
    return (tuple(tensors[start : start + size]) for start in range(0, len(tensors), size))


class _Counted:
    """Reads the samples several times, and tells how far that is."""

    def __init__(self, reader: Reader, run: Run, passes: int) -> None:
        self._reader, self._run, self._total = reader, run, passes * reader.size
        self._done = 0

    def feeds(self) -> Iterator[Feed]:
        for batch in self._reader.batches(1 if self._run.state else self._run.batch_size):
            yield batch.feed
            self._done += batch.count
            self._tell()

    def finish(self) -> None:
        """Fewer layers than was thought may have had to be tried."""
        self._done = self._total
        self._tell()

    def _tell(self) -> None:
        if self._run.progress is not None:
            self._run.progress(min(self._done, self._total), self._total)


class _Probe:
    """Reads some tensors in both models, and runs the float layers on what the other's read."""

    def __init__(
        self, pair: _Pair, tensors: Sequence[str], run: Run, more: Sequence[str] = ()
    ) -> None:
        self._pair, self._tensors, self._more = pair, tensors, more
        near = [source for tensor in tensors for source in pair.sources[tensor]]
        wanted = list(dict.fromkeys([*tensors, *more]))
        self._reference = TappedSession(
            pair.reference, wanted, state=run.state, threads=run.threads
        )
        outputs = [name for name in more if name in pair.other.view().output_names]
        taps = [*_names(pair.taps, [*tensors, *near]), *outputs]
        self._other = TappedSession(
            pair.other, list(dict.fromkeys(taps)), state=run.state, threads=run.threads
        )
        self._layers = {
            tensor: Session(layer, threads=run.threads)
            for tensor, layer in _float_layers(pair, tensors).items()
        }
        self.expected: Feed = {}
        self.found: Feed = {}

    def read(self, feed: Feed) -> dict[str, Told]:
        """Run once; ``expected`` and ``found`` then hold all that was read of each model."""
        taps = self._pair.taps
        self.expected, self.found = self._reference.read(feed), self._other.read(feed)
        told = {}
        for tensor in self._tensors:
            expected, made = self.expected[tensor], self.expected[tensor]
            if tensor in self._layers:
                layer = self._layers[tensor]
                made = layer.run(
                    {spec.name: self.found[taps[spec.name]].astype(spec.dtype)
                     for spec in layer.inputs}
                )[tensor]  # fmt: skip
            told[tensor] = Told(expected, self.found[taps[tensor]], made)
        return told


def _float_layers(pair: _Pair, tensors: Sequence[str]) -> dict[str, Model]:
    """What makes each tensor out of its sources, in the float model.

    To take a part out of a model costs time by all of the model's nodes: one part is taken for all
    the tensors, and their layers out of that.
    """
    made = [tensor for tensor in tensors if pair.sources[tensor]]
    if not made:
        return {}
    near = sources(pair.reference.view(), made, pair.position)
    part = extract(pair.reference, near, made)
    return {tensor: extract(part, pair.sources[tensor], [tensor]) for tensor in made}


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
            self._session = Session(part, threads=run.threads)
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
    pair: _Pair, tensors: Sequence[str], counted: _Counted, run: Run
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
    for part in _chunks(pair.reference, tensors):
        beside = [name for tensor in part for name in _siblings(pair, tensor)]
        probe = _Probe(pair, part, run, [*inputs, *outputs, *beside])
        effects = {tensor: _Effect(pair, tensor, outputs, run) for tensor in part}
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
