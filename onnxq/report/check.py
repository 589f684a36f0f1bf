"""A check for people at a terminal: one screen."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from onnxq.errors import printable
from onnxq.report.checkwords import (
    VERDICTS,
    figure,
    sections,
    sentence,
    title,
    tolerance,
    verdict,
    worsening,
)
from onnxq.verify import Check

_STYLES = {"passed": "green", "failed": "red", "skipped": "dim"}


def check_view(check: Check) -> RenderableType:
    """Figures beside the baseline's, what changed since, and the verdict.

    Its lines are to be printed with ``soft_wrap``: wrapped, a part of a name could start a line.
    """
    parts: list[RenderableType] = []
    if check.gates:
        parts.append(_table(check))
        parts += [
            _line(f"{title(gate)}: {VERDICTS['skipped']}, {gate.note}", "dim")
            for gate in check.gates
            if gate.status == "skipped"
        ]
    for name, lines in sections(check):
        parts.append(_line(name, "bold"))
        parts += [_line(f"  {line}") for line in lines]
    if check.gates and check.changes.none:
        parts.append(_line("nothing changed since the baseline"))
    parts.append(_line(f"plan: {check.plan}"))
    parts += [Text.assemble(("note:", "yellow"), _line(f" {note}")) for note in check.notes]
    parts += [_line(sentence(gate), "red") for gate in check.gates if gate.status == "failed"]
    parts.append(_line(verdict(check), "green" if check.passed else "bold red"))
    return Group(*parts)


def _line(text: str, style: str = "") -> Text:
    return Text(printable(text), style=style)


def _table(check: Check) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for heading in ("baseline", "now", "worse by", "tolerance"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for gate in check.gates:
        table.add_row(
            title(gate), figure(gate, gate.before), figure(gate, gate.after), worsening(gate),
            tolerance(gate), Text(VERDICTS[gate.status], style=_STYLES[gate.status]),
        )  # fmt: skip
    return table
