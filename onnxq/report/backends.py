"""Execution providers, and how fast a model runs on each, as tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from onnxq.report.bench import noisy
from onnxq.runtime.backends import Backend, BackendReport, BackendTime

# Nodes that are named; the others are counted.
_NAMED = 5


def backends_view(backends: Sequence[Backend]) -> RenderableType:
    """What runs here, and what is missing for the others."""
    here = [backend for backend in backends if backend.runs]
    parts: list[RenderableType] = [_here(here)]
    if elsewhere := [backend for backend in backends if not backend.runs]:
        parts.append(_elsewhere(elsewhere))
    said = "int8, fp16, int4: what runs fused there, by onnxq's tables; sources are in --json"
    return Group(*parts, Text(said, style="dim"))


def comparison_view(report: BackendReport) -> RenderableType:
    """One model on all providers, the fastest first."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("provider", no_wrap=True)
    for title in ("speed", "median", "on the CPU provider"):
        table.add_column(title, justify="right", no_wrap=True)
    for found in report.backends:
        if found.ms is not None:
            noise = f" (±{found.noise:.0%})" if found.noise is not None else ""
            speed = f"{found.speed:.2f}x{noise}" if noise else "1"
            table.add_row(
                escape(found.name), speed, f"{found.ms:.3g} ms", _counted(found, report.nodes)
            )
        else:
            table.add_row(escape(found.name), "-", "-", "-", style="dim")
    parts: list[RenderableType] = [table, Text(_how(report))]
    parts += [Text(note, style="yellow") for note in _notes(report.backends)]
    if report.too_noisy:
        parts.append(Text(noisy(report.noise), style="yellow"))
    parts.append(Text.from_markup(f"best: [bold]{escape(report.best)}[/] (--ep {report.best})"))
    return Group(*parts)


def _here(backends: Iterable[Backend]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("provider", no_wrap=True)
    table.add_column("device", overflow="fold")
    table.add_column("version", overflow="fold")
    for title in ("int8", "fp16", "int4"):
        table.add_column(title, no_wrap=True)
    for backend in backends:
        runs = (backend.int8, backend.fp16, backend.int4)
        table.add_row(
            escape(backend.name), escape(backend.device), escape(backend.version), *map(_yes, runs)
        )
    return table


def _elsewhere(backends: Iterable[Backend]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("not here", no_wrap=True)
    table.add_column("device", overflow="fold")
    table.add_column("to install", overflow="fold")
    for backend in backends:
        what = backend.install if backend.why_not == "not installed" else backend.why_not
        table.add_row(escape(backend.name), escape(backend.device), escape(what))
    return table


def _yes(fact: bool | None) -> str:
    return "?" if fact is None else "yes" if fact else "no"


def _how(report: BackendReport) -> str:
    threads = "1 thread" if report.threads == 1 else f"{report.threads} threads"
    feed = "made-up samples" if report.made_up else "samples of the data"
    return f"batch {report.batch} ({feed}), {threads}, {report.rounds} interleaved rounds"


def _counted(found: BackendTime, nodes: int) -> str:
    if found.name == "cpu":
        return f"all {nodes} nodes"
    if found.fallback is None:
        return "not told"
    return f"{len(found.fallback)} of {nodes} nodes" if found.fallback else "none"


def _notes(backends: Iterable[BackendTime]) -> Iterable[str]:
    for found in backends:
        if found.why_not:
            yield f"{found.name}: {found.why_not}"
        elif found.fallback:
            more = len(found.fallback) - _NAMED
            named = ", ".join(found.fallback[:_NAMED])
            tail = f" and {more} more" if more > 0 else ""
            yield f"{found.name}: on the CPU provider instead: {named}{tail}"
