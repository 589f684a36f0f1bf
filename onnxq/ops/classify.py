"""``classify``: for every node, whether it can compute in int8, or the reason why not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxq.graph import GraphView, InnerUse, NodeView
from onnxq.ops.census import Census, NodeInfo, Stored
from onnxq.ops.patterns import float_patterns
from onnxq.ops.table import ALL, OPERATORS, OpSpec, Role
from onnxq.targets import Kernel, Target
from onnxq.types import Reason

_UNKNOWN = OpSpec("", Role.OTHER, ())


def classify(view: GraphView, target: Target) -> Census:
    """Judge every node of the main graph for a target.

    Nodes inside the bodies of If, Loop and Scan are not judged: they compute in float, and the
    node that holds them says so. Weights of theirs that lie outside can be stored as integers.

    Args:
        view: The graph, prepared: constants folded, shapes inferred.
        target: The provider that the model is meant for.

    Returns:
        One entry per node, in the graph's order.
    """
    patterns = float_patterns(view)
    nodes = tuple(_judge(view, node, target, patterns) for node in view.nodes)
    return Census(target.name, nodes)


def _judge(view: GraphView, node: NodeView, target: Target, patterns: dict[str, str]) -> NodeInfo:
    spec = OPERATORS.get(node.full_op, _UNKNOWN)
    support = target.support(node.full_op)
    data_ports = range(len(node.inputs)) if spec.data == ALL else spec.data
    present = [(p, node.inputs[p]) for p in data_ports if p < len(node.inputs) and node.inputs[p]]
    weight = _constant_input(view, node, spec.weight)
    bias = _constant_input(view, node, spec.bias)
    if spec.op == "MatMul" and weight is None and len(node.inputs) > 1:
        present.append((1, node.inputs[1]))  # activation x activation
    channel_axis = _channel_axis(view, node, spec, weight)
    stored = _stored(view, node, spec) if spec.op else stored_in_bodies(view, node)
    verdict = _refuse(view, node, spec, target, patterns)
    return NodeInfo(
        name=node.name,
        op=node.full_op,
        role=spec.role,
        kernel=support.kernel if spec.op else Kernel.FLOAT,
        data=tuple((p, t) for p, t in present if not view.is_constant(t)),
        constants=tuple((p, t) for p, t in present if view.is_constant(t)),
        outputs=tuple(t for t in node.outputs if t),
        weight=weight,
        bias=bias,
        channel_axis=channel_axis,
        reason=Reason(*verdict, node.name) if verdict else None,
        stored=stored,
    )


def _stored(view: GraphView, node: NodeView, spec: OpSpec) -> tuple[Stored, ...]:
    """The constants that can be stored as integers: all that the operator has, or none."""
    found = _weights(view, node, spec)
    usable = (view.is_constant(s.tensor) and view.dtype(s.tensor) == "float32" for s in found)
    return found if all(usable) else ()


def _weights(view: GraphView, node: NodeView, spec: OpSpec) -> tuple[Stored, ...]:
    """What an operator reads as weights, constant or not."""
    axis = _channel_axis(view, node, spec, _constant_input(view, node, spec.weight))
    ports = spec.stored if spec.weight is None else ((spec.weight, axis),)
    if spec.op == "Gather":
        ports = ((0, int(node.attrs.get("axis", 0))),)
    return tuple(
        Stored(port, tensor, axis, spec.op, _summed_axis(view, node, spec, tensor))
        for port, axis in ports
        if port < len(node.inputs) and (tensor := node.inputs[port])
    )


def stored_in_bodies(view: GraphView, node: NodeView) -> tuple[Stored, ...]:
    """The constants outside of a node's bodies that are nothing but weights inside.

    Args:
        view: The graph that the node is in.
        node: A node with bodies, such as If, Loop or Scan; any other has none.

    Returns:
        Finite float32 constants with port -1, in the order of their first use. Where their uses
        disagree on an axis, there is none.
    """
    uses: dict[str, list[InnerUse]] = {}
    for use in node.inner_uses:
        uses.setdefault(use.tensor, []).append(use)
    return tuple(s for t, found in uses.items() if (s := _stored_inside(view, t, found)))


def _stored_inside(view: GraphView, tensor: str, uses: list[InnerUse]) -> Stored | None:
    values = view.constant(tensor)
    if values is None or values.dtype != np.float32:
        return None
    found = [_weight_inside(view, use) for use in uses]
    known = [stored for stored in found if stored is not None]
    if len(known) < len(found) or not np.isfinite(values).all():
        return None
    axes, summed = {s.axis for s in known}, {s.summed for s in known}
    return Stored(
        -1,
        tensor,
        axes.pop() if len(axes) == 1 else None,
        known[0].op,
        summed.pop() if len(summed) == 1 else None,
    )


def _weight_inside(view: GraphView, use: InnerUse) -> Stored | None:
    spec = OPERATORS.get(use.node.full_op, _UNKNOWN)
    return next((s for s in _weights(view, use.node, spec) if s.port == use.port), None)


def _summed_axis(view: GraphView, node: NodeView, spec: OpSpec, tensor: str) -> int | None:
    if spec.op == "Gemm" and node.attrs.get("transB", 0):
        return 1
    rank = view.rank(tensor)
    if spec.summed is None or rank is None:
        return None
    return spec.summed if spec.summed >= 0 else max(spec.summed + rank, 0)


def _constant_input(view: GraphView, node: NodeView, port: int | None) -> tuple[int, str] | None:
    if port is None or port >= len(node.inputs) or not view.is_constant(node.inputs[port]):
        return None
    return port, node.inputs[port]


def _channel_axis(
    view: GraphView, node: NodeView, spec: OpSpec, weight: tuple[int, str] | None
) -> int | None:
    if weight is None or spec.channel_axis is None:
        return None
    rank = view.rank(weight[1])
    if spec.op == "Gemm":
        return 0 if node.attrs.get("transB", 0) else 1
    if spec.op == "MatMul":
        return 1 if rank == 2 else None
    if spec.op == "ConvTranspose" and node.attrs.get("group", 1) != 1:
        return None
    return spec.channel_axis


Verdict = tuple[str, str] | None


def _refuse(
    view: GraphView, node: NodeView, spec: OpSpec, target: Target, patterns: dict[str, str]
) -> Verdict:
    if not spec.op:
        if node.captures or node.op in ("If", "Loop", "Scan"):
            return "control-flow", f"the nodes inside the bodies of {node.op} compute in float"
        return "unknown-operator", f"{node.full_op} is not an operator that onnxq quantizes"
    if node.name in patterns:
        return "fused-float", f"is part of a {patterns[node.name]}"
    support = target.support(node.full_op)
    if support.kernel is Kernel.FLOAT:
        return "no-int8-kernel", f"{node.full_op} stays float: {support.why}"
    ports = range(len(node.inputs)) if spec.data == ALL else spec.data
    types = {view.dtype(node.inputs[p]) for p in ports if p < len(node.inputs)}
    if types != {"float32"}:
        found = ", ".join(sorted(t or "an unknown type" for t in types))
        return "not-float32", f"computes on {found}, not on float32"
    special = _SPECIAL.get(node.full_op)
    if special and (verdict := special(view, node)):
        return verdict
    if all(view.is_constant(node.inputs[p]) for p in ports if p < len(node.inputs)):
        return "constant-input", "has only constant inputs"
    return None


def _refuse_conv(view: GraphView, node: NodeView) -> Verdict:
    weight = view.constant(node.inputs[1])
    if weight is None:
        return "weight-not-constant", "its weight is computed at run time"
    return _refuse_weight(view, node, weight.shape[0])


def _refuse_gemm(view: GraphView, node: NodeView) -> Verdict:
    weight = view.constant(node.inputs[1])
    if weight is None:
        return "weight-not-constant", "its weight is computed at run time"
    odd = [k for k in ("alpha", "beta") if node.attrs.get(k, 1.0) != 1.0]
    odd += ["transA"] if node.attrs.get("transA", 0) else []
    if odd:
        return "gemm-attributes", f"the int8 kernel takes no {' or '.join(odd)}"
    return _refuse_weight(view, node, weight.shape[0 if node.attrs.get("transB", 0) else 1])


def _refuse_weight(view: GraphView, node: NodeView, channels: int) -> Verdict:
    weight = view.constant(node.inputs[1])
    if weight is None or not np.isfinite(weight).all():
        return "weight-not-finite", "its weight holds NaN or infinity"
    if weight.size == 0:
        return "empty-weight", "its weight is empty"
    if len(node.inputs) > 2 and node.inputs[2]:
        bias = view.constant(node.inputs[2])
        if bias is None:
            return "bias-not-constant", "its bias is computed at run time"
        if bias.shape not in ((channels,), (1, channels)):
            return "bias-shape", f"its bias has shape {bias.shape}, not one value per channel"
        if not np.isfinite(bias).all():
            return "bias-not-finite", "its bias holds NaN or infinity"
    return None


def _refuse_matmul(view: GraphView, node: NodeView) -> Verdict:
    if view.is_constant(node.inputs[0]):
        return "constant-left", "its left operand is constant, and the kernel wants it right"
    if view.dtype(node.inputs[1]) != "float32":
        return "not-float32", "its right operand is not float32"
    if view.is_constant(node.inputs[1]):
        if (view.rank(node.inputs[1]) or 0) < 2:
            return "vector-operand", "its right operand is a vector"
        return _refuse_weight(view, node, 0)
    return None


def _refuse_elementwise(view: GraphView, node: NodeView) -> Verdict:
    for name in node.inputs:
        constant = view.constant(name)
        if constant is not None and not constant.size:
            return "empty-constant", "its constant operand is empty"
        if constant is not None and not np.isfinite(constant).all():
            return "constant-not-finite", "its constant operand holds NaN or infinity"
    return None


def _refuse_clip(view: GraphView, node: NodeView) -> Verdict:
    if any(name and not view.is_constant(name) for name in node.inputs[1:]):
        return "limits-not-constant", "its limits are computed at run time"
    return None


def _refuse_resize(_view: GraphView, node: NodeView) -> Verdict:
    if node.attrs.get("mode", "nearest") != "nearest":
        return "no-int8-kernel", "an interpolating Resize has no int8 kernel"
    return None


def _refuse_maxpool(_view: GraphView, node: NodeView) -> Verdict:
    if len(node.outputs) > 1 and node.outputs[1]:
        return "indices", "its indices output exists for float only"
    return None


_SPECIAL: dict[str, Callable[[GraphView, NodeView], Verdict]] = {
    "Conv": _refuse_conv,
    "Gemm": _refuse_gemm,
    "MatMul": _refuse_matmul,
    "Add": _refuse_elementwise,
    "Mul": _refuse_elementwise,
    "Concat": _refuse_elementwise,
    "Where": _refuse_elementwise,
    "Clip": _refuse_clip,
    "Resize": _refuse_resize,
    "MaxPool": _refuse_maxpool,
}
