"""Which nodes compute in int8: the anchors, and what between them runs on int8 data."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from onnxq.graph import GraphView
from onnxq.ops import Census, NodeInfo, Role
from onnxq.plan.layers import LayerSettings, layer_settings
from onnxq.plan.recipe import Recipe
from onnxq.targets import Kernel, Pairs, get_target
from onnxq.types import Reason


def tensors_to_observe(view: GraphView, census: Census, recipe: Recipe) -> tuple[str, ...]:
    """The activation tensors that a plan may quantize, in the graph's order.

    Args:
        view: The prepared graph.
        census: What ``classify`` said of it.
        recipe: What is wanted of each node.

    Raises:
        UsageError: A pattern or an operator matches no node.
    """
    regions = Regions(view, census, not_static(census, layer_settings(census, recipe)))
    nodes = [node for node in census.nodes if node.name in regions.int8]
    return tuple(dict.fromkeys(t for node in nodes for t in regions.observed(node)))


def not_static(census: Census, layers: Mapping[str, LayerSettings]) -> dict[str, Reason]:
    """The nodes that are not to compute on activations with known ranges, and why."""
    refuses = get_target(census.target).refuses
    reasons = {}
    for node in census.nodes:
        wanted, name = layers[node.name], node.name
        if not wanted.precision.static:
            text = f"is to compute as {wanted.precision}"
            reasons[name] = wanted.reason or Reason("other-precision", text, name)
        elif wanted.precision in refuses:
            text = f"stays float: {refuses[wanted.precision]}"
            reasons[name] = Reason("target-refuses", text, name)
    return reasons


class Regions:
    """The largest set of nodes that gain from int8 together.

    Anchors (Conv, Gemm, MatMul with a weight) compute in int8 whatever stands around them. Any
    other node joins them only when its inputs are int8 data already and something behind it
    wants int8 data: elsewhere a Q/DQ pair is pure loss. Where a target has sums vanish into
    layers, a sum joins when such a layer makes one of its inputs. Starting with every
    candidate, nodes that break their rule are dropped until none is left; dropping one makes
    only its neighbours candidates again, so that the cost is linear in the edges.
    """

    def __init__(self, view: GraphView, census: Census, kept: dict[str, Reason]) -> None:
        self._view = view
        self._target = get_target(census.target)
        self._infos = {node.name: node for node in census.nodes}
        self._moved = _Moved(view)
        self._depths: dict[str, int] = {}
        self.reasons: dict[str, Reason] = {
            node.name: node.reason for node in census.nodes if node.reason is not None
        } | kept
        self.reasons = _before_bodies(view, self._infos) | self.reasons
        self.int8 = {n for n in self._infos if n not in self.reasons}
        for name in self.reasons:
            self._moved.note(self._infos[name])
        self._settle()

    def _settle(self) -> None:
        queue = deque(name for name in self._infos if name in self.int8)
        while queue:
            name = queue.popleft()
            if name not in self.int8:
                continue
            node = self._infos[name]
            sentence = self._broken_rule(node)
            if sentence:
                self.int8.discard(name)
                self.reasons[name] = Reason("no-gain", sentence, name)
                readers = [r for t in node.outputs for r in self._moved.readers(t)]
                makers = [self._view.producer(tensor) for _, tensor in node.data]
                queue.extend(readers + [maker.name for maker in makers if maker is not None])
                self._moved.note(node)

    def _broken_rule(self, node: NodeInfo) -> str:
        if node.role is Role.COMPUTE:
            if node.weight is not None or all(self._available(t, node) for _, t in node.data):
                return ""
            return "one of its two activations is computed in float"
        if node.kernel is Kernel.RESIDUAL:
            return "" if self._residual(node) else "no int8 layer makes an input for it alone"
        if node.kernel is Kernel.CLAMP:
            return self._broken_clamp(node)
        if not all(self._available(tensor, node) for _, tensor in node.data):
            return "its input is computed in float, so that a Q/DQ pair would be pure loss"
        if not self._wanted(node):
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
        # A Conv needs the pair in any case; a Gemm without it fuses with the clamp in float.
        if info.op not in ("Conv", "Gemm") and not self._wanted(node):
            return "nothing behind it computes in int8"
        return ""

    def _residual(self, node: NodeInfo) -> str:
        """The input of a sum that carries a pair: not the one whose layer the sum vanishes into.

        That layer comes last: of two, the one with more layers before it. Empty when no int8
        layer makes an input that nothing else reads.
        """
        tensors = [tensor for _, tensor in node.data]
        layers = [tensor for tensor in tensors if self._ends_in_layer(tensor)]
        if len(tensors) != 2 or not layers:
            return ""
        return tensors[1 - tensors.index(max(layers, key=self._depth))]

    def _ends_in_layer(self, tensor: str) -> bool:
        producer = self._view.producer(tensor)
        if producer is None or producer.name not in self.int8:
            return False
        alone = len(self._view.uses(tensor)) == 1 and tensor not in self._view.output_names
        return alone and self._infos[producer.name].role is Role.COMPUTE

    def _depth(self, tensor: str) -> int:
        """How many layers lie on the longest way to a tensor."""
        if not self._depths:
            for node in self._view.nodes:
                before = max((self._depths.get(t, 0) for t in node.inputs), default=0)
                deeper = before + (self._infos[node.name].role is Role.COMPUTE)
                self._depths.update(dict.fromkeys(node.outputs, deeper))
        return self._depths.get(tensor, 0)

    def _available(self, tensor: str, reader: NodeInfo) -> bool:
        """True when a tensor is int8 data, or float data that only moved since it was int8."""
        producer = self._view.producer(self._moved.origin(tensor))
        if producer is None:
            return reader.role in (Role.COMPUTE, Role.MOVE, Role.JOIN)
        return producer.name in self.int8

    def _wanted(self, node: NodeInfo) -> bool:
        """True when a node that computes in int8 reads one of the outputs."""
        users = (use.node for tensor in node.outputs for use in self._view.uses(tensor))
        return any(user in self.int8 for user in users)

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
            found.update(dict.fromkeys(self._read_as_int8(node)))
            for tensor in node.outputs:
                if not self.absorbed(tensor) and self._needs_pair(node, tensor):
                    found[tensor] = None
        return found

    def _read_as_int8(self, node: NodeInfo) -> list[str]:
        """The inputs of an int8 node that carry a pair."""
        if node.kernel is Kernel.CLAMP:
            return []
        if node.kernel is Kernel.RESIDUAL:
            return [self._residual(node)]
        return [tensor for _, tensor in node.data]

    def observed(self, node: NodeInfo) -> dict[str, None]:
        """The tensors whose ranges decide whether a node can compute in int8.

        A clamp and the node that it vanishes into stand and fall together: by the clamp's output.
        """
        tensors = dict.fromkeys(t for _, t in node.data if not self.absorbed(t))
        made = node.outputs if self._target.pairs is Pairs.AROUND else ()
        for tensor in made:
            if self.absorbed(tensor):
                (use,) = self._view.uses(tensor)
                tensors.update(dict.fromkeys(self._infos[use.node].outputs))
            else:
                tensors[tensor] = None
        tensors.pop("", None)
        return tensors

    def _needs_pair(self, node: NodeInfo, tensor: str) -> bool:
        """Whether a pair stands behind what an int8 node makes.

        Without one it needs a kernel with float output. Some of these do not last: ONNX Runtime
        makes a MatMul and the Add of its bias a float Gemm, which dequantizes the weights at run
        time.
        """
        support = self._target.support(node.op)
        if self._target.pairs is Pairs.AROUND and not support.float_output:
            return True
        users = [self._infos[use.node] for use in self._view.uses(tensor)]
        if any(u.name in self.int8 and tensor in self._read_as_int8(u) for u in users):
            return True
        return any(u.op == support.merges_with and u.constants for u in users)


def _before_bodies(view: GraphView, infos: Mapping[str, NodeInfo]) -> dict[str, Reason]:
    """Movers whose output a body reads, and what makes what they move: both stay float.

    ONNX Runtime moves a DequantizeLinear behind such an operator, forgets the body, and ends the
    process while it loads the model (seen with 1.31.1).
    """
    found: dict[str, Reason] = {}
    stack = [
        name
        for name, node in infos.items()
        if node.kernel is Kernel.MOVES
        and any(use.port < 0 for tensor in node.outputs for use in view.uses(tensor))
    ]
    while stack:
        name = stack.pop()
        if name in found:
            continue
        text = "a body of If, Loop or Scan reads it behind an operator that only moves data"
        found[name] = Reason("before-body", text, name)
        if infos[name].kernel is Kernel.MOVES:
            makers = (view.producer(tensor) for _, tensor in infos[name].data)
            stack += [maker.name for maker in makers if maker is not None]
    return found


class _Moved:
    """Where float data come from that were only moved: a union-find over float movers."""

    def __init__(self, view: GraphView) -> None:
        self._view = view
        self._parent: dict[str, str] = {}
        self._readers: dict[str, dict[str, None]] = {}

    def note(self, node: NodeInfo) -> None:
        """A node computes in float: if it only moves data, its outputs are its input."""
        origins = [self.origin(tensor) for _, tensor in node.data]
        for origin in origins:
            self.readers(origin).pop(node.name, None)  # what is float stays so: no news for it
        if node.role is not Role.MOVE or not origins:
            return
        for tensor in node.outputs:
            if self.origin(tensor) == origins[0]:
                continue
            few, many = sorted((self.readers(origins[0]), self.readers(tensor)), key=len)
            many.update(few)  # the shorter list moves, so that all moves are n log n
            self._readers[origins[0]] = many
            self._parent[tensor] = origins[0]

    def origin(self, tensor: str) -> str:
        """The tensor that the values of this one were first in."""
        while (parent := self._parent.get(tensor)) is not None:
            self._parent[tensor] = self._parent.get(parent, parent)  # halve the path
            tensor = parent
        return tensor

    def readers(self, tensor: str) -> dict[str, None]:
        """Nodes that read these values, moved or not, and are not known to compute in float."""
        if tensor not in self._readers:
            self._readers[tensor] = {use.node: None for use in self._view.uses(tensor)}
        return self._readers[tensor]
