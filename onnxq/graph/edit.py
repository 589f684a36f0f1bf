"""``Editor``: make a new model out of an old one by adding nodes and redirecting edges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxq.errors import SelfCheckError
from onnxq.graph.model import Model
from onnxq.graph.view import captured, node_names, subgraphs
from onnxq.types import Array

AttributeValue = int | float | str | Sequence[int] | Sequence[float]


class Editor:
    """Edits a copy of a model by the names of nodes and tensors.

    Every operation costs as much as it touches, whatever the size of the graph; ``finish``
    sorts the nodes once and drops initializers that lost their last use.
    """

    def __init__(self, model: Model) -> None:
        self._model = model.copy()
        self._graph = graph = self._model.ir.graph
        self._nodes = dict(zip(node_names(graph), graph, strict=True))
        values = [*graph.inputs, *graph.initializers.values()]
        values += [v for node in graph for v in node.outputs]
        self._values = {v.name: v for v in values if v.name}

    def has_tensor(self, name: str) -> bool:
        """True when a tensor of this name exists."""
        return name in self._values

    def add_constant(self, name: str, array: Array) -> str:
        """Add an initializer; one of the same name and value is shared.

        Raises:
            SelfCheckError: Something else has this name.
        """
        known = self._values.get(name)
        if known is not None:
            data = known.const_value
            if data is None or not np.array_equal(data.numpy(), array, equal_nan=True):
                raise SelfCheckError(f"tensor '{name}' exists already, and is not what is added")
        else:
            value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
            value.type, value.shape = (
                ir.TensorType(value.const_value.dtype),  # type: ignore[union-attr]
                ir.Shape(array.shape),
            )
            self._graph.register_initializer(value)
            self._values[name] = value
        return name

    def add_node(
        self,
        op: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        *,
        name: str,
        attrs: Mapping[str, AttributeValue] | None = None,
    ) -> None:
        """Add a node of the ONNX domain, right behind the maker of its first input if it can.

        Raises:
            SelfCheckError: A tensor has the name of one of its outputs already.
        """
        if known := next((output for output in outputs if output in self._values), None):
            raise SelfCheckError(f"node '{name}' would make tensor '{known}', which exists already")
        made = [ir.Value(name=output) for output in outputs]
        node = ir.node(
            op,
            [self._values[i] if i else None for i in inputs],
            dict(attrs or {}),
            outputs=made,
            name=name,
        )
        producer = node.inputs[0].producer() if node.inputs and node.inputs[0] else None
        if producer is not None:
            self._graph.insert_after(producer, node)
        else:
            self._graph.append(node)
        self._nodes[name] = node
        self._values.update({v.name: v for v in made if v.name})

    def redirect(self, node: str, port: int, tensor: str) -> None:
        """Let input ``port`` of a node read another tensor."""
        self._nodes[node].replace_input_with(port, self._values[tensor])

    def redirect_captures(self, node: str, old: str, new: str) -> None:
        """Let the subgraphs of a node read another outer tensor."""
        source, target = self._values[old], self._values[new]
        for graph in subgraphs(self._nodes[node]):
            _redirect_inside(graph, source, target)

    def copy_type(self, source: str, target: str) -> None:
        """Give a new tensor the type and shape of another one."""
        self._values[target].type = self._values[source].type
        self._values[target].shape = self._values[source].shape

    def add_output(self, tensor: str) -> None:
        """Make a tensor an output of the graph, beside those that there are."""
        self._graph.outputs.append(self._values[tensor])

    def move_output(self, old: str, inner: str) -> None:
        """Rename output tensor ``old`` to ``inner``, and leave its place and name to a new one.

        Afterwards ``add_node`` must make a tensor called ``old``, and ``claim_output`` puts it
        into the graph's outputs.
        """
        value = self._values.pop(old)
        value.name = inner
        self._values[inner] = value

    def claim_output(self, inner: str, outer: str) -> None:
        """Let graph output ``inner`` be replaced by tensor ``outer``."""
        position = list(self._graph.outputs).index(self._values[inner])
        self._graph.outputs[position] = self._values[outer]

    def finish(self) -> Model:
        """The edited model, sorted, without unused initializers."""
        self._graph.sort()
        for value in list(self._graph.initializers.values()):
            if not value.uses() and not value.is_graph_output() and value.name:
                del self._graph.initializers[value.name]
        return self._model


def _redirect_inside(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    for node in graph:
        for port, value in enumerate(node.inputs):
            if value is old:
                node.replace_input_with(port, new)
        if old.name in captured(node):
            for inner in subgraphs(node):
                _redirect_inside(inner, old, new)
    for position, value in enumerate(graph.outputs):
        if value is old:
            graph.outputs[position] = new
