"""``Editor``: make a new model out of an old one by adding nodes and redirecting edges."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxq.errors import SelfCheckError
from onnxq.graph.model import Model
from onnxq.graph.retype import narrow
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
        self._stale: list[ir.Node] = []

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
            if data is None or not _same(data.numpy(), array):
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

    def add_made(
        self,
        name: str,
        make: Callable[[], Array],
        dtype: np.dtype[np.generic],
        shape: Sequence[int],
    ) -> str:
        """Add an initializer that is computed whenever it is read or written, and never held."""
        kind = ir.DataType.from_numpy(dtype)
        value = ir.Value(
            name=name,
            type=ir.TensorType(kind),
            shape=ir.Shape(shape),
            const_value=ir.LazyTensor(
                lambda: ir.tensor(make(), name=name), kind, ir.Shape(shape), name=name
            ),
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
        domain: str = "",
    ) -> None:
        """Add a node, right behind the maker of its first input if it can.

        Raises:
            SelfCheckError: A tensor has the name of one of its outputs already.
        """
        if known := next((output for output in outputs if output in self._values), None):
            raise SelfCheckError(f"node '{name}' would make tensor '{known}', which exists already")
        made = [ir.Value(name=output) for output in outputs]
        node = self._new_node(op, inputs, made, name, attrs, domain)
        producer = node.inputs[0].producer() if node.inputs and node.inputs[0] else None
        if producer is not None:
            self._graph.insert_after(producer, node)
        else:
            self._graph.append(node)
        self._nodes[name] = node
        self._values.update({v.name: v for v in made if v.name})

    def _new_node(
        self,
        op: str,
        inputs: Sequence[str],
        outputs: Sequence[ir.Value],
        name: str,
        attrs: Mapping[str, AttributeValue] | None,
        domain: str,
    ) -> ir.Node:
        if domain:
            self._model.ir.opset_imports.setdefault(domain, 1)
        read = [self._values[tensor] if tensor else None for tensor in inputs]
        return ir.node(op, read, dict(attrs or {}), domain=domain, outputs=outputs, name=name)

    def replace(
        self,
        node: str,
        op: str,
        inputs: Sequence[str],
        *,
        outputs: Sequence[str] | None = None,
        attrs: Mapping[str, AttributeValue] | None = None,
        domain: str = "",
    ) -> None:
        """Put another operator in the place of a node, under its name.

        Args:
            node: Name of the node.
            op: The new operator.
            inputs: What it reads.
            outputs: Tensors that exist and that it makes from now on, whoever made them before;
                those of the old node when None. Nodes that nothing uses then go away.
            attrs: The new operator's attributes; none of the old one's are kept.
            domain: The new operator's domain.
        """
        old = self._nodes[node]
        kept = list(old.outputs) if outputs is None else [self._values[name] for name in outputs]
        self._stale += [old, *(maker for v in kept if (maker := v.producer()) is not None)]
        made = [ir.Value(type=v.type, shape=v.shape) for v in kept]
        new = self._new_node(op, inputs, made, node, attrs, domain)
        new.doc_string = old.doc_string
        new.metadata_props.update(old.metadata_props)
        self._graph.insert_after(old, new)
        for value, before in zip(made, kept, strict=True):
            name = before.name
            before.replace_all_uses_with(value, replace_graph_outputs=True)
            before.name, value.name = None, name
            if name:
                self._values[name] = value
        self._nodes[node] = new

    def put_behind(
        self,
        tensor: str,
        inner: str,
        op: str,
        inputs: Sequence[str],
        *,
        name: str,
        attrs: Mapping[str, AttributeValue] | None = None,
    ) -> None:
        """Put a node between a tensor and all that read it, outputs and subgraphs included.

        Args:
            tensor: The tensor; the new node makes it from now on.
            inner: What its maker makes from now on, of any type.
            op: The new node's operator.
            inputs: What it reads, ``inner`` among them.
            name: Its name.
            attrs: Its attributes.
        """
        before = self._values[tensor]
        made = ir.Value(type=before.type, shape=before.shape)
        before.replace_all_uses_with(made, replace_graph_outputs=True)
        before.name, before.type, before.shape = inner, None, None
        made.name = tensor
        self._values.update({inner: before, tensor: made})
        node = self._new_node(op, inputs, [made], name, attrs, "")
        maker = before.producer()
        assert maker is not None
        self._graph.insert_after(maker, node)
        self._nodes[name] = node

    def succeed(self, tensor: str, constant: str) -> None:
        """Give a tensor the name of a constant, unless something still reads the constant."""
        held = self._values[constant]
        if not held.uses() and not held.is_graph_output():
            del self._graph.initializers[constant]
            self.rename(tensor, constant)

    def compute(self, constant: str, op: str, inputs: Sequence[str], *, name: str) -> None:
        """Let a new node make what a constant held, under its name and for all that read it."""
        held = self._values[constant]
        made = ir.Value(type=held.type, shape=held.shape)
        held.replace_all_uses_with(made, replace_graph_outputs=True)
        del self._graph.initializers[constant]
        made.name, self._values[constant] = constant, made
        self._nodes[name] = self._new_node(op, inputs, [made], name, None, "")
        self._graph.append(self._nodes[name])

    def sweep(self) -> None:
        """Take out replaced nodes, and those before them, that nothing uses any more."""
        while self._stale:
            node = self._stale.pop()
            used = any(v.uses() or v.is_graph_output() for v in node.outputs)
            if used or node.graph is None:
                continue
            makers = [v.producer() for v in node.inputs if v is not None]
            self._stale += [maker for maker in makers if maker is not None]
            self._graph.remove(node, safe=True)
            for value in node.outputs:
                if self._values.get(value.name or "") is value:
                    del self._values[value.name or ""]
            if self._nodes.get(node.name or "") is node:
                del self._nodes[node.name or ""]

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

    def rename(self, tensor: str, name: str) -> None:
        """Give a tensor inside the graph another name, and forget its shape."""
        value = self._values.pop(tensor)
        value.name, value.shape = name, None
        self._values[name] = value

    def forget_shape(self, tensor: str) -> None:
        """Let a tensor inside the graph have whatever shape its maker gives it."""
        self._values[tensor].shape = None

    def retype(self, tensor: str, dtype: str) -> None:
        """Say that a tensor has another type, such as ``float16``, and the same shape."""
        self._values[tensor].type = ir.TensorType(_data_type(dtype))

    def retype_attribute(self, node: str, attribute: str, dtype: str) -> None:
        """Let the attribute that names or holds the type of a node's output say another one.

        A missing one is added; of a Constant, whichever attribute holds its value becomes
        ``value``, and of a ConstantOfShape without one it is 0.
        """
        attributes = self._nodes[node].attributes
        if attribute != "value":
            attributes[attribute] = ir.AttrInt64(attribute, int(_data_type(dtype)))
            return
        names = [n for n in ("value", "value_float", "value_floats") if n in attributes]
        held = [attributes.pop(name) for name in names]
        found = held[0].value if held else [0]
        values = found.numpy() if isinstance(found, ir.TensorProtocol) else np.array(found)
        attributes["value"] = ir.AttrTensor("value", ir.tensor(narrow(values, dtype)))

    def discard(self, node: str) -> None:
        """Take out a node, and those before it, when nothing uses what they make."""
        self._stale.append(self._nodes[node])

    def add_input(self, name: str, like: str) -> None:
        """Add an input of the graph, of the type and shape of a tensor that exists."""
        known = self._values[like]
        self._values[name] = ir.Value(name=name, type=known.type, shape=known.shape)
        self._graph.inputs.append(self._values[name])

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
        """The edited model, sorted, without what replacing left unused."""
        self.sweep()
        self._graph.sort()
        for value in list(self._graph.initializers.values()):
            seen = value.uses() or value.is_graph_output() or value.is_graph_input()
            if not seen and value.name:
                del self._graph.initializers[value.name]
        return self._model


def with_constants(model: Model, arrays: Mapping[str, Array]) -> Model:
    """The same model with other values for some of its constants, of the same types and shapes."""
    copy = model.copy()
    for name, array in arrays.items():
        value = copy.ir.graph.initializers[name]
        held = value.const_value
        if held is None or tuple(held.shape) != array.shape or held.dtype.numpy() != array.dtype:
            raise ValueError(f"constant '{name}' is of another shape or type than its new values")
        value.const_value = ir.tensor(array, name=name)
    return copy


def _data_type(dtype: str) -> ir.DataType:
    return ir.DataType.from_numpy(np.dtype(dtype))


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


def _same(one: Array, other: Array) -> bool:
    return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=True)
