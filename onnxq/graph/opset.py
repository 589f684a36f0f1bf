"""Raise the opset of a model to the one that per-channel QDQ needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx
import onnx_ir as ir
from onnx import version_converter

from onnxq.errors import ModelError
from onnxq.graph.model import Model, to_proto
from onnxq.graph.view import described, subgraphs

# DequantizeLinear learned per-channel scales (``axis``) in opset 13, whose IR version is 7.
MINIMUM_OPSET = 13
MINIMUM_IR = 7
# The last opset up to MINIMUM_OPSET that changed what an operator means, by ONNX's changelog:
# attributes became inputs, or a default or the result changed. Every other change since opset 7
# adds types, optional inputs, or attributes whose default is the old behaviour.
FIRST_COMPARED = 7
CHANGED_MEANING = {
    "BatchNormalization": 9, "Clip": 11, "Dropout": 12, "Hardmax": 13, "LogSoftmax": 13,
    "OneHot": 11, "Pad": 11, "ReduceSum": 13, "Resize": 13, "Scan": 9, "Scatter": 11, "Slice": 10,
    "Softmax": 13, "Split": 13, "Squeeze": 13, "TopK": 10, "Unsqueeze": 13, "Upsample": 10,
}  # fmt: skip


def raise_opset(model: Model) -> Model:
    """The model in opset ``MINIMUM_OPSET``, if it is in an older one.

    Raises:
        ModelError: ``onnx.version_converter`` cannot do it, or would change what it computes.
    """
    old = model.opset
    if old >= MINIMUM_OPSET:
        return model
    _refuse_bodies(model)
    try:
        proto = version_converter.convert_version(_proto(model), MINIMUM_OPSET)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise _cannot_raise(model, reason) from error
    raised = ir.serde.deserialize_model(proto)
    restore_shapes(raised.graph.outputs, model.ir.graph.outputs)
    raised.ir_version = max(raised.ir_version or 0, MINIMUM_IR)
    raised.opset_imports.update(
        {k: v for k, v in model.ir.opset_imports.items() if k not in raised.opset_imports}
    )
    return Model(raised, model.path, model.notes).with_notes(
        f"raised the opset from {old} to {MINIMUM_OPSET}"
    )


def _refuse_bodies(model: Model) -> None:
    """``onnx.version_converter`` leaves the bodies of If, Loop and Scan as they are."""
    for outer in model.ir.graph:
        for node in _inner_nodes(outer):
            if node.domain in ("", "ai.onnx") and _means_other(node.op_type, model.opset):
                raise _cannot_raise(
                    model,
                    f"{described(node)} inside the body of {described(outer)} "
                    "would mean something else",
                )


def _inner_nodes(node: ir.Node) -> Iterator[ir.Node]:
    for graph in subgraphs(node):
        for inner in graph:
            yield inner
            yield from _inner_nodes(inner)


def _means_other(op: str, opset: int) -> bool:
    if opset < CHANGED_MEANING.get(op, 0):
        return True
    return opset < FIRST_COMPARED and _since(op, opset) != _since(op, FIRST_COMPARED)


def _since(op: str, opset: int) -> int:
    """The opset that the definition of an operator comes from; 0 when there is none yet."""
    try:
        return onnx.defs.get_schema(op, opset, "").since_version
    except onnx.defs.SchemaError:
        return 0


def _proto(model: Model) -> onnx.ModelProto:
    """The protobuf with all tensors inside: the converter does not read external data."""
    if not model.fits_one_file:
        raise _cannot_raise(
            model, "more than 1.8 GB of weights are too much for onnx.version_converter"
        )
    proto = to_proto(model)
    # Models of IR version 3 list initializers as inputs; version 4 need not.
    proto.ir_version = max(proto.ir_version, 4)
    return proto


def _cannot_raise(model: Model, reason: str) -> ModelError:
    return ModelError(
        f"model '{model.path}' has opset {model.opset}, and raising it to {MINIMUM_OPSET} failed: "
        f"{reason}",
        f"export the model with opset {MINIMUM_OPSET} or newer",
    )


def restore_shapes(values: Sequence[ir.Value], origins: Sequence[ir.Value]) -> None:
    """Give values the shapes that their origins declare."""
    for value, origin in zip(values, origins, strict=True):
        if origin.shape is not None:
            value.shape = origin.shape.copy()
