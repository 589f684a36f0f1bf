"""``backends``, ``bench`` and ``quantize`` on OpenVINO, for real.

As in ``test_openvino``, ``ONNXQ_OPENVINO_PYTHON`` names the Python of an environment that has
OpenVINO's build of ONNX Runtime; here it has onnxq too::

    python -m venv ov && ov/bin/pip install -e . onnxruntime-openvino
    ONNXQ_OPENVINO_PYTHON=ov/bin/python pytest tests/targets/test_openvino_commands.py
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PYTHON = os.environ.get("ONNXQ_OPENVINO_PYTHON", "")
ROOT = Path(__file__).parents[2]
DIGITS, MOBILENET = (ROOT / "models" / f"{n}.onnx" for n in ("digits_cnn", "cifar10_mobilenet"))
PROVIDER = "OpenVINOExecutionProvider"
# Hardmax is no operator of OpenVINO's.
LEFT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[1,8] x) => (float[1,8] y, float[1,8] z)
{ [relu] r = Relu (x) [left] y = Hardmax <axis = 1> (r) [neg] z = Neg (r) }"""


def has_onnxq() -> bool:
    if not PYTHON:
        return False
    found = subprocess.run([PYTHON, "-c", "import onnxq"], capture_output=True, check=False)
    return found.returncode == 0


pytestmark = pytest.mark.skipif(
    not has_onnxq(), reason="ONNXQ_OPENVINO_PYTHON names no Python with onnxq"
)
Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def onnxq(tmp_path: Path) -> Call:
    """Call the command line in the other environment."""

    def call(*args: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PYTHON, "-c", "from onnxq.cli import main; main()", *map(str, args)],
            capture_output=True, text=True, timeout=600, check=False, cwd=tmp_path,
        )  # fmt: skip

    return call


def told(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_backends_tells_both(onnxq: Call) -> None:
    found = {one["name"]: one for one in told(onnxq("backends", "--json"))}
    assert found["openvino"]["runs"]
    assert found["cpu"]["runs"]
    assert "CPU" in found["openvino"]["device"]
    assert found["openvino"]["version"].startswith("onnxruntime-openvino ")
    assert not found["cuda"]["runs"]


@pytest.mark.parametrize("model", [DIGITS, MOBILENET], ids=lambda path: path.stem)
def test_backends_measures_a_model(onnxq: Call, model: Path) -> None:
    found = told(onnxq("backends", model, "--seconds", 1, "--json"))
    times = {one["name"]: one for one in found["backends"]}
    assert set(times) == {"openvino", "cpu"}
    assert times["openvino"]["fallback"] == []
    speeds = {name: one["speed"] for name, one in times.items()}
    assert found["best"] == max(speeds, key=lambda name: speeds[name])


def test_bench_on_both(onnxq: Call) -> None:
    args = ("--ep", "cpu,openvino", "--batch-size", "1,8", "--seconds", 0.2, "--json")
    found = told(onnxq("bench", DIGITS, *args))
    assert [run["batch"] for run in found["runs"]] == [1, 8]
    for run in found["runs"]:
        assert [one["provider"] for one in run["models"]] == ["cpu", "openvino"]
        assert all(one["ms"] > 0 and one["fallback"] == [] for one in run["models"])


def test_a_node_that_falls_back_is_named(onnxq: Call, build, tmp_path: Path) -> None:
    from onnxq.graph import save

    save(build(LEFT), tmp_path / "left.onnx")
    found = told(onnxq("backends", "left.onnx", "--seconds", 0.1, "--json"))
    (there,) = (one for one in found["backends"] if one["name"] == "openvino")
    assert there["fallback"] == ["left"]
    strict = onnxq("bench", "left.onnx", "--ep", "openvino", "--strict-ep")
    assert strict.returncode == 3
    assert "1 node ('left') runs on the CPU provider, and not on openvino" in strict.stderr
    assert strict.stderr.count("\n") == 1


def test_a_device_that_is_not_there_is_no_silent_cpu_session(onnxq: Call) -> None:
    """ONNX Runtime would log an error and run the model on its own CPU provider."""
    done = onnxq("bench", DIGITS, "--ep", "openvino", "--ep-option", "device_type=NPU")
    assert done.returncode == 3
    assert "'openvino' is installed, and cannot start here" in done.stderr


def quantized(onnxq: Call, model: Path, output: Path, *args: object) -> dict[str, Any]:
    run = ("quantize", model, "--ep", "openvino", "--fresh", "-o", output, "--json", *args)
    done = onnxq(*run)
    # 1: a machine that is too busy may miss the gate on speed
    assert done.returncode in (0, 1), done.stderr[-2000:]
    receipt: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == 0 or [g["name"] for g in receipt["gates"] if not g["passed"]] == [
        "not_slower"
    ]
    return receipt


def proves(receipt: dict[str, Any], output: Path) -> None:
    measured = receipt["measured"]
    assert receipt["plan"]["target"] == "openvino"
    assert receipt["recipe"]["provider"]["name"] == "openvino"
    assert measured["latency"]["provider"] == PROVIDER
    assert receipt["environment"]["provider"] == PROVIDER
    assert not any("falls back" in note or "CPU provider" in note for note in measured["notes"])
    assert any("does not tell which nodes" in note for note in measured["notes"])
    assert measured["candidates"]
    assert output.is_file()


def test_quantize_digits(onnxq: Call, tmp_path: Path) -> None:
    """The target follows the provider, and the accuracy is what the recipe's budget allows."""
    output = tmp_path / "d.onnx"
    receipt = quantized(onnxq, DIGITS, output)
    proves(receipt, output)
    metric = receipt["measured"]["metric"]
    assert metric["source"] - metric["output"] <= 0.005
    # each layer rounds to 8 bits: some 40 dB, and never below 30 where answers stay
    assert receipt["measured"]["outputs"]["logits"]["sqnr_db"] > 30


def test_quantize_mobilenet(onnxq: Call, tmp_path: Path) -> None:
    """Measured: 3.5 times as fast as float on OpenVINO; a busy machine may take most of that."""
    folder = os.environ.get("ONNXQ_DATA")
    if not (folder and (Path(folder) / "cifar10.npz").is_file()):
        pytest.skip("ONNXQ_DATA names no folder that holds cifar10.npz")
    with np.load(Path(folder) / "cifar10.npz") as images:
        np.savez(tmp_path / "t.npz", image=images["x_test"][:500], labels=images["y_test"][:500])
    output = tmp_path / "m.onnx"
    args = ("--target", "openvino", "--test-data", "t.npz", "--max-drop", "3%")
    receipt = quantized(onnxq, MOBILENET, output, *args)
    proves(receipt, output)
    metric = receipt["measured"]["metric"]
    assert metric["source"] - metric["output"] <= 0.02  # of all 10,000 images: 0.0002
    assert receipt["measured"]["latency"]["ratio_prepared"] > 1.2
