"""What a graph is, in a few words per node: enough to tell later what changed in it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import msgspec
import numpy as np

from onnxq.graph import GraphView, Model, NodeView, attribute_defaults
from onnxq.types import Array, TensorSpec

# A digest of so many bytes tells weights apart; nobody forges one.
_DIGEST_BYTES = 6
# Attributes that are longer than this are told by their digest.
_LONGEST = 60


class NodeFacts(msgspec.Struct, frozen=True):
    """One node of a prepared graph.

    Attributes:
        name: Its name.
        op: Operator type, with its domain.
        attributes: Values as text, without defaults, which are written out or not by chance;
            bodies of If, Loop and Scan by the number of their nodes.
        shapes: Type and shape of every output, as text; empty where they are not known.
        weights: Digest of the constants that it reads; empty without any.
    """

    name: str
    op: str
    attributes: dict[str, str] = {}
    shapes: tuple[str, ...] = ()
    weights: str = ""


class GraphFacts(msgspec.Struct, frozen=True):
    """A model as it was exported, and the nodes that were left after preparing.

    Attributes:
        opset: Version of the default operator set in the file.
        producer: What wrote the file, with its version.
        inputs: Type and shape of every input, as text.
        outputs: Type and shape of every output.
        nodes: The nodes of the prepared graph, in its order.
    """

    opset: int
    producer: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    nodes: tuple[NodeFacts, ...]


def graph_facts(source: Model, prepared: Model) -> GraphFacts:
    """Describe a model.

    Args:
        source: The model as it was exported.
        prepared: The float model that plans are about.
    """
    view, inner = source.view(), prepared.view()
    constants = _constant_digests(inner)
    return GraphFacts(
        opset=source.opset,
        producer=f"{source.ir.producer_name or ''} {source.ir.producer_version or ''}".strip(),
        inputs={spec.name: _spec_text(spec) for spec in view.inputs},
        outputs={spec.name: _spec_text(spec) for spec in view.outputs},
        nodes=tuple(_node_facts(inner, node, constants) for node in inner.nodes),
    )


def _node_facts(view: GraphView, node: NodeView, constants: Mapping[str, bytes]) -> NodeFacts:
    defaults = attribute_defaults(node.op, node.domain, view.opset)
    said = {name: value for name, value in node.attrs.items() if not _same(value, defaults, name)}
    attributes = {name: _value_text(value) for name, value in said.items()}
    attributes |= {name: f"{len(body.nodes)} nodes" for name, body in node.bodies.items()}
    return NodeFacts(
        node.name,
        node.full_op,
        dict(sorted(attributes.items())),
        tuple(_tensor_text(view, tensor) for tensor in node.outputs if tensor),
        _weights(node, constants),
    )


def _same(value: object, defaults: Mapping[str, object], name: str) -> bool:
    return name in defaults and not isinstance(value, np.ndarray) and value == defaults[name]


def _constant_digests(view: GraphView) -> dict[str, bytes]:
    """Digests of the constants that nodes read: each once, however many read it.

    One after another: what is mapped into memory stays there as long as its array lives.
    """
    found = {}
    for name in {name for node in view.nodes for name in (*node.inputs, *node.captures) if name}:
        values = view.constant(name)
        if values is not None:
            found[name] = _digest(values)
    return found


def _digest(values: Array) -> bytes:
    digest = hashlib.blake2b(f"{values.dtype}{values.shape}".encode(), digest_size=_DIGEST_BYTES)
    digest.update(_bytes(values))
    return digest.digest()


def _weights(node: NodeView, constants: Mapping[str, bytes]) -> str:
    read = [constants[name] for name in (*node.inputs, *node.captures) if name in constants]
    return hashlib.blake2b(b"".join(read), digest_size=_DIGEST_BYTES).hexdigest() if read else ""


def _bytes(values: Array) -> bytes | memoryview:
    """The content of an array, without a copy of it."""
    if values.dtype == np.object_:  # strings, of which an array holds the addresses
        return repr(values.tolist()).encode()
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data


def _tensor_text(view: GraphView, tensor: str) -> str:
    return _spec_text(TensorSpec(tensor, view.dtype(tensor), view.shape(tensor)))


def _spec_text(spec: TensorSpec) -> str:
    if spec.shape is None:
        return spec.dtype
    return f"{spec.dtype}[{','.join('?' if d is None else str(d) for d in spec.shape)}]"


def _value_text(value: object) -> str:
    if isinstance(value, tuple):
        text = ", ".join(map(str, value))
    elif isinstance(value, np.ndarray):
        text = f"{value.dtype}{list(value.shape)} {value.ravel().tolist()}"
    else:
        text = str(value)
    if len(text) <= _LONGEST:
        return text
    return f"#{hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES).hexdigest()}"
