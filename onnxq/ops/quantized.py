"""Tell a quantized model from a float one, and how it is quantized."""

from __future__ import annotations

from collections import Counter

from onnxq.errors import AlreadyQuantizedError
from onnxq.graph import Model

# Operators whose presence means that a model is quantized already, in order of what they tell.
_FORMS = (
    (("QLinearConv", "QLinearMatMul", "QGemm", "QLinearAdd", "QLinearMul"), "as QOperator"),
    (("QuantizeLinear",), "as QDQ (QuantizeLinear/DequantizeLinear pairs)"),
    (
        ("MatMulInteger", "ConvInteger", "DynamicQuantizeLinear", "DynamicQuantizeMatMul",
         "DynamicQuantizeLSTM", "MatMulIntegerToFloat"),
        "dynamically (activations quantized while it runs)",
    ),
    (("MatMulNBits", "GatherBlockQuantized"), "as blocks of few-bit weights"),
    (("QAttention", "QEmbedLayerNormalization", "QMoE", "QOrderedMatMul"), "as fused attention"),
    (("DequantizeLinear",), "in its weights (integers behind DequantizeLinear)"),
)  # fmt: skip


def refuse_quantized(model: Model) -> None:
    """Refuse a model that holds quantized operators already.

    Raises:
        AlreadyQuantizedError: It does; the message tells how it is quantized.
    """
    counts = Counter(op for _, _, op in model.operators())
    for ops, how in _FORMS:
        found = {op: counts[op] for op in ops if counts[op]}
        if not found:
            continue
        counted = ", ".join(f"{n} {op}" for op, n in found.items())
        maker = model.metadata.get("onnxq.version")
        by = f" by onnxq {maker}" if maker else ""
        raise AlreadyQuantizedError(
            f"model '{model.path}' is already quantized{by}, {how}: {counted}",
            "quantize the float model that it was made from",
        )
    if maker := model.metadata.get("onnxq.version"):  # float16, or weights scaled at load
        raise AlreadyQuantizedError(
            f"model '{model.path}' was made by onnxq {maker} already",
            "quantize the float model that it was made from",
        )
