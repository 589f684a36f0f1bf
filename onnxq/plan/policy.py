"""Which nodes compute in int8: the anchors, and what between them runs on int8 data."""

from __future__ import annotations

import difflib
from collections import deque
from fnmatch import fnmatchcase

from onnxq.errors import UsageError
from onnxq.graph import GraphView
from onnxq.ops import Census, NodeInfo, Role
from onnxq.targets import Kernel
from onnxq.types import Reason


def keep_float(
    census: Census, patterns: tuple[str, ...], operators: tuple[str, ...]
) -> dict[str, Reason]:
    """The nodes that the user wants float, by glob of the name or by operator type.

    Raises:
        UsageError: A pattern or an operator matches no node.
    """
    kept: dict[str, Reason] = {}
    names, ops = [n.name for n in census.nodes], {n.op for n in census.nodes}
    for pattern in patterns:
        hits = [name for name in names if fnmatchcase(name, pattern)]
        if not hits:
            raise UsageError(f"no node is called '{pattern}'", _nearest(pattern, names))
        kept.update({n: Reason("kept-float", f"kept float by '{pattern}'", n) for n in hits})
    for op in operators:
        if op not in ops:
            raise UsageError(f"no node is a '{op}'", _nearest(op, sorted(ops)))
        hits = [n.name for n in census.nodes if n.op == op]
        kept.update({n: Reason("kept-float", f"kept float as {op}", n) for n in hits})
    return kept


def _nearest(wanted: str, known: list[str]) -> str:
    near = difflib.get_close_matches(wanted.strip("*"), known, n=1, cutoff=0.3)
    shown = f"did you mean '{near[0]}'?" if near else "the model has other names"
    return f"{shown} `onnxq inspect MODEL` lists all nodes"


class Regions:
    """The largest set of nodes that gain from int8 together.

    Anchors (Conv, Gemm, MatMul with a weight) compute in int8 whatever stands around them. Any
    other node joins them only when its inputs are int8 data already and something behind it
    wants int8 data: elsewhere a Q/DQ pair is pure loss. Starting with every candidate, nodes
    that break their rule are dropped until none is left; dropping one makes only its neighbours
    candidates again, so that the cost is linear in the edges.
    """

    def __init__(self, view: GraphView, census: Census, kept: dict[str, Reason]) -> None:
        self._view = view
        self._infos = {node.name: node for node in census.nodes}
        self.reasons: dict[str, Reason] = {
            node.name: node.reason for node in census.nodes if node.reason is not None
        } | kept
        self.int8 = {n for n in self._infos if n not in self.reasons}
        self._settle()

    def _settle(self) -> None:
        queue = deque(name for name in self._infos if name in self.int8)
        while queue:
            name = queue.popleft()
            if name not in self.int8:
                continue
            sentence = self._broken_rule(self._infos[name])
            if sentence:
                self.int8.discard(name)
                self.reasons[name] = Reason("no-gain", sentence, name)
                queue.extend(self._neighbours(self._infos[name]))

    def _broken_rule(self, node: NodeInfo) -> str:
        if node.role is Role.COMPUTE:
            if node.weight is not None or all(self.available(t, node) for _, t in node.data):
                return ""
            return "one of its two activations is computed in float"
        if node.kernel is Kernel.CLAMP:
            return self._broken_clamp(node)
        if not all(self.available(tensor, node) for _, tensor in node.data):
            return "its input is computed in float, so that a Q/DQ pair would be pure loss"
        if not self.wanted(node):
            return "nothing behind it computes in int8"
        return ""

    def _broken_clamp(self, node: NodeInfo) -> str:
        tensor = node.data[0][1]
        producer = self._view.producer(tensor)
        if producer is None or producer.name not in self.int8:
            return "its input is computed in float"
        info = self._infos[producer.name]
        if len(self._view.uses(tensor)) > 1 or tensor in self._view.output_names:
            return "its input is used elsewhere too, so that no range can absorb it"
        if info.kernel is Kernel.MOVES:
            return "it follows an operator that only moves data"
        if not (info.op == "Conv" or self.wanted(node)):
            return "nothing behind it computes in int8"
        return ""

    def available(self, tensor: str, reader: NodeInfo) -> bool:
        """True when a tensor is int8 data, or float data that only moved since it was int8."""
        while (producer := self._view.producer(tensor)) is not None:
            info = self._infos[producer.name]
            if info.name in self.int8:
                return True
            if info.role is not Role.MOVE or not info.data:
                return False
            tensor = info.data[0][1]
        return reader.role in (Role.COMPUTE, Role.MOVE, Role.JOIN)

    def wanted(self, node: NodeInfo) -> bool:
        """True when a node that computes in int8 reads one of the outputs."""
        users = (use.node for tensor in node.outputs for use in self._view.uses(tensor))
        return any(user in self.int8 for user in users)

    def _neighbours(self, node: NodeInfo) -> list[str]:
        producers = (self._view.producer(tensor) for _, tensor in node.data)
        found = [p.name for p in producers if p is not None]
        front = list(node.outputs)
        while front:  # float movers pass the news on to what they feed
            for use in self._view.uses(front.pop()):
                found.append(use.node)
                info = self._infos[use.node]
                if info.role is Role.MOVE and use.node not in self.int8:
                    front.extend(info.outputs)
        return found

    def absorbed(self, tensor: str) -> bool:
        """True for a tensor between a node and the clamp that vanishes into its range."""
        uses = self._view.uses(tensor)
        if len(uses) != 1 or uses[0].node not in self.int8:
            return False
        return self._infos[uses[0].node].kernel is Kernel.CLAMP

    def tensors(self) -> dict[str, None]:
        """The activation tensors that carry a Q/DQ pair, in the graph's order."""
        found: dict[str, None] = {}
        for node in self._infos.values():
            if node.name not in self.int8:
                continue
            if node.kernel is not Kernel.CLAMP:
                found.update(dict.fromkeys(tensor for _, tensor in node.data))
            for tensor in node.outputs:
                if not self.absorbed(tensor) and self._needs_pair(node, tensor):
                    found[tensor] = None
        return found

    def _needs_pair(self, node: NodeInfo, tensor: str) -> bool:
        """Gemm and MatMul have kernels with float output; all others need the output's pair.

        A MatMul whose bias is a separate Add needs it too: ONNX Runtime would make the two a
        float Gemm that dequantizes its weights at run time.
        """
        if node.op not in ("Gemm", "MatMul"):
            return True
        users = [use.node for use in self._view.uses(tensor)]
        if any(user in self.int8 for user in users):
            return True
        adds = [u for u in users if self._infos[u].op == "Add" and self._infos[u].constants]
        return node.op == "MatMul" and bool(adds)
