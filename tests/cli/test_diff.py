"""``onnxq diff``: two runs of the command line, held against each other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

QUANTIZE = (
    "quantize", "digits_cnn.onnx", "--data", "digits_calibration.npz", "--precision", "int8",
    "--objective", "int8-everywhere", "--allow-slower", "--quiet",
)  # fmt: skip


@pytest.fixture
def receipts(digits: Path, onnxq) -> tuple[str, str]:
    assert onnxq(*QUANTIZE, "-o", "a.onnx").code in (0, 1)
    assert onnxq(*QUANTIZE, "-o", "b.onnx", "--keep-float", "/fc2/Gemm").code in (0, 1)
    return "a.receipt.json", "b.receipt.json"


def test_tables_and_json(receipts: tuple[str, str], onnxq) -> None:
    run = onnxq("diff", *receipts)
    assert run.code == 0, run.err
    assert "nodes that changed: 1" in run.out
    assert "precision" in run.out
    assert "keep_float" in run.out
    assert "↓" in run.out
    found = onnxq("diff", *receipts, "--json").json
    assert [node["where"] for node in found["plan"]] == ["/fc2/Gemm"]
    assert {figure["name"] for figure in found["figures"]} >= {"bytes", "SQNR of logits, dB"}
    same = onnxq("diff", receipts[0], receipts[0])
    assert "nothing was decided otherwise" in same.out


def test_no_receipt(digits: Path, onnxq) -> None:
    Path("x.json").write_text(json.dumps({"plan": 1}))
    run = onnxq("diff", "x.json", "gone.json")
    assert run.code == 3
    assert "'x.json' is no receipt" in run.err
    assert run.err.count("\n") == 1
