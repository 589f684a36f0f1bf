"""A read-only look at a graph: nodes, who makes and who uses a tensor, constants, shapes."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.types import Array, TensorSpec

Shape = tuple[int | str | None, ...]


@dataclass(frozen=True)
class NodeView:
    """One node of the main graph.

    Attributes:
        name: The node's name, or ``OpType_index`` when it has none.
        op: Operator type.
        domain: Operator domain, empty for ONNX itself.
        inputs: Tensor names, empty for an omitted input.
        outputs: Tensor names.
        attrs: Attribute values as Python numbers, strings, tuples or arrays; no subgraphs.
        captures: Tensors of this graph that the node's subgraphs use.
        inner_uses: Each of these uses, those in nested subgraphs included, in order.
        bodies: The node's subgraphs by the attributes that hold them (If, Loop, Scan).
    """

    name: str
    op: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any]
    captures: tuple[str, ...] = ()
    inner_uses: tuple[InnerUse, ...] = ()
    bodies: Mapping[str, GraphView] = field(default_factory=dict, compare=False, repr=False)

    @property
    def full_op(self) -> str:
        """Operator type with its domain, as people read it."""
        return f"{self.domain}::{self.op}" if self.domain else self.op


@dataclass(frozen=True)
class InnerUse:
    """One use of an outer tensor inside a subgraph: input ``port`` of ``node``, which is inside."""

    tensor: str
    node: NodeView
    port: int


@dataclass(frozen=True)
class Use:
    """One use of a tensor: input ``port`` of ``node``; port -1 when a subgraph captures it."""

    node: str
    port: int


class GraphView:
    """Looks at the main graph of a model, or at the body of a node in it.

    Every question is a dictionary look-up.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self.nodes: tuple[NodeView, ...] = tuple(
            _view_node(node, name) for node, name in zip(graph, node_names(graph), strict=True)
        )
        self.outputs: tuple[TensorSpec, ...] = tuple(_spec(v) for v in graph.outputs)
        self.inputs: tuple[TensorSpec, ...] = tuple(
            _spec(v) for v in graph.inputs if not v.is_initializer()
        )

    @cached_property
    def by_name(self) -> dict[str, NodeView]:
        """Nodes by name."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def _values(self) -> dict[str, ir.Value]:
        values = {v.name: v for v in (*self._graph.inputs, *self._graph.initializers.values())}
        values.update({v.name: v for node in self._graph for v in node.outputs})
        return {name: value for name, value in values.items() if name}

    @cached_property
    def _producers(self) -> dict[str, NodeView]:
        return {name: node for node in self.nodes for name in node.outputs if name}

    @cached_property
    def _uses(self) -> dict[str, list[Use]]:
        uses: dict[str, list[Use]] = {}
        for node in self.nodes:
            for port, name in enumerate(node.inputs):
                uses.setdefault(name, []).append(Use(node.name, port))
            for name in node.captures:
                uses.setdefault(name, []).append(Use(node.name, -1))
        uses.pop("", None)
        return uses

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of all nodes and tensors, those of subgraphs included."""
        graphs = (self._graph, *self._graph.subgraphs())
        inner = (*(node for graph in graphs for node in graph),)
        found = {v.name for graph in graphs for v in (*graph.inputs, *graph.initializers.values())}
        found |= {v.name for node in inner for v in node.outputs} | {node.name for node in inner}
        return frozenset(name for name in (*found, *self.by_name) if name)

    @property
    def opset(self) -> int:
        """Version of the default operator set; 0 when the model imports another only."""
        imports = self._graph.opset_imports
        return imports.get("", imports.get("ai.onnx", 0))

    @cached_property
    def output_names(self) -> frozenset[str]:
        """Names of the graph's outputs."""
        return frozenset(spec.name for spec in self.outputs)

    def producer(self, tensor: str) -> NodeView | None:
        """The node that makes a tensor; None for inputs and constants."""
        return self._producers.get(tensor)

    def uses(self, tensor: str) -> list[Use]:
        """All uses of a tensor, those of subgraphs included."""
        return self._uses.get(tensor, [])

    @cached_property
    def constant_names(self) -> tuple[str, ...]:
        """The initializers that no input can override."""
        return tuple(name for name in self._graph.initializers if self.is_constant(name))

    def is_constant(self, tensor: str) -> bool:
        """True for an initializer that cannot be overridden by an input."""
        value = self._graph.initializers.get(tensor)
        return value is not None and not value.is_graph_input()

    def constant(self, tensor: str) -> Array | None:
        """The values of a constant; memory-mapped where they lie in external data."""
        if not self.is_constant(tensor):
            return None
        data = self._graph.initializers[tensor].const_value
        return None if data is None else values_of(data)

    def dtype(self, tensor: str) -> str:
        """NumPy type name of a tensor; empty when the graph does not tell."""
        value = self._values.get(tensor)
        return _dtype(value) if value is not None else ""

    def is_tensor(self, tensor: str) -> bool:
        """True for what is known to be one tensor, not a sequence or an optional."""
        value = self._values.get(tensor)
        return value is not None and (
            isinstance(value.type, ir.TensorType) or value.const_value is not None
        )

    def shape(self, tensor: str) -> Shape | None:
        """Shape of a tensor; None when not even the rank is known."""
        value = self._values.get(tensor)
        return _shape(value) if value is not None else None

    def rank(self, tensor: str) -> int | None:
        """Number of axes; None when it is not known."""
        shape = self.shape(tensor)
        return None if shape is None else len(shape)


def values_of(tensor: ir.TensorProtocol) -> Array:
    """The values of a tensor; external data are mapped for as long as the array lives.

    ``ExternalTensor.numpy`` would map them for as long as the model does, and all pages that were
    read would stay in memory.
    """
    if isinstance(tensor, ir.ExternalTensor) and tensor.dtype.bitwidth >= 8 and tensor.size:
        dtype, shape = tensor.dtype.numpy(), tensor.shape.numpy()
        return np.memmap(tensor.path, dtype, "r", tensor.offset or 0, tuple(shape))
    return tensor.numpy()


def node_names(graph: ir.Graph) -> list[str]:
    """A unique name for every node of a graph, in order: its own, or ``OpType_index``."""
    taken: set[str] = {node.name for node in graph if node.name}
    seen: set[str] = set()
    names = []
    for index, node in enumerate(graph):
        name = node.name or ""
        if not name or name in seen:
            name = unused(f"{node.op_type}_{index}", taken)
            taken.add(name)
        seen.add(name)
        names.append(name)
    return names


def unused(name: str, taken: Container[str]) -> str:
    """The name itself, or with the first number behind it that makes it a new one."""
    numbered = (f"{name}_{number}" for number in count(1))
    return name if name not in taken else next(n for n in numbered if n not in taken)


def _view_node(node: ir.Node, name: str) -> NodeView:
    return NodeView(
        name=name,
        op=node.op_type,
        domain="" if node.domain == "ai.onnx" else node.domain,
        inputs=tuple(v.name or "" if v is not None else "" for v in node.inputs),
        outputs=tuple(v.name or "" for v in node.outputs),
        attrs={a.name: _attribute(a) for a in node.attributes.values() if not _is_graph(a)},
        captures=tuple(captured(node)),
        inner_uses=tuple(u for graph in subgraphs(node) for u in _inner_uses(graph, node.graph)),
        bodies={a.name: GraphView(a.value) for a in node.attributes.values() if _is_body(a)},
    )


def _inner_uses(graph: ir.Graph, outer: object) -> Iterator[InnerUse]:
    """The uses of what graph ``outer`` holds; what has the same name further inside is no use."""
    for node in graph:
        read = [(p, v) for p, v in enumerate(node.inputs) if v is not None and v.graph is outer]
        if read:
            seen = _view_node(node, node.name or "")
            yield from (InnerUse(value.name or "", seen, port) for port, value in read)
        for body in subgraphs(node):
            yield from _inner_uses(body, outer)


def _is_body(attr: ir.Attr) -> bool:
    return attr.type == ir.AttributeType.GRAPH


def _is_graph(attr: ir.Attr) -> bool:
    return attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def _attribute(attr: ir.Attr) -> Any:  # noqa: ANN401 - an attribute is any of a dozen types
    if attr.type == ir.AttributeType.TENSOR:
        return attr.value.numpy()
    return tuple(attr.value) if isinstance(attr.value, (list, tuple)) else attr.value


def described(node: ir.Node) -> str:
    """A node as an error message names it."""
    return f"node '{node.name}' ({node.op_type})" if node.name else f"a node {node.op_type}"


def subgraphs(node: ir.Node) -> list[ir.Graph]:
    """The graphs that a node holds in its attributes (If, Loop, Scan)."""
    graphs: list[ir.Graph] = []
    for attr in node.attributes.values():
        if attr.type == ir.AttributeType.GRAPH:
            graphs.append(attr.value)
        elif attr.type == ir.AttributeType.GRAPHS:
            graphs.extend(attr.value)
    return graphs


def captured(node: ir.Node) -> dict[str, None]:
    """Names of the outer tensors that a node's subgraphs use, nested ones too, in order."""
    names: dict[str, None] = {}
    for graph in subgraphs(node):
        inside: set[ir.Value] = {*graph.inputs, *graph.initializers.values()}
        inside.update(v for inner in graph for v in inner.outputs)
        used = [v for inner in graph for v in inner.inputs if v is not None]
        for value in (*used, *graph.outputs):
            if value not in inside and value.name:
                names[value.name] = None
        own = {v.name for v in inside}
        for inner in graph:
            names.update({n: None for n in captured(inner) if n not in own})
    return names


def _dtype(value: ir.Value) -> str:
    if value.dtype is None and value.const_value is not None:
        return str(value.const_value.dtype.numpy())
    try:
        return str(value.dtype.numpy()) if value.dtype is not None else ""
    except TypeError:  # strings and other types without numbers
        return str(value.dtype).lower()


def _shape(value: ir.Value) -> Shape | None:
    shape = value.shape
    if shape is None and value.const_value is not None:
        shape = value.const_value.shape  # type: ignore[assignment]
    if shape is None:
        return None
    return tuple(d if isinstance(d, int) else d.value for d in shape)


def _spec(value: ir.Value) -> TensorSpec:
    return TensorSpec(value.name or "", _dtype(value), _shape(value))
