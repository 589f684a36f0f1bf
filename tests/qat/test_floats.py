"""Evaluation on floats against the float kernels of ONNX Runtime: equal to the last bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from msgspec.structs import replace as with_fields

from onnxq.graph import Model
from onnxq.plan import QATSettings
from onnxq.rewrite import rewrite
from onnxq.runtime import Session

torch = pytest.importorskip("torch", reason="torch is in the extra 'qat'")

from onnxq.qat.evaluator import Evaluator  # noqa: E402
from onnxq.qat.floats import float_kernels  # noqa: E402
from onnxq.qat.student import Student  # noqa: E402

# Kernels of older and of other processors sum in another order. What is summed in a register was
# compared with one of AVX-512 only.
CPU = torch.backends.cpu.get_cpu_capability()
FUSES, WIDE = CPU in ("AVX2", "AVX512"), CPU == "AVX512"
ROWS = "agraph (float[N,16,64] x) => (float[N,16,64] y, float[N,16,8] z)"
NORM = "float[64] s = seeded, float[64] t = seeded, float[64,8] w = seeded"
GELU = "float r = {1.4142135}, float one = {1}, float half = {0.5}, float[64,8] w = seeded"
# What makes y, the operators that are computed as kernels, and whether all processors agree.
CASES = {
    "LayerNormalization": (f"""{ROWS} <{NORM}>
        {{ y = LayerNormalization (x, s, t)  z = MatMul (y, w) }}""", "LayerNormalization", WIDE),
    "LayerNormalization without shift": (f"""{ROWS} <{NORM}>
        {{ y = LayerNormalization <axis = 2, epsilon = 0.1> (x, s)  z = MatMul (y, w) }}""",
        "LayerNormalization", WIDE),
    "LayerNormalization of a sum": (f"""{ROWS} <{NORM}>
        {{ a = Abs (x)  u = Add (a, x)  y = LayerNormalization (u, s, t)
           z = MatMul (y, w) }}""", "LayerNormalization", FUSES),
    "LayerNormalization of a sum that others read": (f"""{ROWS} <{NORM}>
        {{ a = Abs (x)  u = Add (a, x)  v = LayerNormalization (u, s, t)  y = Add (u, v)
           z = MatMul (y, w) }}""", "LayerNormalization", WIDE),
    "LayerNormalization of a sum with a constant": (f"""{ROWS} <{NORM}, float[1,16,64] c = seeded>
        {{ u = Add (x, c)  y = LayerNormalization (u, s, t)  z = MatMul (y, w) }}""",
        "LayerNormalization", WIDE),
    "Softmax of rows of 16": ("""agraph (float[N,4,16] x) => (float[N,4,16] y, float[N,4,8] z)
        <float[16,8] w = seeded> { y = Softmax (x)  z = MatMul (y, w) }""", "Softmax", FUSES),
    "Softmax of rows of 9": ("""agraph (float[N,4,9] x) => (float[N,4,9] y, float[N,4,8] z)
        <float[9,8] w = seeded> { y = Softmax (x)  z = MatMul (y, w) }""", "Softmax", FUSES),
    "Softmax of long rows": ("""agraph (float[N,4,77] x) => (float[N,4,77] y, float[N,4,8] z)
        <float[77,8] w = seeded> { y = Softmax (x)  z = MatMul (y, w) }""", "Softmax", WIDE),
    "Softmax of columns": (f"""{ROWS} <float[64,8] w = seeded>
        {{ y = Softmax <axis = 1> (x)  z = MatMul (y, w) }}""", "Softmax", FUSES),
    "Erf": (f"""{ROWS} <float[64,8] w = seeded> {{ y = Erf (x)  z = MatMul (y, w) }}""", "Erf",
        FUSES),
    "Gelu in parts": (f"""{ROWS} <{GELU}>
        {{ d = Div (x, r)  e = Erf (d)  a = Add (e, one)  b = Mul (x, a)  y = Mul (b, half)
           z = MatMul (y, w) }}""", "Div Erf", FUSES),
    "Gelu in parts, halved first": (f"""{ROWS} <{GELU}>
        {{ d = Div (x, r)  e = Erf (d)  a = Add (e, one)  b = Mul (x, half)  y = Mul (b, a)
           z = MatMul (y, w) }}""", "Div Erf", FUSES),
    # ONNX Runtime fuses neither of the next two
    "Gelu in parts, the sum halved": (f"""{ROWS} <{GELU}>
        {{ d = Div (x, r)  e = Erf (d)  a = Add (e, one)  b = Mul (a, half)  y = Mul (x, b)
           z = MatMul (y, w) }}""", "Erf", FUSES),
    "Gelu in parts, of a product": (f"""{ROWS} <float i = {{0.70710677}}, {GELU}>
        {{ d = Mul (x, i)  e = Erf (d)  a = Add (e, one)  b = Mul (x, a)  y = Mul (b, half)
           z = MatMul (y, w) }}""", "Erf", FUSES),
    "Gelu": (f"""<ir_version: 9, opset_import: ["" : 20]> {ROWS} <float[64,8] w = seeded>
        {{ y = Gelu (x)  z = MatMul (y, w) }}""", "Gelu", FUSES),
    "ReduceMean": ("""agraph (float[N,16,64] x) => (float[N,64] y, float[N,8] z)
        <float[64,8] w = seeded> { y = ReduceMean <axes = [1], keepdims = 0> (x)
           z = MatMul (y, w) }""", "ReduceMean", True),
    "ReduceMean of two axes": ("""<ir_version: 9, opset_import: ["" : 18]>
        agraph (float[N,3,5,64] x) => (float[N,1,1,64] y, float[N,1,1,8] z)
        <int64[2] axes = {-2, 1}, float[64,8] w = seeded>
        { y = ReduceMean (x, axes)  z = MatMul (y, w) }""", "ReduceMean", True),
    "ReduceMean of samples": ("""agraph (float[N,16,64] x) => (float[1,16,64] y, float[1,16,8] z)
        <float[64,8] w = seeded> { y = ReduceMean <axes = [0]> (x)  z = MatMul (y, w) }""",
        "ReduceMean", True),
}  # fmt: skip


@pytest.mark.parametrize(("text", "ops", "agree"), CASES.values(), ids=CASES.keys())
def test_floats_are_those_of_the_float_kernels(
    text: str, ops: str, agree: bool, build: Callable[[str], Model], quantize: Callable
) -> None:
    made = quantize(build(text))
    view = made.source.view()
    student = Student(made.source, made.census, made.plan, QATSettings())
    kernels = float_kernels(view, student.simulation)
    assert {view.by_name[name].op for name in kernels} == set(ops.split())
    session, evaluator = Session(rewrite(made.source, made.plan)), Evaluator(view)
    draw = np.random.RandomState(3)
    for samples in (1, 150):
        shape = (samples, *view.inputs[0].shape[1:])
        feed = {"x": (3 * draw.standard_normal(shape)).astype(np.float32)}
        expected = session.run(feed, ["y"])["y"]
        found = student.simulate(feed)["y"].numpy()
        if agree:
            np.testing.assert_array_equal(found, expected)
        else:  # some roundings of float32
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        rough = evaluator.run(student.tensors(feed), evaluator.constants())["y"]
    assert not np.array_equal(rough.numpy(), expected)


OTHERS = {
    "two axes": """agraph (float[N,3,8] x) => (float[N,3,8] y, float[N,3,8] z)
        <float[3,8] s = seeded, float[8,8] w = seeded>
        { y = LayerNormalization <axis = 1> (x, s)  z = MatMul (y, w) }""",
    "the mean too": """agraph (float[N,3,8] x) => (float[N,3,8] y, float[N,3,1] m, float[N,3,8] z)
        <float[8] s = seeded, float[8,8] w = seeded>
        { y, m = LayerNormalization (x, s)  z = MatMul (y, w) }""",
    "the last axis": """agraph (float[N,3,8] x) => (float[N,3] y, float[N,8] z)
        <float[3,8] w = seeded>
        { y = ReduceMean <axes = [2], keepdims = 0> (x)  z = MatMul (y, w) }""",
    "a division": """agraph (float[N,3,8] x) => (float[N,3,8] y, float[N,3,8] z)
        <float[1] r = {255}, float[8,8] w = seeded> { y = Div (x, r)  z = MatMul (y, w) }""",
    "Gelu by tanh": """<ir_version: 9, opset_import: ["" : 20]>
        agraph (float[N,3,8] x) => (float[N,3,8] y, float[N,3,8] z) <float[8,8] w = seeded>
        { y = Gelu <approximate = "tanh"> (x)  z = MatMul (y, w) }""",
}


@pytest.mark.parametrize("text", OTHERS.values(), ids=OTHERS.keys())
def test_other_arithmetic_is_the_operators(
    text: str, build: Callable[[str], Model], quantize: Callable
) -> None:
    made = quantize(build(text))
    student = Student(made.source, made.census, made.plan, QATSettings())
    shape = (20, *made.source.view().inputs[0].shape[1:])
    feed = {"x": np.random.RandomState(3).standard_normal(shape).astype(np.float32)}
    evaluator = Evaluator(made.source.view())
    with torch.no_grad():
        exact = evaluator.run(student.tensors(feed), evaluator.constants())["y"]
    assert torch.equal(student.simulate(feed)["y"], exact)


def test_what_is_masked_has_no_share(build: Callable[[str], Model], quantize: Callable) -> None:
    made = quantize(build(CASES["Softmax of long rows"][0]))
    student = Student(made.source, made.census, made.plan, QATSettings())
    x = np.zeros((1, 4, 77), np.float32)
    x[0, 1, 5:], x[0, 2, 9:], x[0, 3, 0] = -np.inf, -1e30, 1e30
    found = student.simulate({"x": x})["y"].numpy()
    exact = Session(made.source).run({"x": x}, ["y"])["y"]
    np.testing.assert_allclose(found, exact, rtol=1e-6)  # some roundings of float32
    assert not found[0, 1, 5:].any() and not found[0, 2, 9:].any() and found[0, 3, 0] == 1


@pytest.mark.parametrize("change", [{"quantize_activations": False}, {}])
def test_where_nothing_can_tip_there_are_no_kernels(
    change: dict[str, bool], build: Callable[[str], Model], quantize: Callable
) -> None:
    made = quantize(build(CASES["Softmax of rows of 16"][0]))
    settings = with_fields(QATSettings(), **change)
    student = Student(made.source, made.census, made.plan, settings)
    kernels = float_kernels(made.source.view(), student.simulation)
    assert bool(kernels) == (not change)
