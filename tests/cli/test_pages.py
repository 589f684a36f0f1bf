"""``--html`` of ``quantize``, ``bench`` and ``check``: whole pages or none, told in time."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jinja2")
pytest.importorskip("plotly")

Cli = Callable[..., Any]
MODEL = "digits_cnn.onnx"
QUANTIZE = (
    "quantize", MODEL, "--precision", "int8", "--objective", "int8-everywhere", "-o", "out.onnx",
)  # fmt: skip
BENCH = ("bench", MODEL, MODEL, "--seconds", 0.01)
UPDATE = ("check", MODEL, "--update", "--target", "cpu-x86-avx2")


def test_quantize(onnxq: Cli, digits: Path) -> None:
    run = onnxq(*QUANTIZE, "--html", "page.html")
    assert run.code == 0, run.err
    assert run.out.endswith("wrote out.onnx and out.receipt.json; page.html shows every node\n")
    page = (digits / "page.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert page.rstrip().endswith("</html>")
    for said in ("digits_cnn.onnx → out.onnx", "max_drop", "/conv1/Conv", "How the error grows"):
        assert said in page, said
    assert "Latency by node" not in page  # the recipe wants no timing


def test_quantize_from_a_receipt(onnxq: Cli, digits: Path) -> None:
    """Without data there are weights, and neither activations nor errors."""
    assert onnxq(*QUANTIZE, "--quiet").code == 0
    run = onnxq("quantize", MODEL, "--from", "out.receipt.json", "-o", "b.onnx", "--html", "b.html")
    assert run.code == 0, run.err
    assert "b.html shows every node" in run.out
    page = (digits / "b.html").read_text(encoding="utf-8")
    assert "/conv1/Conv" in page
    assert "How the error grows" not in page.split('id="data"')[0]


def test_bench(onnxq: Cli, digits: Path) -> None:
    run = onnxq(*BENCH, "--per-layer", "--batch-size", 1, "--html", "page.html")
    assert run.code == 0, run.err
    assert run.out.endswith("wrote page.html\n")
    page = (digits / "page.html").read_text(encoding="utf-8")
    assert "Latency by node" in page
    assert onnxq(*BENCH, "--html", "page.html").code == 3  # there already
    run = onnxq(*BENCH, "--html", "page.html", "--force", "--json")
    assert run.json["runs"]
    assert "Latency by node" not in (digits / "page.html").read_text(encoding="utf-8")


def test_check(onnxq: Cli, digits: Path) -> None:
    assert onnxq(*UPDATE, "--html", "page.html").code == 0
    assert "this is the first baseline" in (digits / "page.html").read_text(encoding="utf-8")
    run = onnxq("check", MODEL, "--html", "page.html")
    assert run.code == 0, run.err
    page = (digits / "page.html").read_text(encoding="utf-8")
    assert "no worse than the baseline" in page


@pytest.mark.parametrize("command", [QUANTIZE, BENCH, UPDATE])
@pytest.mark.parametrize("module", ["jinja2", "plotly.offline"])
def test_without_the_extra(
    command: tuple[object, ...], module: str, onnxq: Cli, digits: Path,
    files_in: Callable[[Path], dict[str, bytes | None]], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """One line says what to install, before any work, and nothing is written."""
    before = files_in(digits)
    monkeypatch.setitem(sys.modules, module, None)
    run = onnxq(*command, "--html", "page.html")
    assert run.code == 3
    assert run.out == ""
    (line,) = run.err.splitlines()
    assert line.endswith("cannot be imported; pip install 'onnxq[report]'")
    assert files_in(digits) == before


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ((*QUANTIZE, "--html", "out.onnx"), 2, "two outputs have the same name"),
        ((*QUANTIZE, "--html", "./out.receipt.json"), 2, "two outputs have the same name"),
        ((*QUANTIZE, "--html", MODEL), 3, "is one of the files that are read"),
        ((*QUANTIZE, "--html", "digits_test.npz"), 3, "is one of the files that are read"),
        ((*QUANTIZE, "--html", "nowhere/x.html"), 3, "cannot write 'nowhere/x.html'"),
        ((*QUANTIZE, "--html", "x.html", "--dry-run"), 2, "--dry-run makes nothing"),
        ((*BENCH, "--html", MODEL), 3, "is one of the files that are read"),
        ((*UPDATE, "--html", "x", "--junit", "x"), 2, "two outputs have the same name"),
        ((*UPDATE, "--html", MODEL), 3, "is one of the files that are read"),
    ],
)
def test_what_would_do_harm_is_refused(
    command: tuple[object, ...], code: int, said: str, onnxq: Cli, digits: Path,
    files_in: Callable[[Path], dict[str, bytes | None]],
) -> None:  # fmt: skip
    before = files_in(digits)
    run = onnxq(*command)
    assert run.code == code
    assert said in run.err
    assert files_in(digits) == before
