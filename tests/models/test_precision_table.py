"""The script that measures every precision counts what is stored, wherever the source keeps it."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxq
from onnxq.plan import Recipe, VerifySettings

SCRIPTS = Path(__file__).parents[2] / "scripts"
W = np.random.RandomState(0).standard_normal((64, 64)).astype(np.float32)


@pytest.fixture
def stored_share(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(SCRIPTS)  # it imports one beside it
    return runpy.run_path(str(SCRIPTS / "precision_table.py"))["stored_share"]


def weight_in_a_node() -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    made = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(W))
    return [made, helper.make_node("MatMul", ["x", "w"], ["y"])], []


def weight_in_a_body() -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    out = helper.make_tensor_value_info("t", TensorProto.FLOAT, [4, 64])
    body = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["t"])], "then", [], [out],
        [numpy_helper.from_array(W, "w")],
    )  # fmt: skip
    other = helper.make_graph([helper.make_node("Identity", ["x"], ["t"])], "else", [], [out])
    made = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=other)
    return [made], []


def folded_weight() -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Stored as its transpose, which preparing folds under another name."""
    nodes = [
        helper.make_node("Transpose", ["w"], ["v"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "v"], ["y"]),
    ]
    return nodes, [numpy_helper.from_array(W, "w")]


@pytest.mark.parametrize("made", [weight_in_a_node, weight_in_a_body, folded_weight])
@pytest.mark.parametrize("precision", ["int8-weights", "int4-weights"])
def test_share_of_what_is_stored(stored_share, tmp_path: Path, made, precision: str) -> None:
    nodes, held = made()
    spec = helper.make_tensor_value_info
    inputs = [spec("x", TensorProto.FLOAT, [4, 64])]
    inputs += [spec("c", TensorProto.BOOL, [])] if nodes[0].op_type == "If" else []
    outputs = [spec("y", TensorProto.FLOAT, [4, 64])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, held)
    opset = helper.make_opsetid("", 17)
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
    recipe = Recipe(precision=precision, verify=VerifySettings(seconds=0.0))
    result = onnxq.quantize(path, recipe=recipe)
    assert stored_share(result, path) == W.nbytes / path.stat().st_size
