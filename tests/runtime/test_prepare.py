"""An Add that would be fused with a LayerNormalization behind it, to the loss of both, is a Sum."""

from __future__ import annotations

import sys
from collections import Counter

import numpy as np
import pytest

from onnxq.graph import load, serialize
from onnxq.runtime import Session, prepare
from onnxq.targets import TARGETS, get_target

RS = np.random.RandomState(0)
FEED = {name: RS.standard_normal((2, 5, 8)).astype(np.float32) for name in ("a", "b")}
NORM = "y = LayerNormalization<axis = -1>(x, g, h)"
FUSED = {
    "alone": "[sum] x = Add(a, b)",
    "with a bias": "c = Add(a, k) [sum] x = Add(b, c)",
    "with a constant": "[sum] x = Add(a, p)",
}
SKIP, PLAIN = "SkipLayerNormalization", "LayerNormalization"


def model(build, body: str, shape: str = "N,5,8"):
    return build(f"""g (float[{shape}] a, float[{shape}] b) => (float[{shape}] y)
        <float[8] g = seeded, float[8] h = seeded, float[8] k = seeded, float[2,5,8] p = seeded>
        {{ {body} }}""")


def kernels(model, folder) -> list[str]:
    """What ONNX Runtime really runs."""
    Session(model, write_optimized=folder / "optimized.onnx").close()
    return [node.op for node in load(folder / "optimized.onnx").view().nodes]


@pytest.mark.parametrize(("body", "shape"), [(b, "2,5,8") for b in FUSED.values()], ids=FUSED)
def test_sum_is_not_fused(build, tmp_path, body, shape) -> None:
    before = model(build, f"{body} {NORM}", shape)
    assert SKIP in kernels(before, tmp_path)
    after = prepare(before, FEED)
    assert after.view().by_name["sum"].op == "Sum"
    assert "wrote 1 Add before layer normalizations as Sum" in after.notes[-1]
    found = kernels(after, tmp_path)
    assert SKIP not in found
    assert PLAIN in found
    expected = Session(before, level="none").run(FEED)["y"]
    np.testing.assert_array_equal(Session(after, level="none").run(FEED)["y"], expected)
    assert serialize(prepare(after, FEED)) == serialize(after)


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        (f"[sum] x = Add(a, b) {NORM}", "5,8"),
        (f"[sum] x = Add(a, b) z = {NORM.removeprefix('y = ')} y = Add(z, x)", "2,5,8"),
        ("[sum] x = Add(a, b) y = Relu(x)", "2,5,8"),
    ],
    ids=["other rank", "two readers", "no norm"],
)
def test_what_is_not_fused_stays(build, tmp_path, body, shape) -> None:
    before = model(build, body, shape)
    assert SKIP not in kernels(before, tmp_path)
    assert prepare(before).view().by_name["sum"].op == "Add"


@pytest.mark.parametrize("target", TARGETS)
def test_only_where_the_runtime_is_slower_with_it(build, target) -> None:
    made = prepare(model(build, f"{FUSED['alone']} {NORM}"), FEED, target=get_target(target))
    assert (made.view().by_name["sum"].op == "Sum") == target.startswith("cpu")


@pytest.mark.parametrize(("left", "op"), [(1, "Sum"), (0, "Add")])
def test_another_fusion_is_not_given_up_for_it(build, monkeypatch, left, op) -> None:
    """As if ONNX Runtime had fused attention with the Add, and no longer did with Sum."""
    found = iter([Counter(Attention=1), Counter(Attention=left)])
    module = sys.modules["onnxq.runtime.prepare"]  # the package has a function of that name
    monkeypatch.setattr(module, "_fusions", lambda _view: next(found))
    made = prepare(model(build, f"{FUSED['alone']} {NORM}"), FEED)
    assert made.view().by_name["sum"].op == op
