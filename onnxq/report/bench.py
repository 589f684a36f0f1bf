"""Latencies of models and of their nodes, as tables."""

from __future__ import annotations

from typing import Literal

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from onnxq.runtime import told_fallback
from onnxq.runtime.bench import BenchReport, BenchRun, NodeTime
from onnxq.targets import Provider

Sort = Literal["time", "gain"]


def bench_view(
    report: BenchReport, *, sort: Sort = "time", top: int | None = None
) -> RenderableType:
    """The models for each batch size and number of threads, then the nodes if they were measured.

    Args:
        report: What was found.
        sort: The nodes that take longest in the first model come first, or those that gain most in
            the last.
        top: The most nodes to show; what is left is summed up in one line. All if None.
    """
    parts: list[RenderableType] = []
    for run in report.runs:
        parts += [_models(run), Text(how_run(run, made_up=report.made_up))]
        if run.too_noisy:
            parts.append(Text(noisy(run.noise), style="yellow"))
    parts += [Text(note, style="yellow") for note in fallbacks(report.runs[0])]
    if report.nodes:
        parts += [Text(), _nodes(report, sort, top), Text(_explained(report), style="dim")]
    return Group(*parts)


def noisy(noise: float) -> str:
    """What is said where speeds cannot be told apart."""
    return (
        f"the machine was too noisy to tell (±{noise:.0%}): measure longer with --seconds, or "
        "when it does less else"
    )


def _models(run: BenchRun) -> Table:
    providers = {model.provider for model in run.models}
    memory = any(model.peak_bytes is not None for model in run.models)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("model", overflow="fold")
    if providers != {"cpu"}:
        table.add_column("provider", no_wrap=True)
    for title in ("speed", "median", "quartiles", "samples/s", *(["memory"] if memory else [])):
        table.add_column(title, justify="right", no_wrap=True)
    for index, model in enumerate(run.models):
        speed = f"{model.speed:.2f}x (±{model.noise:.0%})" if index else "1"
        cells = [escape(model.model)]
        cells += [escape(model.provider)] if providers != {"cpu"} else []
        cells += [speed, f"{model.ms:.3g} ms", f"{model.low:.3g} to {model.high:.3g}"]
        cells += [f"{model.per_second:,.0f}"]
        cells += [f"{(model.peak_bytes or 0) / 1e6:.1f} MB"] if memory else []
        table.add_row(*cells)
    return table


def how_run(run: BenchRun, *, made_up: bool) -> str:
    """On what, and how, models were measured."""
    threads = "1 thread" if run.threads == 1 else f"{run.threads} threads"
    feed = "made-up samples" if made_up else "samples of the data"
    return f"batch {run.batch} ({feed}), {threads}, {run.rounds} interleaved rounds"


def fallbacks(run: BenchRun) -> list[str]:
    """What ran on the CPU provider instead, model by model."""
    return [
        f"{model.model}: {told_fallback(model.fallback, Provider(model.provider))}"
        for model in run.models
        if model.fallback
    ]


def _nodes(report: BenchReport, sort: Sort, top: int | None) -> Table:
    both, total = len(report.conversions) > 1, report.total(0)
    nodes = sorted(report.nodes, key=lambda node: -_key(node, sort))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("node", overflow="fold", min_width=16)
    table.add_column("operator", no_wrap=True, max_width=13)
    figures = ("1st µs", "2nd µs", "gain", "share") if both else ("µs", "share")
    for title in figures:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("2nd is" if both else "kernel", no_wrap=True, max_width=18)
    for node in nodes[:top]:
        cells = [escape(node.name), escape(node.op), *_figures(node.us, total)]
        table.add_row(*cells, node.kernels[-1] or "-")
    if left := nodes[top:] if top is not None else []:
        sums = tuple(sum(n.us[i] or 0.0 for n in left) for i in range(len(report.conversions)))
        table.add_row(f"and {len(left)} more", "", *_figures(sums, total), style="dim")
    table.add_row("conversions", "", *_figures(report.conversions, total))
    totals = tuple(report.total(index) for index in range(len(report.conversions)))
    table.add_row("all", "", *_figures(totals, total), style="bold")
    return table


def _key(node: NodeTime, sort: Sort) -> float:
    return node.gain if sort == "gain" else node.us[0] or 0.0


def _figures(us: tuple[float | None, ...], total: float) -> list[str]:
    """Times, what is gained, and the first one's share."""
    cells = ["-" if value is None else f"{value:.0f}" for value in us]
    if len(us) > 1:
        cells.append(f"{(us[0] or 0.0) - (us[-1] or 0.0):+.0f}")
    return [*cells, f"{(us[0] or 0.0) / total:.1%}" if total else "-"]


def _explained(report: BenchReport) -> str:
    lines = "medians under ONNX Runtime's profiler, in whole microseconds; share: of all kernels"
    if len(report.conversions) > 1:
        first, second = report.runs[0].models
        lines += f" of the first model\nfirst: {first.model}\nsecond: {second.model}"
    return lines
