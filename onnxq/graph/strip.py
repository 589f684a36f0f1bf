"""Take quantization out of a graph again, and tell whether two graphs are the same."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.graph.model import Model
from onnxq.graph.view import GraphView, NodeView
from onnxq.types import Array


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
    axis = node.attributes.get("axis")
    array = _dequantize(
        *(v.const_value.numpy() if v is not None and v.const_value is not None else None
          for v in (*node.inputs, None)[:3]),
        axis=axis.value if axis is not None else 1,
    )  # fmt: skip
    value = ir.Value(name=f"{out.name}_value", const_value=ir.tensor(array))
    value.const_value.name = value.name  # type: ignore[union-attr]
    graph.register_initializer(value)
    out.replace_all_uses_with(value)


def _dequantize(
    stored: Array | None, scale: Array | None, zero: Array | None, *, axis: int
) -> Array:
    """What DequantizeLinear computes, written out again so that a check does not check itself."""
    assert stored is not None
    assert scale is not None
    shape = [1] * stored.ndim
    if scale.ndim:
        shape[axis] = scale.size
    offset = np.zeros(1, np.int32) if zero is None else zero.astype(np.int32)
    offset = offset.reshape(shape if offset.size > 1 else [1] * stored.ndim)
    shifted = (stored.astype(np.int32) - offset).astype(np.float32)
    return np.multiply(shifted, scale.reshape(shape), dtype=np.float32)


def difference(
    reference: GraphView, other: GraphView, tolerances: dict[tuple[str, int], Array]
) -> str:
    """The first difference between two graphs, as a sentence; empty when they are the same.

    Nodes are compared by name, operator, attributes and edges; a constant input by value, within
    ``tolerances`` of (node, port), broadcast against the constant, and exactly elsewhere.
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
    tolerances: dict[tuple[str, int], Array],
) -> str:
    if (node.op, node.domain) != (twin.op, twin.domain):
        return f"{node.full_op} became {twin.full_op}"
    if node.outputs != twin.outputs or len(node.inputs) != len(twin.inputs):
        return "its edges changed"
    if set(node.captures) != set(twin.captures):
        return "its subgraphs capture other tensors"
    if not _same_attributes(node, twin):
        return "its attributes changed"
    for port, (mine, theirs) in enumerate(zip(node.inputs, twin.inputs, strict=True)):
        constant = reference.constant(mine) if mine else None
        if constant is None:
            if mine != theirs:
                return f"input {port} reads '{theirs}' instead of '{mine}'"
            continue
        value = other.constant(theirs)
        allowed = tolerances.get((node.name, port), np.zeros(()))
        if value is None or value.shape != constant.shape:
            return f"constant input {port} changed its shape"
        if not _close(constant, value, allowed):
            return f"constant input {port} is off by more than half a step"
    return ""


def _close(constant: Array, value: Array, allowed: Array) -> bool:
    if not np.issubdtype(constant.dtype, np.floating):
        return bool(np.array_equal(constant, value))
    if np.array_equal(constant, value, equal_nan=True):
        return True
    finite = np.isfinite(constant)
    if not np.array_equal(constant[~finite], value[~finite], equal_nan=True):
        return False
    gap = np.abs(np.where(finite, constant, 0).astype(np.float64) - np.where(finite, value, 0))
    return bool(np.all(gap <= allowed))


def _same_attributes(node: NodeView, twin: NodeView) -> bool:
    if set(node.attrs) != set(twin.attrs):
        return False
    return all(np.array_equal(value, twin.attrs[name]) for name, value in node.attrs.items())
