"""The self-check sees a quantized graph that is more than its source quantized."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.errors import SelfCheckError
from onnxq.rewrite.check import check
from onnxq.rewrite.qdq import to_qdq

NET = """g (float[1,2,4,4] x) => (float[1,2,4,4] y)
<float[2,2,1,1] w = {0.9, -2, 0.25, 0.5}, float[2] b = {0.5, -1}>
{ [conv] c = Conv (x, w, b) [relu] y = Relu (c) }"""
RAW = {"y_float": "y"}  # the output's pair has its name


@pytest.fixture
def made(build, quantize):
    """What is checked are the pairs, before they are lowered to what a runtime likes."""
    found = quantize(build(NET))
    return replace(found, model=to_qdq(found.source, found.plan))


def spoil(model, name: str, change):
    """The model with another value in one initializer."""
    copy = model.copy()
    value = copy.ir.graph.initializers[name]
    array = value.const_value.numpy().copy()
    value.const_value = ir.tensor(change(array).astype(array.dtype), name=name)
    return copy


def test_own_output_passes(made) -> None:
    check(made.source, made.model, made.plan, RAW)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("w_q", lambda stored: stored - np.eye(4, 1, dtype=np.int8).reshape(stored.shape)),
        ("w_s", lambda scale: scale * 1.02),
        ("b_q", lambda stored: stored + np.arange(2)),
        ("b_s", lambda scale: scale * [1.001, 1]),
    ],
)
def test_constant_off_by_more_than_half_a_step_is_seen(made, name, change) -> None:
    """By one step, or by a scale that takes the largest values, 127 steps, further than that."""
    with pytest.raises(SelfCheckError, match=r"node 'conv': constant input . is off"):
        check(made.source, spoil(made.model, name, change), made.plan, RAW)


@pytest.mark.parametrize(("tensor", "port"), [("x", 1), ("x", 2), ("y", 1)])
def test_activation_parameter_that_is_not_the_plans_is_seen(made, tensor, port) -> None:
    name = made.model.view().by_name[f"{tensor}_Q"].inputs[port]
    with pytest.raises(SelfCheckError, match="has other parameters than"):
        check(made.source, spoil(made.model, name, lambda value: value * 2 + 1), made.plan, RAW)


def test_changed_node_is_seen(made) -> None:
    other = made.model.copy()
    (relu,) = (n for n in other.ir.graph if n.name == "relu")
    relu.op_type = "Neg"
    with pytest.raises(SelfCheckError, match="node 'relu': Relu became Neg; this is a bug"):
        check(made.source, other, made.plan, RAW)


def test_rewrite_checks_its_output(made, monkeypatch) -> None:
    from onnxq.rewrite import rewrite

    monkeypatch.setattr("onnxq.rewrite.qdq.quantize", lambda v, _p: np.zeros(v.shape, np.int8))
    with pytest.raises(SelfCheckError):
        rewrite(made.source, made.plan)
