"""What every layer costs, as one page that needs nothing but a browser (extra ``report``)."""

from __future__ import annotations

import base64
import hashlib
import importlib
import importlib.resources
from pathlib import PurePath
from types import ModuleType
from typing import Any

import msgspec

from onnxq.errors import RuntimeFailure
from onnxq.report.sensitivity import (
    COLUMNS,
    SAME_DB,
    WORDS,
    caption,
    db,
    drop,
    recovered_db,
    saved_ms,
    shown_columns,
    verdict,
)
from onnxq.sensitivity import FrontPoint, LayerSensitivity, Loss, SensitivityReport

# Characters of a name that tables and charts have room for; the full name shows on hover.
ROOM = 44


def sensitivity_page(report: SensitivityReport) -> str:
    """One self-contained HTML page: it asks no network for anything, and forbids itself to.

    Bars of the layers, the Pareto front where there is one, a table to sort and to filter, and the
    histograms of a layer's weights and activations. Names of nodes come from whoever made the
    model: they are escaped everywhere, and a policy in the page lets no script run but its own.

    Args:
        report: What was found.

    Raises:
        RuntimeFailure: The extra ``report`` is not installed.
    """
    return page_of(
        "sensitivity",
        _data(report),
        report=report,
        name=PurePath(report.model).name or "a model in memory",
        caption=caption(report),
        verdict=verdict(report),
        columns=shown_columns(report),
        words=WORDS,
    )


def page_of(template: str, data: dict[str, Any], **values: object) -> str:
    """A page of a template with its script, the one style, and what the script draws.

    Args:
        template: ``NAME`` of the template ``NAME.html.j2`` and of its script ``NAME.js``.
        data: What the script draws, as JSON.
        values: What the template shows.

    Raises:
        RuntimeFailure: The extra ``report`` is not installed.
    """
    jinja2, plotly = load_extra()
    loader = jinja2.PackageLoader("onnxq.report", "templates")
    pages = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters |= {"shorten": shorten, "db": db}
    scripts: list[str] = [plotly.get_plotlyjs(), _template(f"{template}.js")]
    page: str = pages.get_template(f"{template}.html.j2").render(
        values,
        style=_template("sensitivity.css"),
        scripts=scripts,
        hashes=[_hash(script) for script in scripts],
        data=_embedded(data),
    )
    return page


def load_extra() -> tuple[ModuleType, ModuleType]:
    """jinja2 and ``plotly.offline``: call it before long work whose end is a page.

    Raises:
        RuntimeFailure: One cannot be imported.
    """
    try:
        return importlib.import_module("jinja2"), importlib.import_module("plotly.offline")
    except ImportError as error:
        raise RuntimeFailure(
            f"an HTML report needs {error.name}, which cannot be imported",
            "pip install 'onnxq[report]'",
        ) from error


def shorten(name: str, room: int = ROOM) -> str:
    """A name with its middle left out, where it is too long: both ends tell nodes apart."""
    if len(name) <= room:
        return name
    tail = (room - 1) * 2 // 3  # numbers and operators stand at the end
    return f"{name[: room - 1 - tail]}…{name[-tail:]}"


def _template(name: str) -> str:
    folder = importlib.resources.files("onnxq.report") / "templates"
    return (folder / name).read_text(encoding="utf-8")


def _data(report: SensitivityReport) -> dict[str, Any]:
    """What the page's script draws."""
    return {
        "columns": [column.key for column in COLUMNS],
        "rows": [_row(report, layer) for layer in report.layers],
        "bars": _bars(report),
        "front": [_point(report, p, p.loss) for p in report.front if p.loss is not None],
        "losses": _losses(report),
        "weights": report.weight_histograms,
        "activations": report.activation_histograms,
    }


def _row(report: SensitivityReport, layer: LayerSensitivity) -> dict[str, Any]:
    figures = {column.key: column.value(report, layer) for column in COLUMNS}
    return figures | {"short": shorten(layer.name), "noise": _noise(layer.only)}


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


def _embedded(data: dict[str, Any]) -> str:
    """JSON that no HTML parser reads anything into, whatever strings it holds."""
    text = msgspec.json.encode(data).decode()
    return text.translate({ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"})


def _hash(script: str) -> str:
    """What a content security policy knows an inline script by."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
