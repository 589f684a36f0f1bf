"""Two models side by side, as a page."""

from __future__ import annotations

from typing import Any

from onnxq.report.compare import (
    COLUMNS,
    figures,
    file_name,
    headline,
    left_out,
    named,
    output_lines,
    stands_out,
)
from onnxq.report.html import Head, Row, Sheet, page_of, shorten
from onnxq.report.sensitivity import SAME_DB
from onnxq.verify import ROUNDING_DB, Growth, LayerError, ModelComparison

# What the columns are sorted by, in their order; without a figure a row stands at the end.
_KEYS = ("layer", "op", "before_db", "sqnr_db", "new_db", "alone_db", "share")


def models_page(found: ModelComparison) -> str:
    """One self-contained HTML page of a comparison, with a chart of how the error grows.

    Args:
        found: What was found.

    Raises:
        RuntimeFailure: The extra ``report`` is not installed.
    """
    growth = found.growth
    sheets = {"layers": _sheet(growth)} if growth is not None and growth.layers else {}
    return page_of(
        "compare",
        sheets=sheets,
        scripts=("growth",) if sheets else (),
        found=found,
        growth=growth,
        name=file_name(found.other.path),
        against=file_name(found.reference.path),
        headline=headline(found),
        figures=figures(found),
        outputs=output_lines(found),
        left_out=left_out(growth, None) if growth is not None else "",
    )


def _sheet(growth: Growth) -> Sheet:
    heads = tuple(
        Head(key, column.title, column.meaning, number=column.number, rises=key.endswith("_db"))
        for key, column in zip(_KEYS, COLUMNS, strict=True)
    )
    return Sheet(heads, tuple(_row(growth, layer) for layer in growth.layers))


def _row(growth: Growth, layer: LayerError) -> Row:
    texts = tuple(column.text(growth, layer) for column in COLUMNS)
    title = f"{named(layer)} → {layer.tensor}"
    return Row(texts, error_point(growth, layer), title, marked=stands_out(growth, layer))


def error_point(growth: Growth, layer: LayerError) -> dict[str, Any]:
    """What the chart of a growing error draws of a layer; None where there is nothing to draw."""
    return {
        "layer": named(layer),
        "short": shorten(named(layer)),
        "op": layer.op,
        "before_db": layer.before_db,
        "sqnr_db": None if layer.sqnr_db >= SAME_DB else layer.sqnr_db,
        "new_db": None if layer.new_db >= ROUNDING_DB else layer.new_db,
        "alone_db": layer.alone_db,
        "share": growth.share(layer),
    }
