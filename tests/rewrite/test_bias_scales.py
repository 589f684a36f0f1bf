"""Scales of biases are made out of two others when a model is loaded, and are the same numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from msgspec.structs import replace as with_fields

from onnxq.graph import Editor, Model, encoded_size
from onnxq.rewrite import rewrite
from onnxq.rewrite.bias_scales import multiply_bias_scales
from onnxq.rewrite.qdq import to_qdq
from onnxq.runtime import Session

# A Mul brings the names x_s, w_s and b_Mul, which weigh as much as four scales.
NET = """g (float[1,2,5,5] x) => (float[1,5,3,3] y)
<float[5,2,3,3] w = seeded, float[5] b = seeded>
{ [conv] y = Conv (x, w, b) }"""
X = np.random.RandomState(0).standard_normal((1, 2, 5, 5)).astype(np.float32)


@pytest.fixture
def paired(build, quantize) -> Callable[[str], Model]:
    """A net with its pairs, and the scales of its biases as constants."""

    def run(text: str) -> Model:
        made = quantize(build(text))
        return to_qdq(made.source, made.plan)

    return run


def operators(model: Model) -> list[str]:
    return [node.op for node in model.view().nodes]


@pytest.mark.parametrize("level", ["none", "all"])
def test_outputs_are_the_same_to_the_last_bit(paired, level) -> None:
    model = paired(NET)
    less = multiply_bias_scales(model)
    assert operators(less).count("Mul") == operators(model).count("Mul") + 1
    assert less.view().constant("b_s") is None
    assert less.view().producer("b_s").inputs == ("x_s", "w_s")
    wanted, found = (Session(one, level=level).run({"x": X}) for one in (model, less))
    np.testing.assert_array_equal(found["y"], wanted["y"])


def test_layer_still_runs_as_int8(paired, executed) -> None:
    model = paired(NET)
    found = executed(multiply_bias_scales(model))
    assert found == executed(model)
    assert found["QLinearConv"] == 1


@pytest.mark.parametrize("scales", [4, 5, 32])
def test_file_gets_smaller(paired, scales) -> None:
    """Where a Mul takes fewer bytes than the scales, which is found out by writing one."""
    model = paired(NET.replace("5,2,3", f"{scales},2,3").replace("[5]", f"[{scales}]"))
    editor = Editor(model)
    editor.compute("b_s", "Mul", ["x_s", "w_s"], name="b_Mul")
    pays = encoded_size(editor.finish()) < encoded_size(model)
    assert pays == (scales > 4)
    assert operators(multiply_bias_scales(model)).count("Mul") == pays


def test_scales_that_others_read_stay(paired) -> None:
    editor = Editor(paired(NET))
    editor.add_node("Identity", ["b_s"], ["other"], name="other")
    editor.add_output("other")
    model = editor.finish()
    assert operators(multiply_bias_scales(model)) == operators(model)


def test_scales_that_are_no_product_stay(paired) -> None:
    editor = Editor(paired(NET))
    scales = paired(NET).view().constant("b_s")
    other = editor.add_constant("others", np.nextafter(scales, np.float32(1)))
    editor.redirect("b_DQ", 1, other)
    model = editor.finish()
    assert operators(multiply_bias_scales(model)) == operators(model)


def test_names_that_are_taken_are_not_taken_again(paired) -> None:
    text = NET.replace("[conv]", "[b_Mul] b_s = Neg (x) [conv]")
    model = paired(text.replace("Conv (x", "Conv (b_s"))
    less = multiply_bias_scales(model)
    assert operators(less).count("Mul") == 1
    wanted, found = (Session(one).run({"x": X}) for one in (model, less))
    np.testing.assert_array_equal(found["y"], wanted["y"])


@pytest.mark.parametrize(("target", "count"), [("cpu-x86", 1), ("cpu-arm", 1), ("directml", 0)])
def test_target_says_whether_its_runtime_folds(build, quantize, target, count) -> None:
    made = quantize(build(NET))
    found = rewrite(made.source, with_fields(made.plan, target=target))
    assert operators(found).count("Mul") == count
