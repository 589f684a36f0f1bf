"""Take quantization out of a graph again, and tell whether two graphs are the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from onnxq.graph.model import Model
from onnxq.graph.view import GraphView, InnerUse, NodeView
from onnxq.numerics import SLICE_BYTES, rows_of, slices
from onnxq.types import Array

# How far values may be off: given, or computed from the values when they are compared.
Tolerance = Array | Callable[[Array], Array]
# What a node reads: its name, and an input or the tensor that its bodies capture.
Place = tuple[str, int | str]
_EXACT = np.zeros(())


def strip(model: Model) -> Model:
    """Remove QuantizeLinear/DequantizeLinear pairs and dequantize constants.

    The result computes in float. A tensor that carried a pair has its own name again; a
    constant has the name of the DequantizeLinear output that stood for it.
    """
    stripped = model.copy()
    graph = stripped.ir.graph
    for node in list(graph):
        if node.op_type != "DequantizeLinear":
            continue
        stored, out = node.inputs[0], node.outputs[0]
        assert stored is not None
        producer = stored.producer()
        if producer is not None and _can_bypass(out, producer):
            _bypass(graph, out, producer)
        elif _is_constant(node) and not out.is_graph_output():
            _inline(graph, node)
        else:
            continue
        graph.remove(node, safe=True)
    for node in list(graph):
        out = node.outputs[0]
        if node.op_type == "QuantizeLinear" and not out.uses() and not out.is_graph_output():
            graph.remove(node, safe=True)
    for value in list(graph.initializers.values()):
        if not value.uses() and not value.is_graph_output() and value.name:
            del graph.initializers[value.name]
    return stripped


def _is_constant(node: ir.Node) -> bool:
    present = [value for value in node.inputs if value is not None]
    return all(v.const_value is not None and not v.is_graph_input() for v in present)


def _can_bypass(out: ir.Value, quantize: ir.Node) -> bool:
    """True for a pair, unless it stands between two public names, which both must stay."""
    if quantize.op_type != "QuantizeLinear":
        return False
    source = quantize.inputs[0]
    assert source is not None
    return not out.is_graph_output() or not (source.is_graph_input() or source.is_graph_output())


def _bypass(graph: ir.Graph, out: ir.Value, quantize: ir.Node) -> None:
    source = quantize.inputs[0]
    assert source is not None
    if out.is_graph_output():
        # The pair made the output under the tensor's public name: give the name back.
        source.name = out.name
        source.type, source.shape = out.type or source.type, out.shape or source.shape
    out.replace_all_uses_with(source, replace_graph_outputs=True)


def _inline(graph: ir.Graph, node: ir.Node) -> None:
    out = node.outputs[0]
    axis, size = (
        node.attributes[key].as_int() if key in node.attributes else default
        for key, default in (("axis", 1), ("block_size", 0))
    )
    tensors = [v.const_value if v is not None else None for v in (*node.inputs, None)[:3]]
    name, stored = out.name or "", tensors[0]  # of which nothing is left
    assert stored is not None

    def made() -> ir.TensorProtocol:
        arrays = [tensor.numpy() if tensor is not None else None for tensor in tensors]
        array = _dequantize(*arrays, axis=axis, size=size)
        return ir.tensor(array, name=name)

    # large ones are made when they are looked at: all of them at once may not fit into memory
    later = stored.size > SLICE_BYTES // 4
    value = ir.Value(
        name=name,
        const_value=ir.LazyTensor(
            made, ir.DataType.FLOAT, ir.Shape(stored.shape.numpy()), name=name
        )
        if later
        else made(),
    )
    graph.register_initializer(value)
    out.replace_all_uses_with(value)


def _dequantize(
    stored: Array | None, scale: Array | None, zero: Array | None, *, axis: int, size: int
) -> Array:
    """What DequantizeLinear computes, written out again so that a check does not check itself."""
    assert stored is not None
    assert scale is not None
    if size:
        return _dequantize_blocks(stored, scale, zero, axis=axis % stored.ndim, size=size)
    shape = [1] * stored.ndim
    if scale.ndim:
        shape[axis] = scale.size
    offset = np.zeros(1, np.int32) if zero is None else zero.astype(np.int32)
    offset = offset.reshape(shape if offset.size > 1 else [1] * stored.ndim)
    scale = scale.reshape(shape)
    made = np.empty(stored.shape, np.float32)
    for rows in slices(stored):
        shifted = (stored[rows].astype(np.int32) - rows_of(offset, rows)).astype(np.float32)
        np.multiply(shifted, rows_of(scale, rows), out=made[rows], dtype=np.float32)
    return made


def _dequantize_blocks(
    stored: Array, scale: Array, zero: Array | None, *, axis: int, size: int
) -> Array:
    """The same with a scale for every ``size`` values along an axis."""
    block = np.arange(stored.shape[axis]) // size
    zero = np.zeros(scale.shape, np.int32) if zero is None else zero.astype(np.int32)
    made = np.empty(stored.shape, np.float32)
    for rows in slices(stored):
        # one scale and zero point for every value of these rows
        steps, offsets = (
            one.take(block[rows], axis=0) if axis == 0 else one[rows].take(block, axis=axis)
            for one in (scale, zero)
        )
        shifted = np.subtract(stored[rows].astype(np.int32), offsets).astype(np.float32)
        np.multiply(shifted, steps, out=made[rows], dtype=np.float32)
    return made


def difference(
    reference: GraphView, other: GraphView, tolerances: Mapping[Place, Tolerance]
) -> str:
    """The first difference between two graphs, as a sentence; empty when they are the same.

    Nodes are compared by name, operator, attributes and edges, bodies by what they read from
    outside; a constant by value, within ``tolerances`` of the place that reads it, broadcast
    against the constant or computed from it, and exactly elsewhere.
    """
    if reference.outputs != other.outputs or reference.inputs != other.inputs:
        return "inputs or outputs differ"
    if set(reference.by_name) != set(other.by_name):
        names = sorted(set(reference.by_name) ^ set(other.by_name))
        return f"nodes were added or lost: {', '.join(names[:5])}"
    for node in reference.nodes:
        twin = other.by_name[node.name]
        if what := _node_difference(reference, other, node, twin, tolerances):
            return f"node '{node.name}': {what}"
    return ""


def _node_difference(
    reference: GraphView,
    other: GraphView,
    node: NodeView,
    twin: NodeView,
    tolerances: Mapping[Place, Tolerance],
) -> str:
    if (node.op, node.domain) != (twin.op, twin.domain):
        return f"{node.full_op} became {twin.full_op}"
    if node.outputs != twin.outputs or len(node.inputs) != len(twin.inputs):
        return "its edges changed"
    if not _same_attributes(node, twin):
        return "its attributes changed"
    for port, (mine, theirs) in enumerate(zip(node.inputs, twin.inputs, strict=True)):
        allowed = tolerances.get((node.name, port), _EXACT)
        what = _read_difference(reference, other, (mine, theirs), allowed, f"input {port}")
        if what:
            return what
    inside, inside_twin = node.inner_uses, twin.inner_uses
    if [_reader(use) for use in inside] != [_reader(use) for use in inside_twin]:
        return "its subgraphs read other tensors, or in other places"
    pairs = {(mine.tensor, theirs.tensor) for mine, theirs in zip(inside, inside_twin, strict=True)}
    for mine, theirs in sorted(pairs):
        allowed = tolerances.get((node.name, mine), _EXACT)
        what = _read_difference(
            reference, other, (mine, theirs), allowed, f"'{mine}' in its bodies"
        )
        if what:
            return what
    return ""


def _reader(use: InnerUse) -> tuple[str, str, int]:
    return use.node.full_op, use.node.name, use.port


def _read_difference(
    reference: GraphView,
    other: GraphView,
    names: tuple[str, str],
    allowed: Tolerance,
    where: str,
) -> str:
    """How what is read in one place differs; empty when it does not."""
    mine, theirs = names
    constant = reference.constant(mine) if mine else None
    if constant is None:
        return "" if mine == theirs else f"{where} reads '{theirs}' instead of '{mine}'"
    value = other.constant(theirs)
    if value is None or value.shape != constant.shape:
        return f"constant {where} changed its shape"
    bound = allowed(constant) if callable(allowed) else allowed
    if not all(
        _close(constant[rows], value[rows], rows_of(bound, rows)) for rows in slices(constant)
    ):
        return f"constant {where} is off by more than half a step"
    return ""


def _close(constant: Array, value: Array, allowed: Array) -> bool:
    if not np.issubdtype(constant.dtype, np.floating):
        return bool(np.array_equal(constant, value))
    if np.array_equal(constant, value, equal_nan=True):
        return True
    finite = np.isfinite(constant)
    if not finite.all():
        if not np.array_equal(constant[~finite], value[~finite], equal_nan=True):
            return False
        constant, value = (np.where(finite, array, 0) for array in (constant, value))
    gap = np.subtract(constant, value, dtype=np.float64)
    return bool(np.all(np.abs(gap, out=gap) <= allowed))


def _same_attributes(node: NodeView, twin: NodeView) -> bool:
    if set(node.attrs) != set(twin.attrs):
        return False
    return all(np.array_equal(value, twin.attrs[name]) for name, value in node.attrs.items())
