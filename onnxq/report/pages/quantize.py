"""What became of a model, node by node, as a page."""

from __future__ import annotations

from collections import Counter
from pathlib import PurePath
from typing import Any

from rich.text import Text

from onnxq.plan import NodePlan
from onnxq.report.candidates import tried_rows
from onnxq.report.html import Head, Row, Sheet, page_of, shorten
from onnxq.report.layers import LayerFigures, ModelFigures
from onnxq.report.pages.compare import error_point
from onnxq.report.sensitivity import db
from onnxq.report.text import FORMS, accuracy_lines, form_rows, gate_value, node_lines
from onnxq.types import Precision
from onnxq.verify import ROUNDING_DB, Gate, LayerError, Receipt

# A map of more nodes than this has no room for their operators.
MOST_NAMED = 150
_FORMS = ("float", "output")
_HEADS = (
    Head("layer", "node", "Name of the node in the prepared graph.", number=False),
    Head("op", "operator", "Its operator.", number=False),
    Head("precision", "precision", "How it is planned to compute.", number=False),
    Head("runs", "runs as", "What ONNX Runtime makes of it.", number=False),
    Head("reason", "why", "Why it is not as asked, or runs as float.", number=False, wide=True),
    Head("parameters", "params", "Values in its constants."),
    Head("float_us", "float µs", "Microseconds per run in the prepared float model."),
    Head("output_us", "output µs", "The same in the output."),
    Head("gain", "saves µs", "Their difference.", rises=True),
    Head("sqnr_db", "behind dB", "SQNR of what it makes.", rises=True),
    Head("new_db", "new error dB", "Signal to what it adds to the error itself.", rises=True),
)


def quantize_page(receipt: Receipt, figures: ModelFigures) -> str:
    """One self-contained HTML page of what became of a model.

    The figures and budgets, what was tried, the precision of every node as a map, how the error
    grows, latency by node, and a table of the nodes to sort and to filter, with the histograms of
    their weights and activations.

    Args:
        receipt: What was measured.
        figures: What was found of every node: ``onnxq.layer_figures``.

    Raises:
        RuntimeFailure: The extra ``report`` is not installed.
    """
    metric = receipt.measured.metric.name if receipt.measured.metric is not None else None
    sheet = _sheet(receipt, figures)
    growth = figures.growth
    histograms = [layer for layer in figures.layers if layer.weights or layer.activations]
    return page_of(
        "quantize",
        sheets={"layers": sheet},
        drawn={
            "layers": {layer.name: _drawn(layer) for layer in histograms},
            "growth": [error_point(growth, x) for x in growth.layers] if growth else [],
            "forms": _FORMS,
        },
        scripts=("quantize",),
        receipt=receipt,
        growth=growth,
        name=PurePath(receipt.source.path).name or "a model in memory",
        output=PurePath(receipt.output.path).name or "a model in memory",
        summary=_summary(receipt),
        forms=(FORMS, [[_plain(cell) for cell in row] for row in form_rows(receipt)]),
        lines=[_plain(line) for line in accuracy_lines(receipt.measured)],
        gates=[_gate(gate) for gate in receipt.gates],
        tried=tried_rows(receipt.measured.candidates, metric),
        notes=(*receipt.measured.notes, *figures.notes),
        cells=sheet.rows,
        dense=len(sheet.rows) > MOST_NAMED,
        key=_key(sheet),
        conversions=figures.conversions,
    )


def _plain(markup: str) -> str:
    return Text.from_markup(markup).plain


def _summary(receipt: Receipt) -> list[tuple[str, str]]:
    """The changes, and how many nodes are quantized, as cards."""
    cards = []
    for row in form_rows(receipt):
        what, source, prepared, output, change = map(_plain, row)
        # speed is told against the prepared float model
        before = f"prepared float {prepared}" if prepared and what != "size" else source
        cards.append((what, f"{before} → {output}: {change}"))
    return [*cards, ("nodes", _plain(node_lines(receipt)[0]))]


def _gate(gate: Gate) -> tuple[str, str, str, bool, str]:
    return gate.name, f"{gate.limit:g}", gate_value(gate), gate.passed, gate.note


def _sheet(receipt: Receipt, figures: ModelFigures) -> Sheet:
    """The nodes, without columns that say nothing."""
    coverage = receipt.measured.int8_coverage
    floats = {r.node: r.sentence for r in coverage.float_nodes} if coverage is not None else None
    growth = figures.growth
    errors = {x.node: x for x in growth.layers if x.node} if growth is not None else {}
    plans = {node.name: node for node in receipt.plan.nodes}
    values = [_values(plans[x.name], x, floats, errors.get(x.name)) for x in figures.layers]
    said = [h for h in _HEADS if any(row[h.key] not in (None, "") for row in values)]
    rows = tuple(Row(tuple(_text(head.key, row[head.key]) for head in said), row) for row in values)
    return Sheet(tuple(said), rows, choices=("precision", "runs"), opens=True)


def _values(
    plan: NodePlan, layer: LayerFigures, floats: dict[str, str] | None, error: LayerError | None
) -> dict[str, Any]:
    missed = (floats or {}).get(plan.name)
    us = layer.time.us if layer.time is not None else (None, None)
    return {
        "layer": plan.name,
        "short": shorten(plan.name),
        "op": plan.op,
        "precision": plan.precision.value,
        "runs": _runs(plan, missed) if floats is not None else None,
        "reason": missed or (plan.reason.sentence if plan.reason is not None else ""),
        "parameters": layer.parameters,
        "us": us,
        "float_us": us[0],
        "output_us": us[1],
        "gain": layer.time.gain if layer.time is not None else None,
        "sqnr_db": error.sqnr_db if error is not None else None,
        "new_db": error.new_db if error is not None else None,
        "as_float": missed is not None,
    }


def _runs(plan: NodePlan, missed: str | None) -> str:
    """What ONNX Runtime makes of a node; its coverage speaks of the nodes planned as int8."""
    if missed is not None:
        return "float"
    return plan.precision.value


def _text(key: str, value: Any) -> str:  # noqa: ANN401 - cells hold words and figures
    if value is None:
        return ""
    match key:
        case "float_us" | "output_us":
            return f"{value:.1f}"
        case "gain":
            return f"{value:+.1f}"
        case "sqnr_db":
            return db(value)
        case "new_db":
            return "none" if value >= ROUNDING_DB else db(value)
        case "parameters":
            return f"{value:,}" if value else ""
        case _:
            return str(value)


def _key(sheet: Sheet) -> list[tuple[str, str, int]]:
    """Class, words and number of each kind of cell in the map."""
    counts = Counter(row.values["precision"] for row in sheet.rows)
    told = [(p.value, p.value, counts[p.value]) for p in Precision if counts[p.value]]
    missed = sum(row.values["as_float"] for row in sheet.rows)
    if missed:
        told.append(("int8 as-float", "planned as int8, runs as float", missed))
    return told


def _drawn(layer: LayerFigures) -> dict[str, Any]:
    return {
        "reads": shorten(layer.reads),
        "weights": layer.weights,
        "weight_range": layer.weight_range,
        "activations": layer.activations,
        "activation_range": layer.activation_range,
    }
