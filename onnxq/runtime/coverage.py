"""Int8 coverage: which nodes really run as int8, read from the graph that the provider runs."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

import msgspec

from onnxq.graph import GraphView, Model, NodeView, load
from onnxq.runtime.session import Session
from onnxq.types import Reason

# Kernels that compute on integers, by the names that ONNX Runtime gives to what it fused.
INT8_KERNEL = re.compile(r"QLinear\w+|QGemm|MatMulInteger\w*|ConvInteger|QAttention")
# Of these, the ones whose output can be float.
FLOAT_OUTPUT = ("QGemm", "MatMulIntegerToFloat")
# What ONNX Runtime adds to the names of nodes that it makes out of others.
_PREFIX, _SUFFIX = "fused ", re.compile(r"(_token_\d+|_nchwc|/\w+Fusion)$")


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

    Args:
        quantized: The quantized model.
        nodes: Names of the nodes that are meant to run as int8.

    Raises:
        RuntimeFailure: ONNX Runtime refuses the model.
    """
    source = quantized.view()
    kernels = _Kernels(_optimized_view(quantized))
    wanted = list(nodes)
    missed = [
        Reason("runs-as-float", why, name)
        for name in wanted
        if (why := kernels.why_float(source, source.by_name[name]))
    ]
    return Coverage(len(wanted), len(wanted) - len(missed), tuple(missed))


def _optimized_view(model: Model) -> GraphView:
    with tempfile.TemporaryDirectory(prefix="onnxq-") as folder:
        written = Path(folder) / "optimized.onnx"
        Session(model, write_optimized=written)
        return load(written).view()


class _Kernels:
    """The optimised graph, by the names of the nodes that it was made from."""

    def __init__(self, view: GraphView) -> None:
        self._view = view
        self._integers: set[str] = set()
        self._by_source: dict[str, list[NodeView]] = {}
        for node in view.nodes:
            if node.op == "QuantizeLinear" or (
                self._runs_int8(node) and node.op not in FLOAT_OUTPUT
            ):
                self._integers.update(node.outputs)
            self._by_source.setdefault(_source_name(node.name), []).append(node)

    def _runs_int8(self, node: NodeView) -> bool:
        if node.op in ("QuantizeLinear", "DequantizeLinear"):
            return False
        return bool(INT8_KERNEL.fullmatch(node.op)) or (
            bool(node.inputs) and node.inputs[0] in self._integers
        )

    def why_float(self, source: GraphView, node: NodeView) -> str:
        """Why a node runs as float; empty when it runs as int8."""
        found = self._by_source.get(node.name) or self._makers(node)
        if any(self._runs_int8(kernel) for kernel in found):
            return ""
        if found:
            return f"runs as {found[0].full_op} on float: {_cause(source, node)}"
        before = source.producer(node.inputs[0])  # a clamp that vanished shares its maker's fate
        if node.op in ("Relu", "Clip") and before is not None:
            return self.why_float(source, before)
        return ""  # optimised away altogether

    def _makers(self, node: NodeView) -> list[NodeView]:
        names = [f"{t}{suffix}" for t in node.outputs for suffix in ("", "_quantized")]
        makers = (self._view.producer(name) for name in names)
        return [m for m in makers if m is not None and m.op != "DequantizeLinear"]


def _source_name(name: str) -> str:
    name = name.removeprefix(_PREFIX)
    while (shorter := _SUFFIX.sub("", name)) != name:
        name = shorter
    return name


def _cause(source: GraphView, node: NodeView) -> str:
    """The likeliest reason why a pattern did not fuse."""
    users = [source.by_name[use.node] for use in source.uses(node.outputs[0])]
    clamp = next((u for u in users if u.op in ("Relu", "Clip")), None)
    if clamp is not None:
        return f"the range behind '{clamp.name}' does not make that {clamp.op} redundant"
    if any(u.op != "QuantizeLinear" for u in users):
        return "its output also feeds a float consumer"
    return "ONNX Runtime has no int8 kernel for this combination of inputs"
