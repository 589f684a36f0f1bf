"""``pad_channels``: images of three channels get a fourth, for the fast integer convolution.

ONNX Runtime's fast kernel for a Conv of uint8 and int8 reads four channels at a time (MlasConvSym
takes no others), so that the first layer of most networks, which reads one or three, runs twice as
long as it could. A channel that holds the zero point, and meets weights of 0, adds nothing: the
sums are the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from onnxq.graph import Editor, GraphView, Model, NodeView
from onnxq.graph.view import unused

# Padding copies the tensor: beside more channels it costs more than it saves.
_MOST_CHANNELS = 3


def pad_channels(model: Model, nodes: Collection[str], multiple: int) -> Model:
    """Pad what quantized convolutions read, where it was float before them, and their weights.

    Args:
        model: A model as ``to_qdq`` writes it.
        nodes: Names of the nodes that compute on integers.
        multiple: Channels are padded to a multiple of this.

    Returns:
        A new model that computes the same to the last bit.
    """
    view, editor = model.view(), Editor(model)
    taken = set(view.names)
    padded: dict[str, str] = {}
    for node in view.nodes:
        found = _pairs(view, node, nodes, multiple) if node.op == "Conv" else None
        if found is None:
            continue
        data, weight = found
        stored = view.constant(weight.inputs[0])
        assert stored is not None
        missing = -stored.shape[1] % multiple
        if data.inputs[0] not in padded:
            padded[data.inputs[0]] = _pad(editor, data, missing, taken)
        editor.redirect(node.name, 0, padded[data.inputs[0]])
        editor.discard(data.name)
        wider = np.pad(stored, [(0, 0), (0, missing), (0, 0), (0, 0)])
        name = _new(f"{weight.inputs[0]}_padded", taken)
        editor.redirect(weight.name, 0, editor.add_constant(name, wider))
    editor.sweep()
    return editor.finish()


def _pad(editor: Editor, data: NodeView, missing: int, taken: set[str]) -> str:
    """Pad a quantized tensor with its zero point; gives what comes out of its DequantizeLinear."""
    stored, scale, zero_point = data.inputs
    pads = np.array([0, 0, 0, 0, 0, missing, 0, 0], np.int64)  # begins, then ends, by axis
    wider, made = _new(f"{stored}_padded", taken), _new(f"{data.outputs[0]}_padded", taken)
    sizes = editor.add_constant(_new(f"{stored}_pads", taken), pads)
    editor.add_node("Pad", [stored, sizes, zero_point], [wider], name=_new(f"{stored}_Pad", taken))
    name = _new(f"{data.name}_padded", taken)
    editor.add_node("DequantizeLinear", [wider, scale, zero_point], [made], name=name)
    return made


def _new(name: str, taken: set[str]) -> str:
    found = unused(name, taken)
    taken.add(found)
    return found


def _pairs(
    view: GraphView, node: NodeView, nodes: Collection[str], multiple: int
) -> tuple[NodeView, NodeView] | None:
    """What dequantizes a Conv's input and its weight; None where padding does not pay."""
    if node.domain or node.attrs.get("group", 1) != 1 or node.name not in nodes:
        return None
    data, weight = (view.producer(node.inputs[port]) for port in (0, 1))
    if data is None or weight is None or len(data.inputs) < 3 or "axis" in data.attrs:
        return None
    if data.op != "DequantizeLinear" or weight.op != "DequantizeLinear":
        return None
    made, stored = view.producer(data.inputs[0]), view.constant(weight.inputs[0])
    if made is None or made.op != "QuantizeLinear" or stored is None or stored.ndim != 4:
        return None
    before = view.producer(made.inputs[0])
    if before is not None and before.name in nodes:  # the pair vanishes into an integer kernel
        return None
    alone = len(view.uses(weight.outputs[0])) == 1
    few = stored.shape[1] <= _MOST_CHANNELS and stored.shape[1] % multiple != 0
    return (data, weight) if alone and few else None
