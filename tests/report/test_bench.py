"""Latencies as tables: figures made by hand, that anybody can check."""

from __future__ import annotations

import io

import pytest
from msgspec.structs import replace
from rich.console import Console

from onnxq.report import bench_view
from onnxq.runtime.bench import BenchReport, ModelTime, NodeTime

REPORT = BenchReport(
    models=(
        ModelTime("a.onnx", 2.0, 1.9, 2.2, 1.0, 0.01),
        ModelTime("[b].onnx", 1.0, 0.9, 1.1, 2.0, 0.03),
    ),
    rounds=40,
    batch=8,
    threads=2,
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
    assert ["a.onnx", "2", "ms", "1.9", "to", "2.2", "1"] in lines
    assert ["[b].onnx", "1", "ms", "0.9", "to", "1.1", "2.00x", "(±3%)"] in lines
    assert "batch 8 (samples of the data), 2 threads, 40 interleaved rounds\n" in text(REPORT)
    assert not nodes(lines)


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
        models=REPORT.models[:1],
        nodes=tuple(replace(n, us=n.us[:1], kernels=n.kernels[:1]) for n in REPORT.nodes),
        conversions=(20.0,),
    )
    lines = shown(alone)
    assert ["node", "operator", "µs", "share", "kernel"] in lines
    assert ["/conv", "Conv", "600", "60.0%", "Conv"] in lines
    assert ["all", "1000", "100.0%"] in lines


@pytest.mark.parametrize(("noise", "told"), [(0.09, False), (0.11, True)])
def test_noise_is_told(noise: float, told: bool) -> None:
    noisy = replace(REPORT, models=(REPORT.models[0], replace(REPORT.models[1], noise=noise)))
    assert ("too noisy to tell (±11%)" in text(noisy)) == told
