"""Models that one protobuf file cannot hold: memory stays near the largest tensor."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxq.graph import Editor, from_text, load, save
from onnxq.runtime import Session

LAYERS, WIDTH = 24, 1600  # 10 MB each, 246 MB in all
WEIGHTS = LAYERS * 4 * WIDTH**2

# The limit of a protobuf is lowered: a model of 2 GB would take minutes.
CHILD = """
import json, resource, sys
import onnxq.api, onnxq.graph.model
from onnxq.plan import Recipe
onnxq.graph.model.ONE_PROTOBUF = 100_000_000
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = onnxq.quantize(sys.argv[1], recipe=Recipe(precision="int8-weights"), output=sys.argv[2])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
measured = result.receipt.measured
print(json.dumps([1024 * (peak - before), measured.size_ratio, list(measured.notes)]))
"""


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    nodes = [
        f"[m{n}] {'y' if n == LAYERS - 1 else f'x{n + 1}'} = MatMul (x{n}, w{n})"
        for n in range(LAYERS)
    ]
    text = f"chain (float[N,{WIDTH}] x0) => (float[N,{WIDTH}] y) {{ {chr(10).join(nodes)} }}"
    rng = np.random.default_rng(0)
    weights = {
        f"w{n}": (rng.standard_normal((WIDTH, WIDTH)) / WIDTH**0.5).astype(np.float32)
        for n in range(LAYERS)
    }
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(w, n) for n, w in weights.items())
    path = tmp_path / "chain.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="chain.bin")
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is measured as Linux does")
def test_memory_is_that_of_a_few_tensors(chain: Path, tmp_path: Path) -> None:
    """Mapped, quantized, compared and written one by one: six of 10 MB were measured."""
    output = tmp_path / "out.onnx"
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(chain), str(output)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    grown, ratio, notes = json.loads(done.stdout)
    assert grown < WEIGHTS / 2, f"{grown / 1e6:.0f} MB for a model of {WEIGHTS / 1e6:.0f} MB"
    assert 0.25 < ratio < 0.26
    assert any("too large to run" in note for note in notes)
    onnx.checker.check_model(str(output))
    made = load(output)
    assert made.has_external_data
    assert {made.view().dtype(f"w{n}_q") for n in range(LAYERS)} == {"int8"}
    feed = {"x0": np.random.default_rng(1).standard_normal((4, WIDTH)).astype(np.float32)}
    expected, found = (Session(load(path)).run(feed)["y"] for path in (chain, output))
    noise = float(np.sum((expected - found) ** 2) / np.sum(expected**2))
    # 24 layers, each with weights that err by a 127th of 4.5 deviations, uniformly
    assert noise < 24 * (4.5 / 127) ** 2 / 12 * 1.5


def test_a_tensor_is_computed_when_it_is_read() -> None:
    model = from_text("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,4] x) => (float[1,4] y) <float[4] w = {1, 2, 3, 4}> { [mul] y = Mul (x, w) }""")
    calls: list[int] = []

    def made() -> np.ndarray:
        calls.append(1)
        return np.full(4, 5, np.float32)

    editor = Editor(model)
    editor.add_made("five", made, np.dtype(np.float32), [4])
    editor.redirect("mul", 1, "five")
    edited = editor.finish()
    assert not calls
    assert edited.weight_bytes == 16
    np.testing.assert_array_equal(
        Session(edited).run({"x": np.ones((1, 4), np.float32)})["y"], [[5, 5, 5, 5]]
    )
    assert calls


def test_external_on_demand(tmp_path: Path) -> None:
    model = from_text("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,512] x) => (float[1,512] y) <float[1] w = {2}> { [mul] y = Mul (x, w) }""")
    editor = Editor(model)
    editor.add_constant("large", np.arange(512, dtype=np.float32))
    editor.redirect("mul", 1, "large")
    save(editor.finish(), tmp_path / "m.onnx", external=True)
    assert (tmp_path / "m.onnx.data").stat().st_size == 2048
    np.testing.assert_array_equal(
        load(tmp_path / "m.onnx").view().constant("large"), np.arange(512)
    )
