"""``compact``: a file does not say what ONNX says already.

In a model of small layers, types of inner tensors and attributes at their defaults make up to a
tenth of an int8 file. Only what is written loses them: the stages before see every attribute that
the source says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import onnx_ir as ir

from onnxq.graph.defaults import attribute_defaults
from onnxq.graph.infer import infer_shapes
from onnxq.graph.model import Model

# Lists with one number per axis, or two: what all of them are where the list is missing, which
# schemas tell in words only.
_WINDOW = {"dilations": 1, "pads": 0, "strides": 1}
FILLED = {
    "AveragePool": _WINDOW,
    "Conv": _WINDOW,
    "ConvInteger": _WINDOW,
    "ConvTranspose": {**_WINDOW, "output_padding": 0},
    "LpPool": _WINDOW,
    "MaxPool": _WINDOW,
    "QLinearConv": _WINDOW,
}
# The input whose shape behind two axes is ``kernel_shape`` where that is missing.
KERNELS = {"Conv": 1, "ConvInteger": 1, "ConvTranspose": 1, "QLinearConv": 3}
# Names that ONNX's inference gives to sizes that it cannot tell.
_INVENTED = re.compile(r"unk__\d+")


def compact(model: Model, source: Model) -> Model:
    """Leave out types that inference gives again, and attributes that say their default.

    Args:
        model: The model that is to be written.
        source: The model that it was made of.

    Returns:
        A new model that computes the same.
    """
    return forget_defaults(forget_inferred(model, source))


def forget_inferred(model: Model, source: Model) -> Model:
    """Drop the types and shapes of inner tensors, but for those that only ``source`` tells.

    Those are what it records and ``onnx.shape_inference`` does not find in the new model: behind
    operators of other domains, or with sizes and names of sizes that do not follow from the
    inputs. Initializers tell their own, and need no second record of it.
    """
    bare = model.copy()
    recorded = {v.name for graph in source.ir.graphs() for v in _made(graph) if v.type}
    for graph in bare.ir.graphs():
        for value in (*_made(graph), *graph.initializers.values()):
            if not value.is_graph_output() and not value.is_graph_input():
                value.type = value.shape = None
    seen = infer_shapes(bare)
    for graph, told, found in _side_by_side(bare, model, seen):
        for value, old, new in zip(_made(graph), _made(told), _made(found), strict=True):
            if old.name in recorded and not _tells(new, old):
                value.type, value.shape = old.type, old.shape
    return bare


def _side_by_side(*models: Model) -> Iterator[tuple[ir.Graph, ...]]:
    return zip(*(model.ir.graphs() for model in models), strict=True)


def _made(graph: ir.Graph) -> Iterator[ir.Value]:
    return (value for node in graph for value in node.outputs)


def _tells(value: ir.Value, recorded: ir.Value) -> bool:
    """True where a value has all of a recorded type and shape."""
    if value.type != recorded.type:
        return False
    if recorded.shape is None:
        return True
    if value.shape is None or len(value.shape) != len(recorded.shape):
        return False
    pairs = zip(_sizes(value.shape), _sizes(recorded.shape), strict=True)
    return all(told in (found, None) for found, told in pairs)


def _sizes(shape: ir.Shape) -> Iterator[int | str | None]:
    for size in shape:
        known = size if isinstance(size, int) else size.value
        yield None if isinstance(known, str) and _INVENTED.fullmatch(known) else known


def forget_defaults(model: Model) -> Model:
    """Drop attributes of ONNX's own operators that say what a missing one means.

    Schemas tell the defaults, ``FILLED`` those of lists; a ``kernel_shape`` goes where the shape
    of the weight is known, and says the same.
    """
    short = model.copy()
    for graph, seen in _side_by_side(short, infer_shapes(model)):
        for node, known in zip(graph, seen, strict=True):
            if node.domain not in ("", "ai.onnx"):
                continue
            defaults = attribute_defaults(node.op_type, "", model.opset)
            for attr in [attr for attr in node.attributes.values() if not attr.is_ref()]:
                said = tuple(attr.value) if isinstance(attr.value, list | tuple) else attr.value
                if _is_default(node.op_type, attr.name, said, defaults) or (
                    attr.name == "kernel_shape" and said == _kernel(known)
                ):
                    del node.attributes[attr.name]
    return short


def _is_default(op: str, name: str, said: object, defaults: Mapping[str, object]) -> bool:
    every = FILLED.get(op, {}).get(name)
    if every is not None and isinstance(said, tuple):
        return all(number == every for number in said)
    return name in defaults and type(said) is type(defaults[name]) and said == defaults[name]


def _kernel(node: ir.Node) -> tuple[int, ...] | None:
    """The ``kernel_shape`` that follows from a node's weight; None where it is not known."""
    port = KERNELS.get(node.op_type)
    weight = node.inputs[port] if port is not None and port < len(node.inputs) else None
    if weight is None or weight.shape is None or not weight.shape.is_static():
        return None
    return tuple(weight.shape.numpy()[2:])
