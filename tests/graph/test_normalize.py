"""Normalizing and preparing change the form of a model, not what it computes."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxq.errors import ModelError
from onnxq.graph import (
    MINIMUM_OPSET,
    SMALL_TYPES_OPSET,
    Model,
    from_text,
    load,
    name_nodes,
    normalize,
    restore_identity,
    serialize,
)
from onnxq.graph.opset import CHANGED_MEANING, FIRST_COMPARED
from onnxq.runtime import Session, prepare, synthetic_feed

FLOAT, HALF, INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64


def model_of(proto: onnx.ModelProto) -> Model:
    onnx.checker.check_model(proto)
    return Model(ir.serde.deserialize_model(proto))


def make(nodes, opset, shape=(1, 2, 4, 4), constants=None, rank=None, kind=FLOAT, **more) -> Model:
    """A model of float input ``x`` and output ``y``, as an exporter of that opset wrote it."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, [None] * (rank or len(shape)))],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    return model_of(helper.make_model(graph, opset_imports=opsets, ir_version=4, **more))


def feed_of(model: Model) -> dict[str, np.ndarray]:
    return synthetic_feed(model.view().inputs)


def assert_same_outputs(model: Model, other: Model, *, atol: float = 0.0) -> None:
    """Equal to the bit unless the caller says why not."""
    feed = feed_of(model)
    expected, found = Session(model, level="none").run(feed), Session(other, level="none").run(feed)
    assert set(expected) == set(found)
    for name, value in expected.items():
        assert value.dtype == found[name].dtype
        assert value.std() > 0  # constants would agree too easily
        np.testing.assert_allclose(found[name], value, rtol=0, atol=atol)


node = helper.make_node
OLD_FORMS = {
    "squeeze": ([node("Squeeze", ["x"], ["y"], axes=[0])], {"rank": 3}),
    "unsqueeze": ([node("Unsqueeze", ["x"], ["y"], axes=[0])], {"rank": 5}),
    "softmax": ([node("Softmax", ["x"], ["y"], axis=3)], {}),
    # Before opset 13 Softmax flattens everything from its axis on.
    "softmax_default": ([node("Softmax", ["x"], ["y"])], {}),
    "clip": ([node("Clip", ["x"], ["y"], min=-0.5, max=0.5)], {}),
    "pad": ([node("Pad", ["x"], ["y"], pads=[0, 0, 1, 1, 0, 0, 1, 1], value=0.5)], {}),
    "slice": ([node("Slice", ["x"], ["y"], axes=[2], starts=[1], ends=[3])], {}),
    "dropout": ([node("Dropout", ["x"], ["t"], ratio=0.5), node("Relu", ["t"], ["y"])], {}),
    "sum": ([node("ReduceSum", ["x"], ["y"], axes=[2, 3], keepdims=1)], {}),
    "batch_norm": (
        [node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"])],
        {
            "constants": {
                k: np.array(v, np.float32)
                for k, v in {"s": [1, 2], "b": [0, 1], "m": [0.5, -1], "v": [1, 4]}.items()
            }
        },
    ),
}
LAST_OPSET = {"clip": 10, "pad": 10, "slice": 9, "dropout": 11}  # of the attribute form
RAISED = [(name, opset) for name in OLD_FORMS for opset in range(7, LAST_OPSET.get(name, 12) + 1)]


@pytest.mark.parametrize(("name", "opset"), RAISED)
def test_old_opset_is_raised_and_computes_the_same(name, opset) -> None:
    nodes, options = OLD_FORMS[name]
    model = make(nodes, opset, **options)
    raised = normalize(model)
    assert raised.opset == MINIMUM_OPSET
    assert f"raised the opset from {opset} to {MINIMUM_OPSET}" in raised.notes
    onnx.checker.check_model(serialize(raised))
    # Softmax over other groupings of the same axes may add up in another order.
    assert_same_outputs(model, raised, atol=1e-6 if "softmax" in name else 0.0)


GRID = np.random.RandomState(0).uniform(-1, 1, (1, 3, 3, 2)).astype(np.float32)
GATES = {k: np.random.RandomState(1).randn(1, 12, n).astype(np.float32) for k, n in
         (("w", 4), ("r", 3))}  # fmt: skip
# Forms up to 20 that opset 21 knows no more, or that it could read in another way.
NEWER_FORMS = {
    "mean": ([node("ReduceMean", ["x"], ["y"], axes=[2], keepdims=1)], 13, 17, {}),
    "l2": ([node("ReduceL2", ["x"], ["y"], axes=[1], keepdims=0)], 13, 17, {"rank": 3}),
    "max": ([node("ReduceMax", ["x"], ["y"], axes=[-1], keepdims=1)], 13, 17, {}),
    "split": ([node("Split", ["x"], ["a", "b"], axis=2), node("Sub", ["a", "b"], ["y"])],
              13, 17, {}),
    "grid": ([node("GridSample", ["x", "g"], ["y"], mode="bilinear")], 16, 19,
             {"constants": {"g": GRID}}),
    "pool": ([node("AveragePool", ["x"], ["y"], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4,
                   ceil_mode=1)], 13, 18, {}),
    "resize": ([node("Resize", ["x", "", "s"], ["y"], mode="linear")], 13, 20,
               {"constants": {"s": np.array([1, 1, 2, 2], np.float32)}}),
    "pad": ([node("Pad", ["x", "p"], ["y"], mode="reflect")], 13, 20,
            {"constants": {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1])}}),
    "lstm": ([node("LSTM", ["x", "w", "r"], ["y"], hidden_size=3)], 13, 20,
             {"constants": GATES, "shape": (5, 2, 4), "rank": 4}),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "opset"), [(k, o) for k, form in NEWER_FORMS.items() for o in (form[1], form[2])]
)
def test_opset_21_computes_the_same(name, opset) -> None:
    nodes, _, _, options = NEWER_FORMS[name]
    model = make(nodes, opset, **options)
    raised = normalize(model, SMALL_TYPES_OPSET)
    assert (raised.opset, raised.ir.ir_version) == (SMALL_TYPES_OPSET, 10)
    onnx.checker.check_model(serialize(raised))
    # The kernel of the newer AveragePool divides where the older one multiplies.
    assert_same_outputs(model, raised, atol=1e-6 if name == "pool" else 0.0)


@pytest.mark.parametrize("name", OLD_FORMS)
def test_oldest_forms_are_raised_to_opset_21(name) -> None:
    nodes, options = OLD_FORMS[name]
    model = make(nodes, 9, **options)
    raised = normalize(model, SMALL_TYPES_OPSET)
    assert raised.opset == SMALL_TYPES_OPSET
    assert_same_outputs(model, raised, atol=1e-6 if "softmax" in name else 0.0)


@pytest.mark.parametrize(("op", "opset", "fine"), [("ReduceMean", 17, 13), ("Split", 17, 13)])
def test_body_is_refused_only_where_its_meaning_changes(op, opset, fine) -> None:
    text = BODY.replace("OPSET", str(opset)).replace("s = Neg", "s = OTHER")
    model = from_text(text.replace("OTHER", "Softplus").replace("OP", op))
    assert normalize(model, fine).opset == opset
    with pytest.raises(ModelError, match=rf"node 'deep' \({op}\) .* opset 21 or newer"):
        normalize(model, SMALL_TYPES_OPSET)


@pytest.mark.parametrize("opset", [7, 8, 9])
def test_upsample_becomes_resize(opset) -> None:
    """It took its factors as an attribute in opset 7 and 8, and as an input in 9."""
    scales = [1.0, 1.0, 2.0, 2.0]
    if opset < 9:
        model = make([node("Upsample", ["x"], ["y"], mode="nearest", scales=scales)], opset)
    else:
        constants = {"scales": np.array(scales, np.float32)}
        nodes = [node("Upsample", ["x", "scales"], ["y"], mode="nearest")]
        model = make(nodes, opset, constants=constants)
    raised = normalize(model)
    assert [n.op for n in raised.view().nodes][-1] == "Resize"
    assert_same_outputs(model, raised)


BODY = """<ir_version: 6, opset_import: ["" : OPSET]>
g (bool c, float[2,3,4] x) => (float[2,3,4] y) {
    [choose] y = If (c) <then_branch = t () => (float[2,3,4] p) { [plain] p = OTHER (x) },
        else_branch = e () => (float[2,3,4] q) {
            q = If (c) <then_branch = tt () => (float[2,3,4] r) { [deep] r = OP (x) },
                        else_branch = ee () => (float[2,3,4] s) { s = Neg (x) }> }> }"""


@pytest.mark.parametrize(
    ("op", "opset"), [("Softmax", 12), ("Squeeze", 11), ("Clip", 10), ("PRelu", 6)]
)
def test_body_that_would_mean_something_else_is_refused(op, opset) -> None:
    """onnx.version_converter does not look into bodies."""
    text = BODY.replace("OPSET", str(opset)).replace("s = Neg", "s = OTHER")
    model = from_text(text.replace("OTHER", "Softplus").replace("OP", op))
    found = (
        rf"node 'deep' \({op}\) inside the body of node 'choose' \(If\) would mean .* opset 13 or"
    )
    with pytest.raises(ModelError, match=found):
        normalize(model)


@pytest.mark.parametrize(("sizes", "raised"), [(", n", True), ("", False)])
def test_split_changed_in_opset_18_only_without_sizes(sizes, raised) -> None:
    model = from_text(f"""<ir_version: 7, opset_import: ["" : 13]>
        g (bool c, float[4] x) => (float[2] y) <int64[2] n = {{2, 2}}> {{
        y = If (c) <then_branch = t () => (float[2] p) {{ p, o = Split (x{sizes}) }},
            else_branch = e () => (float[2] q) {{ r, q = Split (x, n) }}> }}""")
    if raised:
        assert_same_outputs(model, normalize(model, SMALL_TYPES_OPSET))
    else:
        with pytest.raises(ModelError, match=r"Split .*would mean something else"):
            normalize(model, SMALL_TYPES_OPSET)


def test_body_that_means_the_same_is_raised() -> None:
    text = BODY.replace("OPSET", "11").replace("OTHER", "Neg").replace("OP", "Sigmoid")
    model = from_text(text)
    raised = normalize(model)
    assert raised.opset == MINIMUM_OPSET
    assert_same_outputs(model, raised)


def test_every_change_of_meaning_between_the_opsets_is_listed() -> None:
    """Attributes that went or have another default, and inputs that became necessary."""
    history: dict[str, list] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "" and schema.since_version <= SMALL_TYPES_OPSET:
            history.setdefault(schema.name, []).append(schema)
    found: dict[str, set[int]] = {}
    for op, schemas in history.items():
        schemas.sort(key=lambda schema: schema.since_version)
        for old, new in itertools.pairwise(schemas):
            if new.since_version > FIRST_COMPARED and (new.deprecated or not _extends(new, old)):
                found.setdefault(op, set()).add(new.since_version)

    def late(opsets) -> set[int]:
        return {opset for opset in opsets if opset > MINIMUM_OPSET}

    # Up to MINIMUM_OPSET the last change tells all; beyond it, whether it comes before ``to``.
    for op, opsets in found.items():
        early = opsets - late(opsets)
        assert late(opsets) <= set(CHANGED_MEANING[op]), op
        assert not early or max(early) <= max({*CHANGED_MEANING[op]} - late(CHANGED_MEANING[op]))
    # What the schemas do not tell. OneHot: negative indices, which gave rows without a 1, now
    # count. GroupNormalization: scale and bias are one per channel, not per group. RoiAlign: the
    # new attribute's default is not the old behaviour. Split: parts without sizes are counted.
    assert {
        op for op, opsets in CHANGED_MEANING.items()
        if op not in found or late(opsets) - found[op]
    } == {"OneHot", "GroupNormalization", "RoiAlign", "Split"}  # fmt: skip


def _extends(new, old) -> bool:
    kept = all(
        name in new.attributes and new.attributes[name].default_value == attr.default_value
        for name, attr in old.attributes.items()
    )
    added = new.inputs[len(old.inputs) :]
    return kept and all(i.option != onnx.defs.OpSchema.FormalParameterOption.Single for i in added)


def test_new_opset_is_kept() -> None:
    model = make([node("Relu", ["x"], ["y"], name="relu")], 17)
    assert normalize(model).opset == 17
    assert normalize(model).notes == ()


def test_opset_that_cannot_be_raised_is_an_error() -> None:
    model = make([node("Upsample", ["x"], ["y"], mode="nearest", scales=[1.0] * 4)], 7)
    odd = model.copy()
    odd.ir.graph[0].attributes.pop("scales")
    with pytest.raises(ModelError, match="has opset 7, and raising it to 13 failed"):
        normalize(odd)


def test_initializers_leave_the_inputs() -> None:
    model = from_text("""<ir_version: 3, opset_import: ["" : 13]>
        g (float[1,4] x, float[4] w = {1, 2, 3, 4}) => (float[1,4] y) { y = Mul (x, w) }""")
    freed = normalize(model)
    assert [spec.name for spec in freed.view().inputs] == ["x"]
    np.testing.assert_array_equal(freed.view().constant("w"), [1, 2, 3, 4])
    assert "took 1 initializers out of the graph's inputs" in freed.notes
    assert len(model.ir.graph.inputs) == 2, "the source was changed"


def test_functions_are_inlined() -> None:
    model = from_text("""<ir_version: 8, opset_import: ["" : 17, "mine" : 1]>
        g (float[1,4] x) => (float[1,4] y) { t = mine.twice (x) y = mine.twice (t) }
        <domain: "mine", opset_import: ["" : 17]> twice (a) => (b) { b = Add (a, a) }""")
    inlined = normalize(model)
    assert [n.full_op for n in inlined.view().nodes] == ["Add", "Add"]
    assert "inlined 1 local functions" in inlined.notes
    assert_same_outputs(model, inlined)


def test_names_are_given_once() -> None:
    model = make([node("Relu", ["x"], ["t"]), node("Neg", ["t"], ["y"], name="mine")], 17)
    named = name_nodes(model.copy())
    assert [n.name for n in named.ir.graph] == ["Relu_0", "mine"]
    assert named.notes == ("named 1 nodes",)
    assert name_nodes(named).notes == named.notes


# --- float16 ---------------------------------------------------------------------------------


def half_model() -> Model:
    """Conv, a Cast to float16 of a float32 constant, and an output that is also used inside."""
    weight = np.random.RandomState(0).uniform(-1, 1, (2, 2, 1, 1)).astype(np.float16)
    nodes = [
        node("Conv", ["x", "w"], ["c"], name="conv"),
        node("Cast", ["two"], ["two16"], to=HALF, name="cast"),
        node("Mul", ["c", "two16"], ["m"], name="mul"),
        node("Relu", ["m"], ["y"], name="relu"),
    ]
    constants = {"w": weight, "two": np.array([2], np.float32)}
    return make(nodes, 13, constants=constants, kind=HALF)


def test_float16_is_widened_and_its_edges_are_kept() -> None:
    model = half_model()
    wide = normalize(model)
    assert [spec.dtype for spec in (*wide.view().inputs, *wide.view().outputs)] == ["float16"] * 2
    assert wide.view().inputs == model.view().inputs
    assert wide.view().dtype("w") == "float32"
    onnx.checker.check_model(serialize(wide), full_check=True)
    conv = wide.view().by_name["conv"]
    assert wide.view().producer(conv.inputs[0]).op == "Cast"
    # Values below 16, where float16 is spaced by 2^-7: three roundings of half a step each.
    assert_same_outputs(model, wide, atol=3 * 2**-8)


def test_float16_output_that_is_used_inside_is_widened_for_its_readers() -> None:
    nodes = [node("Neg", ["x"], ["t"]), node("Relu", ["t"], ["y"])]
    model = make(nodes, 13, kind=HALF)
    model.ir.graph.outputs.append(model.ir.graph[0].outputs[0])
    model.ir.graph[0].outputs[0].type = ir.TensorType(ir.DataType.FLOAT16)
    model.ir.graph[0].outputs[0].shape = ir.Shape([1, 2, 4, 4])
    wide = normalize(model)
    assert [s.dtype for s in wide.view().outputs] == ["float16", "float16"]
    assert_same_outputs(model, wide)  # Neg and Relu round nothing


def test_float16_input_that_is_an_output_too_stays() -> None:
    model = make([node("Relu", ["x"], ["y"])], 13, kind=HALF)
    model.ir.graph.outputs.append(model.ir.graph.inputs[0])
    wide = normalize(model)
    assert [s.dtype for s in wide.view().outputs] == ["float16", "float16"]
    assert_same_outputs(model, wide)


def test_float16_edges_do_not_take_existing_names() -> None:
    nodes = [
        node("Relu", ["x"], ["x_float32"], name="x_float32_Cast"),
        node("Neg", ["x_float32"], ["y"], name="y_Cast"),
    ]
    model = make(nodes, 13, kind=HALF)
    wide = normalize(model)
    assert {"x_float32_Cast", "y_Cast"} <= {n.name for n in wide.view().nodes if n.op != "Cast"}
    assert_same_outputs(model, wide)


def test_float16_passed_through_stays() -> None:
    model = make([node("Identity", ["x"], ["y"])], 13, kind=HALF)
    assert_same_outputs(model, normalize(model))


# --- prepare ---------------------------------------------------------------------------------

CONV_BN = """<ir_version: 8, opset_import: ["" : 17], producer_name: "maker",
    producer_version: "1.2", doc_string: "what it is", metadata_props: ["author": "somebody"]>
net (float[N,2,6,6] image) => (float[N,3,4,4] result)
<float[3,2,3,3] w = seeded, float[3] scale = {1, 2, 3}, float[3] shift = {0.5, 0, -0.5},
 float[3] mean = {0.25, 0, 0.5}, float[3] variance = {1, 2, 4}>
{
   twice = Add (shift, shift)
   c = Conv (image, w)
   n = BatchNormalization (c, scale, twice, mean, variance)
   result = Relu (n)
}"""


def test_prepare_folds_and_keeps_the_identity(build) -> None:
    model = build(CONV_BN)
    prepared = prepare(model)
    assert [n.op for n in prepared.view().nodes] == ["Conv", "Relu"]
    assert prepared.view().inputs == model.view().inputs
    assert prepared.view().outputs == model.view().outputs
    assert prepared.metadata == {"author": "somebody"}
    assert (prepared.ir.producer_name, prepared.ir.producer_version) == ("maker", "1.2")
    assert prepared.ir.doc_string == "what it is"
    assert prepared.ir.graph.name == "net"
    assert prepared.ir.opset_imports == {"": 17}
    assert "folded 4 nodes to 2" in prepared.notes
    assert all(n.name for n in prepared.view().nodes)
    # Folding rounds each weight once more; sums of 18 products of about 1 are off by some 1e-6.
    assert_same_outputs(model, prepared, atol=1e-5)


def test_prepare_infers_shapes(build) -> None:
    view = prepare(build(CONV_BN)).view()
    conv = next(n for n in view.nodes if n.op == "Conv")
    assert view.dtype(conv.outputs[0]) == "float32"
    assert view.shape(conv.outputs[0])[1:] == (3, 4, 4)


def test_preparing_again_changes_nothing(build) -> None:
    once = prepare(build(CONV_BN))
    twice = prepare(once)
    assert [n.op for n in twice.view().nodes] == [n.op for n in once.view().nodes]
    assert_same_outputs(once, twice)


def test_prepare_keeps_node_names(build) -> None:
    model = build("""g (float[2,4] x) => (float[2,3] y)
        <float[4,3] w = seeded, float[3] b = {1, 2, 3}>
        { [dense] t = MatMul (x, w) [bias] u = Add (t, b) [act] y = Relu (u) }""")
    assert [n.name for n in prepare(model).view().nodes] == ["dense", "act"]


def test_custom_operator_inside_a_function_is_named(build) -> None:
    model = build("""<ir_version: 8, opset_import: ["" : 17, "mine" : 1, "acme" : 1]>
        g (float[4] x) => (float[4] y) { y = mine.f (x) }
        <domain: "mine", opset_import: ["acme" : 1]> f (a) => (b) { [odd] b = acme.Magic (a) }""")
    with pytest.raises(ModelError, match=r"node 'odd' .* acme::Magic"):
        prepare(model)


def test_custom_operator_is_named(build) -> None:
    model = build("""<ir_version: 8, opset_import: ["" : 17, "acme" : 1]>
        g (float[4] x) => (float[4] y) { [odd] y = acme.Magic (x) }""")
    with pytest.raises(ModelError, match=r"node 'odd' .* acme::Magic"):
        prepare(model)


def test_change_of_the_outputs_is_an_error(build, monkeypatch) -> None:
    text = "g (float[4] x) => (float[4] y) <float[4] w = {1, 2, 3, LAST}> { y = Mul (x, w) }"
    spoiled = build(text.replace("LAST", "5"))
    module = sys.modules["onnxq.runtime.prepare"]  # the package has a function of that name
    monkeypatch.setattr(module, "_fold", lambda _model: spoiled)
    with pytest.raises(ModelError, match="changed what output 'y' computes"):
        prepare(build(text.replace("LAST", "4")))


def test_prepare_of_a_real_model_keeps_it() -> None:
    model = load(Path(__file__).resolve().parents[2] / "models" / "digits_cnn.onnx")
    prepared = prepare(model)
    assert prepared.view().inputs == model.view().inputs
    assert len(prepared.view().nodes) <= len(model.view().nodes)
    # Logits of about 10 through a few layers, each folded weight rounded once more.
    assert_same_outputs(model, prepared, atol=1e-3)


def test_a_sequence_is_not_taken_for_a_tensor() -> None:
    model = from_text("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[2] x, int64 i) => (float[2] y)
        { a = Neg (x) s = SequenceConstruct (a, x) t = Identity (s) y = SequenceAt (t, i) }""")
    made = restore_identity(model.copy(), model)
    assert (made.view().dtype("s"), made.view().dtype("t")) == ("", "")
    feed = {"x": np.array([1, 2], np.float32), "i": np.array(0)}
    np.testing.assert_array_equal(Session(made).run(feed)["y"], [-1, -2])
