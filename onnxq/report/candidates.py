"""What a search tried, as a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from onnxq.verify import Candidate


def candidates_table(candidates: Sequence[Candidate], metric: str | None) -> Table | None:
    """Every plan that a search tried, with the one that it chose marked.

    Args:
        candidates: Forms of the model; those that no search tried are left out.
        metric: Name of the metric; None without labels.

    Returns:
        The table; None where nothing was searched.
    """
    titles, rows = tried_rows(candidates, metric)
    if not rows:
        return None
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, title in enumerate(titles):
        figure = 1 < index < len(titles) - 1
        table.add_column(title, justify="right" if figure else "left", no_wrap=index > 1)
    tried = [candidate for candidate in candidates if candidate.within is not None]
    for candidate, (*texts, verdict) in zip(tried, rows, strict=True):
        color = "green" if candidate.within else "yellow" if candidate.chosen else "red"
        table.add_row(*map(escape, texts), Text(verdict, style=color))
    return table


def tried_rows(
    candidates: Sequence[Candidate], metric: str | None
) -> tuple[list[str], list[list[str]]]:
    """Titles, and a row for every plan that a search tried; no rows where nothing was searched."""
    tried = [candidate for candidate in candidates if candidate.within is not None]
    figures = {title: [show(candidate) for candidate in tried] for title, show in _FIGURES.items()}
    figures[metric or ""] = [_number(candidate.metric, "{:.4f}") for candidate in tried]
    shown = {title: texts for title, texts in figures.items() if any(texts)}
    rows = [
        [form.name, _nodes(form), *(texts[row] for texts in shown.values()), _verdict(form)]
        for row, form in enumerate(tried)
    ]
    return ["tried", "nodes", *shown, ""], rows


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


_FIGURES: dict[str, Callable[[Candidate], str]] = {
    "speed": lambda candidate: _number(candidate.ratio, "{:.2f}x"),
    "SQNR": lambda candidate: _number(candidate.sqnr_db, "{:.1f} dB"),
    "same class": lambda candidate: _number(candidate.agreement, "{:.1%}"),
}
# Precisions, as short as a column takes them.
_SHORT = {"int8-dynamic": "dynamic", "int8-weights": "w8", "int4-weights": "w4"}


def _verdict(candidate: Candidate) -> str:
    if candidate.chosen:
        return "chosen"
    return "" if candidate.within else "too lossy"


def _nodes(candidate: Candidate) -> str:
    counts = {name: count for name, count in candidate.nodes.items() if name != "float"}
    listed = (f"{count} {_SHORT.get(name, name)}" for name, count in counts.items())
    return ", ".join(listed) or "all float"
