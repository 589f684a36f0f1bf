"""``layer_figures``: what is told of every node of a model that was quantized."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from itertools import islice

import numpy as np

from onnxq.api.bench import node_times
from onnxq.api.compare import LAYER_SAMPLES
from onnxq.api.feeds import one_feed
from onnxq.api.job import Progress
from onnxq.api.pipeline import Result
from onnxq.api.stages import Draft, draw
from onnxq.errors import ModelError, RuntimeFailure
from onnxq.graph import GraphView
from onnxq.ops import NodeInfo
from onnxq.plan import QuantPlan
from onnxq.report.layers import Ends, LayerFigures, ModelFigures
from onnxq.runtime import StateLoop, TappedSession
from onnxq.runtime.bench import NodeTime
from onnxq.sensitivity import Histogram
from onnxq.sensitivity.facts import HISTOGRAM_SAMPLES, HISTOGRAM_VALUES, histogram
from onnxq.types import Array, Feed, Precision
from onnxq.verify import Growth, Run, compare_layers

# Nodes are timed for no longer than this, in seconds.
MOST_SECONDS = 2.0
# Values of a weight that its histogram is made of.
WEIGHT_VALUES = 1_000_000


def layer_figures(result: Result, *, progress: Progress | None = None) -> ModelFigures:
    """Look at every node of what ``quantize`` made: histograms, times, and how the error grows.

    Activations and errors are those of the verification samples. Without any, only weights are
    looked at, and times are of noise. Nodes are timed where latency was wanted, on the CPU
    provider.

    Args:
        result: What ``quantize`` made.
        progress: Called with (stage, done, total).

    Raises:
        OnnxqError: See ``onnxq.errors`` for the tree. What cannot be measured is left out, and a
            note says why.

    Examples:
        >>> figures = onnxq.layer_figures(onnxq.quantize("m.onnx", data="s.npz"))  # doctest: +SKIP
        >>> page = onnxq.report.quantize_page(result.receipt, figures)  # doctest: +SKIP
    """
    drafted, view = result.draft, result.draft.prepared.view()
    reads = {node.name: _read(view, node) for node in drafted.census.nodes}
    wanted = {
        tensor
        for name, tensor in reads.items()
        if tensor and _computes_on_integers(drafted.plan, name)
    }
    notes: list[str] = []
    activations = _activations(drafted, wanted, notes)
    times, conversions = _times(result, notes)
    growth = _growth(result, progress, notes)
    layers = tuple(
        _layer(drafted, view, info, reads[info.name], activations, times.get(info.name))
        for info in drafted.census.nodes
    )
    return ModelFigures(layers, growth, conversions, tuple(notes))


def _layer(
    drafted: Draft,
    view: GraphView,
    info: NodeInfo,
    reads: str,
    activations: Mapping[str, Histogram],
    time: NodeTime | None,
) -> LayerFigures:
    node = view.by_name[info.name]
    constants = {
        t: c
        for t in dict.fromkeys((*node.inputs, *node.captures))
        if (c := view.constant(t)) is not None and c.dtype == np.float32
    }
    weight = info.weight[1] if info.weight is not None else _largest(info, constants)
    known = drafted.ranges.tensors.get(reads)
    values = constants.get(weight)
    return LayerFigures(
        info.name,
        sum(constant.size for constant in constants.values()),
        reads,
        _weights(values) if values is not None else None,
        _weight_range(drafted.plan, weight),
        activations.get(reads),
        (known.lo, known.hi) if known is not None else None,
        time,
    )


def _computes_on_integers(plan: QuantPlan, node: str) -> bool:
    return plan.is_static(node) or plan.precision()[node] is Precision.INT8_DYNAMIC


def _read(view: GraphView, node: NodeInfo) -> str:
    """The first float tensor that a node reads and that is no constant; empty without one."""
    return next((tensor for _, tensor in node.data if view.dtype(tensor) == "float32"), "")


def _largest(info: NodeInfo, constants: Mapping[str, Array]) -> str:
    stored = [s.tensor for s in info.stored if s.tensor in constants]
    return max(stored, key=lambda tensor: constants[tensor].size, default="")


def _weights(values: Array) -> Histogram | None:
    flat = values.reshape(-1)
    return histogram(flat[:: max(1, flat.size // WEIGHT_VALUES)]) if flat.size else None


def _weight_range(plan: QuantPlan, tensor: str) -> Ends | None:
    """The ends of the widest channel."""
    params = plan.tensors.get(tensor)
    if params is None:
        return None
    scale, zero = np.asarray(params.scale), np.asarray(params.zero_point)
    low, high = ((end - zero) * scale for end in (params.qtype.qmin, params.qtype.qmax))
    return float(low.min()), float(high.max())


def _activations(drafted: Draft, tensors: set[str], notes: list[str]) -> dict[str, Histogram]:
    """Of every tensor, over the first samples."""
    if not tensors or drafted.test is None:
        return {}
    seen: dict[str, list[Array]] = {tensor: [] for tensor in tensors}
    data = drafted.recipe.data
    try:
        session = TappedSession(
            drafted.prepared,
            sorted(tensors),
            state=data.state,
            threads=drafted.recipe.verify.threads,
        )
        for batch in islice(drafted.test.batches(1), HISTOGRAM_SAMPLES):
            for tensor, values in session.read(batch.feed).items():
                flat = values.ravel()
                seen[tensor].append(flat[:: max(1, flat.size // HISTOGRAM_VALUES)].copy())
    except RuntimeFailure as error:
        notes.append(f"there are no histograms of activations: {error}")
        return {}
    found = {tensor: _joined(parts) for tensor, parts in seen.items()}
    return {tensor: histogram(values) for tensor, values in found.items() if values.size}


def _joined(parts: Iterable[Array]) -> Array:
    return np.concatenate(list(parts))


def _times(
    result: Result, notes: list[str]
) -> tuple[dict[str, NodeTime], tuple[float, ...] | None]:
    """Times of the nodes, by their names, and of conversions between types."""
    drafted = result.draft
    verify = drafted.recipe.verify
    if not verify.seconds or not drafted.recipe.provider.is_cpu:
        return {}, None
    models, seconds = (drafted.prepared, result.model), min(verify.seconds, MOST_SECONDS)
    try:
        found, conversions = node_times(models, _feed(drafted), verify.threads, seconds)
    except RuntimeFailure as error:
        notes.append(f"nodes were not timed: {error}")
        return {}, None
    return {node.name: node for node in found}, conversions


def _feed(drafted: Draft) -> Feed:
    """The first verification samples, complete; noise without any."""
    data, view = drafted.recipe.data, drafted.source.view()
    if drafted.test is None:
        return one_feed(view.inputs, None, data.batch_size)[0]
    first = next(drafted.test.batches(1 if data.state else data.batch_size))
    return StateLoop(data.state, view.inputs, view.output_names).complete(first.feed)


def _growth(result: Result, progress: Progress | None, notes: list[str]) -> Growth | None:
    drafted = result.draft
    if drafted.test is None or drafted.plan.empty:
        return None
    recipe = drafted.recipe
    run = Run(
        recipe.data.batch_size,
        recipe.verify.threads,
        recipe.data.state,
        partial(progress, "layers") if progress is not None else None,
    )
    samples = draw(drafted.test, LAYER_SAMPLES, recipe, result.receipt.run.seed)
    try:
        return compare_layers(drafted.prepared, result.model, samples, run)
    except (RuntimeFailure, ModelError) as error:
        notes.append(f"layers were not compared: {error}")
        return None
