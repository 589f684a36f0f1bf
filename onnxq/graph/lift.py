"""``lift_constants``: weights of the bodies of If, Loop and Scan move to the main graph.

Bodies may read what lies outside of them, so nothing changes in what they compute. In the main
graph a weight can be stored as integers, and is scaled once per run instead of once per iteration.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxq.graph.model import Model
from onnxq.graph.view import unused, values_of

# Smaller constants are axes, shapes and limits, which are best seen where they are used.
LEAST_LIFTED = 256


def lift_constants(model: Model) -> Model:
    """Move float32 constants of at least ``LEAST_LIFTED`` values out of all bodies.

    What a body hands out, and what its inputs may override, stays. Equal constants become one:
    folding makes a copy for every branch that computes with the same weight. A name that is used
    more than once gets a number.

    Args:
        model: The model.

    Returns:
        A new model, or the same one when there is nothing to move.
    """
    copy = model.copy()
    main, bodies = copy.ir.graph, list(copy.ir.graph.subgraphs())
    found = [(graph, value) for graph in bodies for value in _constants(graph) if _is_weight(value)]
    if not found:
        return model
    names = Counter(value.name for graph in (main, *bodies) for value in _values(graph))
    taken = set(model.view().names)
    lifted: dict[tuple[object, bytes], ir.Value] = {}
    for graph, value in found:
        key = _key(value)
        if key not in lifted:
            name = value.name or "constant"
            name = name if names[name] == 1 else unused(name, taken)
            taken.add(name)
            lifted[key] = _new_initializer(main, name, value)
        _replace(graph, value, lifted[key])
    return copy.with_notes(f"lifted {len(found)} constants out of bodies (If, Loop, Scan)")


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from {*graph.inputs, *graph.initializers.values()}
    yield from (value for node in graph for value in node.outputs)


def _constants(graph: ir.Graph) -> list[ir.Value]:
    """Initializers, and outputs of Constant nodes that hold a tensor."""
    nodes = (n for n in graph if n.op_type == "Constant" and "value" in n.attributes)
    return [*graph.initializers.values(), *(node.outputs[0] for node in nodes)]


def _tensor(value: ir.Value) -> ir.TensorProtocol | None:
    maker = value.producer()
    if maker is None:
        return value.const_value
    tensor: ir.TensorProtocol = maker.attributes["value"].as_tensor()
    return tensor


def _is_weight(value: ir.Value) -> bool:
    tensor = _tensor(value)
    return (
        tensor is not None
        and tensor.dtype == ir.DataType.FLOAT
        and tensor.size >= LEAST_LIFTED
        and not value.is_graph_input()
        and not value.is_graph_output()
    )


def _key(value: ir.Value) -> tuple[object, bytes]:
    tensor = _tensor(value)
    assert tensor is not None
    values = np.ascontiguousarray(values_of(tensor))
    return values.shape, hashlib.sha256(values.data).digest()


def _new_initializer(main: ir.Graph, name: str, value: ir.Value) -> ir.Value:
    tensor = _tensor(value)
    assert tensor is not None
    lifted = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy())
    )
    lifted.const_value = tensor
    main.register_initializer(lifted)
    return lifted


def _replace(graph: ir.Graph, value: ir.Value, lifted: ir.Value) -> None:
    value.replace_all_uses_with(lifted)
    maker = value.producer()
    if maker is not None:
        graph.remove(maker, safe=True)
    elif value.name:
        del graph.initializers[value.name]
