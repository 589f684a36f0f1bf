"""Rich tables that answer the user's question."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from onnxq.ops import Census
from onnxq.plan import QuantPlan
from onnxq.report.candidates import candidates_table
from onnxq.types import Precision, Reason
from onnxq.verify import CONFIDENCE, Gate, LatencyFacts, Measured, MetricFacts, Receipt

# A difference in speed that nobody notices, however surely it was measured.
SAME_SPEED = 0.02
MOST_REASONS = 5
_FLOATS = (Precision.FLOAT, Precision.FP16)
# Titles of the table of the model's forms.
FORMS = ("", "float", "prepared float", "output", "change")
# What a node of a precision does, and what several do, behind their number.
_HOW = {
    Precision.FP16: ("computes in float16", "compute in float16"),
    Precision.INT16: ("with 16 bit activations",) * 2,
    Precision.INT8_DYNAMIC: (
        "quantizes its inputs while it runs", "quantize their inputs while they run",
    ),
    Precision.INT8_WEIGHTS: ("with int8 weights",) * 2,
    Precision.INT4_WEIGHTS: ("with 4 bit weights",) * 2,
}  # fmt: skip


def receipt_view(receipt: Receipt) -> RenderableType:
    """What was made, as a short table with its gates and notes."""
    measured = receipt.measured
    parts: list[RenderableType] = [_comparison(receipt), Text()]
    parts += [Text.from_markup(line) for line in accuracy_lines(measured)]
    parts += [Text.from_markup(line) for line in node_lines(receipt)]
    metric = measured.metric.name if measured.metric is not None else None
    if table := candidates_table(measured.candidates, metric):
        parts.append(table)
    if measured.prepared.notes:
        steps = escape("; ".join(measured.prepared.notes))
        parts.append(Text.from_markup(f"[dim]prepared:[/] {steps}"))
    parts += [Text.from_markup(f"[yellow]note:[/] {escape(note)}") for note in measured.notes]
    parts += [Text.from_markup(gate_line(gate)) for gate in receipt.gates]
    return Group(*parts)


def _comparison(receipt: Receipt) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, title in enumerate(FORMS):
        table.add_column(title, justify="right" if index else "left")
    for row in form_rows(receipt):
        table.add_row(*row)
    return table


def form_rows(receipt: Receipt) -> list[list[str]]:
    """What is told of each of ``FORMS``, in rich's markup."""
    measured = receipt.measured
    sizes = (receipt.source.bytes, measured.prepared.bytes, receipt.output.bytes)
    rows = [["size", *map(size_text, sizes), f"{measured.size_ratio:.2f}x"]]
    if measured.metric is not None:
        rows.append(_metric_row(measured.metric))
    if measured.latency is not None:
        rows.append(_latency_row(measured.latency, measured.prepared.ms))
    return rows


def _metric_row(metric: MetricFacts) -> list[str]:
    drop = metric.output - metric.source
    change = f"{drop * 100:+.2f} points" if metric.name == "top1" else f"{drop:+.4f}"
    return [
        f"{escape(metric.name)} ({metric.samples} samples)",
        f"{metric.source:.4f}", "", f"{metric.output:.4f}", change,
    ]  # fmt: skip


def _latency_row(latency: LatencyFacts, prepared_ms: float | None) -> list[str]:
    threads = "1 thread" if latency.threads == 1 else f"{latency.threads} threads"
    prepared = f"{prepared_ms:.3g} ms" if prepared_ms is not None else ""
    return [
        f"latency, batch {latency.batch}, {threads}",
        f"{latency.source_ms:.3g} ms",
        prepared,
        f"{latency.output_ms:.3g} ms",
        f"{_speed(latency)} (±{latency.spread:.0%})",
    ]


def _speed(latency: LatencyFacts) -> str:
    ratio = latency.ratio_prepared
    if is_slower(latency):
        return f"[yellow]{ratio:.2f}x: slower[/]"
    return f"{ratio:.2f}x as fast" if _differs(latency) else f"{ratio:.2f}x, as fast"


def is_slower(latency: LatencyFacts) -> bool:
    """Whether the output is slower than the prepared float model, beyond chance and notice."""
    return latency.ratio_prepared < 1 and _differs(latency)


def _differs(latency: LatencyFacts) -> bool:
    return abs(latency.ratio_prepared - 1) > max(latency.noise, SAME_SPEED)


def accuracy_lines(measured: Measured) -> list[str]:
    """How far every output is from the float model's, in rich's markup."""
    lines = []
    for name, facts in measured.outputs.items():
        parts = []
        if facts.sqnr_db is not None and facts.cosine is not None:
            parts.append(f"SQNR {facts.sqnr_db:.1f} dB, cosine {facts.cosine:.6f}")
        if facts.top1_agreement is not None:
            parts.append(
                f"same top class on {facts.top1_agreement:.2%} of {measured.samples} samples"
            )
        if facts.equal is not None:
            parts.append(f"{facts.equal:.2%} of its entries are equal")
        line = f"output [cyan]{escape(name)}[/]: {', '.join(parts) or 'nothing to compare'}"
        lines.append(line)
    return lines


def node_lines(receipt: Receipt) -> list[str]:
    """How many nodes are quantized, and which of them not as was asked for, in rich's markup."""
    plan, coverage = receipt.plan, receipt.measured.int8_coverage
    lines = []
    if plan.empty:
        lines.append(f"[yellow]nothing to quantize[/]: {_summary(plan)}; the file was copied")
        return lines
    counts = {precision: plan.count(precision) for precision in _HOW}
    told = [f"{n} {_HOW[precision][n > 1]}" for precision, n in counts.items() if n]
    if coverage is None:
        if whole := plan.count(Precision.INT8):
            told.insert(0, f"{whole} as int8")
        lines.append(f"of {len(plan.nodes)} nodes {', '.join(told)} ({plan.target})")
    else:
        lines.append(
            f"int8: {coverage.int8} of {coverage.wanted} planned nodes really run as int8, of "
            f"{len(plan.nodes)} in all ({plan.target}){''.join(f'; {text}' for text in told)}"
        )
        lines += _reasons(coverage.float_nodes, "  [yellow]float[/] ")
    others = [n.reason for n in plan.nodes if n.precision not in _FLOATS and n.reason is not None]
    return lines + _reasons(others, "  ")


def _summary(plan: QuantPlan) -> str:
    sentences = Counter(n.reason.sentence for n in plan.nodes if n.reason is not None)
    return escape("; ".join(text for text, _ in sentences.most_common(3)) or "it has no nodes")


def _reasons(reasons: Sequence[Reason], before: str) -> list[str]:
    """The first reasons, and how many more there are."""
    lines = [f"{before}{escape(r.node)}: {escape(r.sentence)}" for r in reasons[:MOST_REASONS]]
    more = len(reasons) - MOST_REASONS
    return [*lines, f"  and {more} more, see the receipt"] if more > 0 else lines


def gate_line(gate: Gate) -> str:
    """A budget and whether it was kept, in rich's markup."""
    word = "[green]kept[/]" if gate.passed else "[red]missed[/]"
    note = f": {escape(gate.note)}" if gate.note else ""
    return f"budget {gate.name} {gate.limit:g}: {gate_value(gate)}, {word}{note}"


def gate_value(gate: Gate) -> str:
    """What was measured for a budget, and what that is at worst."""
    value = "not measured" if gate.value is None else f"{gate.value:.4g}"
    if gate.bound is None:
        return value
    side = "at most" if gate.name.startswith("max") else "at least"
    return f"{value} ({side} {gate.bound:.4g} with {CONFIDENCE:.0%} confidence)"


def plan_table(plan: QuantPlan) -> RenderableType:
    """Every node of a plan, with its precision and the reason why it is not what was asked for."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("node", "operator", "precision", "why"):
        table.add_column(title, overflow="fold")
    for node in plan.nodes:
        color = "green" if node.precision is not Precision.FLOAT else ""
        table.add_row(
            escape(node.name), escape(node.op), Text(node.precision.value, style=color),
            escape(node.reason.sentence) if node.reason else "",
        )  # fmt: skip
    counts = Counter(node.precision.value for node in plan.nodes)
    total = ", ".join(f"{n} {name}" for name, n in counts.most_common())
    return Group(table, Text(f"{len(plan.nodes)} nodes for {plan.target}: {total}"))


def census_table(census: Census) -> RenderableType:
    """Every node of a graph: what it is, and whether the target can run it as int8."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("node", "operator", "role", "int8", "why not"):
        table.add_column(title, overflow="fold")
    for node in census.nodes:
        can = Text("yes", style="green") if node.quantizable else Text("no")
        table.add_row(
            escape(node.name), escape(node.op), node.role.value, can,
            escape(node.reason.sentence) if node.reason else "",
        )  # fmt: skip
    return Group(table, Padding(_by_operator(census), (0, 0)))


def _by_operator(census: Census) -> Text:
    yes = len(census.quantizable())
    counts = Counter(node.op for node in census.nodes if not node.quantizable)
    rest = ", ".join(f"{n} {op}" for op, n in counts.most_common(6))
    text = f"{yes} of {len(census.nodes)} nodes can run as int8 on {census.target}"
    return Text(f"{text}; the others: {rest}" if rest else text)


def size_text(count: int) -> str:
    """Bytes in the unit that suits them."""
    for unit, size in (("MB", 1_000_000), ("kB", 1_000)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
