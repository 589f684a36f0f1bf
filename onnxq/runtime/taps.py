"""Taps: reduce tensors to their ends and a bounded sample inside the graph, while it runs.

Copying every activation out of the session costs several times an inference; a few numbers and a
scattered sample cost little (docs/architecture.md, "Cost of calibration").
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from onnxq.graph import Editor, Model
from onnxq.graph.view import Shape
from onnxq.runtime.session import Session
from onnxq.types import Array, Feed

# Values per sample and tensor: what a percentile of 99.99 needs after some ten images.
SAMPLE_SIZE = 4096
# A row is cut into SAMPLE_SIZE equal pieces, and one value is taken of each. A fixed place in the
# piece would be a stride, which misses channels when it shares factors with an inner axis. So the
# place varies, in units of 2^-16 of a piece, by a multiplier: of 150 drawn ones this spreads most
# evenly, over 270 shapes of common layers (a channel's count is off by 2.3 standard deviations of
# a random draw at most, and by 0.7 on average).
_PIECE = 2**16
_PLACES = np.arange(SAMPLE_SIZE) * _PIECE + np.arange(SAMPLE_SIZE) * 25665 % _PIECE
_SCALE = SAMPLE_SIZE * _PIECE
# ReduceMin and ReduceMax pass over NaN; the sum of absolute values is NaN exactly when there is
# one (a plain sum is so too for two infinities), and costs half of IsNaN.
_ENDS = {"min": "ReduceMin", "max": "ReduceMax", "absolute": "ReduceL1"}


@dataclass(frozen=True)
class TapReading:
    """What one run tells of one tensor.

    Attributes:
        tensor: Its name.
        min: Smallest value; NaN when the tensor holds one, infinity when it is empty.
        max: Largest value; NaN when the tensor holds one, minus infinity when it is empty.
        values: Some of its values, float32 of shape ``(n,)``; none if not asked for.
    """

    tensor: str
    min: float
    max: float
    values: NDArray[np.float32]

    @property
    def empty(self) -> bool:
        """True when the tensor had no elements."""
        return self.min > self.max


class TappedSession:
    """A session that returns readings of inner tensors instead of the model's outputs.

    Args:
        model: The model.
        tensors: Names of the float32 tensors to tap.
        sample: Whether readings hold a sample of the values.
        threads: Threads inside an operator.

    Raises:
        RuntimeFailure: ONNX Runtime refuses the instrumented model.
    """

    def __init__(
        self, model: Model, tensors: Sequence[str], *, sample: bool, threads: int = 1
    ) -> None:
        self._tensors = tuple(tensors)
        taps = _Taps(model)
        self._ends = [taps.add_ends(tensor) for tensor in self._tensors]
        self._samples = [taps.add_sample(tensor) for tensor in self._tensors] if sample else []
        # Higher levels change layouts, which puts all readings behind the last layer; and some of
        # their fusions (Gelu, in 1.31) lose an inner tensor that is also read elsewhere.
        self._session = Session(taps.finish(), threads=threads, level="basic", frugal=True)

    def read(self, feed: Feed) -> Iterator[TapReading]:
        """Run once, and tell what every tapped tensor held.

        Raises:
            RuntimeFailure: ONNX Runtime failed on this feed.
        """
        found = self._session.run(feed, [*chain.from_iterable(self._ends), *self._samples])
        for index, tensor in enumerate(self._tensors):
            low, high, absolute = (float(found[name]) for name in self._ends[index])
            if math.isnan(absolute):
                low = high = math.nan
            values = found[self._samples[index]] if self._samples else np.empty(0)
            yield TapReading(tensor, low, high, values.ravel().astype(np.float32, copy=False))


class _Taps:
    """Adds outputs to a model, under names that nothing in it has."""

    def __init__(self, model: Model) -> None:
        self._view = model.view()
        self._editor = Editor(model)
        # First axes of the inputs: a tensor that starts with one holds one sample per row.
        self._row_axes = {s.shape[0] for s in self._view.inputs if s.shape} - {None}
        self._prefix = "tap"
        while any(name.startswith(self._prefix) for name in self._view.names):
            self._prefix += "_"

    def finish(self) -> Model:
        """The model with all that was added."""
        return self._editor.finish()

    def add_ends(self, tensor: str) -> tuple[str, ...]:
        """Add the reductions of a tensor to scalars."""
        return tuple(
            self._output(self._node(op, kind, tensor, [tensor], keepdims=0))
            for kind, op in _ENDS.items()
        )

    def add_sample(self, tensor: str) -> str:
        """Add the same places of every sample, so that the cut into batches does not matter.

        A tensor whose first axis is not the batch is sampled as a whole.
        """
        shape = self._view.shape(tensor) or (None,)
        batch_axes = 1 if shape[0] in self._row_axes else 0
        flat = self._node("Flatten", "flat", tensor, [tensor], axis=batch_axes)
        columns = _product(shape[batch_axes:])
        if columns is None:
            places = self._places_of(tensor, flat)
        elif columns > SAMPLE_SIZE:
            places = self._constant(f"places/{columns}", _PLACES * columns // _SCALE)
        else:
            return self._output(flat)
        return self._output(self._node("Gather", "sample", tensor, [flat, places], axis=1))

    def _places_of(self, tensor: str, flat: str) -> str:
        """The places for as many columns as there turn out to be: all of them when they are few."""
        one = self._constant("one", np.array([1]))
        size, scale = (self._constant(str(n), np.array([n])) for n in (SAMPLE_SIZE, _SCALE))
        shape = self._node("Shape", "shape", tensor, [flat])
        columns = self._node("Gather", "columns", tensor, [shape, one])
        zero, all_places = self._constant("zero", np.array([0])), self._constant("places", _PLACES)
        places = self._node("Slice", "taken", tensor, [all_places, zero, columns])
        spread = self._node("Max", "spread", tensor, [columns, size])
        scaled = self._node("Mul", "scaled", tensor, [places, spread])
        return self._node("Div", "places", tensor, [scaled, scale])

    def _constant(self, name: str, array: Array) -> str:
        return self._editor.add_constant(f"{self._prefix}/{name}", array)

    def _node(self, op: str, kind: str, tensor: str, inputs: list[str], **attrs: int) -> str:
        name = f"{self._prefix}/{kind}/{tensor}"
        self._editor.add_node(op, inputs, [name], name=name, attrs=attrs)
        return name

    def _output(self, tensor: str) -> str:
        self._editor.add_output(tensor)
        return tensor


def _product(axes: Shape) -> int | None:
    """Number of elements; None when it varies."""
    sizes = [axis for axis in axes if isinstance(axis, int)]
    return math.prod(sizes) if len(sizes) == len(axes) else None
