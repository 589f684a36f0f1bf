"""Int8 coverage: which nodes really run as int8, read from the graph that the provider runs."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from onnxq.graph import GraphView, Model, NodeView, load
from onnxq.runtime.session import Session
from onnxq.types import Reason

# Kernels that compute on integers, by the names that ONNX Runtime gives to what it fused.
INT8_KERNEL = re.compile(
    r"QLinear\w+|QGemm|MatMulInteger\w*|ConvInteger|QAttention|DynamicQuantize(MatMul|LSTM)"
)
# Of these, the ones whose output is float; QGemm's is when it has no scale of the output.
FLOAT_OUTPUT = (
    "MatMulIntegerToFloat",
    "QAttention",
    "DynamicQuantizeMatMul",
    "DynamicQuantizeLSTM",
)
_QGEMM_OUTPUT_SCALE = 7
_CONVERSIONS, _CLAMPS = ("QuantizeLinear", "DequantizeLinear"), ("Relu", "Clip")
# What ONNX Runtime adds to the names of nodes that it makes out of others.
_ADDED = re.compile(r"^fused |(_token_\d+|_nchwc|/\w+Fusion)$")


class Coverage(msgspec.Struct, frozen=True):
    """How much of what was planned as int8 runs as int8.

    Attributes:
        wanted: Nodes that the plan wants in int8.
        int8: How many of them run so, or vanished into a kernel that does.
        float_nodes: The others, with what runs instead.
    """

    wanted: int
    int8: int
    float_nodes: tuple[Reason, ...]


def int8_coverage(quantized: Model, nodes: Iterable[str]) -> Coverage:
    """Open a quantized model once and look at what ONNX Runtime made of it.

    A node runs as int8 when the kernel that it became computes on integers. One that left no trace
    (a Reshape to the same shape, a Relu that the range makes redundant) costs nothing, and counts
    as int8 when an int8 kernel computes what it would have read or, unless it is a clamp, reads
    what it would have made.

    A node that the quantized model does not have vanished into an integer operator there.

    Args:
        quantized: The quantized model.
        nodes: Names of the nodes that are meant to run as int8.

    Raises:
        RuntimeFailure: ONNX Runtime refuses the model.
    """
    source = quantized.view()
    kernels = _Kernels(_optimized_view(quantized), source)
    wanted = list(nodes)
    missed = [
        Reason("runs-as-float", why, name)
        for name in wanted
        if name in source.by_name and (why := kernels.why_float(source.by_name[name]))
    ]
    return Coverage(len(wanted), len(wanted) - len(missed), tuple(missed))


def _optimized_view(model: Model) -> GraphView:
    with tempfile.TemporaryDirectory(prefix="onnxq-") as folder:
        written = Path(folder) / "optimized.onnx"
        Session(model, write_optimized=written).close()
        return load(written).view()


class _Kernels:
    """The optimised graph, by the nodes of the source that it was made from."""

    def __init__(self, view: GraphView, source: GraphView) -> None:
        self._view, self._source = view, source
        self._integers: set[str] = set()
        self._by_source: dict[str, list[NodeView]] = {}
        for node in view.nodes:
            if node.op == "QuantizeLinear" or (self._runs_int8(node) and _makes_integers(node)):
                self._integers.update(node.outputs)
            self._by_source.setdefault(_source_name(node.name, source), []).append(node)

    def why_float(self, node: NodeView) -> str:
        """Why a node runs as float; empty when it runs as int8."""
        found = self._found(node)
        if found:
            if any(self._runs_int8(kernel) for kernel in found):
                return ""
            return f"runs as {found[0].full_op} on float: {_cause(self._source, node)}"
        if self._leads_to_int8(node, self._before):
            return ""
        if node.op not in _CLAMPS and self._leads_to_int8(node, self._after):
            return ""
        return "left no trace in what ONNX Runtime runs, and nothing around it is int8"

    def _runs_int8(self, node: NodeView) -> bool:
        if node.op in _CONVERSIONS:
            return False
        return bool(INT8_KERNEL.fullmatch(node.op)) or (
            bool(node.inputs) and node.inputs[0] in self._integers
        )

    def _found(self, node: NodeView) -> list[NodeView]:
        """What a node became, by its name, or else by the tensors that it makes."""
        if node.op in _CONVERSIONS:
            return []
        quantized = [n.outputs[0] for n in self._after(node) if n.op == "QuantizeLinear"]
        makers = [self._view.producer(name) for name in (*node.outputs, *quantized)]
        return self._by_source.get(node.name) or [
            maker for maker in makers if maker is not None and maker.op not in _CONVERSIONS
        ]

    def _leads_to_int8(self, node: NodeView, step: Callable[[NodeView], list[NodeView]]) -> bool:
        """Whether the next nodes that left a trace run as int8, any of them."""
        for near in step(node):
            found = self._found(near)
            if any(map(self._runs_int8, found)) or (not found and self._leads_to_int8(near, step)):
                return True
        return False

    def _before(self, node: NodeView) -> list[NodeView]:
        maker = self._source.producer(node.inputs[0]) if node.inputs else None
        return [maker] if maker is not None else []

    def _after(self, node: NodeView) -> list[NodeView]:
        return _users(self._source, node)


def _makes_integers(kernel: NodeView) -> bool:
    if kernel.op == "QGemm":
        return any(kernel.inputs[_QGEMM_OUTPUT_SCALE:])
    return kernel.op not in FLOAT_OUTPUT


def _source_name(name: str, source: GraphView) -> str:
    """The node of the source that a kernel was named after; its own name when there is none."""
    while name not in source.by_name and (shorter := _ADDED.sub("", name, count=1)) != name:
        name = shorter
    return name


def _cause(source: GraphView, node: NodeView) -> str:
    """The likeliest reason why a pattern did not fuse."""
    users = _users(source, node)
    clamp = next((u for u in users if u.op in _CLAMPS), None)
    if clamp is not None and all(u.op != "QuantizeLinear" for u in _users(source, clamp)):
        return f"it fuses with '{clamp.name}' behind it, which stays float"
    if clamp is not None:
        return f"the range behind '{clamp.name}' does not make that {clamp.op} redundant"
    if any(u.op != "QuantizeLinear" for u in users):
        return "its output also feeds a float consumer"
    return "ONNX Runtime has no int8 kernel for this combination of inputs"


def _users(source: GraphView, node: NodeView) -> list[NodeView]:
    uses = (use for tensor in node.outputs for use in source.uses(tensor))
    return [source.by_name[use.node] for use in uses]
