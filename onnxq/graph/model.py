"""``Model``: one ONNX graph, treated as a value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir import DataType, Graph, TensorProtocol

from onnxq.graph.view import GraphView, values_of
from onnxq.types import Array

# Protobuf cannot hold 2 GiB; beyond this, tensors go to a file beside the model.
ONE_PROTOBUF = 1_800_000_000
# Up to this size a model is encoded to learn how many bytes it takes.
SMALL_PROTOBUF = 100_000_000
# Of the types of large weights those that NumPy has. Integers of 64 bits are shapes and indices:
# ONNX Runtime reads them when it infers shapes, before it is given what is lent.
_LENDABLE = {DataType.FLOAT, DataType.FLOAT16, DataType.INT8, DataType.UINT8}


@dataclass(frozen=True)
class Model:
    """An ONNX model that nobody changes: an edit makes another model.

    Attributes:
        ir: The graph, with initializers memory-mapped where they came from external data.
        path: The file that it was loaded from; None for a model made in memory.
        notes: What preparing did, in the user's words, in order.
    """

    ir: ir.Model
    path: Path | None = None
    notes: tuple[str, ...] = field(default=())

    def view(self) -> GraphView:
        """A read-only look at the main graph."""
        return self._view

    @cached_property
    def _view(self) -> GraphView:
        return GraphView(self.ir.graph)

    @property
    def opset(self) -> int:
        """Version of the default operator set; the newest when the model imports another only."""
        imports = self.ir.opset_imports
        newest: int = onnx.defs.onnx_opset_version()
        return imports.get("", imports.get("ai.onnx", newest))

    @property
    def metadata(self) -> dict[str, str]:
        """A copy of ``metadata_props``."""
        return dict(self.ir.metadata_props)

    def graphs(self) -> Iterator[Graph]:
        """The main graph, the bodies of local functions, and all their subgraphs."""
        for graph in (self.ir.graph, *(f.graph for f in self.ir.functions.values())):
            yield graph
            yield from graph.subgraphs()

    def tensors(self) -> Iterator[tuple[str, TensorProtocol]]:
        """Every stored tensor: initializers by their names, attributes by their nodes' names."""
        for graph in self.graphs():
            for name, value in graph.initializers.items():
                if value.const_value is not None:
                    yield name, value.const_value
            for node in graph:
                for attr in node.attributes.values():
                    yield from ((node.name or node.op_type, t) for t in _tensors_of(attr))

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of all tensors, those in external data included."""
        return sum(tensor.nbytes for _, tensor in self.tensors())

    @property
    def fits_one_file(self) -> bool:
        """True when one protobuf file can hold the model with all its tensors."""
        return self.weight_bytes <= ONE_PROTOBUF

    @property
    def has_external_data(self) -> bool:
        """True when a tensor lives in a file beside the model."""
        return any(isinstance(tensor, ir.ExternalTensor) for _, tensor in self.tensors())

    def operators(self) -> list[tuple[str, str, str]]:
        """Name, domain and type of every node, those of subgraphs and functions included."""
        return [
            (node.name or "", node.domain, node.op_type)
            for graph in self.graphs()
            for node in graph
        ]

    def copy(self) -> Model:
        """A copy whose nodes and values may be edited; tensors are shared."""
        return replace(self, ir=self.ir.clone())

    def with_notes(self, *notes: str) -> Model:
        """The same model with more notes."""
        return replace(self, notes=self.notes + notes)

    def with_metadata(self, entries: dict[str, str]) -> Model:
        """The same model with more ``metadata_props``."""
        copy = self.copy()
        copy.ir.metadata_props.update(entries)
        return copy


def from_text(text: str) -> Model:
    """A model from the ONNX textual syntax (``onnx.parser``)."""
    return Model(ir.serde.deserialize_model(onnx.parser.parse_model(text)))


def to_text(model: Model) -> str:
    """The ONNX textual syntax of a model."""
    return onnx.printer.to_text(ir.serde.serialize_model(model.ir))


def serialize(model: Model) -> bytes:
    """The protobuf bytes of a model that fits one file, its external data inside."""
    encoded: bytes = to_proto(model).SerializeToString()
    return encoded


def lend(model: Model, least: int = 1024) -> tuple[bytes, dict[str, Array]]:
    """The protobuf bytes of a model without its large initializers, and these, not copied.

    Args:
        model: The model; what of it is not lent fits one file.
        least: Bytes of the smallest array that is lent.

    Returns:
        The bytes, in which an array that is lent is external data of no file; and the arrays by
        name: initializers of the main graph that something reads, of types that NumPy has.
    """
    lent: dict[str, Array] = {}
    model = internal(model).copy()
    for name, value in model.ir.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.nbytes < least or tensor.dtype not in _LENDABLE:
            continue
        if not (value.uses() or value.is_graph_output()):  # ONNX Runtime would not know it any more
            continue
        lent[name] = np.ascontiguousarray(values_of(tensor))
        value.const_value = ir.ExternalTensor(
            "lent", 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name
        )
    encoded: bytes = ir.serde.serialize_model(model.ir).SerializeToString()
    return encoded, lent


def deserialize(encoded: bytes) -> Model:
    """The model that ``serialize`` wrote."""
    return Model(ir.serde.deserialize_model(onnx.ModelProto.FromString(encoded)))


def to_proto(model: Model) -> onnx.ModelProto:
    """The protobuf of a model that fits one file, its external data inside."""
    return ir.serde.serialize_model(internal(model).ir)


def encoded_size(model: Model) -> int:
    """Bytes of the model when it is saved, external data included.

    Of a large model those of its tensors: the graph is nothing beside them.
    """
    if model.weight_bytes > SMALL_PROTOBUF:
        return model.weight_bytes
    return int(to_proto(model).ByteSize())


def internal(model: Model) -> Model:
    """The model without references to external data; these stay memory-mapped, not copied."""
    return _with_tensors(model, _internal_tensor)


def mapped(model: Model) -> Model:
    """The same, and every tensor is mapped when it is read, and no longer."""
    return _with_tensors(model, _lazy_tensor)


def _with_tensors(model: Model, replaced: Callable[[ir.ExternalTensor], TensorProtocol]) -> Model:
    if not model.has_external_data:
        return model
    model = model.copy()
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = replaced(value.const_value)
        for node in graph:
            for attr in list(node.attributes.values()):
                found = [_internal_tensor(tensor) for tensor in _tensors_of(attr)]
                if found:
                    content = found[0] if attr.type == ir.AttributeType.TENSOR else found
                    node.attributes[attr.name] = ir.Attr(attr.name, attr.type, content)
    return model


def _internal_tensor(tensor: TensorProtocol) -> TensorProtocol:
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor
    return ir.Tensor(values_of(tensor), dtype=tensor.dtype, shape=tensor.shape, name=tensor.name)


def _lazy_tensor(tensor: ir.ExternalTensor) -> TensorProtocol:
    return ir.LazyTensor(
        lambda: _internal_tensor(tensor), tensor.dtype, tensor.shape, name=tensor.name
    )


def _tensors_of(attr: ir.Attr) -> Iterable[TensorProtocol]:
    """The tensors that an attribute holds; one that refers to a function's has none of its own."""
    if attr.is_ref():
        return ()
    if attr.type == ir.AttributeType.TENSOR:
        return (attr.value,)
    return tuple(attr.value) if attr.type == ir.AttributeType.TENSORS else ()
