"""Two models side by side, and where the error of the second one enters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from onnxq.report.sensitivity import SAME_DB, db, line, plain
from onnxq.report.text import SAME_SPEED, size_text
from onnxq.verify import (
    MOST_NOISE,
    MUCH_NOISE,
    ROUNDING_DB,
    Growth,
    LayerError,
    ModelComparison,
    OutputFacts,
    Speed,
)


@dataclass(frozen=True)
class Column:
    """A figure of every layer: its title, what it says, and how it is written."""

    title: str
    meaning: str
    text: Callable[[Growth, LayerError], str]
    number: bool = True


COLUMNS = (
    Column(
        "layer", "The layer of the float model, or its input.", lambda _, x: named(x), number=False
    ),
    Column("operator", "Its operator.", lambda _, x: x.op, number=False),
    Column("before dB", "SQNR of the worst tensor that it reads.", lambda _, x: _db(x.before_db)),
    Column("behind dB", "SQNR of what it makes.", lambda _, x: _db(x.sqnr_db)),
    Column(
        "new error dB", "Signal to what the layer itself adds to the error.",
        lambda _, x: "none" if x.new_db >= ROUNDING_DB else _db(x.new_db),
    ),
    Column(
        "alone dB", "SQNR of the worst output when this new error alone is there.",
        lambda _, x: _db(x.alone_db),
    ),
    Column(
        "share", "What the new error alone makes, of all noise at the outputs.",
        lambda growth, x: _percent(growth.share(x)),
    ),
)  # fmt: skip


def named(layer: LayerError) -> str:
    """The layer's name; of an input, that of the tensor."""
    return layer.node or layer.tensor


def _db(value: float | None) -> str:
    return "" if value is None else db(value)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def headline(found: ModelComparison) -> str:
    """Where the error enters, in one sentence."""
    growth = found.growth
    if growth is None:
        return "Layers were not compared."
    worst = growth.worst
    if worst is None:
        return "No error enters in any layer that was compared."
    share, what = growth.share(worst), "input " if not worst.node else ""
    where = f"{what}'{named(worst)}'"
    before = "" if worst.before_db is None else f"{_level(worst.before_db)} before it, "
    change = f"{before}{_level(worst.sqnr_db)} behind it"
    if share is None:  # no output is of floats
        return f"The most new error by its signal is at {where}: {change}; its harm is not known."
    if share >= MOST_NOISE:
        return f"The error enters at {where}: {change}."
    return (
        f"No layer makes most of the error; the most harm comes from {where}: {change}, "
        f"{_percent(share)} of the noise at the outputs."
    )


def _level(value: float) -> str:
    return "no error" if value >= SAME_DB else f"{value:.1f} dB"


def stands_out(growth: Growth, layer: LayerError) -> bool:
    """Whether a layer alone makes much of the noise at the outputs."""
    return (growth.share(layer) or 0.0) >= MUCH_NOISE


def shown_layers(growth: Growth, top: int | None) -> tuple[LayerError, ...]:
    """The layers that add error, in the graph's order: all, or those that do the most harm."""
    told = [layer for layer in growth.layers if layer.new_db < ROUNDING_DB]
    if top is not None:
        told.sort(key=lambda x: (SAME_DB if x.alone_db is None else x.alone_db, x.new_db))
        told = told[:top]
    kept = {layer.tensor for layer in told}
    return tuple(layer for layer in growth.layers if layer.tensor in kept)


def models_view(found: ModelComparison, *, top: int | None = None) -> RenderableType:
    """The two models, then their layers.

    Args:
        found: What was found.
        top: The layers to show, those that do the most harm; all that add error if None.
    """
    parts: list[RenderableType] = [_models(found)]
    parts += [Text(text) for text in output_lines(found)]
    if found.growth is not None:
        parts += [Text(), Text(headline(found), style="bold"), _layers(found.growth, top)]
        parts.append(Text(left_out(found.growth, top), style="dim"))
    parts += [Text.from_markup(f"[yellow]note:[/] {escape(note)}") for note in found.notes]
    return Group(*parts)


def figures(found: ModelComparison) -> list[tuple[str, str, str, str]]:
    """What both models have: name, first, second, change."""
    first, second = size_text(found.reference.bytes), size_text(found.other.bytes)
    rows = [("size", first, second, f"{found.size_ratio:.2f}x")]
    if (metric := found.metric) is not None:
        drop = metric.output - metric.source
        change = f"{drop * 100:+.2f} points" if metric.name == "top1" else f"{drop:+.4f}"
        rows.append((metric.name, f"{metric.source:.4f}", f"{metric.output:.4f}", change))
    if (speed := found.speed) is not None:
        threads = "1 thread" if speed.threads == 1 else f"{speed.threads} threads"
        title = f"latency, batch {speed.batch}, {threads}"
        times = f"{speed.float_ms:.3g} ms", f"{speed.other_ms:.3g} ms"
        rows.append((title, *times, _speed(speed)))
    return rows


def _speed(speed: Speed) -> str:
    told = f"{speed.ratio:.2f}x (±{speed.noise:.0%})"
    differs = abs(speed.ratio - 1) > max(speed.noise, SAME_SPEED)
    return f"{told}: slower" if differs and speed.ratio < 1 else told


def output_lines(found: ModelComparison) -> list[str]:
    """How far each output is off, a line each."""
    return [
        f"output {name}: {_output(facts, found.max_errors.get(name), found.samples)}"
        for name, facts in found.outputs.items()
    ]


def _output(facts: OutputFacts, largest: float | None, samples: int) -> str:
    parts = []
    if facts.sqnr_db is not None and facts.cosine is not None:
        same = facts.sqnr_db >= SAME_DB
        parts.append("the same" if same else f"SQNR {facts.sqnr_db:.1f} dB")
        parts.append(f"cosine {facts.cosine:.6f}")
    if largest is not None:
        parts.append(f"largest error {largest:.3g}")
    if facts.top1_agreement is not None:
        parts.append(f"same top class on {facts.top1_agreement:.2%} of {samples} samples")
    if facts.equal is not None:
        parts.append(f"{facts.equal:.2%} of its entries are equal")
    return ", ".join(parts) or "nothing to compare"


def _models(found: ModelComparison) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for file in (found.reference, found.other):
        table.add_column(escape(file_name(file.path)), justify="right", overflow="fold")
    table.add_column("change", justify="right")
    for row in figures(found):
        table.add_row(*map(escape, row))
    return table


def file_name(path: str) -> str:
    """What a model is called by."""
    return PurePath(path).name or "a model in memory"


def _layers(growth: Growth, top: int | None) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in COLUMNS:
        first = column.title == "layer"
        table.add_column(
            "\n".join(column.title.split()), justify="right" if column.number else "left",
            no_wrap=not first, overflow="fold", min_width=16 if first else None,
        )  # fmt: skip
    for layer in shown_layers(growth, top):
        style = "bold yellow" if stands_out(growth, layer) else ""
        table.add_row(*(Text(column.text(growth, layer)) for column in COLUMNS), style=style)
    return table


def left_out(growth: Growth, top: int | None) -> str:
    """What the table does not hold, and what it rests on, in one line."""
    shown = len(shown_layers(growth, top))
    adding = len(shown_layers(growth, None))
    silent = len(growth.layers) - adding
    parts = [f"{growth.samples} samples"]
    parts += [f"{adding - shown} more layers with less harm"] if adding > shown else []
    parts += [f"{silent} more add no error"] if silent else []
    if growth.unmatched:
        parts.append(f"{growth.unmatched} have no counterpart: their error counts for those behind")
    return "; ".join(parts)


def models_markdown(found: ModelComparison, *, top: int | None = None) -> str:
    """The same for a page or a comment.

    Args:
        found: What was found.
        top: As in ``models_view``.
    """
    names = [plain(file_name(file.path)) for file in (found.reference, found.other)]
    lines = [f"# {names[1]} against {names[0]}", ""]
    lines += [f"**{plain(headline(found))}**", ""] if found.growth is not None else []
    lines += [line(["", *names, "change"]), line(["---", "---:", "---:", "---:"])]
    lines += [line(plain(cell) for cell in row) for row in figures(found)]
    lines += ["", *(f"- {plain(text)}" for text in (*output_lines(found), *found.notes))]
    if (growth := found.growth) is not None:
        lines += ["", line(column.title for column in COLUMNS)]
        lines.append(line("---:" if column.number else "---" for column in COLUMNS))
        for layer in shown_layers(growth, top):
            mark = "**" if stands_out(growth, layer) else ""
            cells = (plain(column.text(growth, layer)) for column in COLUMNS)
            lines.append(line(f"{mark}{cell}{mark}" if cell else "" for cell in cells))
        lines += ["", plain(left_out(growth, top))]
    return "\n".join([*lines, ""])
