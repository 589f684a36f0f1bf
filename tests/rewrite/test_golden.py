"""Golden cases: ONNX text in, options, ONNX text out; and every case is run.

A case is a file in ``golden``: options as ``# name: value`` lines, the source, ``=====``, the
quantized graph. ``pytest tests/rewrite/test_golden.py --regenerate`` writes what is below the
line. Options:

* ``ranges: x=-1,1 y=0,6``: ranges of tensors. An input is drawn from its range (-1 to 1 without
  one); the range of any other tensor is measured, and rounded outwards to sixteenths so that the
  text does not depend on a float's last bit.
* ``keep_float: GLOB ...``, ``precision: int8-weights``, ``per_channel: no``: the recipe.
"""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxq.graph import Editor, Model, serialize, strip, to_text
from onnxq.ops import OPERATORS, classify
from onnxq.plan import QuantPlan, Recipe, make_plan, tensors_to_observe
from onnxq.rewrite import rewrite
from onnxq.rewrite.qdq import to_qdq
from onnxq.runtime import Session
from onnxq.targets import get_target
from onnxq.types import Feed, Precision, TensorRange

TARGET = get_target("cpu-x86")
CASES = sorted((Path(__file__).parent / "golden").glob("*.txt"))
LINE = "=====\n"
SHOWN = 8  # initializers with more values are shown by their hash


class Case:
    """One file, parsed and quantized."""

    def __init__(self, path: Path, build, ranges_of) -> None:
        self.path = path
        self.given, _, self.expected = path.read_text().partition(LINE)
        self._options = dict(re.findall(r"^# (\w+): (.*)$", self.given, re.MULTILINE))
        text = "".join(s for s in self.given.splitlines(True) if not s.startswith("#"))
        self.source: Model = build(text)
        self.feed = self._draw()
        census = classify(self.source.view(), TARGET)
        recipe, view = self._recipe(), self.source.view()
        taps = tensors_to_observe(view, census, recipe)
        measured = ranges_of(self.source, taps, self.feed)
        ranges = {t: _round_outwards(r) for t, r in measured.items()} | self._ranges()
        self.plan = make_plan(view, census, ranges, recipe, TARGET)
        self.quantized = rewrite(self.source, self.plan)

    def _recipe(self) -> Recipe:
        return Recipe(
            precision=self._options.get("precision", "int8"),
            per_channel=self._options.get("per_channel", "yes") == "yes",
            keep_float=tuple(self._options.get("keep_float", "").split()),
        )

    def _ranges(self) -> dict[str, TensorRange]:
        found = {}
        for entry in self._options.get("ranges", "").split():
            tensor, ends = entry.split("=")
            lo, hi = map(float, ends.split(","))
            found[tensor] = TensorRange(lo, hi, lo, hi)
        return found

    def _draw(self) -> Feed:
        rng, ranges = np.random.RandomState(0), self._ranges()
        feed: Feed = {}
        for spec in self.source.view().inputs:
            if spec.dtype == "bool":
                feed[spec.name] = np.ones(spec.shape, bool)
                continue
            given = ranges.get(spec.name)
            lo, hi = (given.lo, given.hi) if given else (-1.0, 1.0)
            feed[spec.name] = rng.uniform(lo, hi, spec.shape).astype(np.float32)
        return feed


def _round_outwards(found: TensorRange) -> TensorRange:
    lo, hi = math.floor(found.lo * 16) / 16, math.ceil(found.hi * 16) / 16
    return TensorRange(lo, hi, lo, hi)


@pytest.fixture(scope="module", params=CASES, ids=lambda path: path.stem)
def case(request, build, ranges_of) -> Case:
    return Case(request.param, build, ranges_of)


def render(model: Model) -> str:
    """The textual syntax, one initializer to a line, long ones by hash, without value_info."""
    head, declared, body = re.split(r"^   <(.*)>$\n", to_text(model), maxsplit=1, flags=re.M)
    lines = [_initializer(model, entry) for entry in declared.split(", ") if " = " in entry]
    return f"{head}<\n" + "".join(f"   {line}\n" for line in sorted(lines)) + f">\n{body}"


def _initializer(model: Model, entry: str) -> str:
    kind, name = entry.partition(" = ")[0].split(" ", 1)
    values = model.view().constant(name.strip('"'))
    if values.size > SHOWN:
        return f"{kind} {name} = sha256 {hashlib.sha256(values.tobytes()).hexdigest()[:12]}"
    return re.sub(r"\s+", " ", entry)


def test_quantized_graph_is_the_expected_one(case, request) -> None:
    found = render(case.quantized) + "\n"
    if request.config.getoption("--regenerate"):
        case.path.write_text(case.given + LINE + found)
        return
    assert found == case.expected


def test_quantized_graph_is_valid(case) -> None:
    onnx.checker.check_model(serialize(case.quantized), full_check=True)


def structure(model: Model) -> set[tuple]:
    """Nodes with their edges; constants count as such, whatever their names."""
    view = model.view()
    return {
        (n.name, n.op, tuple("constant" if view.is_constant(t) else t for t in n.inputs), n.outputs)
        for n in view.nodes
    }


def test_strip_gives_the_source_back(case) -> None:
    stripped = strip(to_qdq(case.source, case.plan))
    assert structure(stripped) == structure(case.source)
    assert stripped.view().inputs == case.source.view().inputs
    assert stripped.view().outputs == case.source.view().outputs


@pytest.mark.parametrize("level", ["none", "all"])
def test_outputs_stay_within_the_error_of_the_scales(case, level, saturates) -> None:
    """Without optimisation the graph as written runs, with it ONNX Runtime's int8 kernels."""
    if level == "all" and saturates:
        pytest.skip("the int8 kernels of this processor saturate")
    expected = Session(case.source).run(case.feed)
    found = Session(case.quantized, level=level).run(case.feed)
    errors = ErrorBound(case.source, case.plan, case.feed)
    for name, value in expected.items():
        bound = errors.of(name)
        # A bound as large as the values would let an output of zeros pass.
        assert 0 < bound < 0.9 * np.abs(value).max()
        assert np.abs(found[name] - value).max() <= bound


class ErrorBound:
    """How far a quantized model can be from its source: the largest error of every tensor.

    A Q/DQ pair is off by half a step, and so is each quantized weight and bias; values lie inside
    the ranges, so that nothing is cut off. Errors add up through the graph: with inputs x + dx and
    weights w + dw, a product is off by at most |x||dw| + |w||dx| + |dx||dw|.
    """

    # Operators whose output moves by no more than their inputs do.
    STEADY = ("Relu", "Clip", "Sigmoid", "MaxPool", "Reshape", "Transpose", "Concat", "Split", "If")
    ROUNDING = 1 + 1e-3  # float32 arithmetic, which rounds near halves the other way

    def __init__(self, source: Model, plan: QuantPlan, feed: Feed) -> None:
        self._view, self._plan = source.view(), plan
        self._precision = plan.precision()
        self._largest = _largest_values(source, feed)
        self._errors: dict[str, float] = {}
        for node in self._view.nodes:
            error = self._of_node(node)
            self._errors.update({t: error + self._half_step(t) for t in node.outputs})

    def of(self, tensor: str) -> float:
        return self._errors[tensor] * self.ROUNDING

    def _half_step(self, tensor: str) -> float:
        params = self._plan.tensors.get(tensor)
        return max(params.scale) / 2 if params else 0.0

    def _input(self, node, tensor: str) -> float:
        if self._view.producer(tensor):
            return self._errors[tensor]
        quantized = self._precision[node.name] is Precision.INT8
        return self._half_step(tensor) if quantized else 0.0

    def _of_node(self, node) -> float:
        if node.op in self.STEADY:
            tensors = [t for t in (*node.inputs, *node.captures) if self._is_float(t)]
            return max(self._input(node, t) for t in tensors)
        if node.op in ("Add", "Sub"):
            return sum(self._input(node, t) for t in node.inputs)
        if node.op == "Mul":
            return self._product(*node.inputs, *(self._input(node, t) for t in node.inputs))
        if OPERATORS[node.op].weight is not None:
            return self._of_layer(node)
        raise AssertionError(f"say how {node.op} passes errors on")

    def _is_float(self, tensor: str) -> bool:
        return bool(tensor) and self._view.dtype(tensor) == "float32"

    def _product(self, a: str, b: str, da: float, db: float) -> float:
        return self._largest[a] * db + self._largest[b] * da + da * db

    def _of_layer(self, node) -> float:
        x, w = node.inputs[:2]
        dx = self._input(node, x)
        weight = self._view.constant(w)
        if weight is None:
            terms = self._view.shape(x)[-1]
            return terms * self._product(x, w, dx, self._input(node, w))
        stored = self._precision[node.name] is not Precision.FLOAT
        dw = self._half_step(w) if stored else 0.0
        axis = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}[node.op]
        axis = 0 if node.attrs.get("transB") else axis
        others = tuple(i for i in range(weight.ndim) if i != axis)
        terms = weight.size // weight.shape[axis]
        gain = np.abs(weight).sum(others).max()  # the most that one output adds up
        bias = 0.0
        if len(node.inputs) > 2 and self._precision[node.name] is Precision.INT8:
            bias = self._half_step(x) * 2 * max(self._plan.tensors[w].scale) / 2
        return float(gain * dx + terms * dw * (self._largest[x] + dx) + bias)


def _largest_values(model: Model, feed: Feed) -> dict[str, float]:
    editor, view = Editor(model), model.view()
    inner = [t for n in view.nodes for t in n.outputs if t not in view.output_names]
    for tensor in inner:
        editor.add_output(tensor)
    values = Session(editor.finish(), level="basic").run(feed) | feed
    constants = {t: view.constant(t) for n in view.nodes for t in n.inputs if view.is_constant(t)}
    return {t: float(np.abs(v).max()) for t, v in (values | constants).items() if v.dtype != bool}


@pytest.mark.parametrize(("kernel", "hidden"), [("1,1", False), ("3,3", True)])
def test_initializers_are_shown_or_hashed_by_value(build, kernel, hidden) -> None:
    """Six values are shown; 54 are hashed, and other values have another hash."""
    text = """g (float[1,2,4,4] x) => (float[N,M,H,W] y)
        <float[3,2,KERNEL] NAME = seeded> { y = Conv (x, NAME) }"""
    shown = [
        re.findall(
            f"{name} = (.*)", render(build(text.replace("NAME", name).replace("KERNEL", kernel)))
        )
        for name in ("v", "w")
    ]
    assert shown[0] != shown[1]
    assert shown[0][0].startswith("sha256") is hidden
