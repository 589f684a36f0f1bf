"""Which layers hurt, and what they cost to keep float: as a table, as CSV, as Markdown."""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from onnxq.sensitivity import LayerSensitivity, Loss, SensitivityReport

Value = str | float | int | None
# A layer that alone makes at least this share of the noise of all layers together stands out.
MUCH_NOISE = 0.25
# Terminals that have less room do not show the parts of a layer, or all figures.
WIDE, WIDER = 120, 190
# Titles wider than this break into lines.
TITLE = 11
# An SQNR from here on means that nothing changed; see ``onnxq.verify.receipt.finite_db``.
SAME_DB = 200.0
# What Markdown reads as more than text.
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|~#])")


@dataclass(frozen=True)
class Column:
    """A figure of every layer.

    Attributes:
        key: Its name for machines: the header in CSV, the key in the page.
        title: Its name for people, with its unit.
        meaning: What it says, in one sentence.
        value: Finds it; None where it was not measured.
        text: Writes it for people.
        room: The width of a terminal from which on it is shown.
    """

    key: str
    title: str
    meaning: str
    value: Callable[[SensitivityReport, LayerSensitivity], Value]
    text: Callable[[Value], str] = str
    room: int = 0

    def cell(self, report: SensitivityReport, layer: LayerSensitivity) -> str:
        """The figure as text; empty where there is none."""
        value = self.value(report, layer)
        return "" if value is None else self.text(value)


def saved_ms(layer: LayerSensitivity) -> float | None:
    """Milliseconds per run that quantizing a layer saves: what keeping it float costs."""
    if layer.float_ms is None or layer.quantized_ms is None:
        return None
    return layer.float_ms - layer.quantized_ms


def recovered_db(report: SensitivityReport, layer: LayerSensitivity) -> float | None:
    """By how many dB the model that is quantized everywhere is better when one layer is float."""
    return _difference(_sqnr(layer.rest), _sqnr(report.everything.get(layer.precision)))


def drop(report: SensitivityReport, loss: Loss | None) -> float | None:
    """By how much the metric is below that of the float model: in points for ``top1``."""
    fallen = _difference(report.float_metric, loss.metric if loss is not None else None)
    return None if fallen is None else fallen * (100 if report.metric == "top1" else 1)


def noise_share(report: SensitivityReport, layer: LayerSensitivity) -> float | None:
    """A layer's own noise by that of all layers together; both are of the worst output.

    Powers of independent noises add up, so that the shares of all layers make about 1.
    """
    whole, own = _sqnr(report.everything.get(layer.precision)), _sqnr(layer.only)
    return None if whole is None or own is None else float(10 ** ((whole - own) / 10))


def _sqnr(loss: Loss | None) -> float | None:
    return None if loss is None else loss.sqnr_db


def _difference(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left - right


def db(value: Value) -> str:
    """A ratio for people; ``same`` where nothing changed."""
    return "same" if float(value or 0) >= SAME_DB else f"{value:.1f}"


def _count(value: Value) -> str:
    number = float(value or 0)
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:.0f}"


def _as(form: str) -> Callable[[Value], str]:
    return lambda value: format(value, form)


COLUMNS = (
    Column("layer", "layer", "Name of the node.", lambda _, row: row.name),
    Column("op", "operator", "Its operator.", lambda _, row: row.op),
    Column(
        "precision", "precision", "The precision that it was tried in.",
        lambda _, row: row.precision.value,
    ),
    Column(
        "sqnr_db", "SQNR dB", "SQNR of the worst output when this layer alone is quantized.",
        lambda _, row: row.only.sqnr_db, db,
    ),
    Column(
        "weights_sqnr_db", "weights dB", "The same when its weights alone are.",
        lambda _, row: _sqnr(row.weights), db, room=WIDE,
    ),
    Column(
        "activations_sqnr_db", "activations dB", "The same when its activations alone are.",
        lambda _, row: _sqnr(row.activations), db, room=WIDE,
    ),
    Column(
        "rest_sqnr_db", "all but this dB", "SQNR when every layer but this one is quantized.",
        lambda _, row: _sqnr(row.rest), db,
    ),
    Column(
        "recovered_db", "recovers dB",
        "How much better that is than quantizing every layer.",
        recovered_db, _as("+.1f"), room=WIDE,
    ),
    Column(
        "kl", "KL nats", "Mean Kullback-Leibler divergence of class scores, of this layer alone.",
        lambda _, row: row.only.kl, _as(".2g"), room=WIDER,
    ),
    Column(
        "agreement", "same class", "Share of samples with the same top class, of this layer alone.",
        lambda _, row: row.only.agreement, _as(".1%"), room=WIDER,
    ),
    Column(
        "drop", "drop", "How far the metric falls when this layer alone is quantized.",
        lambda report, row: drop(report, row.only), _as(".3g"),
    ),
    Column(
        "rest_drop", "all but this drop", "The same when every layer but this one is quantized.",
        lambda report, row: drop(report, row.rest), _as(".3g"), room=WIDER,
    ),
    Column(
        "float_ms", "float ms", "Milliseconds per run of the layer in float.",
        lambda _, row: row.float_ms, _as(".3f"), room=WIDER,
    ),
    Column(
        "quantized_ms", "quantized ms", "The same where every layer is quantized.",
        lambda _, row: row.quantized_ms, _as(".3f"), room=WIDER,
    ),
    Column(
        "saved_ms", "saves ms", "Their difference: what it costs to keep the layer float.",
        lambda _, row: saved_ms(row), _as("+.3f"),
    ),
    Column(
        "parameters", "params", "Values in its constants.",
        lambda _, row: row.parameters, _count,
    ),
    Column(
        "macs", "MACs", "Multiply-adds per sample.", lambda _, row: row.macs, _count,
    ),
)  # fmt: skip
WORDS = ("layer", "op", "precision")
# What may be summed over layers.
SUMS = ("float_ms", "quantized_ms", "saved_ms", "parameters", "macs")


def shown_columns(report: SensitivityReport) -> tuple[Column, ...]:
    """The columns that say something: measured somewhere, and the precision if there are more."""
    said = [c for c in COLUMNS if any(c.value(report, row) is not None for row in report.layers)]
    several = len({row.precision for row in report.layers}) > 1
    return tuple(column for column in said if several or column.key != "precision")


def sensitivity_view(
    report: SensitivityReport, *, top: int | None = None, width: int = 120
) -> RenderableType:
    """The layers, in the order of the report, with what they come down to.

    Args:
        report: What was found.
        top: The most layers to show; what is left is summed up in one line. All if None.
        width: Columns of the terminal; a narrow one shows fewer figures.
    """
    columns = [column for column in shown_columns(report) if width >= column.room]
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        caption=caption(report),
        caption_justify="left",
    )
    for column in columns:
        title = "\n".join(textwrap.wrap(column.title, TITLE))
        if column.key == "layer":
            table.add_column(title, overflow="fold", min_width=16)
        elif column.key in WORDS:
            table.add_column(title, no_wrap=True)
        else:
            table.add_column(title, no_wrap=True, justify="right")
    rows = report.layers[:top]
    for row in rows:
        share = noise_share(report, row)
        loud = "bold yellow" if share is not None and share >= MUCH_NOISE else ""
        table.add_row(*(Text(column.cell(report, row)) for column in columns), style=loud)
    if left := report.layers[len(rows) :]:
        table.add_row(*_summed(report, left, columns), style="dim")
    lines = [Text(f"{title}: {sentence}") for title, sentence in verdict(report)]
    lines += [Text(f"latency against accuracy: {line}") for line in _front(report)]
    notes = [Text.from_markup(f"[yellow]note:[/] {escape(note)}") for note in report.notes]
    return Group(table, Text(), *lines, *notes)


def _front(report: SensitivityReport) -> list[str]:
    """How to read the front, in one line; none where there is no front."""
    told = sorted((p.ms, p) for p in report.front if p.ms is not None and p.loss is not None)
    if len(told) < 2:
        return [f"nothing is faster than float ({ms:.3g} ms)" for ms, _ in told]
    (least, fastest), (most, slowest) = told[0], told[-1]
    ratio = _sqnr(fastest.loss)
    loses = "" if ratio is None else f"SQNR {db(ratio)} dB, "
    return [
        f"{len(told)} plans from {least:.3g} ms ({loses}{len(fastest.kept_float)} layers in float) "
        f"to {most:.3g} ms ({len(slowest.kept_float)} in float), none beaten in both; "
        "--html draws them"
    ]


def caption(report: SensitivityReport) -> str:
    """How the figures were measured, in one line."""
    kinds = sorted({row.precision.value for row in report.layers})
    line = f"{report.method}, {report.samples} samples, {', '.join(kinds) or 'no layers'}"
    if report.metric is None:
        return line
    unit = " in points" if report.metric == "top1" else ""
    return f"{line}; drop: of {report.metric}{unit}, float {report.float_metric:.4g}"


def verdict(report: SensitivityReport) -> tuple[tuple[str, str], ...]:
    """What the figures come down to: pairs of a title and a sentence."""
    if not report.layers:
        return (("nothing to tell", "there is no layer to quantize"),)
    found = [
        (f"{kind} everywhere", _said(report, loss)) for kind, loss in report.everything.items()
    ]
    worst = report.layers[0]
    alone = f"{worst.name} ({worst.op}); alone in {worst.precision}: {_said(report, worst.only)}"
    found.append(("most sensitive layer", alone))
    if worst.rest is not None:
        without = f"{_said(report, worst.rest)}{_price(worst)}"
        found.append((f"all others in {worst.precision}", without))
    return tuple(found)


def _said(report: SensitivityReport, loss: Loss) -> str:
    parts = []
    if loss.sqnr_db is not None:
        same = loss.sqnr_db >= SAME_DB
        parts.append("outputs as in float" if same else f"SQNR {loss.sqnr_db:.1f} dB")
    if loss.agreement is not None:
        parts.append(f"same top class on {loss.agreement:.1%}")
    if (fallen := drop(report, loss)) is not None:
        points = " points" if report.metric == "top1" else ""
        change = f"{-fallen:+.3g}{points}" if fallen else "as float"
        parts.append(f"{report.metric} {loss.metric:.4g} ({change})")
    return ", ".join(parts) or "nothing to compare"


def _price(layer: LayerSensitivity) -> str:
    saved = saved_ms(layer)
    if saved is None:
        return ""
    return f"; keeping it float {'costs' if saved >= 0 else 'saves'} {abs(saved):.3f} ms"


def _summed(
    report: SensitivityReport, left: Sequence[LayerSensitivity], columns: Sequence[Column]
) -> list[str]:
    """One row for many: the lowest SQNR, and the sums of what adds up."""
    several = len({row.precision for row in report.layers}) > 1  # would count a layer twice
    cells = []
    for column in columns:
        found = [value for row in left if (value := column.value(report, row)) is not None]
        numbers = [value for value in found if not isinstance(value, str)]
        if column.key == "layer":
            cells.append(f"and {len(left)} more")
        elif column.key == "sqnr_db" and numbers:
            cells.append(f"≥ {column.text(min(numbers))}")
        elif column.key in SUMS and numbers and not several:
            cells.append(column.text(sum(numbers)))
        else:
            cells.append("")
    return cells


def to_csv(report: SensitivityReport) -> str:
    """One line per layer and precision; a header names the columns, empty means not measured."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([column.key for column in COLUMNS])
    for row in report.layers:
        writer.writerow([_exact(column.value(report, row)) for column in COLUMNS])
    return out.getvalue()


def _exact(value: Value) -> Value:
    return f"{value:.9g}" if isinstance(value, float) else value


def to_markdown(report: SensitivityReport, *, top: int | None = None) -> str:
    """The table and what it comes down to, for a page or a comment.

    Args:
        report: What was found.
        top: The most layers to show; all if None.
    """
    columns = shown_columns(report)
    rows = report.layers[:top]
    lines = [f"# Sensitivity of {plain(report.model)}", ""]
    lines += [f"- **{plain(title)}**: {plain(said)}" for title, said in verdict(report)]
    lines += [f"- {plain(note)}" for note in report.notes]
    if rows:
        lines += ["", line(c.title for c in columns)]
        lines.append(line("---" if c.key in WORDS else "---:" for c in columns))
        lines += [line(plain(c.cell(report, row)) for c in columns) for row in rows]
    if left := report.layers[len(rows) :]:
        lines.append(line(_summed(report, left, columns)))
    return "\n".join([*lines, "", plain(caption(report)), ""])


def line(cells: Iterable[str]) -> str:
    """A row of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


def plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))
