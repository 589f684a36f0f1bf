"""What calibration saw, as a table with a small picture of every distribution."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from onnxq.calibrate import PICTURE, Statistics, TensorStatistics

_BARS = "▁▂▃▄▅▆▇█"
_ASCII_BARS = ".:-=+*#@"
MOST_UNSETTLED = 5
WIDE = 100


def calibration_table(statistics: Statistics, *, width: int = 120, unicode: bool = True) -> Table:
    """One line per tensor.

    Args:
        statistics: What was found.
        width: Columns of the terminal; a narrow one shows no exact ends.
        unicode: Whether the terminal shows block characters.
    """
    grid = statistics.grid
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        caption=f"ranges by {statistics.observer} for {grid.bits} bits"
        + (", symmetric" if grid.symmetric else "")
        + "; clipped: share of the values outside; SQNR in dB, of the tensor alone; moved: in the "
        "last tenth of the samples",
        caption_justify="left",
    )
    wide = width >= WIDE
    table.add_column("tensor", overflow="fold")
    ends = ("min", "max") if wide else ()
    for title, least in (
        ("range", 13), *((end, 5) for end in ends), ("clipped", 7), ("SQNR", 4), ("moved", 5)
    ):  # fmt: skip
        table.add_column(title, justify="right", no_wrap=True, min_width=least)
    table.add_column("min … max" if unicode else "min to max", no_wrap=True, min_width=PICTURE)
    for name, tensor in statistics.tensors.items():
        exact = (f"{tensor.min:.3g}", f"{tensor.max:.3g}") if wide else ()
        table.add_row(escape(name), _chosen(tensor), *exact, *_figures(tensor),
                      Text(sparkline(tensor.picture, unicode=unicode), style="cyan"))  # fmt: skip
    return table


def _chosen(tensor: TensorStatistics) -> str:
    if not tensor.finite:
        return "[yellow]inf or mask: float[/]"
    return f"{tensor.lo:.3g} … {tensor.hi:.3g}"


def _figures(tensor: TensorStatistics) -> tuple[str, str, str]:
    clipped = "" if tensor.clipped is None else f"{tensor.clipped * 100:.3f}%"
    sqnr = "" if tensor.sqnr_db is None else f"{tensor.sqnr_db:.1f}"
    moved = "" if tensor.moved is None else f"{tensor.moved * 100:.1f}%"
    return clipped, sqnr, moved


def sparkline(shares: tuple[float, ...], *, unicode: bool = True) -> str:
    """A picture of a distribution: the square root of each share, so that tails can be seen."""
    bars = _BARS if unicode else _ASCII_BARS
    top = max(shares, default=0.0)
    return "".join(
        bars[min(int((share / top) ** 0.5 * len(bars)), len(bars) - 1)] if share > 0 else " "
        for share in shares
    )


def calibration_verdict(statistics: Statistics) -> RenderableType:
    """Whether the samples were enough."""
    if not statistics.tensors:
        return Text("no tensor was observed: there is nothing to quantize, or all were empty")
    seen = f"{statistics.samples} samples, {len(statistics.tensors)} tensors"
    if statistics.moved is None:
        return Text(f"{seen}; too few samples to tell whether they were enough")
    line = f"{seen}; over the last tenth of the samples, ranges moved by at most "
    late = statistics.unsettled
    if not late:
        return Text.from_markup(f"{line}{statistics.moved:.1%}: [green]enough[/]")
    told = ", ".join(
        f"{escape(name)} {statistics.tensors[name].moved:.1%}" for name in late[:MOST_UNSETTLED]
    )
    more = f" and {len(late) - MOST_UNSETTLED} more" if len(late) > MOST_UNSETTLED else ""
    advice = f"[yellow]still moving:[/] {told}{more}; more samples may help (--resume)"
    return Group(Text.from_markup(f"{line}{statistics.moved:.1%}"), Text.from_markup(advice))
