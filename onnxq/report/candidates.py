"""What a search tried, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from onnxq.verify import Candidate


def candidates_table(candidates: Sequence[Candidate], metric: str | None) -> Table | None:
    """Every plan that a search tried, with the one that it chose marked.

    Args:
        candidates: Forms of the model; those that no search tried are left out.
        metric: Name of the metric; None without labels.

    Returns:
        The table; None where nothing was searched.
    """
    tried = [candidate for candidate in candidates if candidate.within is not None]
    if not tried:
        return None
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("tried")
    table.add_column("nodes")
    for title in ("speed", "SQNR", "same class", *([metric] if metric else [])):
        table.add_column(title, justify="right")
    table.add_column("")
    for candidate in tried:
        figures = [
            "" if candidate.ratio is None else f"{candidate.ratio:.2f}x",
            "" if candidate.sqnr_db is None else f"{candidate.sqnr_db:.1f} dB",
            "" if candidate.agreement is None else f"{candidate.agreement:.2%}",
        ]
        if metric:
            figures.append("" if candidate.metric is None else f"{candidate.metric:.4f}")
        verdict = "" if candidate.within else "[red]loses too much[/]"
        if candidate.chosen:
            verdict = "[green]chosen[/]" if candidate.within else "[yellow]chosen[/]"
        table.add_row(escape(candidate.name), _nodes(candidate), *figures, verdict)
    return table


def _nodes(candidate: Candidate) -> str:
    counts = {name: count for name, count in candidate.nodes.items() if name != "float"}
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "all float"
