"""``extract``: the part of a model that lies between some tensors and others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir
from onnx_ir.convenience import extract as extract_graph

from onnxq.graph.model import Model


def extract(model: Model, inputs: Sequence[str], outputs: Sequence[str]) -> Model:
    """The nodes that make some tensors out of others.

    What bodies of If, Loop and Scan capture counts as read by their nodes. Constants are shared
    with the model, not copied.

    Args:
        model: The model; no local functions are called in it.
        inputs: Tensors of the main graph that are known, in the order of the new inputs; inner
            ones bring the type and shape that the model tells of them.
        outputs: Tensors of the main graph to compute, none of them among ``inputs``.

    Returns:
        A new model without a path. Nodes and tensors keep their names.

    Raises:
        ValueError: There is no output, a tensor is not in the main graph, or an output depends on
            an input of the model that is not among ``inputs``.
    """
    graph = extract_graph(model.ir.graph, inputs, outputs)
    return replace(model, ir=ir.Model(graph, ir_version=model.ir.ir_version), path=None, notes=())
