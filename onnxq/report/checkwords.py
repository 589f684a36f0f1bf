"""The words of a check that every form of its report shares."""

from __future__ import annotations

from collections.abc import Sequence

from onnxq.report.text import size_text
from onnxq.verify import ASIDE, CONFIDENCE, Change, Check, CheckGate, Moved

# So many lines of each kind of change fit one screen; the rest is counted.
MOST_CHANGES = 5
_TITLES = {
    "metric": "metric",
    "agreement": "same answers",
    "sqnr": "SQNR",
    "size": "size",
    "latency": "time per float run",
    "coverage": "nodes quantized",
    "ranges": "ranges",
}
VERDICTS = {"passed": "kept", "failed": "worse", "skipped": "not compared"}


def title(gate: CheckGate) -> str:
    """What a gate is about."""
    return _TITLES[gate.name]


def figure(gate: CheckGate, value: float | None) -> str:
    """A figure in the unit of its gate; empty without one."""
    if value is None:
        return ""
    match gate.name:
        case "metric":
            return f"{value:.4f}"
        case "sqnr":
            return f"{value:.1f} dB"
        case "size":
            return size_text(round(value))
        case "latency":
            return f"{value:.2f}"
        case _:
            return f"{value:.2%}"


def worsening(gate: CheckGate) -> str:
    """How much worse a figure is, with its sign; empty when it was not measured."""
    return "" if gate.worse is None else _amount(gate, gate.worse, "+")


def tolerance(gate: CheckGate) -> str:
    """The most that it may be worse."""
    return _amount(gate, gate.limit, "")


def _amount(gate: CheckGate, value: float, sign: str) -> str:
    value = value + 0.0  # no -0
    if gate.name == "sqnr":
        return f"{value:{sign}.1f} dB"
    if gate.name in ("metric", "agreement", "coverage"):
        return f"{value * 100:{sign}.2f} points"
    return f"{value:{sign}.1%}"


def sentence(gate: CheckGate) -> str:
    """A gate as one sentence, for an annotation or the text of a failure."""
    if gate.worse is None:
        return f"{title(gate)}: {gate.note}"
    before, after = figure(gate, gate.before), figure(gate, gate.after)
    change = f"{before} to {after}, " if before and after else ""
    if gate.worse <= 0:
        return f"{title(gate)}: {change}no worse"
    proven = f", {sure(gate)}" if gate.bound is not None else ""
    note = f"; {gate.note}" if gate.note else ""
    return (
        f"{title(gate)}: {change}worse by {worsening(gate)} (tolerance {tolerance(gate)})"
        f"{proven}{note}"
    )


def sure(gate: CheckGate) -> str:
    """By how much a figure is worse for sure; empty where that is no question of chance."""
    if gate.bound is None:
        return ""
    how = f"with {CONFIDENCE:.0%} confidence" if gate.name != "latency" else "whatever chance did"
    return f"at least {_amount(gate, gate.bound, '+')} {how}"


def verdict(check: Check) -> str:
    """What came out, in one sentence."""
    if not check.gates:
        return "this is the first baseline: there is nothing to compare with"
    failed = [gate.name for gate in check.gates if gate.status == "failed"]
    compared = sum(gate.status != "skipped" for gate in check.gates)
    if not failed:
        return f"no worse than the baseline in all {compared} figures that can be compared"
    return f"worse than the baseline in {len(failed)} of {compared} figures: {', '.join(failed)}"


def change_lines(changes: Sequence[Change], most: int = MOST_CHANGES) -> list[str]:
    """Changes that count as lines, one for each or for many of a kind."""
    kinds: dict[str, list[Change]] = {}
    for change in (change for change in changes if change.kind not in ASIDE):
        kinds.setdefault(change.kind, []).append(change)
    lines = []
    for kind, found in kinds.items():
        if kind == "weights":
            lines.append(_weights_line(found))
            continue
        lines += [_change_line(change) for change in found[:most]]
        if len(found) > most:
            lines.append(f"{kind}: and {len(found) - most} more")
    return lines


def _weights_line(found: Sequence[Change]) -> str:
    names = ", ".join(change.where for change in found[:MOST_CHANGES])
    more = f" and {len(found) - MOST_CHANGES} more" if len(found) > MOST_CHANGES else ""
    return f"weights: of {names}{more}"


def _change_line(change: Change) -> str:
    where = f"{change.kind} {change.where}".strip()
    match change.kind:
        case "added":
            return f"{where} ({change.after})"
        case "removed":
            return f"{where} ({change.before})"
        case _:
            return f"{where}: {change.before or 'none'} to {change.after or 'none'}"


def range_lines(moves: Sequence[Moved], most: int = MOST_CHANGES) -> list[str]:
    """The ranges that moved most, as lines."""
    lines = [  # quoted: a line that starts with ``::`` is a command to GitHub's runner
        f"'{m.tensor}': {_ends(m.before)} to {_ends(m.after)}, {m.change:.0%} of its width"
        for m in moves[:most]
    ]
    return [*lines, f"and {len(moves) - most} more"] if len(moves) > most else lines


def _ends(ends: tuple[float, float]) -> str:
    return f"{ends[0]:.4g}..{ends[1]:.4g}"


def sections(check: Check) -> list[tuple[str, list[str]]]:
    """What changed, as titles with lines; without those where nothing did."""
    found = check.changes
    told = [
        ("graph", change_lines(found.graph)),
        ("plan", change_lines(found.plan)),
        ("ranges that moved most", range_lines(found.ranges)),
        ("recipe, data and machine", change_lines(found.setting)),
    ]
    return [(name, lines) for name, lines in told if lines]
