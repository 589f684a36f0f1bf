"""A file does not say what ONNX says already: what is left computes and infers the same."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from onnxq.graph import Editor, Model, compact, forget_inferred, from_text, load, save, serialize
from onnxq.runtime import Session, synthetic_feed

NEWEST = 24  # the last opset that ONNX Runtime 1.31 runs
CONV = "float[2,3,3,3] w = seeded"
SPELLED = (
    'auto_pad = "NOTSET", dilations = [1, 1], group = 1, kernel_shape = [3, 3], '
    "pads = [0, 0, 0, 0], strides = [1, 1]"
)
POOL = "ceil_mode = 0, kernel_shape = [2, 2], pads = [0, 0, 0, 0], strides = [1, 1]"
# Nodes over x: what they hold, and the attributes that are left.
ATTRIBUTES = {
    "all of a Conv": (f"y = Conv <{SPELLED}> (x, w)", CONV, ()),
    "none that says something": (
        "y = Conv <dilations = [1, 2], group = 3, kernel_shape = [3, 3], pads = [1, 0, 0, 0], "
        "strides = [2, 1]> (x, w)",
        "float[3,1,3,3] w = seeded",
        ("dilations", "group", "pads", "strides"),
    ),
    "padding by name": (
        'y = Conv <auto_pad = "SAME_UPPER", kernel_shape = [3, 3], strides = [1, 1]> (x, w)',
        CONV,
        ("auto_pad",),
    ),
    "of a weight behind nodes": (
        "v = Neg (w) y = Conv <kernel_shape = [3, 3]> (x, v)", CONV, ()
    ),
    "of a pair": (
        "v = DequantizeLinear (q, s) y = Conv <kernel_shape = [3, 3]> (x, v)",
        "int8[1,3,3,3] q = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9}, float s = {1}",
        (),
    ),
    "ConvTranspose": (
        "y = ConvTranspose <dilations = [1, 1], group = 1, kernel_shape = [3, 3], "
        "output_padding = [0, 0], pads = [0, 0, 0, 0], strides = [2, 2]> (x, w)",
        "float[3,2,3,3] w = seeded",
        ("strides",),
    ),
    "output padding": (
        "y = ConvTranspose <output_padding = [1, 0], strides = [2, 2]> (x, w)",
        "float[3,2,3,3] w = seeded",
        ("output_padding", "strides"),
    ),
    "MaxPool": (f"y = MaxPool <{POOL}, storage_order = 0> (x)", "", ("kernel_shape",)),
    "AveragePool": (
        f"y = AveragePool <{POOL}, count_include_pad = 0> (x)", "", ("kernel_shape",)
    ),
    "window of a pool": (
        "y = AveragePool <count_include_pad = 1, kernel_shape = [2, 2], pads = [1, 1, 1, 1]> (x)",
        "",
        ("count_include_pad", "kernel_shape", "pads"),
    ),
    "numbers": ("y = LeakyRelu <alpha = 0.01> (x)", "", ()),
    "other numbers": ("y = LeakyRelu <alpha = 0.02> (x)", "", ("alpha",)),
    "lists without a default": ("y = Transpose <perm = [3, 2, 1, 0]> (x)", "", ("perm",)),
}  # fmt: skip


def attributes(model: Model) -> tuple[str, ...]:
    return tuple(sorted(model.view().nodes[-1].attrs))


def recorded(model: Model) -> set[str]:
    """Tensors whose type a file says, bodies included."""
    graphs = [onnx.ModelProto.FromString(serialize(model)).graph]
    names = set()
    for graph in graphs:
        names |= {info.name for info in graph.value_info}
        graphs += [attr.g for node in graph.node for attr in node.attribute if attr.HasField("g")]
    return names


def types(model: Model) -> dict[str, str]:
    """What inference finds in a file, with what the file says."""
    proto = onnx.shape_inference.infer_shapes(onnx.ModelProto.FromString(serialize(model)))
    return {info.name: str(info.type) for info in proto.graph.value_info}


@pytest.mark.parametrize("opset", [13, NEWEST])
@pytest.mark.parametrize(("body", "held", "left"), ATTRIBUTES.values(), ids=ATTRIBUTES)
def test_attributes_at_their_defaults_are_left_out(build, body, held, left, opset) -> None:
    source = build(f"""<ir_version: 10, opset_import: ["" : {opset}]>
        g (float[1,3,8,8] x) => (float[a,b,c,d] y) {f"<{held}>" if held else ""} {{ {body} }}""")
    made = compact(source, source)
    assert attributes(made) == left
    onnx.checker.check_model(serialize(made), full_check=True)
    feed = synthetic_feed(source.view().inputs)
    expected = Session(source).run(feed)["y"]
    np.testing.assert_array_equal(Session(made).run(feed)["y"], expected)
    if opset == NEWEST:  # the reference has no DequantizeLinear of opset 13
        results = [ReferenceEvaluator(serialize(m)).run(None, feed)[0] for m in (source, made)]
        np.testing.assert_array_equal(*results)


@pytest.mark.parametrize(
    ("op", "held", "inputs"),
    [("ConvInteger", "uint8 z = {3}", "x, w"),
     ("QLinearConv", "uint8 z = {3}, float s = {1}", "x, s, z, w, s, z, s, z")],
)  # fmt: skip
def test_convolutions_of_integers(op, held, inputs) -> None:
    model = from_text(f"""<ir_version: 8, opset_import: ["" : 17]>
        g (uint8[1,1,5,5] x) => (y) <uint8[1,1,3,3] w = {{1,2,3,4,5,6,7,8,9}}, {held}>
        {{ y = {op} <{SPELLED}> ({inputs}) }}""")
    made = compact(model, model)
    assert attributes(made) == ()
    feed = {"x": np.arange(25, dtype=np.uint8).reshape(1, 1, 5, 5)}
    np.testing.assert_array_equal(Session(made).run(feed)["y"], Session(model).run(feed)["y"])


@pytest.mark.parametrize(
    ("opset", "axis", "left"), [(7, 1, ()), (7, -1, ("axis",)), (13, 1, ("axis",)), (13, -1, ())]
)
def test_default_is_that_of_the_opset(opset, axis, left) -> None:
    model = from_text(f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[2,3,4] x) => (float[2,3,4] y) {{ y = Softmax <axis = {axis}> (x) }}""")
    assert attributes(compact(model, model)) == left


def test_old_convolution(build) -> None:
    source = build(f"""<ir_version: 3, opset_import: ["" : 7]>
        g (float[1,3,8,8] x) => (float[a,b,c,d] y) <{CONV}> {{ y = Conv <{SPELLED}> (x, w) }}""")
    made = compact(source, source)
    assert attributes(made) == ()
    feed = synthetic_feed(source.view().inputs)
    np.testing.assert_array_equal(Session(made).run(feed)["y"], Session(source).run(feed)["y"])


def test_kernel_that_no_shape_tells_stays() -> None:
    model = from_text("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,1,8,8] x, float w) => (float[a,b,c,d] y)
        { y = Conv <kernel_shape = [3, 3]> (x, w) }""")
    model.ir.graph.inputs[1].shape = None
    assert attributes(compact(model, model)) == ("kernel_shape",)


def test_attributes_of_other_domains_stay() -> None:
    model = from_text("""<ir_version: 8, opset_import: ["" : 17, "other" : 1]>
        g (float[1,1,8,8] x) => (float[a,b,c,d] y) { y = other.LeakyRelu <alpha = 0.01> (x) }""")
    assert attributes(compact(model, model)) == ("alpha",)


BODIES = """<ir_version: 8, opset_import: ["" : 17, "other" : 1]>
g (float[N,3] x, bool c) => (y) {
    y = If (c) <
        then_branch = a () => (p) <float[N,3] t, float[N,7] u>
            { t = LeakyRelu <alpha = 0.01> (x) u = other.Op (t) p = Neg (u) },
        else_branch = b () => (q) { q = Flatten <axis = 1> (x) }> }"""


def test_bodies() -> None:
    model = from_text(BODIES)
    assert recorded(model) == {"t", "u"}
    made = compact(model, model)
    assert recorded(made) == {"u"}
    inside = [node for graph in made.ir.graph.subgraphs() for node in graph]
    assert [node.op_type for node in inside] == ["LeakyRelu", "Op", "Neg", "Flatten"]
    assert not any(node.attributes for node in inside)


# What a file says of t, how t is made of x and r, and whether inference knows as much.
TYPES = {
    "same": ("float[N,3] t", "Relu (x)", True),
    "without a size": ("float[?,3] t", "Relu (x)", True),
    "a name that inference made up": ("int64[2,unk__4] t", "NonZero (x)", True),
    "a name of its own": ("int64[2,many] t", "NonZero (x)", False),
    "sizes that data tell": ("float[N,3] t", "Reshape (x, r)", False),
    "another name": ("float[M,3] t", "Relu (x)", False),
    "another domain": ("float[N,3] t", "other.Op (x)", False),
    "behind another domain": ("float[N,3] t", "Relu (o)", False),
}


@pytest.mark.parametrize(("said", "made", "again"), TYPES.values(), ids=TYPES)
def test_types_that_inference_gives_again_are_left_out(said, made, again) -> None:
    model = from_text(f"""<ir_version: 8, opset_import: ["" : 17, "other" : 1]>
        g (float[N,3] x, int64[2] r) => (y) <{said}>
        {{ o = other.Op (x) t = {made} y = Identity (t) }}""")
    assert recorded(model) == {"t"}
    short = forget_inferred(model, model)
    assert recorded(short) == (set() if again else {"t"})
    if "unk" not in said and "?" not in said:
        assert types(short)["t"] == types(model)["t"]
    assert types(short).keys() == types(model).keys()


def test_types_that_the_source_does_not_say_are_left_out(build) -> None:
    source = from_text("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[2,3] x) => (float[2,6] y) { t = Neg (x) y = Concat <axis = 1> (t, x) }""")
    inferred = build(
        "g (float[2,3] x) => (float[2,6] y) { t = Neg (x) y = Concat <axis=1> (t, x) }"
    )
    assert recorded(inferred) == {"t"}
    made = forget_inferred(inferred, source)
    assert recorded(made) == set()
    assert made.view().outputs == source.view().outputs
    assert made.view().inputs == source.view().inputs


def test_initializers_are_recorded_once(build) -> None:
    """A second record of their types and shapes is nothing but bytes."""
    source = build("""g (float[2,3] x, float[2] k) => (float[2,2] y)
        <float[3,2] w = seeded, float[2] k = {1, 2}> { t = MatMul (x, w) y = Add (t, k) }""")
    proto = onnx.load_from_string(serialize(forget_inferred(source, source)))
    assert not proto.graph.value_info
    assert {spec.name for spec in proto.graph.input} == {"x", "k"}
    onnx.checker.check_model(proto, full_check=True)


def test_large_weights_are_not_read(build) -> None:
    """3.2 GB, more than a protobuf holds: their shapes are enough."""

    def read() -> np.ndarray:
        raise AssertionError("a large weight was read")

    editor = Editor(build("g (float[1,20000] x) => (y) { y = Neg (x) }"))
    editor.add_made("w", read, np.dtype(np.float32), [20000, 40000])
    editor.add_node("MatMul", ["x", "w"], ["t"], name="product")
    editor.add_output("t")
    editor.add_node("Relu", ["t"], ["u"], name="relu")
    editor.add_node("Neg", ["u"], ["v"], name="last")
    editor.add_output("v")
    model = editor.finish()
    told = {value.name: value for node in model.ir.graph for value in node.outputs}
    told["u"].type, told["u"].shape = told["t"].type, told["t"].shape
    made = compact(model, model)
    assert made.view().dtype("u") == ""
    assert made.weight_bytes == model.weight_bytes > 2**31


def test_tensors_of_an_external_file_stay_there(build, tmp_path) -> None:
    source = build(f"""g (float[1,3,8,8] x) => (float[1,2,6,6] y) <{CONV}>
        {{ t = Conv <{SPELLED}> (x, w) y = Relu (t) }}""")
    save(source, tmp_path / "m.onnx", external=True)
    loaded = load(tmp_path / "m.onnx")
    made = compact(loaded, loaded)
    assert recorded(made) == set()
    feed = synthetic_feed(source.view().inputs)
    np.testing.assert_array_equal(Session(made).run(feed)["y"], Session(source).run(feed)["y"])
