"""Means over whole images, written as what they are: GlobalAveragePool.

Exporters write them as ReduceMean over the last two axes, or as an AveragePool whose window is the
image. Runtimes have integer kernels for GlobalAveragePool, and none, or a slow one, for the others.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.graph.edit import Editor
from onnxq.graph.model import Model
from onnxq.graph.view import GraphView, NodeView, unused

_POOL = "GlobalAveragePool"
# A pool takes no integers, and ONNX Runtime has no kernel of it for float64; ReduceMean has both.
_TYPES = ("float32", "float16")


def name_pools(model: Model) -> Model:
    """Write means over whole images as GlobalAveragePool, followed by a Squeeze where it takes one.

    Args:
        model: A model with inferred shapes, of opset 13 or later; it is not changed.

    Returns:
        A model that computes the same but for the order of a sum; the same one if there is none.
    """
    view = model.view()
    means = [node for node in view.nodes if _is_pool(view, node) or _is_mean(view, node)]
    if not means:
        return model
    editor, taken = Editor(model), set(view.names)
    for node in means:
        if _keeps_axes(node):
            editor.replace(node.name, _POOL, node.inputs[:1])
            continue
        (made,) = node.outputs
        pooled, axes, name = (
            unused(f"{made}_{part}", taken) for part in ("pooled", "axes", "Squeeze")
        )
        taken |= {pooled, axes, name}
        editor.add_constant(axes, np.array([2, 3], np.int64))
        editor.put_behind(made, pooled, "Squeeze", [pooled, axes], name=name)
        editor.replace(node.name, _POOL, node.inputs[:1])
    editor.sweep()
    count = f"{len(means)} mean{'s' if len(means) > 1 else ''}"
    new = editor.finish()
    _tell_shapes(new.ir.graph)
    return new.with_notes(f"wrote {count} over whole images as {_POOL}")


def _tell_shapes(graph: ir.Graph) -> None:
    """Type and shape of what a Squeeze reads now: a model that is cut there has to know them."""
    for node in graph:
        image, made = node.inputs[0] if node.inputs else None, node.outputs[0]
        if node.op_type != _POOL or made.type is not None or image is None or image.shape is None:
            continue
        made.type, made.shape = image.type, ir.Shape([*list(image.shape)[:2], 1, 1])


def _image(view: GraphView, tensor: str) -> tuple[int, int] | None:
    """Height and width of images; None where a tensor holds none, or their size is not known."""
    shape = view.shape(tensor) or ()
    if len(shape) != 4 or not isinstance(shape[2], int) or not isinstance(shape[3], int):
        return None
    return shape[2], shape[3]


def _is_pool(view: GraphView, node: NodeView) -> bool:
    if node.op != "AveragePool" or node.domain or any(node.attrs.get("pads", ())):
        return False
    if node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return False
    if any(step != 1 for step in node.attrs.get("dilations", ())):
        return False
    return tuple(node.attrs["kernel_shape"]) == _image(view, node.inputs[0])


def _is_mean(view: GraphView, node: NodeView) -> bool:
    if node.op != "ReduceMean" or node.domain or len(view.shape(node.inputs[0]) or ()) != 4:
        return False
    if view.dtype(node.inputs[0]) not in _TYPES:
        return False
    return sorted(axis % 4 for axis in reduced_axes(view, node)) == [2, 3]


def reduced_axes(view: GraphView, node: NodeView) -> list[int]:
    """The axes that a reduction names, as attribute or input; none where it takes all.

    Also none where they are not constant.
    """
    axes = node.attrs.get("axes")
    if axes is None and len(node.inputs) > 1:
        axes = view.constant(node.inputs[1])
    return [] if axes is None else [int(axis) for axis in axes]


def _keeps_axes(node: NodeView) -> bool:
    return node.op != "ReduceMean" or bool(node.attrs.get("keepdims", 1))
