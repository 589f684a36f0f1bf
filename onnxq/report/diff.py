"""What changed from one receipt to another, as tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from onnxq.verify import Changed, Figure, Moved, NodeChange, ReceiptDiff

# The most nodes, ranges and scales to show of each.
TOP = 20


def diff_view(found: ReceiptDiff, *, top: int | None = TOP) -> RenderableType:
    """Figures first, then what was decided otherwise.

    Args:
        found: What changed.
        top: The most rows of a table; all if None.
    """
    parts: list[RenderableType] = []
    if found.figures:
        parts += [_figures(found.figures), Text()]
    if found.empty:
        parts.append(Text("nothing was decided otherwise"))
    nodes = (
        ("nodes that changed", found.nodes),
        ("nodes that only the first has", found.only_before),
        ("nodes that only the second has", found.only_after),
    )
    parts += [_nodes(title, changes, top) for title, changes in nodes if changes]
    moved = (("ranges that moved", found.ranges), ("scales that moved", found.scales))
    parts += [_moved(title, changes, top) for title, changes in moved if changes]
    keys = (("recipe", found.recipe), ("environment", found.versions))
    parts += [_changed(title, changes) for title, changes in keys if changes]
    parts += [Text.from_markup(f"[yellow]note:[/] {escape(note)}") for note in found.notes]
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
    table = _table("", "figure", "before", "after", "change", numbers=("before", "after", "change"))
    for figure in figures:
        style = {True: "green", False: "red", None: ""}[figure.improved]
        cells = (_number(figure.before), _number(figure.after))
        table.add_row(escape(figure.name), *cells, Text(change(figure), style=style))
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


def _nodes(title: str, changes: Sequence[NodeChange], top: int | None) -> Table:
    table = _table(f"{title}: {len(changes)}", "node", "operator", "precision", "why")
    for node in changes[:top]:
        kinds = [kind.value for kind in (node.before, node.after) if kind is not None]
        told = dict.fromkeys(kinds) if len(kinds) > 1 else kinds
        why = node.why_after or (f"before: {node.why_before}" if node.why_before else "")
        table.add_row(escape(node.name), escape(node.op), " → ".join(told), escape(why))
    return _cut(table, changes, top)


def _moved(title: str, changes: Sequence[Moved], top: int | None) -> Table:
    numbers = ("before", "after", "change")
    table = _table(f"{title}: {len(changes)}", "tensor", *numbers, numbers=numbers)
    for moved in changes[:top]:
        far = "other channels" if moved.change is None else f"{moved.change:.1%}"
        table.add_row(escape(moved.tensor), _ends(moved.before), _ends(moved.after), far)
    return _cut(table, changes, top)


def _ends(ends: tuple[float, float]) -> str:
    low, high = ends
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def _changed(title: str, changes: Sequence[Changed]) -> Table:
    table = _table(title, "key", "before", "after")
    for one in changes:
        cells = ("-" if value is None else escape(value) for value in (one.before, one.after))
        table.add_row(escape(one.key), *cells)
    return table


def _cut(table: Table, rows: Sequence[object], top: int | None) -> Table:
    if top is not None and len(rows) > top:
        table.add_row(f"and {len(rows) - top} more", style="dim")
    return table
