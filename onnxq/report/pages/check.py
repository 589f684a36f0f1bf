"""A check as a page: every figure beside the baseline's, and all that changed since."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from onnxq.report.checkwords import (
    VERDICTS,
    figure,
    sure,
    title,
    tolerance,
    verdict,
    worsening,
)
from onnxq.report.html import Head, Row, Sheet, page_of, shorten
from onnxq.verify import Change, Check, CheckGate, Moved

_HEADS = (
    Head("where", "what", "The node, tensor or key.", number=False),
    Head("part", "part", "Graph, plan, ranges, scales, or setting.", number=False),
    Head("kind", "change", "What sort of thing changed.", number=False),
    Head("before", "baseline", "What it was.", number=False),
    Head("after", "now", "What it is.", number=False),
    Head("moved", "moved by", "Of a range, the farther end's way by the width before; of scales, "
         "the largest relative change."),
)  # fmt: skip
# A bullet reaches from as much better as is tolerated to twice the tolerance, in these units.
_WIDTH, _EDGE = 170.0, 5.0


def check_page(check: Check) -> str:
    """One self-contained HTML page of a check.

    The verdict, every gate with its figures, its interval and its tolerance, and all that changed
    since the baseline, to sort and to filter.

    Args:
        check: What was found.

    Raises:
        RuntimeFailure: The extra ``report`` is not installed.
    """
    changes = list(_changes(check))
    rows = tuple(
        Row(tuple(_text(row[head.key]) for head in _HEADS), row, row["where"]) for row in changes
    )
    return page_of(
        "check",
        sheets={"changes": Sheet(_HEADS, rows, choices=("part", "kind"))} if rows else {},
        check=check,
        name=PurePath(check.model).name or "a model in memory",
        verdict=verdict(check),
        gates=[_gate(gate) for gate in check.gates],
    )


def _gate(gate: CheckGate) -> dict[str, Any]:
    return {
        "title": title(gate),
        "before": figure(gate, gate.before),
        "after": figure(gate, gate.after),
        "worse": worsening(gate),
        "tolerance": tolerance(gate),
        "status": gate.status,
        "verdict": VERDICTS[gate.status],
        "bullet": _bullet(gate),
        "why": "; ".join(text for text in (sure(gate), gate.note) if text),
    }


def _bullet(gate: CheckGate) -> dict[str, float] | None:
    """Where figures stand along a bullet: no change, the tolerance, the worsening, its bound."""
    if gate.worse is None or gate.status == "skipped":
        return None
    unit = gate.limit or max(abs(gate.worse), abs(gate.bound or 0.0)) or 1.0

    def place(value: float) -> float:
        wanted = _WIDTH * (value / unit + 1) / 3
        return round(min(max(wanted, _EDGE), _WIDTH - _EDGE), 1)

    found = {"zero": place(0.0), "limit": place(gate.limit), "value": place(gate.worse)}
    return found | ({"bound": place(gate.bound)} if gate.bound is not None else {})


def _text(value: str | float | None) -> str:
    if value is None:
        return ""
    return shorten(value) if isinstance(value, str) else f"{value:.0%}"


def _changes(check: Check) -> Iterator[dict[str, Any]]:
    found = check.changes
    for part, changes in (("graph", found.graph), ("plan", found.plan)):
        yield from (_change(part, change) for change in changes)
    for part, moves in (("ranges", found.ranges), ("scales", found.scales)):
        yield from (_moved(part, move) for move in moves)
    yield from (_change("setting", change) for change in found.setting)


def _change(part: str, change: Change) -> dict[str, Any]:
    return {
        "where": change.where or change.kind,
        "part": part,
        "kind": change.kind,
        "before": change.before,
        "after": change.after,
        "moved": None,
    }


def _moved(part: str, move: Moved) -> dict[str, Any]:
    before, after = (f"{low:.4g} … {high:.4g}" for low, high in (move.before, move.after))
    return {
        "where": move.tensor,
        "part": part,
        "kind": "moved",
        "before": before,
        "after": after,
        "moved": move.change,
    }
