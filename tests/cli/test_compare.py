"""``onnxq compare``: files, exit codes, and what stands in the way."""

from __future__ import annotations

from pathlib import Path

import pytest

QUANTIZE = (
    "quantize", "digits_cnn.onnx", "--data", "digits_calibration.npz", "--precision", "int8",
    "--objective", "int8-everywhere", "--allow-slower", "--quiet", "-o", "int8.onnx",
)  # fmt: skip
COMPARE = ("compare", "digits_cnn.onnx", "int8.onnx", "--seconds", "0", "--samples", "40")


@pytest.fixture
def made(digits: Path, onnxq) -> Path:
    assert onnxq(*QUANTIZE).code in (0, 1)
    return digits


def test_the_table_and_its_files(made: Path, onnxq) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("plotly")
    data = ("--data", "digits_test.npz")
    run = onnxq(*COMPARE, *data, "--html", "c.html", "--markdown", "c.md")
    assert run.code == 0, run.err
    assert "wrote c.md\nwrote c.html\n" in run.out
    for text in (run.out, Path("c.md").read_text(), Path("c.html").read_text()):
        assert "/conv2/Conv" in text
        assert "top1" in text
    again = onnxq(*COMPARE, *data, "--html", "c.html")
    assert (again.code, "--force" in again.err) == (3, True)
    assert onnxq(*COMPARE, *data, "--html", "c.html", "--force", "--quiet").out == ""


def test_json_holds_all(made: Path, onnxq) -> None:
    found = onnxq(*COMPARE, "--data", "digits_test.npz", "--json").json
    assert found["samples"] == 40
    assert found["speed"] is None
    assert found["metric"]["name"] == "top1"
    assert len(found["growth"]["layers"]) == 9  # the input, and layers with their activations
    alone = onnxq(*COMPARE, "--data", "digits_test.npz", "--json", "--no-layers").json
    assert alone["growth"] is None
    assert alone["outputs"] == found["outputs"]


def test_top_shows_the_worst_alone(made: Path, onnxq) -> None:
    run = onnxq(*COMPARE, "--data", "digits_test.npz", "--top", "2")
    assert "4 more layers with less harm" in run.out  # the input, three Conv, two Gemm


def test_latency_is_measured(made: Path, onnxq) -> None:
    found = onnxq(
        "compare", "digits_cnn.onnx", "int8.onnx", "--data", "digits_test.npz", "--json",
        "--seconds", "0.01", "--no-layers", "--batch-size", "4",
    ).json["speed"]  # fmt: skip
    assert found["batch"] == 4
    assert found["float_ms"] > 0 < found["other_ms"]


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("digits_cnn.onnx", "gone.onnx"), 3, "gone.onnx"),
        (("digits_cnn.onnx", "digits_cnn.onnx", "--data", "gone.npz"), 3, "gone.npz"),
        (("digits_cnn.onnx", "digits_cnn.onnx", "--html", "a", "--markdown", "a"), 2, "same name"),
        (("digits_cnn.onnx", "digits_cnn.onnx", "--seconds", "-1"), 2, "-1"),
        (("digits_cnn.onnx", "other.onnx", "--data", "digits_test.npz"), 2, "reads image, and"),
    ],
)
def test_refused(args: tuple[str, ...], code: int, message: str, digits: Path, onnxq) -> None:
    model = (digits / "digits_cnn.onnx").read_bytes()
    (digits / "other.onnx").write_bytes(model.replace(b"image", b"photo"))
    run = onnxq("compare", *args) if "other.onnx" not in args else onnxq(
        "compare", "other.onnx", *args[:1], *args[2:])  # fmt: skip
    assert run.code == code, run.err
    assert message in run.err
