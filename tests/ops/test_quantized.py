"""Quantized models are refused, and told how they are quantized."""

from __future__ import annotations

import pytest

from onnxq.errors import AlreadyQuantizedError
from onnxq.graph import from_text
from onnxq.ops import refuse_quantized

HEAD = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>'
SCALES = "float s = {0.5}, uint8 z = {3}"
BODIES = {
    "as QDQ": "q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z)",
    "as QOperator": "y = QLinearMatMul (x, s, z, x, s, z, s, z)",
    "dynamically": "q, t, u = DynamicQuantizeLinear (x) y = MatMulInteger (q, q, u, u)",
    "as blocks of few-bit weights": "y = com.microsoft.MatMulNBits (x, s, s)",
    "in its weights": "d = DequantizeLinear (z, s) y = Mul (x, d)",
}


@pytest.mark.parametrize("how", BODIES)
def test_quantized_model_is_refused(how) -> None:
    model = from_text(f"{HEAD} g (float[2,2] x) => (float[2,2] y) <{SCALES}> {{ {BODIES[how]} }}")
    with pytest.raises(AlreadyQuantizedError, match=f"already quantized, {how}"):
        refuse_quantized(model)


def test_operators_inside_branches_count() -> None:
    model = from_text(f"""{HEAD} g (bool c, uint8[2] x) => (float[2] y) <float s = {{0.5}}> {{
        y = If (c) <then_branch = a () => (float[2] p) {{ p = DequantizeLinear (x, s) }},
                    else_branch = b () => (float[2] q) {{ q = Cast <to = 1> (x) }}> }}""")
    with pytest.raises(AlreadyQuantizedError, match="1 DequantizeLinear"):
        refuse_quantized(model)


def test_operators_inside_functions_count() -> None:
    model = from_text("""<ir_version: 8, opset_import: ["" : 17, "mine" : 1]>
        g (uint8[2] x, float s) => (float[2] y) { y = mine.wide (x, s) }
        <domain: "mine", opset_import: ["" : 17]>
        wide (a, b) => (c) { c = DequantizeLinear (a, b) }""")
    with pytest.raises(AlreadyQuantizedError, match="1 DequantizeLinear"):
        refuse_quantized(model)


def test_own_output_is_refused_by_name(build, quantize) -> None:
    made = quantize(
        build("""g (float[1,2,4,4] x) => (float y) <float[2,2,1,1] w = seeded>
        { y = Conv (x, w) }""")
    )
    with pytest.raises(AlreadyQuantizedError, match=r"quantized by onnxq 1\.2"):
        refuse_quantized(made.model.with_metadata({"onnxq.version": "1.2"}))


def test_float_model_passes(build) -> None:
    refuse_quantized(build("g (float[4] x) => (float[4] y) { y = Relu (x) }"))
