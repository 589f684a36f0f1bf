"""A misspelt name of any kind: the nearest is told, with exit code 2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

MODEL = "digits_cnn.onnx"
DATA = ("--data", "digits_calibration.npz")
CASES = {
    "command": (("quantise", MODEL), "quantize"),
    "subcommand": (("recipe", "shwo"), "show"),
    "subcommand beside a default": (("calibrate", "merg", "a.json"), "merge"),
    "subcommand of one": (("sensitivity", "reprot", MODEL), "report"),
    "preset": (("quantize", MODEL, "--preset", "mobil"), "mobile"),
    "target": (("quantize", MODEL, "--target", "cpu-x87"), "cpu-x86"),
    "provider": (("quantize", MODEL, "--ep", "openvio"), "openvino"),
    "precision": (("quantize", MODEL, "--precision", "int8-wieghts"), "int8-weights"),
    "precision to try": (
        ("sensitivity", "report", MODEL, "--precision", "int8,fp61"), "fp16",
    ),
    "calibrator": (("quantize", MODEL, *DATA, "--calibrator", "entrpy"), "entropy"),
    "form": (("quantize", MODEL, "--format", "qoprator"), "qoperator"),
    "layer": (("quantize", MODEL, "--keep-float", "/conv1/Cnov"), "/conv1/Conv"),
    "operator": (("quantize", MODEL, "--keep-float-op", "Gem"), "Gemm"),
    "gate": (("check", MODEL, "--skip", "latnecy"), "latency"),
    "shell": (("completion", "bahs"), "bash"),
}  # fmt: skip
KEYS = {
    "first level": ('precison = "int8"\n', "precision"),
    "table": ("[dta]\n", "data"),
    "key of a table": ("[data]\nbatchsize = 4\n", "batch_size"),
    "key of layers": ('[[layers]]\nnam = "x"\nbits = 8\n', "name"),
    "method": ('[calibration]\nmethod = "percntile"\n', "percentile"),
    "target": ('target = "cpu-x87"\n', "cpu-x86"),
    "provider": ('[provider]\nname = "openvio"\n', "openvino"),
    "layer": ('[[layers]]\nname = "/fc2/Gem"\nprecision = "float"\n', "/fc2/Gemm"),
    "tensor to judge": ('[verify]\noutput = "logit"\nseconds = 0\n', "logits"),
    "output of a state": ('[data.state]\nlogit = "image"\n', "logits"),
    "input of a state": ('[data.state]\nlogits = "imag"\n', "image"),
}
Cli = Callable[..., Any]


@pytest.mark.parametrize(("args", "near"), CASES.values(), ids=CASES)
def test_on_the_command_line(onnxq: Cli, digits: Path, args: tuple[str, ...], near: str) -> None:
    run = onnxq(*args)
    assert (run.code, run.out) == (2, ""), run.err
    assert f"did you mean '{near}'?" in run.err.splitlines()[-1]


def test_option(onnxq: Cli, digits: Path) -> None:
    """By click, which names all that are near."""
    run = onnxq("quantize", MODEL, "--calibratr", "mse")
    assert (run.code, run.out) == (2, ""), run.err
    assert "'--calibrator'" in run.err.splitlines()[-1]


@pytest.mark.parametrize(("text", "near"), KEYS.values(), ids=KEYS)
def test_in_a_recipe(onnxq: Cli, digits: Path, text: str, near: str) -> None:
    (digits / "digits_cnn.onnxq.toml").unlink()
    (digits / "own.toml").write_text(text)
    run = onnxq("quantize", MODEL, "--recipe", "own.toml", "--test-data", "digits_test.npz", *DATA)
    assert (run.code, run.out) == (2, ""), run.err
    assert f"did you mean '{near}'?" in run.err.splitlines()[-1]


def test_name_of_an_array(onnxq: Cli, digits: Path) -> None:
    """Data are no usage: that they do not fit the model has another exit code."""
    np.savez("other.npz", imagee=np.zeros((20, 1, 8, 8), np.float32))
    run = onnxq("quantize", MODEL, "--data", "other.npz")
    assert run.code == 3
    assert "did you mean 'image'?" in run.err


def test_an_existing_model_is_no_misspelt_command(onnxq: Cli, digits: Path) -> None:
    """``onnxq calibrate`` takes a model first, whatever it is called."""
    (digits / "merged.onnx").write_bytes((digits / MODEL).read_bytes())
    assert onnxq("calibrate", "merged.onnx", *DATA).code == 0
