"""``infer_shapes``: what ONNX tells of types and shapes inside a model."""

from __future__ import annotations

import logging

import onnx_ir as ir
from onnx_ir.passes import common as passes

from onnxq.graph.model import Model

# Operators that make a sequence or an optional.
SEQUENCES = (
    "SequenceConstruct", "SequenceEmpty", "SequenceInsert", "SequenceErase", "SplitToSequence",
    "SequenceMap", "Optional",
)  # fmt: skip

# onnx_ir reports a failed shape inference with a whole traceback; the graph then simply has
# fewer shapes, which onnxq tells per node.
logging.getLogger("onnx_ir.passes.common.shape_inference").setLevel(logging.ERROR)


def infer_shapes(model: Model) -> Model:
    """A copy with the types and shapes of inner tensors that ``onnx.shape_inference`` finds.

    Large initializers take no part in it. Inputs and outputs stay as they are declared.
    """
    seen = model.copy()
    infer(seen.ir, data_prop=False)
    for value, told in zip(seen.ir.graph.outputs, model.ir.graph.outputs, strict=True):
        value.type, value.shape = told.type, told.shape
    return seen


def infer(model: ir.Model, *, data_prop: bool) -> None:
    """Write what inference finds into a model, outputs included; ``data_prop``: by values too."""
    passes.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=data_prop)(model)
    _forget_sequences(model.graph)


def _forget_sequences(graph: ir.Graph) -> None:
    """Take back the types that onnx_ir's inference gives to sequences: those of their tensors."""
    for node in graph:
        makes = node.op_type in SEQUENCES and not node.domain
        carries = node.op_type == "Identity" and any(v and v.type is None for v in node.inputs)
        for value in node.outputs if makes or carries else ():
            if isinstance(value.type, ir.TensorType) and not value.is_graph_output():
                value.type = value.shape = None
