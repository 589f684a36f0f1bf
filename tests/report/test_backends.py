"""Execution providers as tables: figures made by hand."""

from __future__ import annotations

import io

from msgspec.structs import replace
from rich.console import Console

from onnxq.report import backends_view, comparison_view
from onnxq.runtime.backends import Backend, BackendReport, BackendTime

CPU = Backend(
    "cpu", "CPUExecutionProvider", True, "", "", "A [fast] one", "ort 1.31", True, False, None, ""
)
CUDA = Backend(
    "cuda",
    "X",
    False,
    "not installed",
    "pip install 'onnxq[cuda]'",
    "GPU",
    "",
    False,
    True,
    True,
    "",
)
REPORT = BackendReport(
    "m.onnx",
    "openvino",
    (
        BackendTime("openvino", 2.5, 0.03, 2.0, tuple("abcdefg")),
        BackendTime("cpu", 1.0, None, 5.0, ()),
        BackendTime("cuda", None, None, None, None, "no GPU"),
    ),
    batch=8,
    threads=1,
    rounds=40,
    made_up=False,
    nodes=20,
    environment={},
)


def text(view: object) -> str:
    console = Console(file=io.StringIO(), width=120, color_system=None)
    console.print(view)
    return console.file.getvalue()


def lines(view: object) -> list[list[str]]:
    return [line.split() for line in text(view).splitlines()]


def test_what_runs_and_what_is_missing() -> None:
    found = lines(backends_view((CPU, CUDA)))
    assert ["cpu", "A", "[fast]", "one", "ort", "1.31", "yes", "no", "?"] in found
    assert ["cuda", "GPU", "pip", "install", "'onnxq[cuda]'"] in found
    assert "not here" not in text(backends_view((CPU,)))


def test_why_a_provider_does_not_start_comes_first() -> None:
    broken = replace(CUDA, why_not="no driver")
    told = text(backends_view((CPU, broken)))
    assert "no driver" in told
    assert "pip install" not in told


def test_comparison() -> None:
    told, found = text(comparison_view(REPORT)), lines(comparison_view(REPORT))
    assert ["openvino", "2.50x", "(±3%)", "2", "ms", "7", "of", "20", "nodes"] in found
    assert ["cpu", "1", "5", "ms", "all", "20", "nodes"] in found
    assert ["cuda", "-", "-", "-"] in found
    assert "openvino: on the CPU provider instead: a, b, c, d, e and 2 more\n" in told
    assert "cuda: no GPU\n" in told
    assert "batch 8 (samples of the data), 1 thread, 40 interleaved rounds\n" in told
    assert "best: openvino (--ep openvino)\n" in told
    assert "noisy" not in told


def test_a_best_that_may_be_chance() -> None:
    close = replace(REPORT.backends[0], speed=1.1, noise=0.4)
    noisy = replace(REPORT, backends=(close, *REPORT.backends[1:]))
    assert "too noisy to tell (±40%)" in text(comparison_view(noisy))


def test_fallback_that_is_not_told() -> None:
    one = replace(REPORT.backends[0], fallback=None)
    assert "not told" in text(comparison_view(replace(REPORT, backends=(one,))))
    none = replace(REPORT.backends[0], fallback=())
    assert "none" in text(comparison_view(replace(REPORT, backends=(none,))))
