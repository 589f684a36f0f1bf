"""Nets that are quantized with a plan made by hand, with their pairs and on integers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from onnxq.graph import Model, load, strip
from onnxq.numerics import choose_qparams, fake_quantize
from onnxq.ops import OPERATORS
from onnxq.plan import NodePlan, QuantPlan
from onnxq.rewrite.qdq import to_qdq
from onnxq.rewrite.qoperator import lower_qoperator
from onnxq.runtime import Session
from onnxq.types import Feed, Precision, QParams, QType


@dataclass(frozen=True)
class Lowered:
    """A net with its pairs, and on integers."""

    qdq: Model
    model: Model
    feed: Feed
    params: dict[str, QParams]

    def steps_from_pairs(self) -> float:
        """The largest distance to the net with its pairs, in steps of the output."""
        found, expected = (
            Session(self.model).run(self.feed),
            Session(self.qdq, level="none").run(self.feed),
        )
        return self._in_steps(found, expected)

    def steps_from_float(self) -> float:
        """The same to the float operator on the values that the integers stand for."""
        feed = {t: fake_quantize(v, self.params[t]) for t, v in self.feed.items()}
        expected = Session(strip(self.qdq), level="none").run(feed)
        for name, value in expected.items():
            params = self.params[name]
            ends = np.array([params.qtype.qmin, params.qtype.qmax]) - params.zero_point[0]
            expected[name] = np.clip(value, *(ends * params.scale[0]))
        return self._in_steps(Session(self.model).run(self.feed), expected)

    def _in_steps(self, found: Feed, expected: Feed) -> float:
        assert set(found) == set(expected)
        return max(
            float(np.abs(found[t] - expected[t]).max()) / self.params[t].scale[0] for t in found
        )

    def operators(self) -> list[str]:
        return [node.op for node in self.model.view().nodes]


@pytest.fixture
def lower(build) -> Callable[..., Lowered]:
    """Quantize all nodes of a net between x (and z) and y, and lower it.

    ``held`` are initializers, of which ``w`` is the weight, with its channels along ``axis``, and
    ``c`` a constant operand. ``params`` overrides what a tensor is quantized with; None: not at
    all. ``one_scale``: the same for all tensors.
    """

    def run(
        body: str,
        held: str,
        *,
        x: str = "1,4,6,6",
        z: bool = False,
        axis: int | None = 0,
        activation: QType = QType.UINT8,
        weight: QType = QType.INT8,
        one_scale: bool = False,
        params: dict[str, QParams | None] | None = None,
        opset: int = 17,
    ) -> Lowered:
        inputs = f"float[{x}] x" + (f", float[{x}] z" if z else "")
        outputs = "float y, float y2" if "y2" in body else "float y"
        head = f'<ir_version: 10, opset_import: ["" : {opset}]>'
        source = build(f"{head} g ({inputs}) => ({outputs}) <{held}> {{ {body} }}")
        rng = np.random.RandomState(0)
        shape = [int(n) for n in x.split(",")]
        feed = {
            spec.name: rng.uniform(-1.5, 3, shape).astype(np.float32)
            for spec in source.view().inputs
        }
        values = feed | Session(source).run(feed)
        view = source.view()
        if view.constant("c") is not None:
            values["c"] = view.constant("c")
        if one_scale:
            whole = np.concatenate([v.ravel() for v in values.values()])
            values = dict.fromkeys(values, whole)
        chosen = {
            t: choose_qparams(float(v.min()), float(v.max()), activation) for t, v in values.items()
        }
        w = view.constant("w")
        if w is not None:
            rest = tuple(i for i in range(w.ndim) if i != axis)
            bound = np.abs(w).max(rest)
            chosen["w"] = choose_qparams(-bound, bound, weight, symmetric=True, axis=axis)
        chosen = {t: p for t, p in (chosen | (params or {})).items() if p is not None}
        nodes = tuple(
            NodePlan(n.name, n.op, Precision.INT8 if n.op in OPERATORS else Precision.FLOAT)
            for n in view.nodes
        )
        qdq = to_qdq(source, QuantPlan("cpu-x86", nodes, chosen))
        return Lowered(qdq, lower_qoperator(qdq), feed, chosen)

    return run


@pytest.fixture
def executed(tmp_path: Path) -> Callable[[Model], Counter[str]]:
    """The operators that ONNX Runtime really runs, all optimisations on."""

    def run(model: Model) -> Counter[str]:
        written = tmp_path / "optimized.onnx"
        Session(model, write_optimized=written)
        return Counter(node.op for node in load(written).view().nodes)

    return run
