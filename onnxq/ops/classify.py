"""``classify``: for every node, whether it can compute in int8, or the reason why not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxq.graph import GraphView, NodeView
from onnxq.ops.census import Census, NodeInfo
from onnxq.ops.patterns import float_patterns
from onnxq.ops.table import ALL, OPERATORS, OpSpec, Role
from onnxq.targets import Kernel, Target
from onnxq.types import Reason

_UNKNOWN = OpSpec("", Role.OTHER, ())


def classify(view: GraphView, target: Target) -> Census:
    """Judge every node of the main graph for a target.

    Nodes inside the bodies of If, Loop and Scan are not judged: they stay as they are, and the
    node that holds them says so.

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
    spec = OPERATORS.get(node.op, _UNKNOWN) if not node.domain else _UNKNOWN
    support = target.support(node.op)
    data_ports = range(len(node.inputs)) if spec.data == ALL else spec.data
    present = [(p, node.inputs[p]) for p in data_ports if p < len(node.inputs) and node.inputs[p]]
    weight = _constant_input(view, node, spec.weight)
    bias = _constant_input(view, node, spec.bias)
    if spec.op == "MatMul" and weight is None and len(node.inputs) > 1:
        present.append((1, node.inputs[1]))  # activation x activation
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
        channel_axis=_channel_axis(view, node, spec, weight),
        weight_only=weight is not None and view.dtype(weight[1]) == "float32",
        reason=Reason(*verdict, node.name) if verdict else None,
    )


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
            return "control-flow", f"{node.op} and the nodes inside its bodies stay as they are"
        return "unknown-operator", f"{node.full_op} is not an operator that onnxq quantizes"
    if node.name in patterns:
        return "fused-float", f"is part of a {patterns[node.name]}"
    support = target.support(node.op)
    if support.kernel is Kernel.FLOAT:
        return "no-int8-kernel", f"{node.op} stays float: {support.why}"
    ports = range(len(node.inputs)) if spec.data == ALL else spec.data
    types = {view.dtype(node.inputs[p]) for p in ports if p < len(node.inputs)}
    if types != {"float32"}:
        found = ", ".join(sorted(t or "an unknown type" for t in types))
        return "not-float32", f"computes on {found}, not on float32"
    special = _SPECIAL.get(node.op)
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
