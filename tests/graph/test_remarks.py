"""Metadata and doc strings outlive a raised opset."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxq.graph import SMALL_TYPES_OPSET, Model, normalize
from onnxq.graph.opset import MINIMUM_OPSET, NORM_OPSET
from onnxq.runtime import prepare

RAISED = pytest.mark.parametrize("opset", [MINIMUM_OPSET, NORM_OPSET, SMALL_TYPES_OPSET])


def remark(thing, said: str):
    """Give something of a model a doc string and an entry of metadata."""
    thing.doc_string = f"doc {said}"
    thing.metadata_props.add(key="said", value=said)
    return thing


def told(thing) -> tuple[str | None, str | None]:
    return thing.doc_string, thing.metadata_props.get("said")


def expected(said: str) -> tuple[str, str]:
    return f"doc {said}", said


def value(name: str, kind: int = TensorProto.FLOAT, shape=(1, 4)) -> onnx.ValueInfoProto:
    return remark(helper.make_tensor_value_info(name, kind, shape), name)


def node(op: str, inputs: str, outputs: str, name: str = "", **attrs) -> onnx.NodeProto:
    made = helper.make_node(op, inputs.split(), outputs.split(), name=name or None, **attrs)
    return remark(made, name or outputs)


def model_of(nodes, inputs, *, inner=(), weights=()) -> Model:
    graph = helper.make_graph(
        nodes, "g", inputs, [value("y")], weights, value_info=[value(name) for name in inner]
    )
    opsets = [helper.make_opsetid("", 11)]
    proto = helper.make_model(remark(graph, "graph"), opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(remark(proto, "model"))
    return Model(ir.serde.deserialize_model(proto))


@pytest.fixture
def old() -> Model:
    """Of opset 11: Softmax and Squeeze take another form later, and one node has no name."""
    weight = numpy_helper.from_array(np.arange(16, dtype=np.float32).reshape(4, 4), "w")
    nodes = [
        node("Softmax", "x", "a", "soft", axis=1),
        node("MatMul", "a w", "b", "linear"),
        node("Relu", "b", "c"),
        node("Unsqueeze", "c", "d", "wide", axes=[0]),
        node("Squeeze", "d", "y", "narrow", axes=[0]),
    ]
    return model_of(nodes, [value("x")], inner=["a", "b"], weights=[weight])


@RAISED
def test_all_that_was_said_is_kept(old: Model, opset: int) -> None:
    raised = normalize(old, opset).ir
    assert raised.opset_imports[""] == opset
    assert told(raised) == expected("model")
    assert told(raised.graph) == expected("graph")
    nodes = {n.op_type: n for n in raised.graph}
    names = {"Softmax": "soft", "MatMul": "linear", "Unsqueeze": "wide", "Squeeze": "narrow"}
    assert {op: told(nodes[op]) for op in names} == {op: expected(n) for op, n in names.items()}
    assert told(nodes["Relu"]) == expected("c")  # known by what it makes
    assert told(raised.graph.inputs[0]) == expected("x")
    assert told(raised.graph.outputs[0]) == expected("y")
    assert told(nodes["MatMul"].outputs[0]) == expected("b")


@RAISED
def test_nothing_is_said_of_what_the_converter_adds(old: Model, opset: int) -> None:
    """The axes of Squeeze become constants, of which the model said nothing."""
    added = [n for n in normalize(old, opset).ir.graph if n.op_type == "Constant"]
    assert len(added) == 2
    assert [dict(n.metadata_props) for n in added] == [{}, {}]


@RAISED
def test_bodies_keep_theirs(opset: int) -> None:
    """Both branches may call what they make by the same name."""
    branches = {
        f"{which}_branch": remark(
            helper.make_graph([node(op, "x", "made", f"{op} here")], which, [], [value("made")]),
            which,
        )
        for which, op in (("then", "Relu"), ("else", "Abs"))
    }
    inputs = [value("x"), value("c", TensorProto.BOOL, ())]
    raised = normalize(model_of([node("If", "c", "y", "choice", **branches)], inputs), opset).ir
    (choice,) = raised.graph
    assert told(choice) == expected("choice")
    for which, op in (("then", "Relu"), ("else", "Abs")):
        body = choice.attributes[f"{which}_branch"].as_graph()
        assert told(body) == expected(which)
        assert [(n.op_type, *told(n)) for n in body] == [(op, *expected(f"{op} here"))]


@RAISED
def test_prepared_models_keep_those_of_the_graph_and_its_ends(old: Model, opset: int) -> None:
    prepared = prepare(old, opset=opset).ir
    assert told(prepared) == expected("model")
    assert told(prepared.graph) == expected("graph")
    assert told(prepared.graph.inputs[0]) == expected("x")
    assert told(prepared.graph.outputs[0]) == expected("y")
    assert {n.name: n.doc_string for n in prepared.graph}["linear"] == "doc linear"
