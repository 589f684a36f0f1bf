"""Looking at a graph: names, producers, uses, captures, constants, shapes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxq.graph import Model, Use, from_text

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
NESTED = f"""{HEAD}
g (bool c, float[1,4] x) => (float[1,4] y)
{{
   [make] t = Relu (x)
   [outer] y = If (c) <
      then_branch = a () => (float[1,4] p) {{
         p = If (c) <
            then_branch = aa () => (float[1,4] q) {{ q = Neg (t) }},
            else_branch = ab () => (float[1,4] r) {{ r = Abs (x) }}
         >
      }},
      else_branch = b () => (float[1,4] s) {{
         u = Neg (x)
         s = Abs (u)
      }}
   >
}}"""


def test_producers_and_uses() -> None:
    view = from_text(f"""{HEAD} g (float[1,4] x) => (float[1,4] y)
        <float[4] w = {{1, 2, 3, 4}}>
        {{ [first] t = Mul (x, w) [second] u = Add (t, t) [third] y = Sub (u, t) }}""").view()
    assert view.producer("t").name == "first"
    assert view.producer("x") is None
    assert view.producer("w") is None
    assert view.uses("t") == [Use("second", 0), Use("second", 1), Use("third", 1)]
    assert view.uses("w") == [Use("first", 1)]
    assert view.uses("y") == []
    assert view.uses("no such tensor") == []
    assert view.output_names == {"y"}


def test_omitted_inputs_and_outputs_have_no_uses() -> None:
    view = from_text(f"""{HEAD} g (float[1,4] x, float hi) => (float[1,4] y)
        {{ [clip] y = Clip (x, , hi) }}""").view()
    assert view.nodes[0].inputs == ("x", "", "hi")
    assert view.uses("hi") == [Use("clip", 2)]
    assert view.uses("") == []


def test_captures_of_nested_subgraphs_are_uses() -> None:
    view = from_text(NESTED).view()
    outer = view.by_name["outer"]
    assert set(outer.captures) == {"c", "t", "x"}
    assert "u" not in outer.captures
    assert view.uses("t") == [Use("outer", -1)]
    assert view.uses("x") == [Use("make", 0), Use("outer", -1)]


def test_nodes_without_a_name_get_one() -> None:
    view = from_text(f"""{HEAD} g (float[1,4] x) => (float[1,4] y)
        {{ a = Relu (x) [same] b = Neg (a) [same] c = Abs (b) [Sqrt_3] d = Exp (c)
           y = Sqrt (d) }}""").view()
    assert [n.name for n in view.nodes] == ["Relu_0", "same", "Abs_2", "Sqrt_3", "Sqrt_4"]


def test_made_up_name_does_not_take_an_existing_one() -> None:
    view = from_text(f"""{HEAD} g (float[1,4] x) => (float[1,4] y)
        {{ a = Relu (x) [Relu_0] y = Relu (a) }}""").view()
    names = [n.name for n in view.nodes]
    assert names[1] == "Relu_0"
    assert len(set(names)) == 2
    assert set(view.by_name) == set(names)


def test_made_up_name_that_is_taken_gets_a_number() -> None:
    view = from_text(f"""{HEAD} g (float[1,4] x) => (float[1,4] y)
        {{ [Neg_1] a = Relu (x) b = Neg (a) [Neg_1_1] y = Relu (b) }}""").view()
    assert [n.name for n in view.nodes] == ["Neg_1", "Neg_1_2", "Neg_1_1"]


def test_initializer_that_is_an_input_is_no_constant() -> None:
    view = from_text(f"""{HEAD} g (float[2] x, float[2] w = {{1, 2}}) => (float[2] y)
        <float[2] v = {{3, 4}}> {{ t = Mul (x, w) y = Add (t, v) }}""").view()
    assert not view.is_constant("w")
    assert view.constant("w") is None
    assert view.is_constant("v")
    np.testing.assert_array_equal(view.constant("v"), [3, 4])
    assert not view.is_constant("x")


def test_shapes_types_and_ranks(build) -> None:
    view = build("""g (float[N,3,8,8] x) => (int64[4] y)
        <float[4,3,1,1] w = seeded> { [conv] t = Conv (x, w) [shape] y = Shape (t) }""").view()
    assert view.shape("x") == ("N", 3, 8, 8)
    assert view.shape("t") == ("N", 4, 8, 8)
    assert (view.dtype("t"), view.dtype("y"), view.dtype("w")) == ("float32", "int64", "float32")
    assert (view.rank("t"), view.rank("y")) == (4, 1)
    assert view.shape("no such tensor") is None
    assert view.rank("no such tensor") is None
    assert view.dtype("no such tensor") == ""


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        ("k: int = 3", 3),
        ("k: float = 0.5", 0.5),
        ('k: string = "nearest"', "nearest"),
        ("k: ints = [1, 2]", (1, 2)),
        ("k: floats = [0.5]", (0.5,)),
    ],
)
def test_attributes_are_plain_values(attribute, expected) -> None:
    model = from_text(f"{HEAD} g (float[2] x) => (float[2] y) {{ y = Foo <{attribute}> (x) }}")
    assert model.view().nodes[0].attrs == {"k": expected}


def test_operators_of_other_domains_say_so() -> None:
    model: Model = from_text("""<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
        g (float[2] x) => (float[2] y) { t = com.microsoft.Gelu (x) y = Relu (t) }""")
    assert [n.full_op for n in model.view().nodes] == ["com.microsoft::Gelu", "Relu"]


def test_default_domain_may_be_spelled_out() -> None:
    node = onnx.helper.make_node("Relu", ["x"], ["y"], domain="ai.onnx")
    value = [onnx.helper.make_tensor_value_info(n, 1, [2]) for n in "xy"]
    graph = onnx.helper.make_graph([node], "g", value[:1], value[1:])
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model = from_text(onnx.printer.to_text(proto))
    assert model.view().nodes[0].full_op == "Relu"


def test_names_cover_subgraphs() -> None:
    names = from_text(NESTED).view().names
    assert {"x", "c", "t", "y", "p", "q", "u", "make", "outer", "s"} <= names
    assert "" not in names


def test_inner_uses_tell_who_reads_what_lies_outside(build) -> None:
    """Nested bodies included; what has the same name inside is another tensor."""
    model = build("""g (bool c, float[4] x) => (float[4] y) <float[4] w = {1, 2, 3, 4}> {
        [choose] y = If (c) <
          then_branch = t () => (float[4] p) {
            p = If (c) <
              then_branch = tt () => (float[4] r) { [deep] r = Add (x, w) },
              else_branch = ee () => (float[4] s) <float[4] w = {0, 0, 0, 0}> { s = Mul (x, w) }> },
          else_branch = e () => (float[4] q) { [plain] q = Add (w, w) }> }""")
    uses = model.view().by_name["choose"].inner_uses
    assert [(u.node.name, u.port) for u in uses if u.tensor == "w"] == [
        ("deep", 1), ("plain", 0), ("plain", 1),
    ]  # fmt: skip
    assert model.view().by_name["choose"].inner_uses[0].node.op == "If"


def test_bodies_are_looked_at_in_the_same_way() -> None:
    view = from_text(NESTED).view()
    bodies = view.by_name["outer"].bodies
    assert set(bodies) == {"then_branch", "else_branch"}
    other = bodies["else_branch"]
    assert [node.op for node in other.nodes] == ["Neg", "Abs"]
    assert [spec.name for spec in other.outputs] == ["s"]
    assert other.uses("u") == [Use(other.nodes[1].name, 0)]
    (inner,) = bodies["then_branch"].nodes
    assert [node.op for node in inner.bodies["then_branch"].nodes] == ["Neg"]
    assert view.by_name["make"].bodies == {}
