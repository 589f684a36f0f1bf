"""Raise the opset of a model to the one that its quantized form needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx
import onnx_ir as ir
from onnx import version_converter

from onnxq.errors import ModelError
from onnxq.graph.model import Model, to_proto
from onnxq.graph.remarks import restore_remarks
from onnxq.graph.view import described, subgraphs

# DequantizeLinear learned per-channel scales (``axis``) in opset 13, whose IR version is 7.
MINIMUM_OPSET = 13
MINIMUM_IR = 7
# LayerNormalization came with opset 17, whose IR version is 8.
NORM_OPSET = 17
# Integers of 4 and 16 bits and blocks of a weight came with opset 21, whose IR version is 10.
SMALL_TYPES_OPSET = 21
_IR_VERSIONS = {MINIMUM_OPSET: MINIMUM_IR, NORM_OPSET: 8, SMALL_TYPES_OPSET: 10}
# The opsets up to 21 that changed what an operator means, by ONNX's changelog: attributes became
# inputs, or a default or the result changed. Every other change since opset 7 adds types, optional
# inputs, or attributes whose default is the old behaviour.
FIRST_COMPARED = 7
# Split has its sizes as an input from here on.
_SPLIT_INPUT = 13
_REDUCTIONS = "L1 L2 LogSum LogSumExp Max Mean Min Prod SumSquare"
CHANGED_MEANING: dict[str, tuple[int, ...]] = {
    "BatchNormalization": (9,), "Clip": (11,), "DFT": (20,), "Dropout": (12,),
    "GridSample": (20,), "GroupNormalization": (21,), "Hardmax": (13,), "LogSoftmax": (13,),
    "OneHot": (11,), "Pad": (11,), "ReduceSum": (13,), "Resize": (13,), "RoiAlign": (16,),
    "Scan": (9,), "Scatter": (11,), "Slice": (10,), "Softmax": (13,), "Split": (13, 18),
    "Squeeze": (13,), "TopK": (10,), "Unsqueeze": (13,), "Upsample": (10,),
    **{f"Reduce{name}": (18,) for name in _REDUCTIONS.split()},
}  # fmt: skip


def raise_opset(model: Model, to: int = MINIMUM_OPSET) -> Model:
    """The model in opset ``to``, if it is in an older one.

    Args:
        model: The model.
        to: ``MINIMUM_OPSET``, ``NORM_OPSET`` or ``SMALL_TYPES_OPSET``.

    Raises:
        ModelError: ``onnx.version_converter`` cannot do it, or would change what it computes.
    """
    old = model.opset
    if old >= to:
        return model
    _refuse_bodies(model, to)
    try:
        proto = version_converter.convert_version(_proto(model, to), to)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise _cannot_raise(model, to, reason) from error
    raised = ir.serde.deserialize_model(proto)
    restore_shapes(raised.graph.outputs, model.ir.graph.outputs)
    restore_remarks(raised.graph, model.ir.graph)
    raised.ir_version = max(raised.ir_version or 0, _IR_VERSIONS[to])
    raised.opset_imports.update(
        {k: v for k, v in model.ir.opset_imports.items() if k not in raised.opset_imports}
    )
    return Model(raised, model.path, model.notes).with_notes(f"raised the opset from {old} to {to}")


def _refuse_bodies(model: Model, to: int) -> None:
    """``onnx.version_converter`` leaves the bodies of If, Loop and Scan as they are."""
    for outer in model.ir.graph:
        for node in _inner_nodes(outer):
            if node.domain in ("", "ai.onnx") and _means_other(node, model.opset, to):
                raise _cannot_raise(
                    model,
                    to,
                    f"{described(node)} inside the body of {described(outer)} "
                    "would mean something else",
                )


def _inner_nodes(node: ir.Node) -> Iterator[ir.Node]:
    for graph in subgraphs(node):
        for inner in graph:
            yield inner
            yield from _inner_nodes(inner)


def _means_other(node: ir.Node, opset: int, to: int) -> bool:
    op = node.op_type
    if op == "Split" and opset >= _SPLIT_INPUT and len(node.inputs) > 1 and node.inputs[1]:
        return False  # opset 18 changed only what happens without sizes
    if any(opset < changed <= to for changed in CHANGED_MEANING.get(op, ())):
        return True
    return opset < FIRST_COMPARED and _since(op, opset) != _since(op, FIRST_COMPARED)


def _since(op: str, opset: int) -> int:
    """The opset that the definition of an operator comes from; 0 when there is none yet."""
    try:
        return onnx.defs.get_schema(op, opset, "").since_version
    except onnx.defs.SchemaError:
        return 0


def _proto(model: Model, to: int) -> onnx.ModelProto:
    """The protobuf with all tensors inside: the converter does not read external data."""
    if not model.fits_one_file:
        raise _cannot_raise(
            model, to, "more than 1.8 GB of weights are too much for onnx.version_converter"
        )
    proto = to_proto(model)
    # Models of IR version 3 list initializers as inputs; version 4 need not.
    proto.ir_version = max(proto.ir_version, 4)
    return proto


def _cannot_raise(model: Model, to: int, reason: str) -> ModelError:
    return ModelError(
        f"model '{model.path}' has opset {model.opset}, and raising it to {to} failed: {reason}",
        f"export the model with opset {to} or newer",
    )


def restore_shapes(values: Sequence[ir.Value], origins: Sequence[ir.Value]) -> None:
    """Give values the shapes that their origins declare."""
    for value, origin in zip(values, origins, strict=True):
        if origin.shape is not None:
            value.shape = origin.shape.copy()
