"""Evaluation on integers against the int8 kernels of ONNX Runtime: equal to the last bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from msgspec.structs import replace as with_fields

from onnxq.graph import GraphView, Model
from onnxq.plan import QATSettings, QuantPlan
from onnxq.rewrite import rewrite
from onnxq.runtime import Session

torch = pytest.importorskip("torch", reason="torch is in the extra 'qat'")

from onnxq.qat.evaluator import Evaluator  # noqa: E402
from onnxq.qat.integers import ARITHMETIC, integer_kernels  # noqa: E402
from onnxq.qat.student import Student  # noqa: E402

HEAD = "agraph (float[N,8,12,12] x) => (float[N,16,r,s] y)"
MODELS = {
    "Conv": f"""{HEAD} <float[16,8,3,3] w = seeded, float[16] b = seeded>
        {{ y = Conv <pads = [1,1,1,1], strides = [2,2]> (x, w, b) }}""",
    "Conv behind a clamp": f"""{HEAD} <float[16,8,1,1] w = seeded>
        {{ c = Conv (x, w)  y = Relu (c) }}""",
    "Conv of groups": f"""{HEAD} <float[16,1,3,3] w = seeded, float[16] b = seeded>
        {{ y = Conv <group = 8> (x, w, b) }}""",
    "Conv of one axis": """agraph (float[N,8,40] x) => (float[N,16,r] y)
        <float[16,8,5] w = seeded, float[16] b = seeded> { y = Conv (x, w, b) }""",
    "Gemm": """agraph (float[N,96] x) => (float[N,33] y)
        <float[33,96] w = seeded, float[33] b = seeded> { y = Gemm <transB = 1> (x, w, b) }""",
    "MatMul": """agraph (float[N,96] x) => (float[N,33] y)
        <float[96,33] w = seeded> { y = MatMul (x, w) }""",
    "MatMul of sums that float32 does not hold": f"""agraph (float[N,9999] x) => (float[N,2] y)
        <float[9999,2] w = {{{", ".join(["0.9, 0.7"] * 9999)}}}> {{ y = MatMul (x, w) }}""",
    "MatMul of activations": """agraph (float[N,20,30] x) => (float[N,20,20] y)
        <float[30,30] v = seeded, float[30,30] w = seeded>
        { q = MatMul (x, v)  k = MatMul (x, w)  t = Transpose <perm = [0,2,1]> (k)
          y = MatMul (q, t) }""",
    "Add": f"""{HEAD} <float[16,8,1,1] v = seeded, float[16,8,1,1] w = seeded,
        float[16,16,1,1] u = seeded>
        {{ a = Conv (x, v)  b = Conv (x, w)  c = Add (a, b)  y = Conv (c, u) }}""",
    "Add of a constant": """agraph (float[N,12,40] x) => (float[N,12,40] y)
        <float[40,40] v = seeded, float[40,40] w = seeded, float[40] c = seeded>
        { a = MatMul (x, v)  b = Mul (a, a)  d = Add (c, b)  y = MatMul (d, w) }""",
    "Mul": f"""{HEAD} <float[16,8,1,1] v = seeded, float[16,8,1,1] w = seeded,
        float[16,16,1,1] u = seeded>
        {{ a = Conv (x, v)  b = Conv (x, w)  c = Mul (a, b)  y = Conv (c, u) }}""",
    "GlobalAveragePool": f"""{HEAD} <float[16,8,1,1] v = seeded, float[16,16,1,1] w = seeded>
        {{ c = Conv (x, v)  p = GlobalAveragePool (c)  y = Conv (p, w) }}""",
}


def with_ties(view: GraphView, plan: QuantPlan) -> QuantPlan:
    """The plan with scales of outputs that put many values exactly in the middle of two steps.

    A step of the output is a power of two of the steps that are counted in the sums, those of the
    first channel: only the very order of roundings gives the same integers then.
    """
    tensors = dict(plan.tensors)
    for node in view.nodes:
        (output,) = node.outputs
        while output not in tensors and view.uses(output):
            output = view.by_name[view.uses(output)[0].node].outputs[0]
        if node.op not in ARITHMETIC or output not in tensors:
            continue
        counted = np.float64(tensors[node.inputs[0]].scale[0])
        if node.op == "GlobalAveragePool":
            counted /= np.prod(view.shape(node.inputs[0])[2:])
        elif node.op != "Add":
            counted *= tensors[node.inputs[1]].scale[0]
        scale = counted * 2.0 ** np.rint(np.log2(tensors[output].scale[0] / counted))
        sharing = [tensor for group in plan.groups if output in group for tensor in group]
        for tensor in sharing or [output]:
            tensors[tensor] = with_fields(tensors[tensor], scale=(float(np.float32(scale)),))
    return with_fields(plan, tensors=tensors)


@pytest.mark.parametrize("text", MODELS.values(), ids=MODELS.keys())
def test_integers_are_those_of_the_int8_kernels(
    text: str, build: Callable[[str], Model], quantize: Callable
) -> None:
    made = quantize(build(text))
    view = made.source.view()
    plan = with_ties(view, made.plan)
    student = Student(made.source, made.census, plan, QATSettings())
    kernels = integer_kernels(view, student.simulation)
    assert set(kernels) == {node.name for node in view.nodes if node.op in ARITHMETIC}
    draw = np.random.RandomState(3)
    feed = {"x": draw.uniform(-0.2, 1.2, (200, *view.inputs[0].shape[1:])).astype(np.float32)}
    (expected,) = Session(rewrite(made.source, plan)).run(feed).values()
    (found,) = student.simulate(feed).values()
    np.testing.assert_array_equal(found.numpy(), expected)
    # which sums of float32 values are not
    with torch.no_grad():
        evaluator = Evaluator(view)
        reading = student.simulation.reading()
        (rough,) = evaluator.run(
            student.tensors(feed), evaluator.constants(), reading=reading
        ).values()
    assert not np.array_equal(rough.numpy(), expected)
