"""What every layer costs, as a page."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from onnxq.report.html import Head, Row, Sheet, page_of, shorten
from onnxq.report.sensitivity import (
    SAME_DB,
    WORDS,
    Column,
    caption,
    db,
    drop,
    recovered_db,
    saved_ms,
    shown_columns,
    verdict,
)
from onnxq.sensitivity import FrontPoint, LayerSensitivity, Loss, SensitivityReport

# Columns whose smallest figure is the worst.
_RISING = ("sqnr_db", "weights_sqnr_db", "activations_sqnr_db", "rest_sqnr_db", "agreement")


def sensitivity_page(report: SensitivityReport) -> str:
    """One self-contained HTML page of an analysis.

    Bars of the layers, the Pareto front where there is one, a table to sort and to filter, and the
    histograms of a layer's weights and activations.

    Args:
        report: What was found.

    Raises:
        RuntimeFailure: The extra ``report`` is not installed.
    """
    columns = shown_columns(report)
    rows = tuple(_row(report, layer, columns) for layer in report.layers)
    return page_of(
        "sensitivity",
        sheets={"layers": Sheet(_heads(columns), rows, choices=("precision",), opens=True)},
        drawn={
            "bars": _bars(report),
            "front": [_point(report, p, p.loss) for p in report.front if p.loss is not None],
            "losses": _losses(report),
            "weights": report.weight_histograms,
            "activations": report.activation_histograms,
        },
        scripts=("sensitivity",),
        report=report,
        name=PurePath(report.model).name or "a model in memory",
        caption=caption(report),
        verdict=verdict(report),
        db=db,
    )


def _heads(columns: tuple[Column, ...]) -> tuple[Head, ...]:
    return tuple(
        Head(c.key, c.title, c.meaning, number=c.key not in WORDS, rises=c.key in _RISING)
        for c in columns
    )


def _row(report: SensitivityReport, layer: LayerSensitivity, columns: tuple[Column, ...]) -> Row:
    figures = {column.key: column.value(report, layer) for column in columns}
    # the precision is looked at even where it is no column, since all layers have the same
    extra = {"precision": layer.precision.value, "short": shorten(layer.name)}
    texts = tuple(column.cell(report, layer) for column in columns)
    return Row(texts, figures | extra | {"noise": _noise(layer.only)})


def _noise(loss: Loss) -> float | None:
    """Root mean square of the error by that of the signal, in percent."""
    ratio = loss.sqnr_db
    if ratio is None:
        return None
    return 0.0 if ratio >= SAME_DB else float(100 * 10 ** (-ratio / 20))


def _bars(report: SensitivityReport) -> list[tuple[str, str, str]]:
    """Key, name and axis title of each measure that bars can show: longer is worse."""
    known = (
        ("noise", "noise at the outputs", "error of the worst output, this layer alone (% RMS)"),
        ("drop", f"drop of {report.metric}", f"drop, this layer alone ({_unit(report)})"),
        (
            "kl",
            "divergence of class scores",
            "Kullback-Leibler divergence, this layer alone (nats)",
        ),
        ("recovered_db", "recovered SQNR", "SQNR won back when only this layer is float (dB)"),
        ("saved_ms", "time saved by quantizing", "float − quantized (ms per run)"),
    )
    values = {
        "noise": [_noise(row.only) for row in report.layers],
        "drop": [drop(report, row.only) for row in report.layers],
        "kl": [row.only.kl for row in report.layers],
        "recovered_db": [recovered_db(report, row) for row in report.layers],
        "saved_ms": [saved_ms(row) for row in report.layers],
    }
    return [bar for bar in known if any(value is not None for value in values[bar[0]])]


def _unit(report: SensitivityReport) -> str:
    return "points" if report.metric == "top1" else str(report.metric)


def _losses(report: SensitivityReport) -> list[tuple[str, str, str]]:
    """Key, name and axis title of each loss that the front can show: lower is better."""
    known = (
        ("noise", "noise at the outputs", "error of the worst output (% RMS)"),
        ("drop", f"drop of {report.metric}", f"drop of {report.metric} ({_unit(report)})"),
        ("kl", "divergence of class scores", "Kullback-Leibler divergence (nats)"),
    )
    points = [_point(report, p, p.loss) for p in report.front if p.loss is not None]
    return [loss for loss in known if any(point[loss[0]] is not None for point in points)]


def _point(report: SensitivityReport, point: FrontPoint, loss: Loss) -> dict[str, Any]:
    return {
        "ms": point.ms if point.ms is not None else point.predicted_ms,
        "measured": point.ms is not None,
        "noise": _noise(loss),
        "drop": drop(report, loss),
        "kl": loss.kl,
        "kept_float": point.kept_float,
    }
