"""Latencies as tables: figures made by hand, that anybody can check."""

from __future__ import annotations

import io

import pytest
from msgspec.structs import replace
from rich.console import Console

from onnxq.report import bench_view
from onnxq.runtime.bench import BenchReport, BenchRun, ModelTime, NodeTime

FIRST = ModelTime("a.onnx", "cpu", 1.0, 0.01, 2.0, 1.9, 2.2, 4000.0)
SECOND = ModelTime("[b].onnx", "cpu", 2.0, 0.03, 1.0, 0.9, 1.1, 8000.0)
RUN = BenchRun(batch=8, threads=2, rounds=40, models=(FIRST, SECOND))
REPORT = BenchReport(
    runs=(RUN,),
    made_up=False,
    nodes=(
        NodeTime("/pool", "MaxPool", (100.0, 150.0), ("MaxPool", "NhwcMaxPool")),
        NodeTime("/conv", "Conv", (600.0, 400.0), ("Conv", "QLinearConv")),
        NodeTime("/[fc]", "Gemm", (250.0, 20.0), ("FusedGemm", "QGemm")),
        NodeTime("/gone", "Relu", (30.0, None), ("Relu", "")),
    ),
    conversions=(20.0, 130.0),
    environment={},
)


def shown(report: BenchReport, **options) -> list[list[str]]:
    """Lines of the table, as words."""
    return [line.split() for line in text(report, **options).splitlines()]


def text(report: BenchReport, **options) -> str:
    console = Console(file=io.StringIO(), width=120, color_system=None)
    console.print(bench_view(report, **options))
    return console.file.getvalue()


def nodes(lines: list[list[str]]) -> list[str]:
    return [line[0] for line in lines if line and line[0].startswith("/")]


def test_models() -> None:
    lines = shown(replace(REPORT, nodes=(), conversions=()))
    assert ["model", "speed", "median", "quartiles", "samples/s"] in lines
    assert ["a.onnx", "1", "2", "ms", "1.9", "to", "2.2", "4,000"] in lines
    assert ["[b].onnx", "2.00x", "(±3%)", "1", "ms", "0.9", "to", "1.1", "8,000"] in lines
    assert "batch 8 (samples of the data), 2 threads, 40 interleaved rounds\n" in text(REPORT)
    assert not nodes(lines)


def test_providers_memory_and_fallback() -> None:
    there = replace(SECOND, provider="openvino", peak_bytes=63_100_000, fallback=("h", "[t]"))
    other = replace(RUN, batch=1, threads=1, models=(FIRST,))
    run = replace(RUN, models=(replace(FIRST, peak_bytes=11_400_000), there))
    report = replace(REPORT, runs=(run, other), nodes=(), conversions=())
    lines, told = shown(report), text(report)
    assert ["model", "provider", "speed", "median", "quartiles", "samples/s", "memory"] in lines
    assert ["a.onnx", "cpu", "1", "2", "ms", "1.9", "to", "2.2", "4,000", "11.4", "MB"] in lines
    assert "[b].onnx openvino 2.00x (±3%) 1 ms 0.9 to 1.1 8,000 63.1 MB" in map(" ".join, lines)
    assert "[b].onnx: 2 nodes ('h', '[t]') run on the CPU provider, and not on openvino" in told
    assert "batch 1 (samples of the data), 1 thread, 40 interleaved rounds" in told
    assert told.index("batch 8") < told.index("batch 1 ")


def test_nodes() -> None:
    lines = shown(REPORT)
    assert nodes(lines) == ["/conv", "/[fc]", "/pool", "/gone"]
    assert ["/conv", "Conv", "600", "400", "+200", "60.0%", "QLinearConv"] in lines
    assert ["/pool", "MaxPool", "100", "150", "-50", "10.0%", "NhwcMaxPool"] in lines
    assert ["/gone", "Relu", "30", "-", "+30", "3.0%", "-"] in lines
    assert ["conversions", "20", "130", "-110", "2.0%"] in lines
    assert ["all", "1000", "700", "+300", "100.0%"] in lines


def test_sorted_by_gain_and_summed_up() -> None:
    lines = shown(REPORT, sort="gain", top=2)
    assert nodes(lines) == ["/[fc]", "/conv"]
    assert ["and", "2", "more", "130", "150", "-20", "13.0%"] in lines
    assert nodes(shown(REPORT, sort="gain")) == ["/[fc]", "/conv", "/gone", "/pool"]
    assert "more" not in text(REPORT, top=4)


def test_one_model_has_no_gain() -> None:
    alone = replace(
        REPORT,
        runs=(replace(RUN, models=(FIRST,)),),
        nodes=tuple(replace(n, us=n.us[:1], kernels=n.kernels[:1]) for n in REPORT.nodes),
        conversions=(20.0,),
    )
    lines = shown(alone)
    assert ["node", "operator", "µs", "share", "kernel"] in lines
    assert ["/conv", "Conv", "600", "60.0%", "Conv"] in lines
    assert ["all", "1000", "100.0%"] in lines


@pytest.mark.parametrize(("noise", "told"), [(0.09, False), (0.11, True)])
def test_noise_is_told(noise: float, told: bool) -> None:
    noisy = replace(RUN, models=(FIRST, replace(SECOND, noise=noise)))
    assert ("too noisy to tell (±11%)" in text(replace(REPORT, runs=(noisy,)))) == told
