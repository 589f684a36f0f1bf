"""MatMuls with mirrored weights are folded, others are not, and outputs are the same."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxq.graph import deserialize, serialize
from onnxq.rewrite.mirrored import Mirror, fold_mirrored, mirror_of
from onnxq.runtime import Session

COLUMNS = 200
# Sums of up to 512 products of some units, in another order.
CLOSE = {"rtol": 0, "atol": 2e-4}


def fourier(rows: int, size: int, wave=np.cos, columns: int = COLUMNS) -> np.ndarray:
    """The first rows of a discrete Fourier transform of some size."""
    angles = 2 * np.pi * np.outer(np.arange(rows), np.arange(columns)) / size
    return wave(angles).astype(np.float32)


def mirrored(rows: int, total: int, sign: int, seed: int = 0) -> np.ndarray:
    """Random rows, of which those whose numbers add up to ``total`` are the same."""
    weight = np.random.RandomState(seed).uniform(-1, 1, (rows, COLUMNS)).astype(np.float32)
    for row in range(total // 2 + 1, rows):
        weight[row] = sign * weight[total - row]
    return weight


def model(body: str, rows: int, lead: str = "N,7", **weights: np.ndarray):
    outputs = ", ".join(f"float[] {name}" for name in sorted(set(re.findall(r"\b(y\d?) =", body))))
    proto = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[{lead},{rows}] x) => ({outputs}) {{ {body} }}""")
    proto.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in weights.items())
    return deserialize(proto.SerializeToString())


def check_same(before, after, rows: int, lead=(3, 7)) -> None:
    feed = {"x": np.random.RandomState(5).standard_normal((*lead, rows)).astype(np.float32)}
    expected = ReferenceEvaluator(serialize(before)).run(None, feed)
    with Session(after) as session:
        found = session.run(feed)
    for one, other in zip(expected, found.values(), strict=True):
        np.testing.assert_allclose(other, one, **CLOSE)


def weight_rows(after) -> list[int]:
    view = after.view()
    return [view.shape(node.inputs[1])[0] for node in view.nodes if node.op == "MatMul"]


def ops(after) -> list[str]:
    return sorted(node.op for node in after.view().nodes)


BOTH = "y = MatMul (x, w) y2 = MatMul (x, v)"
CASES = {
    # rows, size of the transform, rows that are left
    "whole": (512, 512, 257),
    "cut short": (480, 512, 257),
    "of an odd size": (255, 255, 128),
    "of an odd size, cut short": (300, 333, 167),
}


@pytest.mark.parametrize(("rows", "size", "left"), CASES.values(), ids=CASES)
def test_fourier_transforms_are_folded(rows, size, left) -> None:
    before = model(BOTH, rows, w=fourier(rows, size), v=fourier(rows, size, np.sin))
    after = fold_mirrored(before)
    assert weight_rows(after) == [left, left]
    assert ops(after) == ["Add", "MatMul", "MatMul", "Pad", "Slice", "Slice", "Sub"]
    check_same(before, after, rows)


@pytest.mark.parametrize("rows", [64, 65])
@pytest.mark.parametrize("sign", [1, -1])
def test_filters_are_folded(rows, sign) -> None:
    """From the first row to the last: nothing is left over, and of an even number no middle."""
    weight = mirrored(rows, rows - 1, sign)
    before = model("y = MatMul (x, w)", rows, w=weight)
    after = fold_mirrored(before)
    assert weight_rows(after) == [(rows + 1) // 2]
    assert ("Pad" in ops(after)) == (rows % 2 == 1)
    assert ("Add" if sign == 1 else "Sub") in ops(after)
    check_same(before, after, rows)


@pytest.mark.parametrize("total", range(89, 120))
@pytest.mark.parametrize("sign", [1, -1])
def test_all_mirrors_are_found(total, sign) -> None:
    weight = mirrored(90, total, sign, seed=total)
    assert mirror_of(weight) == Mirror(90, total, sign == -1)
    before = model("y = MatMul (x, w)", 90, w=weight)
    check_same(before, fold_mirrored(before), 90)


@pytest.mark.parametrize("row", [30, 44, 46, 89])
def test_one_row_that_differs_is_no_mirror(row) -> None:
    weight = mirrored(90, 90, 1)
    assert mirror_of(weight) is not None
    weight[row, 17] += 1e-5
    assert mirror_of(weight) is None


def test_two_thirds_of_the_rows_have_to_be_mirrored() -> None:
    assert mirror_of(mirrored(90, 119, 1)) is not None
    assert mirror_of(mirrored(90, 120, 1)) is None


def test_an_infinite_weight_is_no_mirror() -> None:
    weight = mirrored(90, 400, 1)
    weight[0, 0] = np.inf
    assert mirror_of(weight) is None


def test_rows_of_zeros_in_the_middle_are_no_mirror() -> None:
    weight = mirrored(90, 400, 1)
    weight[30:60] = 0
    assert mirror_of(weight) is None


def test_weights_may_be_rounded() -> None:
    """Cosines that were computed in float32: a last bit is no difference."""
    weight = mirrored(90, 90, 1)
    weight[80] = np.nextafter(weight[80], np.float32(2))
    assert mirror_of(weight) == Mirror(90, 90, odd=False)


LEFT = {
    "not mirrored": ("y = MatMul (x, w)", {"w": mirrored(90, 400, 1)}),
    "few columns": ("y = MatMul (x, w)", {"w": fourier(90, 90, columns=100)}),
    "on the left": ("y = MatMul (w, x)", {"w": fourier(90, 90, columns=7)}),
    "of a stack": ("y = MatMul (x, w)", {"w": fourier(90, 90)[None]}),
    "of a product": ("w2 = Neg (w) y = MatMul (x, w2)", {"w": fourier(90, 90)}),
}


@pytest.mark.parametrize(("body", "weights"), LEFT.values(), ids=LEFT)
def test_others_are_left(body, weights) -> None:
    before = model(body, 90, **weights)
    assert fold_mirrored(before) is before


def test_few_rows_are_left() -> None:
    before = model("y = MatMul (x, w)", 63, w=fourier(63, 63))
    assert fold_mirrored(before) is before


def test_columns_of_all_readers_count() -> None:
    weights = {"w": fourier(90, 90, columns=100), "v": fourier(90, 90, np.sin, columns=100)}
    before = model(BOTH, 90, **weights)
    after = fold_mirrored(before)
    assert weight_rows(after) == [46, 46]
    check_same(before, after, 90)


def test_every_reader_has_its_own_mirror() -> None:
    weights = {"w": mirrored(90, 90, 1), "v": mirrored(90, 95, 1), "u": mirrored(90, 400, 1)}
    before = model(BOTH + " y3 = MatMul (x, u)", 90, **weights)
    after = fold_mirrored(before)
    assert sorted(weight_rows(after)) == [46, 48, 90]
    check_same(before, after, 90)


def test_a_weight_that_two_signals_read_is_halved_once() -> None:
    before = model("z = Neg (x) y = MatMul (x, w) y2 = MatMul (z, w)", 90, w=fourier(90, 90))
    after = fold_mirrored(before)
    assert weight_rows(after) == [46, 46]
    assert len({n.inputs[1] for n in after.view().nodes if n.op == "MatMul"}) == 1
    check_same(before, after, 90)


@pytest.mark.parametrize(("lead", "shape"), [("", ()), ("N", (4,)), ("2,3,4", (2, 3, 4))])
def test_signals_of_any_rank_are_folded(lead, shape) -> None:
    proto = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[{lead + "," if lead else ""}90] x) => (float[] y) {{ y = MatMul (x, w) }}""")
    proto.graph.initializer.append(numpy_helper.from_array(fourier(90, 90), "w"))
    before = deserialize(proto.SerializeToString())
    after = fold_mirrored(before)
    assert weight_rows(after) == [46]
    check_same(before, after, 90, shape)


def test_a_signal_of_unknown_rank_is_left() -> None:
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[] x) => (float[] y) { y = MatMul (x, w) }""")
    proto.graph.initializer.append(numpy_helper.from_array(fourier(90, 90), "w"))
    before = deserialize(proto.SerializeToString())
    assert fold_mirrored(before) is before
