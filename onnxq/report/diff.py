"""What changed from one receipt to another, as tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from onnxq.errors import printable
from onnxq.verify import Change, Changes, Figure, Moved

# The most rows to show of each table.
TOP = 20
# What a reader must know to judge the figures.
_NOTES = {
    ("source", ""): "the receipts are of different models",
    ("data", "test"): "accuracy was measured on different test samples",
    ("data", "calibration"): "they were calibrated on different samples",
}


def diff_view(found: Changes, *, top: int | None = TOP) -> RenderableType:
    """Figures first, then what was decided otherwise.

    Args:
        found: What changed.
        top: The most rows of a table; all if None.
    """
    parts: list[RenderableType] = []
    if found.figures:
        parts += [_figures(found.figures), Text()]
    if found.none:
        parts.append(Text("nothing was decided otherwise"))
    tables = (("graph", found.graph), ("nodes that changed", found.plan))
    parts += [_changes(title, changes, top) for title, changes in tables if changes]
    moves = (("ranges that moved", found.ranges), ("scales that moved", found.scales))
    parts += [_moved(title, moved, top) for title, moved in moves if moved]
    parts += [_changes("setting", found.setting, None)] if found.setting else []
    notes = (_NOTES.get((change.kind, change.where)) for change in found.setting)
    parts += [Text.from_markup(f"[yellow]note:[/] {note}") for note in notes if note]
    return Group(*parts)


def _table(title: str, *columns: str, numbers: Sequence[str] = ()) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left", title_style="bold"
    )
    for column in columns:
        right = column in numbers
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    return table


def _figures(figures: Sequence[Figure]) -> Table:
    numbers = ("before", "after", "change")
    table = _table("", "figure", *numbers, numbers=numbers)
    for figure in figures:
        style = {True: "green", False: "red", None: ""}[figure.improved]
        cells = (_number(figure.before), _number(figure.after))
        table.add_row(escape(printable(figure.name)), *cells, Text(change(figure), style=style))
    return table


def change(figure: Figure) -> str:
    """By how much a figure changed, with an arrow."""
    if figure.before is None or figure.after is None:
        return ""
    if figure.before == figure.after:
        return "="
    arrow = "↑" if figure.after > figure.before else "↓"
    return f"{arrow} {figure.after - figure.before:+.4g}"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value.is_integer() else f"{value:.6g}"


def _changes(title: str, changes: Sequence[Change], top: int | None) -> Table:
    table = _table(f"{title}: {len(changes)}", "what", "where", "before", "after")
    for one in changes[:top]:
        cells = (one.kind, one.where, one.before or "-", one.after or "-")
        table.add_row(*(escape(printable(cell)) for cell in cells))
    return _cut(table, changes, top)


def _moved(title: str, changes: Sequence[Moved], top: int | None) -> Table:
    numbers = ("before", "after", "change")
    table = _table(f"{title}: {len(changes)}", "tensor", *numbers, numbers=numbers)
    for moved in changes[:top]:
        ends = _ends(moved.before), _ends(moved.after)
        table.add_row(escape(printable(moved.tensor)), *ends, f"{moved.change:.1%}")
    return _cut(table, changes, top)


def _ends(ends: tuple[float, float]) -> str:
    low, high = ends
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def _cut(table: Table, rows: Sequence[object], top: int | None) -> Table:
    if top is not None and len(rows) > top:
        table.add_row(f"and {len(rows) - top} more", style="dim")
    return table
