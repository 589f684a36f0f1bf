"""Latencies of models and of their nodes, as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from onnxq.report.bench import fallbacks, how_run, noisy
from onnxq.report.html import Head, Row, Sheet, page_of, shorten
from onnxq.runtime.bench import BenchReport, BenchRun, ModelTime, NodeTime

_MODELS = (
    Head("layer", "model", "The model.", number=False),
    Head("provider", "provider", "The execution provider.", number=False),
    Head("batch", "batch", "Samples in the feed."),
    Head("threads", "threads", "Threads inside an operator."),
    Head("speed", "speed", "Latency of the first model per latency of this one."),
    Head("noise", "±", "How far that may be off by chance: four standard errors."),
    Head("ms", "median ms", "Milliseconds per run."),
    Head("low", "quartile", "A quarter of the runs took less."),
    Head("high", "quartile", "A quarter of the runs took more."),
    Head("per_second", "samples/s", "At the median."),
    Head("peak_mb", "memory MB", "The most that opening and running it took."),
)
_NODES = (
    Head("layer", "node", "Name of the node in the first model.", number=False),
    Head("op", "operator", "Its operator.", number=False),
    Head("first_us", "first µs", "Microseconds per run in the first model."),
    Head("second_us", "second µs", "Microseconds per run in the second model."),
    Head("gain", "saves µs", "Their difference.", rises=True),
    Head("share", "share", "Of all kernels of the first model."),
    Head("kernel", "kernel", "What ONNX Runtime made of it in the last model.", number=False),
)


def bench_page(report: BenchReport) -> str:
    """One self-contained HTML page of latencies.

    Speeds against the first model and medians with their spread, for each batch size, number of
    threads and provider, as charts and as a table; then the nodes, if they were measured.

    Args:
        report: What was found.

    Raises:
        RuntimeFailure: The extra ``report`` is not installed.
    """
    first = report.runs[0]
    names = _names(first)
    sheets = {"models": _models(report, names)}
    if report.nodes:
        sheets["nodes"] = _nodes(report)
    return page_of(
        "bench",
        sheets=sheets,
        drawn={"forms": names},
        scripts=("bench",),
        report=report,
        heading=" against ".join(dict.fromkeys(_file(model) for model in first.models)),
        verdict=[(names[i], _verdict(report, i)) for i in range(1, len(names))],
        lines=[how_run(run, made_up=report.made_up) for run in report.runs],
        notes=[_noisy(report, run) for run in report.runs if run.too_noisy] + fallbacks(first),
    )


def _file(model: ModelTime) -> str:
    return PurePath(model.model).name


def _names(run: BenchRun) -> list[str]:
    """What each model on each provider is called: no longer than what tells them apart."""
    for name in (_file, lambda model: f"{_file(model)}, {model.provider}"):
        names = [name(model) for model in run.models]
        if len(set(names)) == len(names):
            return names
    return [f"{number}. {name}" for number, name in enumerate(names, 1)]


def _verdict(report: BenchReport, index: int) -> str:
    """What a model comes down to beside the first one."""
    models = [run.models[index] for run in report.runs]
    if len(models) > 1:
        speeds = [model.speed for model in models]
        return f"{min(speeds):.2f}x to {max(speeds):.2f}x, by batch size and threads"
    first, (model,) = report.runs[0].models[0], models
    return f"{model.speed:.2f}x (±{model.noise:.0%}), {first.ms:.3g} ms → {model.ms:.3g} ms"


def _noisy(report: BenchReport, run: BenchRun) -> str:
    where = f"batch {run.batch}, threads {run.threads}: " if len(report.runs) > 1 else ""
    return f"{where}{noisy(run.noise)}"


def _models(report: BenchReport, names: Sequence[str]) -> Sheet:
    told = [
        (_model_values(run, index, names[index]), run.models[index].model)
        for run in report.runs
        for index in range(len(run.models))
    ]
    heads = _said(_MODELS, [values for values, _ in told])
    rows = (
        Row(tuple(_text(head.key, values[head.key]) for head in heads), values, path)
        for values, path in told
    )
    return Sheet(heads, tuple(rows), choices=("provider", "batch", "threads"))


def _model_values(run: BenchRun, index: int, name: str) -> dict[str, Any]:
    model = run.models[index]
    return {
        "layer": name,
        "short": shorten(name),
        "model": index,
        "provider": model.provider,
        "batch": run.batch,
        "threads": run.threads,
        "speed": model.speed,
        "noise": model.noise if index else None,  # the first one's is of its time, not its speed
        "ms": model.ms,
        "low": model.low,
        "high": model.high,
        "per_second": model.per_second,
        "peak_mb": None if model.peak_bytes is None else model.peak_bytes / 1e6,
    }


def _nodes(report: BenchReport) -> Sheet:
    total = report.total(0)
    values = [_node_values(node, total) for node in report.nodes]
    heads = _said(_NODES, values)
    rows = (Row(tuple(_text(head.key, row[head.key]) for head in heads), row) for row in values)
    return Sheet(heads, tuple(rows))


def _node_values(node: NodeTime, total: float) -> dict[str, Any]:
    both = len(node.us) > 1
    return {
        "layer": node.name,
        "short": shorten(node.name),
        "op": node.op,
        "us": node.us,
        "first_us": node.us[0],
        "second_us": node.us[-1] if both else None,
        "gain": node.gain if both else None,
        "share": (node.us[0] or 0.0) / total if total else None,
        "kernel": node.kernels[-1],
    }


def _said(heads: Sequence[Head], values: Sequence[dict[str, Any]]) -> tuple[Head, ...]:
    """The columns that hold something."""
    return tuple(head for head in heads if any(row[head.key] is not None for row in values))


def _text(key: str, value: Any) -> str:  # noqa: ANN401 - cells hold words and figures
    if value is None:
        return ""
    match key:
        case "speed":
            return f"{value:.2f}x"
        case "noise":
            return f"{value:.0%}"
        case "ms" | "low" | "high":
            return f"{value:.3g}"
        case "per_second":
            return f"{value:,.0f}"
        case "peak_mb" | "first_us" | "second_us":
            return f"{value:.1f}"
        case "gain":
            return f"{value:+.1f}"
        case "share":
            return f"{value:.1%}"
        case _:
            return str(value)
