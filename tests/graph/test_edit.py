"""Editing a copy: nodes, edges, captures, outputs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxq.errors import SelfCheckError
from onnxq.graph import Editor, Model, from_text, serialize, to_text
from onnxq.runtime import Session

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
X = np.array([[-2, -1, 1, 2]], np.float32)


@pytest.fixture
def chain() -> Model:
    return from_text(f"""{HEAD} g (float[1,4] x) => (float[1,4] y)
        <float[4] w = {{1, 2, 3, 4}}> {{ [mul] t = Mul (x, w) [relu] y = Relu (t) }}""")


def run(model: Model, **feed: np.ndarray) -> dict[str, np.ndarray]:
    onnx.checker.check_model(serialize(model))
    return Session(model).run({"x": X, **feed})


def test_source_is_not_touched(chain) -> None:
    before = to_text(chain)
    editor = Editor(chain)
    editor.add_constant("two", np.float32(2).reshape(1))
    editor.add_node("Mul", ["t", "two"], ["double"], name="double")
    editor.redirect("relu", 0, "double")
    editor.finish()
    assert to_text(chain) == before


def test_inserted_node_computes_and_is_sorted(chain) -> None:
    editor = Editor(chain)
    editor.add_constant("two", np.float32(2).reshape(1))
    editor.add_node("Mul", ["t", "two"], ["double"], name="double")
    editor.redirect("relu", 0, "double")
    edited = editor.finish()
    assert [n.name for n in edited.view().nodes] == ["mul", "double", "relu"]
    np.testing.assert_array_equal(run(edited)["y"], [[0, 0, 6, 16]])


def test_attributes_and_omitted_inputs_are_written(chain) -> None:
    editor = Editor(chain)
    editor.add_constant("one", np.float32(1))
    editor.add_node("Clip", ["t", "", "one"], ["cut"], name="cut")
    editor.add_node("ReduceMax", ["cut"], ["top"], name="top", attrs={"keepdims": 0})
    editor.add_output("top")
    assert Session(editor.finish()).run({"x": X})["top"] == 1


def test_initializer_without_a_use_is_dropped(chain) -> None:
    editor = Editor(chain)
    editor.add_constant("other", np.full(4, 2, np.float32))
    editor.add_constant("never used", np.zeros(1, np.float32))
    editor.redirect("mul", 1, "other")
    edited = editor.finish()
    assert set(edited.ir.graph.initializers) == {"other"}
    np.testing.assert_array_equal(run(edited)["y"], [[0, 0, 2, 4]])


def test_constant_of_the_same_name_and_value_is_shared(chain) -> None:
    editor = Editor(chain)
    assert editor.add_constant("w", np.array([1, 2, 3, 4], np.float32)) == "w"
    with pytest.raises(SelfCheckError, match="'w' exists already"):
        editor.add_constant("w", np.zeros(4, np.float32))
    with pytest.raises(SelfCheckError, match="'w' exists already"):  # of another type
        editor.add_constant("w", np.array([1, 2, 3, 4], np.int8))
    np.testing.assert_array_equal(editor.finish().view().constant("w"), [1, 2, 3, 4])


def test_node_cannot_make_a_tensor_that_is_there(chain) -> None:
    with pytest.raises(SelfCheckError, match="'neg' would make tensor 't', which exists already"):
        Editor(chain).add_node("Neg", ["x"], ["t"], name="neg")


def test_output_moves_behind_a_new_node(chain) -> None:
    editor = Editor(chain)
    editor.move_output("y", "y_inner")
    editor.add_node("Neg", ["y_inner"], ["y"], name="neg")
    editor.copy_type("y_inner", "y")
    editor.claim_output("y_inner", "y")
    edited = editor.finish()
    assert edited.view().outputs == chain.view().outputs
    np.testing.assert_array_equal(run(edited)["y"], [[0, 0, -3, -8]])


def test_captures_are_redirected_in_nested_subgraphs() -> None:
    """Every mention of the tensor changes, also two levels down."""
    model = from_text(f"""{HEAD} g (bool c, bool d, float[1,4] x) => (float[1,4] y)
        {{
           [make] t = Relu (x)
           [choose] y = If (c) <
              then_branch = a () => (float[1,4] p) {{
                 p = If (d) <
                    then_branch = aa () => (float[1,4] q) {{ q = Neg (t) }},
                    else_branch = ab () => (float[1,4] r) {{ r = Identity (t) }}
                 >
              }},
              else_branch = b () => (float[1,4] s) {{ s = Identity (t) }}
           >
        }}""")
    editor = Editor(model)
    editor.add_constant("ten", np.full(1, 10, np.float32))
    editor.add_node("Add", ["t", "ten"], ["more"], name="add")
    editor.redirect_captures("choose", "t", "more")
    edited = editor.finish()
    assert edited.view().by_name["choose"].captures.count("more") == 1
    assert "t" not in edited.view().by_name["choose"].captures
    yes, no = np.array(True), np.array(False)
    session = Session(edited)
    outputs = [session.run({"x": X, "c": c, "d": d})["y"] for c, d in ((yes, yes), (yes, no))]
    np.testing.assert_array_equal(outputs[0], [[-10, -10, -11, -12]])
    np.testing.assert_array_equal(outputs[1], [[10, 10, 11, 12]])
    np.testing.assert_array_equal(session.run({"x": X, "c": no, "d": no})["y"], outputs[1])


def test_replaced_node_keeps_name_and_place(chain) -> None:
    editor = Editor(chain)
    editor.replace("mul", "Add", ["x", "w"])
    edited = editor.finish()
    assert [(n.name, n.op) for n in edited.view().nodes] == [("mul", "Add"), ("relu", "Relu")]
    np.testing.assert_array_equal(run(edited)["y"], [[0, 1, 4, 6]])


def test_replacement_takes_over_the_outputs_of_others(chain) -> None:
    """What then has no use goes away, and so does what only that used."""
    editor = Editor(chain)
    editor.replace("mul", "Abs", ["x"], outputs=["y"])
    edited = editor.finish()
    assert [(n.name, n.op) for n in edited.view().nodes] == [("mul", "Abs")]
    assert edited.view().constant("w") is None
    np.testing.assert_array_equal(run(edited)["y"], [[2, 1, 1, 2]])


def test_replacement_keeps_makers_that_others_use(chain) -> None:
    editor = Editor(chain)
    editor.add_node("Neg", ["t"], ["negated"], name="neg")
    editor.add_output("negated")
    editor.replace("relu", "Abs", ["x"])
    edited = editor.finish()
    assert {n.name for n in edited.view().nodes} == {"mul", "neg", "relu"}
    np.testing.assert_array_equal(Session(edited).run({"x": X})["negated"], [[2, 2, -3, -8]])


def test_node_of_another_domain_brings_its_operator_set(chain) -> None:
    editor = Editor(chain)
    editor.replace("relu", "Gelu", ["t"], domain="com.microsoft")
    edited = editor.finish()
    assert edited.ir.opset_imports["com.microsoft"] == 1
    assert Session(edited).run({"x": X})["y"].shape == (1, 4)


def test_replacement_keeps_documentation(chain) -> None:
    (node,) = [n for n in chain.ir.graph if n.name == "relu"]
    node.doc_string, node.metadata_props["origin"] = "cuts", "layer 1"
    editor = Editor(chain)
    editor.replace("relu", "Abs", ["t"])
    (made,) = [n for n in editor.finish().ir.graph if n.name == "relu"]
    assert (made.doc_string, made.metadata_props["origin"]) == ("cuts", "layer 1")


def test_a_node_makes_what_a_constant_held(chain) -> None:
    editor = Editor(chain)
    for name in ("one", "more"):
        editor.add_constant(name, np.array([0.5, 1, 1.5, 2], np.float32))
    editor.compute("w", "Add", ["one", "more"], name="sum")
    edited = editor.finish()
    assert edited.view().producer("w").name == "sum"
    assert not edited.view().is_constant("w")
    np.testing.assert_array_equal(run(edited)["y"], run(chain)["y"])


@pytest.mark.parametrize("read", [False, True])
def test_a_tensor_takes_the_name_of_a_constant_that_nothing_reads(chain, read) -> None:
    editor = Editor(chain)
    editor.add_constant("half", np.array([0.5, 1, 1.5, 2], np.float32))
    editor.add_node("Add", ["half", "half"], ["v"], name="sum")
    editor.redirect("mul", 1, "v")
    if read:
        editor.add_node("Neg", ["w"], ["z"], name="reader")
        editor.copy_type("w", "z")
        editor.add_output("z")
    editor.succeed("v", "w")
    edited = editor.finish()
    assert edited.view().is_constant("w") == read
    assert edited.view().by_name["mul"].inputs == ("x", "v" if read else "w")
    np.testing.assert_array_equal(run(edited)["y"], run(chain)["y"])


def test_an_input_that_nothing_reads_keeps_its_default() -> None:
    """Callers need not give it, before and after."""
    model = from_text(f"""{HEAD} g (float[1,4] x, float[3] w) => (float[1,4] y)
        <float[3] w = {{1, 2, 3}}, float[2] lost = {{1, 2}}> {{ [relu] y = Relu (x) }}""")
    edited = Editor(model).finish()
    np.testing.assert_array_equal(run(edited)["y"], run(model)["y"])
    assert edited.view().shape("lost") is None
