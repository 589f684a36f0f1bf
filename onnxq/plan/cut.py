"""The cheapest assignment of precisions: an exact minimum cut over what every node costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from onnxq.graph import GraphView
from onnxq.ops import Census, NodeInfo
from onnxq.targets import Kernel

# Capacities are integers, in which a minimum cut is exact: thousandths of a microsecond.
_UNITS = 1000
# A side or a node, and its name: a node may be called as a side is.
_Vertex = tuple[str, str]
_FLOAT, _INTEGER = ("side", "float"), ("side", "integer")


@dataclass(frozen=True)
class Costs:
    """What every node costs on each side, and every tensor that changes sides.

    Attributes:
        floating: Microseconds by node that reads and makes float data.
        integer: The same by node that computes on integers with known ranges; a node that is
            missing cannot.
        to_integer: Microseconds to quantize a tensor that a float node makes.
        to_float: Microseconds to dequantize one that an integer node makes.
    """

    floating: Mapping[str, float]
    integer: Mapping[str, float]
    to_integer: Mapping[str, float] = field(default_factory=dict)
    to_float: Mapping[str, float] = field(default_factory=dict)

    def of(self, view: GraphView, integers: frozenset[str]) -> float:
        """What an assignment costs, by this model of costs."""
        nodes = (
            self.integer[n.name] if n.name in integers else self.floating.get(n.name, 0.0)
            for n in view.nodes
        )
        return sum(nodes) + sum(
            self.to_integer.get(t, 0.0) if quantized else self.to_float.get(t, 0.0)
            for t, quantized in _crossings(view, integers)
        )


def cheapest(view: GraphView, census: Census, costs: Costs) -> frozenset[str]:
    """The nodes that compute on integers in the cheapest assignment.

    A minimum s-t cut finds it exactly. Every node is a vertex; the side that it falls on is its
    precision. A tensor that crosses is paid for once, however many nodes read it: a vertex of its
    own stands between the node that makes it and those that read it.

    Args:
        view: The prepared graph.
        census: What ``classify`` said of it.
        costs: What each node and each crossing costs.

    Returns:
        Names of nodes, all of them keys of ``costs.integer``.
    """
    heads = _heads(view, census, costs)
    network = _Network()
    for name in costs.integer:
        network.cut(_FLOAT, heads[name], costs.integer[name])
        network.cut(heads[name], _INTEGER, costs.floating.get(name, 0.0))
    for tensor, maker, readers in _edges(view):
        made = heads.get(maker, _FLOAT)
        read = {heads.get(reader, _FLOAT) for reader in readers} - {made}
        if read - {_FLOAT}:
            price = costs.to_integer.get(tensor, 0.0)
            network.fan(made, ("quantize", tensor), read - {_FLOAT}, price)
        if read and made != _FLOAT:
            price = costs.to_float.get(tensor, 0.0)
            network.fan_in(read, ("dequantize", tensor), made, price)
    floating = network.source_side()
    return frozenset(name for name in costs.integer if heads[name] not in floating)


class _Network:
    """Vertices on the side of the source compute in float, those of the sink on integers."""

    def __init__(self) -> None:
        import networkx

        self._graph = networkx.DiGraph()
        self._graph.add_nodes_from((_FLOAT, _INTEGER))

    def cut(self, start: object, end: object, cost: float) -> None:
        """Pay ``cost`` when ``start`` is float and ``end`` on integers."""
        known = self._graph.get_edge_data(start, end, {"capacity": 0})
        self._graph.add_edge(start, end, capacity=known["capacity"] + round(cost * _UNITS))

    def _bind(self, start: object, end: object) -> None:
        """When ``start`` is float, so is ``end``: an edge without capacity is never cut."""
        self._graph.add_edge(start, end)

    def fan(self, start: object, middle: object, ends: set[_Vertex], cost: float) -> None:
        """Pay once when ``start`` is float and any of ``ends`` on integers."""
        self.cut(start, middle, cost)
        for end in ends:
            self._bind(middle, end)

    def fan_in(self, starts: set[_Vertex], middle: object, end: object, cost: float) -> None:
        """Pay once when any of ``starts`` is float and ``end`` on integers."""
        for start in starts:
            self._bind(start, middle)
        self.cut(middle, end, cost)

    def source_side(self) -> set[object]:
        """The vertices that compute in float in a minimum cut."""
        import networkx

        _, (floating, _) = networkx.minimum_cut(self._graph, _FLOAT, _INTEGER)
        side: set[object] = floating
        return side


def _heads(view: GraphView, census: Census, costs: Costs) -> dict[str, _Vertex]:
    """For every node that may compute on integers, the vertex of the node whose side it shares.

    A clamp vanishes into the range of what makes its input: the two are one vertex.
    """
    infos: dict[str, NodeInfo] = {node.name: node for node in census.nodes}
    heads: dict[str, _Vertex] = {}
    for node in view.nodes:
        if node.name not in costs.integer:
            continue
        heads[node.name] = ("node", node.name)
        if infos[node.name].kernel is Kernel.CLAMP:
            maker = view.producer(node.inputs[0])
            if maker is not None and maker.name in heads:
                heads[node.name] = heads[maker.name]
    return heads


def _edges(view: GraphView) -> Iterable[tuple[str, str, set[str]]]:
    """Every activation: its name, what makes it (empty for an input), what reads it.

    An output of the graph is read by nobody's float node, which is called empty too.
    """
    for spec in view.inputs:
        yield spec.name, "", {use.node for use in view.uses(spec.name)}
    for node in view.nodes:
        for tensor in node.outputs:
            readers = {use.node for use in view.uses(tensor)}
            outside = {""} if tensor in view.output_names else set()
            if readers or outside:
                yield tensor, node.name, readers | outside


def _crossings(view: GraphView, integers: frozenset[str]) -> Iterable[tuple[str, bool]]:
    """Tensors that change sides, and whether to integers."""
    for tensor, maker, readers in _edges(view):
        if maker in integers and not readers <= integers:
            yield tensor, False
        if maker not in integers and readers & integers:
            yield tensor, True
