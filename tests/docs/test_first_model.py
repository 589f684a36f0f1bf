"""From nothing to an int8 model of one's own: at most five commands, as the texts have them."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner

from onnxq.cli.main import main

ROOT = Path(__file__).parents[2]
# Where the way is told: the page, the section, and the commands that stand before it.
WAYS = {
    "README.md": ("## Your own model", 1),
    "docs/index.md": ("## Your first int8 model", 0),
}
MOST = 5
WEIGHTS = {
    "w0": (16, 3, 3, 3), "b0": (16,), "w1": (32, 16, 3, 3), "b1": (32,),
    "w2": (10, 32), "b2": (10,),
}  # fmt: skip
NETWORK = """<ir_version: 8, opset_import: ["" : 17]>
own (float[n,3,16,16] picture) => (float[n,10] scores)
{ a = Conv <pads = [1, 1, 1, 1]> (picture, w0, b0) b = Relu (a)
  c = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (b, w1, b1) d = Relu (c)
  e = GlobalAveragePool (d) f = Flatten (e) scores = Gemm <transB = 1> (f, w2, b2) }"""


def commands(page: str) -> list[str]:
    """The lines of the first block of commands in a page's section."""
    heading, _ = WAYS[page]
    section = (ROOT / page).read_text("utf-8").partition(heading)[2]
    found = re.search(r"^```sh\n(.*?)^```", section, re.M | re.S)
    assert found is not None
    return [line.partition(" # ")[0].strip() for line in found[1].splitlines() if line.strip()]


def made_up(folder: Path) -> None:
    """A network of nobody's, and noise to feed it."""
    model, rng = onnx.parser.parse_model(NETWORK), np.random.default_rng(0)
    for name, shape in WEIGHTS.items():
        values = (rng.standard_normal(shape) / 12).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    onnx.save(model, folder / "model.onnx")
    pictures = rng.standard_normal((200, 3, 16, 16), np.float32)
    np.savez(folder / "samples.npz", picture=pictures)


def real(folder: Path) -> None:
    """A residual network of another project, exported by another tool."""
    models = os.environ.get("ONNXQ_MODELS")
    source = Path(models or "") / "tiny_resnet8.onnx"
    if not models or not source.is_file():
        pytest.skip("ONNXQ_MODELS names no folder that holds tiny_resnet8.onnx")
    (folder / "model.onnx").write_bytes(source.read_bytes())
    given = ort.InferenceSession(source, providers=["CPUExecutionProvider"]).get_inputs()[0]
    shape = (200, *given.shape[1:])
    samples = np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)
    np.savez(folder / "samples.npz", **{given.name: samples})


@pytest.mark.parametrize("make", [made_up, real])
@pytest.mark.parametrize("page", WAYS)
def test_the_first_model_takes_five_commands(
    page: str, make: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines, before = commands(page), WAYS[page][1]
    assert len(lines) + before <= MOST
    make(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONNXQ_CACHE", str(tmp_path / "cache"))
    run = [shlex.split(line) for line in lines if line.startswith("onnxq ")]
    assert len(run) == 3
    for _, *arguments in run:
        done = CliRunner().invoke(main, arguments)
        # 1 would say that int8 is no faster here, which noise can make of a network this small
        assert done.exit_code in ((0, 1) if arguments[0] == "quantize" else (0,)), done.output
    made = onnx.load(tmp_path / "model.int8.onnx")
    types = {tensor.data_type for tensor in made.graph.initializer}
    assert onnx.TensorProto.INT8 in types
    assert (tmp_path / "model.int8.receipt.json").is_file()
