"""What a model says beside what it computes: ``metadata_props`` and doc strings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import onnx_ir as ir


def restore_remarks(new: ir.Graph, old: ir.Graph) -> None:
    """Put back what is said of a graph, its nodes and its tensors, where a tool has dropped it.

    A node is known by its name, or else by its outputs.
    """
    _restore(new, old)
    values = {value.name: value for value in _values(old)}
    for value in _values(new):
        if value.name in values:
            _restore(value, values[value.name])
    counts = Counter(node.name for node in old)
    named = {node.name: node for node in old if node.name and counts[node.name] == 1}
    makers = {value.name: node for node in old for value in node.outputs if value.name}
    for node in new:
        made = (makers[value.name] for value in node.outputs if value.name in makers)
        origin = named.get(node.name or "") or next(made, None)
        if origin is not None:
            _restore(node, origin)
            _restore_in_bodies(node, origin)


def _restore_in_bodies(new: ir.Node, old: ir.Node) -> None:
    for name, attr in new.attributes.items():
        if attr.type == ir.AttributeType.GRAPH and name in old.attributes:
            restore_remarks(attr.value, old.attributes[name].value)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _restore(new: ir.Graph | ir.Node | ir.Value, old: ir.Graph | ir.Node | ir.Value) -> None:
    new.doc_string = old.doc_string or new.doc_string
    new.metadata_props.update(old.metadata_props)
