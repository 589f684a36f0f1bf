"""Every operator on integers, against ONNX Runtime and against the operator on float.

Every rule gets a net of one operator whose plan is made by hand, for all types that its kernel has.
Judges: ONNX Runtime on the net with its pairs, and the float operator on the values that the
integers stand for, which may be off by the rounding of the output alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from onnxq.graph import from_text, to_text
from onnxq.numerics import choose_qparams
from onnxq.rewrite.integer_ops import _RULES, MOVERS
from onnxq.rewrite.qoperator import lower_qoperator
from onnxq.runtime import Session
from onnxq.types import QParams, QType

U8, S8 = QType.UINT8, QType.INT8
# Rounding to the nearest step is off by half a step; kernels multiply by s_x * s_w / s_y in float32
# where pairs divide by s_y, which rounds values near a half the other way now and then.
HALF_STEP = 0.5 * (1 + 1e-3)
ONE_STEP = 1 + 1e-3


@dataclass(frozen=True)
class Net:
    """One operator, named ``it``: text between x (and z) and y.

    Attributes:
        body: The node.
        kernel: What it becomes on integers.
        held: Initializers; ``w`` is the weight.
        x: Shape of x and of z.
        z: Whether there is a second input.
        axis: The weight's axis of output channels; None for one scale.
    """

    body: str
    kernel: str
    held: str = ""
    x: str = "1,4,6,6"
    z: bool = False
    axis: int | None = 0


CONV, GEMM = "float[6,4,3,3] w = seeded", "float[8,6] w = seeded"
BIAS = "float[6] b = {1, -1, 0.5, -0.5, 0.25, 0}"
LAYERS = {
    "conv": Net("y = Conv (x, w)", "QLinearConv", CONV),
    "conv_bias": Net(
        "y = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w, b)",
        "QLinearConv",
        f"{CONV}, {BIAS}",
    ),
    "conv_grouped": Net("y = Conv <group = 2> (x, w)", "QLinearConv", "float[6,2,3,3] w = seeded"),
    "conv_1d": Net(
        'y = Conv <auto_pad = "SAME_UPPER"> (x, w)',
        "QLinearConv",
        "float[6,4,3] w = seeded",
        "2,4,9",
    ),
    "gemm": Net("y = Gemm (x, w)", "QGemm", GEMM, "5,8", axis=1),
    "gemm_bias": Net(
        "y = Gemm <transB = 1> (x, w, b)", "QGemm", f"float[6,8] w = seeded, {BIAS}", "5,8"
    ),
    "gemm_turned": Net(
        "y = Gemm <transA = 1> (x, w, b)", "QGemm", f"{GEMM}, {BIAS}", "8,5", axis=1
    ),
    "matmul": Net("y = MatMul (x, w)", "QLinearMatMul", GEMM, "5,8", axis=1),
    "matmul_3d": Net("y = MatMul (x, w)", "QLinearMatMul", GEMM, "3,5,8", axis=1),
    "matmul_stack": Net(
        "y = MatMul (x, w)", "QLinearMatMul", "float[3,8,6] w = seeded", "3,5,8", axis=None
    ),
}
POINTWISE = {
    "add": Net("y = Add (x, z)", "QLinearAdd", z=True),
    "add_constant": Net("y = Add (x, c)", "QLinearAdd", "float[4,1,1] c = {1, -2, 0.5, 0}"),
    "mul": Net("y = Mul (x, z)", "QLinearMul", z=True),
    "sigmoid": Net("y = Sigmoid (x)", "QLinearSigmoid"),
    "leaky_relu": Net("y = LeakyRelu <alpha = 0.2> (x)", "QLinearLeakyRelu"),
    "leaky_relu_default": Net("y = LeakyRelu (x)", "QLinearLeakyRelu"),
    "softmax": Net("y = Softmax (x)", "QLinearSoftmax", x="2,3,8"),
    "softmax_axis": Net("y = Softmax <axis = 1> (x)", "QLinearSoftmax", x="2,5,3"),
    "global_average_pool": Net("y = GlobalAveragePool (x)", "QLinearGlobalAveragePool"),
    "average_pool": Net("y = AveragePool <kernel_shape = [2, 3]> (x)", "QLinearAveragePool"),
    "average_pool_padded": Net(
        """y = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2],
        count_include_pad = 1> (x)""",
        "QLinearAveragePool",
    ),
    "where": Net("y = Where (pick, x, z)", "QLinearWhere", "bool[6] pick = {1,0,0,1,0,1}", z=True),
    "concat": Net("y = Concat <axis = 1> (x, z, x)", "QLinearConcat", z=True),
    "matmul_activations": Net("y = MatMul (x, z)", "QLinearMatMul", z=True, x="1,4,6,6"),
    "gemm_activations": Net("y = Gemm <transB = 1> (x, z)", "QGemm", z=True, x="5,8"),
}
MOVES = {
    "max_pool": Net("y = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x)", "MaxPool"),
    "resize": Net("y = Resize (x, , scales)", "Resize", "float[4] scales = {1, 1, 2, 2}"),
    "pad": Net("y = Pad (x, pads)", "Pad", "int64[8] pads = {0, 0, 1, 2, 0, 0, 0, 1}"),
    "pad_zero": Net(
        "y = Pad (x, pads, zero)",
        "Pad",
        "int64[8] pads = {0, 0, 1, 2, 0, 0, 0, 1}, float zero = {0}",
    ),
    "pad_edge": Net(
        'y = Pad <mode = "edge"> (x, pads)', "Pad", "int64[8] pads = {0, 0, 1, 2, 0, 0, 0, 1}"
    ),
    "reshape": Net("y = Reshape (x, shape)", "Reshape", "int64[2] shape = {4, -1}"),
    "flatten": Net("y = Flatten (x)", "Flatten"),
    "transpose": Net("y = Transpose <perm = [0, 2, 3, 1]> (x)", "Transpose"),
    "squeeze": Net("y = Squeeze (x, axes)", "Squeeze", "int64[1] axes = {0}"),
    "unsqueeze": Net("y = Unsqueeze (x, axes)", "Unsqueeze", "int64[1] axes = {0}"),
    "slice": Net(
        "y = Slice (x, from, to, axes)",
        "Slice",
        "int64[1] from = {1}, int64[1] to = {4}, int64[1] axes = {2}",
    ),
    "gather": Net("y = Gather <axis = 2> (x, rows)", "Gather", "int64[3] rows = {2, 0, 5}"),
    "expand": Net("y = Expand (x, shape)", "Expand", "int64[4] shape = {2, 4, 6, 6}"),
    "tile": Net("y = Tile (x, times)", "Tile", "int64[4] times = {1, 1, 2, 1}"),
    "depth_to_space": Net("y = DepthToSpace <blocksize = 2> (x)", "DepthToSpace"),
    "space_to_depth": Net("y = SpaceToDepth <blocksize = 2> (x)", "SpaceToDepth"),
    "split": Net("y, y2 = Split <axis = 2> (x, parts)", "Split", "int64[2] parts = {2, 4}"),
    "concat_of_one_scale": Net("y = Concat <axis = 1> (x, z, x)", "Concat", z=True),
    "where_of_one_scale": Net(
        "y = Where (pick, x, z)", "Where", "bool[6] pick = {1, 0, 0, 1, 0, 1}", z=True
    ),
}


def quantized(lower, net: Net, *, per_channel: bool = True, **options):
    """A net with its pairs, and on integers."""
    axis = net.axis if per_channel else None
    return lower(f"[it] {net.body}", net.held, x=net.x, z=net.z, axis=axis, **options)


def check_one_operator(lowered, kernel: str, executed) -> None:
    """Nothing but the operator on integers is left between the inputs' Q and the outputs' DQ."""
    inner = [op for op in lowered.operators() if op not in ("QuantizeLinear", "DequantizeLinear")]
    assert inner == [kernel]
    operator = next(n for n in lowered.model.view().nodes if n.op == kernel)
    assert operator.name == "it"
    assert lowered.operators().count("QuantizeLinear") == len(lowered.feed)
    assert executed(lowered.model)[kernel] == 1
    assert lowered.model.view().inputs == lowered.qdq.view().inputs
    assert lowered.model.view().output_names == lowered.qdq.view().output_names


@pytest.mark.parametrize("per_channel", [True, False], ids=["per_channel", "per_tensor"])
@pytest.mark.parametrize(("activation", "weight"), [(U8, S8), (U8, U8), (S8, S8)])
@pytest.mark.parametrize("name", LAYERS)
def test_layer(lower, executed, saturates, name, activation, weight, per_channel) -> None:
    lowered = quantized(
        lower, LAYERS[name], activation=activation, weight=weight, per_channel=per_channel
    )
    check_one_operator(lowered, LAYERS[name].kernel, executed)
    if saturates and weight is S8:
        pytest.skip("the int8 kernels of this processor saturate")
    assert lowered.steps_from_pairs() <= ONE_STEP
    assert lowered.steps_from_float() <= HALF_STEP


@pytest.mark.parametrize("activation", [U8, S8])
@pytest.mark.parametrize("name", POINTWISE)
def test_operator_between_activations(lower, executed, name, activation) -> None:
    lowered = quantized(lower, POINTWISE[name], activation=activation)
    check_one_operator(lowered, POINTWISE[name].kernel, executed)
    assert lowered.steps_from_pairs() <= ONE_STEP
    # The kernel of Softmax adds up exponentials from a table, which are rounded themselves.
    assert lowered.steps_from_float() <= (ONE_STEP if "softmax" in name else HALF_STEP)


@pytest.mark.parametrize("activation", [U8, S8])
@pytest.mark.parametrize("name", MOVES)
def test_move_is_exact(lower, executed, name, activation) -> None:
    lowered = quantized(lower, MOVES[name], activation=activation, one_scale=True)
    check_one_operator(lowered, MOVES[name].kernel, executed)
    assert lowered.steps_from_pairs() == 0
    assert lowered.steps_from_float() < 1e-3  # the judge multiplies once more, in float32


@pytest.mark.parametrize("opset", [13, 25])
@pytest.mark.parametrize("name", {**LAYERS, **POINTWISE, **MOVES})
def test_every_opset_has_the_operators(lower, saturates, name, opset) -> None:
    """From the oldest that has scales per channel to the newest."""
    net = {**LAYERS, **POINTWISE, **MOVES}[name]
    lowered = quantized(lower, net, opset=opset, one_scale=name in MOVES)
    assert net.kernel in lowered.operators()
    if not saturates:
        assert lowered.steps_from_pairs() <= ONE_STEP


def test_every_rule_has_a_net() -> None:
    of_rules = {**LAYERS, **POINTWISE}.values()
    assert {net.body.split("= ")[1].split()[0] for net in of_rules} == set(_RULES)
    assert {net.kernel for net in MOVES.values()} == set(MOVERS)


@pytest.mark.parametrize("activation", [U8, S8])
@pytest.mark.parametrize(
    ("name", "kernel"),
    [("matmul", "MatMulIntegerToFloat"), ("matmul_3d", "MatMulIntegerToFloat"),
     ("gemm", "QGemm"), ("gemm_bias", "QGemm")],
)  # fmt: skip
def test_output_may_stay_float(lower, executed, saturates, name, kernel, activation) -> None:
    lowered = quantized(lower, LAYERS[name], activation=activation, params={"y": None})
    check_one_operator(lowered, kernel, executed)
    assert lowered.operators() == ["QuantizeLinear", kernel]
    if saturates:
        pytest.skip("the int8 kernels of this processor saturate")
    # Sums of integers are exact; what is left is one multiplication in float32.
    (found,), (expected,) = (
        Session(m, level="none").run(lowered.feed).values() for m in (lowered.model, lowered.qdq)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


ISLANDS = {
    "no kernel: ConvTranspose": (
        Net("y = ConvTranspose (x, w)", "", "float[4,3,2,2] w = seeded", axis=1),
        {},
    ),
    "no kernel: Sub": (Net("y = Sub (x, z)", "", z=True), {}),
    "no kernel: Tanh": (Net("y = Tanh (x)", ""), {}),
    "no kernel: ReduceMean": (Net("y = ReduceMean <axes = [2, 3]> (x)", ""), {}),
    "a clamp alone": (Net("y = Relu (x)", ""), {}),
    "interpolation": (
        Net('y = Resize <mode = "linear"> (x, , s)', "", "float[4] s = {1, 1, 2, 2}"),
        {"y": choose_qparams(-1.5, 3.0, U8), "x": choose_qparams(-1.5, 3.0, U8)},
    ),
    "padding that is not 0": (
        Net("y = Pad (x, p, one)", "", "int64[8] p = {0,0,1,1,0,0,1,1}, float one = {1}"),
        {"y": choose_qparams(-1.5, 3.0, U8), "x": choose_qparams(-1.5, 3.0, U8)},
    ),
    "another scale behind": (
        Net("y = MaxPool <kernel_shape = [2, 2]> (x)", ""),
        {"y": choose_qparams(-1.5, 3.0, U8), "x": choose_qparams(-1.5, 3.5, U8)},
    ),
    "cropping, which puts in a value": (
        Net(
            'y = Resize <coordinate_transformation_mode = "tf_crop_and_resize"> (x, roi, s)',
            "",
            "float[8] roi = {0, 0, 0, 0, 1, 1, 2, 2}, float[4] s = {1, 1, 2, 2}",
        ),
        {"y": choose_qparams(-1.5, 3.0, U8), "x": choose_qparams(-1.5, 3.0, U8)},
    ),
    "a factor": (Net("y = Gemm <alpha = 0.5> (x, w)", "", GEMM, "5,8", axis=1), {}),
    "a factor of the bias": (
        Net("y = Gemm <beta = 0.5> (x, w, b)", "", f"{GEMM}, {BIAS}", "5,8", axis=1),
        {},
    ),
    "columns of a stack": (
        Net("y = MatMul (x, w)", "", "float[3,8,6] w = seeded", "3,5,8", axis=2),
        {},
    ),
    "zero points per channel": (
        Net("y = Conv (x, w)", "", "float[2,4,3,3] w = seeded"),
        {"w": QParams(U8, (0.004, 0.004), (120, 130), axis=0)},
    ),
    "scales along the wrong axis": (
        Net("y = Conv (x, w)", "", "float[2,4,3,3] w = seeded"),
        {"w": QParams(S8, (0.004,) * 4, (0,) * 4, axis=1)},
    ),
    "rows of a matrix": (
        Net("y = MatMul (x, w)", "", GEMM, "5,8"),
        {"w": QParams(S8, (0.02,) * 8, (0,) * 8, axis=0)},
    ),
    "two types": (Net("y = Add (x, z)", "", z=True), {"z": choose_qparams(-1.5, 3.0, S8)}),
    "int8 x uint8": (
        Net("y = Conv (x, w)", "", "float[2,4,3,3] w = seeded"),
        {"x": choose_qparams(-1.5, 3.0, S8), "w": QParams(U8, (0.004,), (128,))},
    ),
}


@pytest.mark.parametrize("why", ISLANDS)
def test_operator_stays_float(lower, why) -> None:
    """Nothing changes, and no conversion is lost."""
    net, params = ISLANDS[why]
    lowered = quantized(lower, net, params=params)
    assert to_text(lowered.model) == to_text(lowered.qdq)


def test_dilated_average_stays_float() -> None:
    """The kernel knows no dilations, which AveragePool has since opset 19."""
    assert operators_of(average(dilation=1)) == ["QLinearAveragePool", "DequantizeLinear"]
    assert "AveragePool" in operators_of(average(dilation=2))


def operators_of(text: str) -> list[str]:
    return [node.op for node in lower_qoperator(from_text(text)).view().nodes]


def average(dilation: int) -> str:
    return f"""<ir_version: 9, opset_import: ["" : 19]>
        g (uint8[1,2,5,5] q) => (float[1,2,M,N] y) <float s = {{0.1}}, uint8 o = {{7}}> {{
        x = DequantizeLinear (q, s, o)
        c = AveragePool <kernel_shape = [2, 2], dilations = [{dilation}, {dilation}]> (x)
        r = QuantizeLinear (c, s, o)
        y = DequantizeLinear (r, s, o) }}"""


def test_axis_may_count_from_the_end() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (uint8[2,3] q) => (float[2,2] y) <float s = {0.1}, uint8 o = {7},
        int8[3,2] v = {1, 2, 3, 4, 5, 6}, float[2] t = {0.5, 0.25}, int8[2] p = {0, 0}> {
        x = DequantizeLinear (q, s, o) w = DequantizeLinear <axis = -1> (v, t, p)
        y = MatMul (x, w) }"""
    assert operators_of(text) == ["MatMulIntegerToFloat"]


@pytest.mark.parametrize(("second", "read"), [("i", True), ("i", False), ("", False)])
def test_max_pool_keeps_its_indices(second, read) -> None:
    outputs = ", int64[1,2,4,4] i" if read else ""
    model = from_text(f"""<ir_version: 8, opset_import: ["" : 17]>
        g (uint8[1,2,4,4] q) => (float[1,2,4,4] y{outputs}) <float s = {{0.1}}, uint8 o = {{7}}> {{
        x = DequantizeLinear (q, s, o)
        c, {second or "none"} = MaxPool <kernel_shape = [1, 1]> (x)
        r = QuantizeLinear (c, s, o)
        y = DequantizeLinear (r, s, o) }}""")
    if not second:
        model.ir.graph[1].outputs[1].name = ""
    lowered = lower_qoperator(model)
    assert [node.op for node in lowered.view().nodes] == ["MaxPool", "DequantizeLinear"]
    feed = {"q": np.arange(32, dtype=np.uint8).reshape(1, 2, 4, 4)}
    expected = Session(model).run(feed)
    for name, value in Session(lowered).run(feed).items():
        np.testing.assert_array_equal(value, expected[name])


def test_concat_of_two_scales_is_no_move(lower, executed) -> None:
    """Though one part has the scale of the whole."""
    params = {t: choose_qparams(-1.5, 3.0, U8) for t in "xy"}
    params["z"] = choose_qparams(-4.0, 4.0, U8)
    for name in ("concat", "where"):
        lowered = quantized(
            lower, POINTWISE[name], params=params | {"z": choose_qparams(-4.0, 4.0, U8)}
        )
        check_one_operator(lowered, POINTWISE[name].kernel, executed)
        assert lowered.steps_from_float() <= HALF_STEP


def layer(bias_scale: float = 0.05, weight: str = "v, t, p", bias: str = "a, u") -> str:
    return f"""<ir_version: 8, opset_import: ["" : 17]>
        g (uint8[1,1,2,2] q, int32 given) => (float[1,1,2,2] y)
        <float s = {{0.1}}, uint8 o = {{7}}, int8[1,1,1,1] v = {{3}}, float t = {{0.5}},
         int8 p = {{0}}, int32[1] a = {{90}}, float u = {{{bias_scale}}}, int32 one = {{1}}> {{
        x = DequantizeLinear (q, s, o)
        w = DequantizeLinear ({weight})
        b = DequantizeLinear ({bias})
        c = Conv (x, w, b)
        r = QuantizeLinear (c, s, o)
        y = DequantizeLinear (r, s, o) }}"""


@pytest.mark.parametrize(
    ("text", "lowers"),
    [(layer(), True), (layer(bias_scale=0.051), False), (layer(weight="v, t"), False),
     (layer(bias="a, u, one"), False), (layer(bias="a, u, given"), False)],
    ids=["as to_qdq writes it", "bias of another scale", "weight without zero point",
         "bias with a zero point", "bias with a zero point that is an input"],
)  # fmt: skip
def test_conv_needs_a_fitting_bias_and_zero_points(text, lowers) -> None:
    """A bias is added to products as it is stored, and kernels take a zero point as an input."""
    assert ("QLinearConv" in operators_of(text)) is lowers
