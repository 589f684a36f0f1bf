"""The table of the CPU target is true: the graph that ONNX Runtime really runs is read back.

Each row that promises an int8 kernel gets a small net, Conv -> operator -> Conv or the like, which
is quantized and opened with all optimisations. The operator must then be where its row says.
"""

from __future__ import annotations

import pytest

from onnxq.graph import GraphView, load
from onnxq.runtime import Session
from onnxq.targets import Kernel, get_target

TARGET = get_target("cpu-x86")
INTEGERS = ("uint8", "int8")
OPENING = "[first] c = Conv (x, w1)"
CLOSING = "[last] y = Conv (m, w2)"
WEIGHTS = "float[4,2,1,1] w1 = seeded, float[4,4,1,1] w2 = seeded"

# Body between c, float[1,4,4,4], and m, and further initializers; ``it`` is the node in question.
BETWEEN = {
    "Conv": ("[it] m = Conv (c, w)", "float[4,4,1,1] w = seeded"),
    "Add": ("[other] d = Conv (x, w1) [it] m = Add (c, d)", ""),
    "Mul": ("[other] d = Conv (x, w1) [it] m = Mul (c, d)", ""),
    "Concat": (
        "[narrow] b = Conv (c, v) [other] d = Conv (c, v) [it] m = Concat <axis = 1> (b, d)",
        "float[2,4,1,1] v = seeded",
    ),
    "Where": ("[other] d = Conv (x, w1) [it] m = Where (pick, c, d)",
              "bool[4] pick = {1, 0, 1, 0}"),
    "Sigmoid": ("[it] m = Sigmoid (c)", ""),
    "LeakyRelu": ("[it] m = LeakyRelu <alpha = 0.1> (c)", ""),
    "GlobalAveragePool": ("[it] m = GlobalAveragePool (c)", ""),
    "Relu": ("[it] m = Relu (c)", ""),
    "Clip": ("[it] m = Clip (c, low, high)", "float low = {0}, float high = {6}"),
    "MaxPool": ("[it] m = MaxPool <kernel_shape = [2, 2]> (c)", ""),
    "Split": (
        "[it] m, n = Split <axis = 2> (c, parts) [second] z = Conv (n, w2)",
        "int64[2] parts = {2, 2}",
    ),
    "Resize": ("[it] m = Resize (c, , scales)", "float[4] scales = {1, 1, 2, 2}"),
    "Reshape": ("[it] m = Reshape (c, shape)", "int64[4] shape = {1, 4, 2, 8}"),
    "Transpose": ("[it] m = Transpose <perm = [0, 2, 1, 3]> (c)", ""),
    "Slice": ("[it] m = Slice (c, from, to, axes)",
              "int64[1] from = {1}, int64[1] to = {3}, int64[1] axes = {2}"),
    "Squeeze": ("[it] m = Squeeze (c, axes)", "int64[1] axes = {0}"),
    "Unsqueeze": ("[it] m = Unsqueeze (c, axes)", "int64[1] axes = {0}"),
    "Flatten": ("[it] m = Flatten (c)", ""),
    "Gather": ("[it] m = Gather <axis = 2> (c, rows)", "int64[2] rows = {2, 0}"),
    "Expand": ("[it] m = Expand (c, shape)", "int64[4] shape = {2, 4, 4, 4}"),
    "Tile": ("[it] m = Tile (c, times)", "int64[4] times = {1, 1, 2, 1}"),
    "DepthToSpace": ("[it] m = DepthToSpace <blocksize = 2> (c)", ""),
}  # fmt: skip
# What reads m where it is no 1x4xHxW: another layer closes the net.
CLOSINGS = {
    "Squeeze": ("[last] y = MatMul (m, v)", "float[4,4] v = seeded"),
    "Unsqueeze": ("[last] y = MatMul (m, v)", "float[4,4] v = seeded"),
    "Flatten": ("[last] y = Gemm (m, v)", "float[64,3] v = seeded"),
    "DepthToSpace": ("[last] y = Conv (m, v)", "float[2,1,1,1] v = {1, -1}"),
}
# Dense layers have nets of their own.
LAYERS = {
    "MatMul": ("[it] m = MatMul (x, v) [last] y = MatMul (m, u)",
               "float[8,4] v = seeded, float[4,3] u = seeded", "float[2,8] x"),
    "Gemm": ("[it] m = Gemm <transB = 1> (x, v, b) [last] y = Gemm (m, u)",
             "float[4,8] v = seeded, float[4] b = {1, 0, -1, 2}, float[4,3] u = seeded",
             "float[2,8] x"),
}  # fmt: skip
FUSED_KERNELS = {"Gemm": "QGemm"}


def net(op: str) -> str:
    if op in LAYERS:
        body, held, given = LAYERS[op]
        return f"g ({given}) => (float y) <{held}> {{ {body} }}"
    between, held = BETWEEN[op]
    closing, more = CLOSINGS.get(op, (CLOSING, ""))
    initializers = ", ".join(filter(None, (WEIGHTS, held, more)))
    outputs = "float y, float z" if op == "Split" else "float y"
    return f"""g (float[1,2,4,4] x) => ({outputs}) <{initializers}>
        {{ {OPENING} {between} {closing} }}"""


def rows(*kernels: Kernel) -> list[str]:
    return [op for op, support in TARGET.operators.items() if support.kernel in kernels]


@pytest.fixture
def run_graph(build, quantize, tmp_path):
    """The plan of a net, and the graph that ONNX Runtime makes of its quantized form."""

    def run(text: str):
        made = quantize(build(text))
        written = tmp_path / "optimized.onnx"
        Session(made.model, write_optimized=written)
        return made.plan.precision(), load(written).view()

    return run


def float_nodes(view: GraphView) -> list[str]:
    """What is not int8 in the graph: float layers, and conversions that are not at its edges.

    With a QuantizeLinear behind inputs only and a DequantizeLinear before outputs only, all that
    lies between them runs on integers. (ONNX Runtime writes no types to read that from.)
    """
    found = [n.op for n in view.nodes if n.op in ("Conv", "FusedConv", "Gemm", "MatMul")]
    for node in view.nodes:
        if node.op == "QuantizeLinear" and node.inputs[0] not in {
            spec.name for spec in view.inputs
        }:
            found.append(f"QuantizeLinear of {node.inputs[0]}")
        if node.op == "DequantizeLinear" and node.outputs[0] not in view.output_names:
            found.append(f"DequantizeLinear of {node.inputs[0]}")
    return found


def test_every_promise_has_a_net() -> None:
    promised = set(rows(Kernel.FUSED, Kernel.MOVES, Kernel.CLAMP))
    assert promised == set(BETWEEN) | set(LAYERS)


@pytest.mark.parametrize("op", rows(Kernel.FUSED))
def test_fused_operator_runs_as_one_int8_kernel(run_graph, op) -> None:
    precision, view = run_graph(net(op))
    assert precision["it"] == "int8"
    assert float_nodes(view) == []
    assert FUSED_KERNELS.get(op, f"QLinear{op}") in [n.op for n in view.nodes]
    assert op not in [n.op for n in view.nodes]


@pytest.mark.parametrize("op", rows(Kernel.MOVES))
def test_moving_operator_runs_on_integers(run_graph, op) -> None:
    precision, view = run_graph(net(op))
    assert precision["it"] == "int8"
    assert float_nodes(view) == []
    assert {op, f"Nhwc{op}"} & {n.op for n in view.nodes}


@pytest.mark.parametrize("op", rows(Kernel.CLAMP))
@pytest.mark.parametrize("behind", ["Conv", "Add"])
def test_clamp_vanishes(run_graph, op, behind) -> None:
    text = net(op)
    if behind == "Add":
        text = text.replace(
            "[first] c = Conv (x, w1)",
            """[first] a = Conv (x, w1)
            [other] b = Conv (x, w1) [sum] c = Add (a, b)""",
        )
    precision, view = run_graph(text)
    assert precision["it"] == "int8"
    assert float_nodes(view) == []
    assert op not in [n.op for n in view.nodes]


@pytest.mark.parametrize(
    ("first", "second", "kernels"),
    [("MatMul", "MatMul", ["QLinearMatMul", "MatMulIntegerToFloat"]),
     ("Gemm", "Gemm", ["QGemm", "QGemm"])],
)  # fmt: skip
@pytest.mark.parametrize("clamp", rows(Kernel.CLAMP))
def test_clamp_between_dense_layers(run_graph, first, second, kernels, clamp) -> None:
    limits = ", low, high" if clamp == "Clip" else ""
    held = ", float low = {0}, float high = {6}" if clamp == "Clip" else ""
    precision, view = run_graph(f"""g (float[2,8] x) => (float y)
        <float[8,4] v = seeded, float[4,3] u = seeded{held}>
        {{ [one] a = {first} (x, v) [it] m = {clamp} (a{limits}) [two] y = {second} (m, u) }}""")
    assert precision["it"] == "int8"
    assert float_nodes(view) == []
    assert [n.op for n in view.nodes if n.op != "QuantizeLinear"] == kernels


def test_float_layer_behind_an_int8_one_stays_float(build, run_graph) -> None:
    """ONNX Runtime would quantize it by itself behind a DequantizeLinear with one scale."""
    _, view = run_graph(f"""g (float[1,2,4,4] x) => (float y) <{WEIGHTS}>
        {{ {OPENING} [it] m = ConvTranspose (c, w2) [act] y = Tanh (m) }}""")
    assert "ConvTranspose" in [n.op for n in view.nodes]
    it = next(n for n in view.nodes if n.op == "ConvTranspose")
    assert view.is_constant(it.inputs[1])
    assert view.constant(it.inputs[1]).dtype == "float32"


def test_check_of_this_file_can_fail(build, tmp_path) -> None:
    """A float net, and one with a float operator between int8 layers, are seen."""
    written = tmp_path / "optimized.onnx"
    Session(build(net("Conv")), write_optimized=written)
    assert float_nodes(load(written).view())


def test_operator_between_int8_layers_that_runs_as_float_is_seen(run_graph) -> None:
    body = f"{OPENING} [it] m = Tanh (c) {CLOSING}"
    _, view = run_graph(f"g (float[1,2,4,4] x) => (float y) <{WEIGHTS}> {{ {body} }}")
    assert float_nodes(view)
