"""Facts about layers that one look at a few samples tells: sizes, work, histograms."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from onnxq.data import Batch
from onnxq.errors import RuntimeFailure
from onnxq.graph import GraphView, Model, NodeView
from onnxq.ops import OPERATORS
from onnxq.runtime import TappedSession
from onnxq.sensitivity.evaluate import Evaluator, rows_of
from onnxq.sensitivity.values import Histogram
from onnxq.types import Array, Feed

BINS = 64
# Samples that histograms of activations are made of, and values of each tensor and sample.
HISTOGRAM_SAMPLES, HISTOGRAM_VALUES = 8, 4096

Shape = tuple[int, ...]


class LayerFacts(msgspec.Struct, frozen=True):
    """What is told of one layer, whatever its precision.

    Attributes:
        op: Operator type.
        parameters: Values in its constants.
        macs: Multiply-adds per sample; None when a shape is not known.
        weights: Of its constant weight; None where it has none.
        activations: Of what it reads; None where that was not seen.
    """

    op: str
    parameters: int
    macs: int | None
    weights: Histogram | None
    activations: Histogram | None


@dataclass(frozen=True)
class Sight:
    """What the first sample shows of a model.

    Attributes:
        samples: How many samples it was: more than one where a model fixes its batch.
        shapes: Shapes of all tensors that could be seen.
        bytes: Their sizes.
    """

    samples: int
    shapes: Mapping[str, Shape]
    bytes: Mapping[str, int]


def look(model: Model, evaluator: Evaluator) -> Sight:
    """Run one sample, and see the shapes of all tensors that can be kept between two runs.

    Tensors are left out whose type NumPy does not know, and those whose shape is not the one that
    the model tells: a part of the model would not take them.
    """
    view = model.view()
    made = [t for node in view.nodes for t in node.outputs]
    wanted = [t for t in (*(s.name for s in view.inputs), *made) if t and _keepable(view, t)]
    batch = rows_of(view, evaluator.batches[0], [0])
    try:
        found = TappedSession(model, wanted, state=evaluator.state).read(batch.feed)
    except RuntimeFailure:  # it does not run with all of them as outputs
        return Sight(batch.count, {}, {})
    fits = {t: array for t, array in found.items() if _told(view, t, array.shape)}
    return Sight(
        batch.count,
        {t: array.shape for t, array in fits.items()},
        {t: array.nbytes for t, array in fits.items()},
    )


def _keepable(view: GraphView, tensor: str) -> bool:
    try:
        kind = np.dtype(view.dtype(tensor) or "O").kind
    except TypeError:
        return False
    return view.is_tensor(tensor) and kind in "biuf"


def _told(view: GraphView, tensor: str, seen: Shape) -> bool:
    told = view.shape(tensor)
    if told is None:
        return True
    return len(told) == len(seen) and all(
        not isinstance(axis, int) or axis == size for axis, size in zip(told, seen, strict=True)
    )


def facts_of(
    model: Model, layers: Sequence[str], sight: Sight, evaluator: Evaluator
) -> dict[str, LayerFacts]:
    """Facts about some layers, by their names."""
    view = model.view()
    reads = {name: tensor for name in layers if (tensor := _activation(view, name, sight))}
    activations = _histograms(model, set(reads.values()), evaluator)
    found = {}
    for name in layers:
        node = view.by_name[name]
        constants = [
            c for t in {*node.inputs, *node.captures} if (c := view.constant(t)) is not None
        ]
        weights = [c for c in constants if c.dtype == np.float32 and c.size]
        largest = max(weights, key=lambda values: values.size, default=None)
        found[name] = LayerFacts(
            node.full_op,
            sum(values.size for values in constants if values.dtype == np.float32),
            macs(view, node, sight),
            histogram(largest) if largest is not None else None,
            activations.get(reads.get(name, "")),
        )
    return found


def _activation(view: GraphView, name: str, sight: Sight) -> str:
    """The first float tensor that a node reads and that is no constant; empty without one."""
    node = view.by_name[name]
    read = (t for t in (*node.inputs, *node.captures) if t in sight.shapes)
    return next((t for t in read if view.dtype(t) == "float32"), "")


def _histograms(model: Model, tensors: set[str], evaluator: Evaluator) -> dict[str, Histogram]:
    if not tensors:
        return {}
    seen: dict[str, list[Array]] = {tensor: [] for tensor in tensors}
    session = TappedSession(model, sorted(tensors), state=evaluator.state)
    for feed in _few(model.view(), evaluator.batches):
        for tensor, values in session.read(feed).items():
            flat = values.ravel()
            seen[tensor].append(flat[:: max(1, flat.size // HISTOGRAM_VALUES)].copy())
    return {tensor: histogram(np.concatenate(parts)) for tensor, parts in seen.items()}


def _few(view: GraphView, batches: Iterable[Batch]) -> Iterable[Feed]:
    for _, batch in zip(range(HISTOGRAM_SAMPLES), batches, strict=False):
        yield rows_of(view, batch, [0]).feed


def histogram(values: Array) -> Histogram:
    """How often finite values occur, in ``BINS`` equal bins from the smallest to the largest."""
    finite = values[np.isfinite(values)].astype(np.float64, copy=False)
    lo, hi = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    counts, _ = np.histogram(finite, BINS, (lo, hi) if lo < hi else (lo - 0.5, hi + 0.5))
    return Histogram(lo, hi, tuple(counts.tolist()))


def macs(view: GraphView, node: NodeView, sight: Sight) -> int | None:
    """Multiply-adds of a node per sample; 0 where it multiplies no matrices.

    Nodes inside the bodies of If, Loop and Scan are not counted: nobody knows how often they run.

    Returns:
        None when a shape is not known.
    """
    count = _MACS.get(node.full_op)
    if count is None:
        return None if node.full_op not in OPERATORS else 0
    made = next(t for t in node.outputs if t)
    x, w, y = (_shape(view, tensor, sight) for tensor in (*node.inputs[:2], made))
    if x is None or w is None or y is None:
        return None
    return count(node, x, w, y) // sight.samples


def _shape(view: GraphView, tensor: str, sight: Sight) -> Shape | None:
    constant = view.shape(tensor) if view.is_constant(tensor) else None
    if constant is not None:
        return tuple(int(axis) for axis in constant if isinstance(axis, int))
    return sight.shapes.get(tensor)


def _conv(_: NodeView, _x: Shape, w: Shape, y: Shape) -> int:
    return math.prod(y) * math.prod(w[1:])


def _conv_transpose(_: NodeView, x: Shape, w: Shape, _y: Shape) -> int:
    return math.prod(x) * math.prod(w[1:])


def _product(node: NodeView, x: Shape, _w: Shape, y: Shape) -> int:
    return math.prod(y) * (x[0] if node.attrs.get("transA", 0) else x[-1])


def _recurrent(_: NodeView, x: Shape, w: Shape, y: Shape) -> int:
    """Every gate multiplies its inputs and its states once a step."""
    gates, hidden = w[1], y[-1]
    return x[0] * x[1] * w[0] * gates * (w[2] + hidden)


_MACS: dict[str, Callable[[NodeView, Shape, Shape, Shape], int]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _product,
    "MatMul": _product,
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
}
