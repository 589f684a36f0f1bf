"""``Model``: one ONNX graph, treated as a value."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import onnx
import onnx_ir as ir

from onnxq.graph.view import GraphView

# Protobuf cannot hold 2 GiB; beyond this, tensors go to a file beside the model.
ONE_PROTOBUF = 1_800_000_000


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

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of all initializers, subgraphs included."""
        return sum(
            value.const_value.nbytes
            for graph in self.ir.graphs()
            for value in graph.initializers.values()
            if value.const_value is not None
        )

    @property
    def has_external_data(self) -> bool:
        """True when a tensor lives in a file beside the model."""
        return any(
            isinstance(value.const_value, ir.ExternalTensor)
            for graph in self.ir.graphs()
            for value in graph.initializers.values()
        )

    def operators(self) -> list[tuple[str, str, str]]:
        """Name, domain and operator type of every node, those inside subgraphs included."""
        return [
            (node.name or "", node.domain, node.op_type)
            for graph in self.ir.graphs()
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
    """The protobuf bytes of a model whose tensors fit into one protobuf."""
    encoded: bytes = ir.serde.serialize_model(model.ir).SerializeToString()
    return encoded


def encoded_size(model: Model) -> int:
    """Bytes of the model when it is saved, external data included."""
    if model.weight_bytes > ONE_PROTOBUF:
        return model.weight_bytes
    return int(ir.serde.serialize_model(model.ir).ByteSize())
