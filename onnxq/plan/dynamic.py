"""Dynamic quantization: which nodes compute on integers whose scale is found while they run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxq.graph import GraphView, NodeView
from onnxq.ops import NodeInfo
from onnxq.types import Array, Reason

# Quantizing the input of a smaller layer takes longer than integers save. ONNX Runtime 1.31, one
# thread, float by int8 time: MatMuls of 32x32 0.5 to 0.6 from 1 row to 128, of 64x64 0.6 to 1.1, of
# 128x128 0.8 to 1.7, of 256x256 2.1 to 3.4; LSTMs of 32 units 0.6 to 0.9, of 64 units 1.0 to 1.1.
LEAST_WEIGHTS = 4096
LEAST_LSTM_WEIGHTS = 16384
# A row of a table has a float scale of its own, which must not weigh as much as what it saves.
LEAST_ROW = 16
Verdict = tuple[str, str] | None


def lacks_dynamic_kernel(node: NodeInfo) -> bool:
    """True for what computes in float wherever its weights are stored as integers.

    That is GRU and RNN, which have no integer kernel, and the bodies of If, Loop and Scan.
    """
    return node.op in ("GRU", "RNN") or any(stored.port < 0 for stored in node.stored)


def refuse_dynamic(view: GraphView, node: NodeInfo) -> Reason | None:
    """Why a node does not compute dynamically; None when it does.

    Layers of MatMul, Gemm, LSTM and Attention quantize what they read while they run, and tables
    of embeddings are looked up as int8.

    Args:
        view: The prepared graph.
        node: What ``classify`` said of the node.
    """
    verdict = _refuse(view, node)
    return Reason(*verdict, node.name) if verdict else None


def _refuse(view: GraphView, node: NodeInfo) -> Verdict:
    if node.op in _FLOAT_ONLY:
        return "no-dynamic-kernel", f"{node.op} stays float: {_FLOAT_ONLY[node.op]}"
    if lacks_dynamic_kernel(node):
        return "no-dynamic-kernel", f"{node.op} stays float: int8-weights stores its weights"
    if node.op not in _RULES:
        return "no-dynamic-kernel", f"{node.op} has no weight that onnxq quantizes dynamically"
    if verdict := _RULES[node.op](view, view.by_name[node.name]):
        return verdict
    constants = [view.constant(stored.tensor) for stored in node.stored]
    least = LEAST_LSTM_WEIGHTS if node.op == "LSTM" else LEAST_WEIGHTS
    return _refuse_constants([values for values in constants if values is not None], least)


def _refuse_constants(constants: list[Array], least: int) -> Verdict:
    if not constants:
        return "weight-not-constant", "its weights are no float32 constants"
    if any(values.size == 0 for values in constants):
        return "empty-weight", "its weight is empty"
    if sum(values.size for values in constants) < least:
        return "small-weight", f"it has under {least} weights, too few to gain from integers"
    if not all(np.isfinite(values).all() for values in constants):
        return "weight-not-finite", "its weight holds NaN or infinity"
    return None


def _matmul(view: GraphView, node: NodeView) -> Verdict:
    left, right = node.inputs[:2]
    if not view.is_constant(right):
        if view.is_constant(left):
            return "constant-left", "its left operand is constant, and the kernel wants it right"
        return "weight-not-constant", "it multiplies two activations"
    if (view.rank(right) or 0) < 2:
        return "vector-operand", "its right operand is a vector"
    return None


def _gemm(_view: GraphView, node: NodeView) -> Verdict:
    odd = [k for k in ("alpha", "beta") if node.attrs.get(k, 1.0) != 1.0]
    odd += ["transA"] if node.attrs.get("transA", 0) else []
    return ("gemm-attributes", f"the int8 kernel takes no {' or '.join(odd)}") if odd else None


def _lstm(_view: GraphView, node: NodeView) -> Verdict:
    if node.attrs.get("layout", 0):
        return "lstm-layout", "the int8 kernel wants the steps on the first axis (layout = 0)"
    return None


def _gather(view: GraphView, node: NodeView) -> Verdict:
    table = view.constant(node.inputs[0])
    if table is None or table.dtype != np.float32 or not table.ndim:
        return "weight-not-constant", "its table is no float32 constant"
    if table.size < LEAST_ROW * table.shape[int(node.attrs.get("axis", 0))]:
        return "short-rows", f"the rows of its table have under {LEAST_ROW} values"
    return None


def _attention(_view: GraphView, node: NodeView) -> Verdict:
    inputs = (*node.inputs, *[""] * 7)
    if not inputs[2]:
        return "attention-inputs", "the int8 kernel needs a bias"
    odd = [name for port, name in _ATTENTION_INPUTS.items() if inputs[port]]
    odd += [name for name in _ATTENTION_ATTRIBUTES if node.attrs.get(name)]
    return ("attention-inputs", f"the int8 kernel takes no {' or '.join(odd)}") if odd else None


def _embedding(_view: GraphView, node: NodeView) -> Verdict:
    if (*node.inputs, *[""] * 9)[8]:
        return "embedding-inputs", "the int8 kernel takes no position_ids"
    if any(node.outputs[2:]):
        return "embedding-outputs", "the int8 kernel makes no embedding_sum"
    return None


_ATTENTION_INPUTS = {5: "attention_bias", 6: "past_sequence_length"}
_ATTENTION_ATTRIBUTES = ("do_rotary", "past_present_share_buffer", "qkv_hidden_sizes")
# ONNX Runtime 1.31, CPU provider, one thread: ConvInteger took 1.2 to 20 times as long as the float
# kernel on everything from 1x1 and 3x3 to depthwise.
_FLOAT_ONLY = {
    "Conv": "ONNX Runtime's ConvInteger is slower than its float kernel",
    "ConvTranspose": "ONNX Runtime has no integer kernel for it",
    "com.microsoft::MultiHeadAttention": "its projections are MatMuls of their own, before it",
}
_RULES: dict[str, Callable[[GraphView, NodeView], Verdict]] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "LSTM": _lstm,
    "Gather": _gather,
    "com.microsoft::Attention": _attention,
    "com.microsoft::EmbedLayerNormalization": _embedding,
}
