"""Quantization-aware training, told: scales to start from, epochs, and what training was worth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from onnxq.qat import EpochFacts, History
from onnxq.report.text import gate_line, is_slower, node_lines, size_text
from onnxq.types import QParams
from onnxq.verify import LatencyFacts, Measured, Receipt

MOST_TENSORS = 12
TEACHER = "distill"  # the loss of who learns from the float model alone
# What a metric or a share may differ by and still be the same: rounding of their means.
SAME = 1e-9


def activations_table(params: Mapping[str, QParams]) -> RenderableType:
    """What activations are quantized by.

    Args:
        params: Type, scale and zero point by tensor; one scale each.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("activation", overflow="fold")
    table.add_column("type")
    for title in ("scale", "zero point", "range"):
        table.add_column(title, justify="right", no_wrap=True)
    for tensor, found in list(params.items())[:MOST_TENSORS]:
        scale, zero_point = found.scale[0], found.zero_point[0]
        lo, hi = ((end - zero_point) * scale for end in (found.qtype.qmin, found.qtype.qmax))
        table.add_row(
            escape(tensor), found.qtype.value, f"{scale:.6g}", str(zero_point),
            f"{lo:.4g} .. {hi:.4g}",
        )  # fmt: skip
    more = len(params) - MOST_TENSORS
    return Group(table, Text(f"… and {more} more\n")) if more > 0 else table


def better(facts: EpochFacts, best: EpochFacts | None) -> bool:
    """Whether an epoch is better than the best so far: by the metric, then by the loss."""
    return best is None or facts.rank > best.rank


def epochs_head(*, metric: bool) -> Text:
    """The titles of ``epoch_line``.

    Args:
        metric: Whether there is one.
    """
    top1 = f"{'top1':>9}" if metric else ""
    return Text(f"{'epoch':>5}{'loss':>12}{'validation':>12}{top1}{'drift':>9}{'time':>10}")


def epoch_line(facts: EpochFacts, *, best: bool) -> Text:
    """One epoch: loss, loss and top-1 on samples held back, drift of scales, time.

    Args:
        facts: What it showed.
        best: Whether it is the best so far.
    """
    loss = "" if facts.loss is None else f"{facts.loss:.4g}"
    top1 = "" if facts.metric is None else f"{facts.metric:>9.4f}"
    line = Text(f"{facts.epoch:>5}{loss:>12}{facts.validation_loss:>12.4g}{top1}")
    line.append(f"{facts.scale_drift:>9.1%}{_duration(facts.seconds):>10}")
    return line.append("  best", style="green") if best else line


def training_view(receipt: Receipt) -> RenderableType:
    """What training was worth, with gates and notes.

    Args:
        receipt: Of ``train_model``.
    """
    training = receipt.training
    if training is None:
        raise ValueError("the receipt is of a model that was not trained")
    measured = receipt.measured
    parts: list[RenderableType] = [_comparison(receipt, training.untrained), Text()]
    history = training.history
    if worth := _worth(training.untrained, measured, history.loss):
        parts.append(Text(worth))
    parts += [Text(_taken(history)), Text(_trained(history), style="dim")]
    if history.loss != TEACHER:
        parts.append(Text("SQNR and same class compare with float; labels do not", style="dim"))
    parts += [Text.from_markup(line) for line in node_lines(receipt)]
    parts += [Text.from_markup(f"[yellow]note:[/] {escape(note)}") for note in measured.notes]
    parts += [Text.from_markup(gate_line(gate)) for gate in receipt.gates]
    return Group(*parts)


def _comparison(receipt: Receipt, untrained: Measured) -> Table:
    measured = receipt.measured
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for title in ("float", "prepared", "PTQ", "QAT"):
        table.add_column(title, justify="right", no_wrap=True)
    rows = (*_accuracy(untrained, measured), _sizes(receipt, untrained))
    for title, *texts in (*rows, *_latency(untrained, measured)):
        if any(texts):
            table.add_row(escape(title), *texts)
    return table


def _accuracy(untrained: Measured, measured: Measured) -> Iterator[list[str]]:
    both = (untrained, measured)
    if measured.metric is not None:
        metric = measured.metric
        values = [found.metric.output if found.metric else None for found in both]
        title = f"{metric.name} ({metric.samples} samples)"
        yield [title, f"{metric.source:.4f}", "", *_numbers(values, "{:.4f}")]
    yield ["same top class", "", "", *_numbers(map(_agreement, both), "{:.2%}")]
    yield ["SQNR", "", "", *_numbers(map(_sqnr, both), "{:.1f} dB")]


def _numbers(values: Iterator[float | None] | list[float | None], form: str) -> list[str]:
    return ["" if value is None else form.format(value) for value in values]


def _agreement(measured: Measured) -> float | None:
    found = [facts.top1_agreement for facts in measured.outputs.values()]
    return min((share for share in found if share is not None), default=None)


def _sqnr(measured: Measured) -> float | None:
    """Of the worst output."""
    found = [facts.sqnr_db for facts in measured.outputs.values()]
    return min((db for db in found if db is not None), default=None)


def _sizes(receipt: Receipt, untrained: Measured) -> list[str]:
    source = receipt.source.bytes
    made = (round(untrained.size_ratio * source), receipt.output.bytes)
    return [
        "size", size_text(source), size_text(receipt.measured.prepared.bytes),
        *(f"{size_text(count)} ({count / source:.2f}x)" for count in made),
    ]  # fmt: skip


def _latency(untrained: Measured, measured: Measured) -> Iterator[list[str]]:
    before, after = untrained.latency, measured.latency
    if before is None or after is None:
        return
    prepared = measured.prepared.ms
    yield [
        f"latency, batch {after.batch}", f"{after.source_ms:.3g} ms",
        "" if prepared is None else f"{prepared:.3g} ms",
        f"{before.output_ms:.3g} ms", f"{after.output_ms:.3g} ms",
    ]  # fmt: skip
    threads = "1 thread" if after.threads == 1 else f"{after.threads} threads"
    yield [f"speed, {threads}", "", "1x", _speed(before), _speed(after)]


def _speed(latency: LatencyFacts) -> str:
    text = f"{latency.ratio_prepared:.2f}x (±{latency.spread:.0%})"
    return f"[yellow]{text}[/]" if is_slower(latency) else text


def _worth(untrained: Measured, measured: Measured, loss: str) -> str:
    """How much of what PTQ lost came back, by the first figure in which it lost anything.

    Who learned from labels wanted other outputs than float's: there the metric counts alone.
    """
    for name, lost in _LOSSES.items() if loss == TEACHER else [("of the metric", _metric_loss)]:
        before, after = lost(untrained), lost(measured)
        if before is None or after is None or before <= SAME:
            continue
        if after <= SAME:
            return f"training recovered all of what PTQ lost {name}"
        share = max(1 - after / before, 0.0)
        told = f"{share:.0%}" if share >= 0.005 else "nothing"
        return f"training recovered {told} of what PTQ lost {name}"
    return ""


def _metric_loss(measured: Measured) -> float | None:
    metric = measured.metric
    return metric.source - metric.output if metric is not None else None


def _changed(measured: Measured) -> float | None:
    share = _agreement(measured)
    return 1 - share if share is not None else None


def _noise(measured: Measured) -> float | None:
    db = _sqnr(measured)
    return 10 ** (-db / 10) if db is not None else None


# What can be lost, the first that counts first.
_LOSSES: dict[str, Callable[[Measured], float | None]] = {
    "of the metric": _metric_loss,
    "of float's answers": _changed,
    "as noise at the outputs": _noise,
}


def _taken(history: History) -> str:
    samples = f"{history.validation} samples that were held back"
    if history.best == 0:
        return f"no epoch was better on {samples} than PTQ, whose weights were taken"
    told = f"epoch {history.best} of {len(history.epochs) - 1} was the best on {samples}"
    return f"{told}; stopped early: {history.stopped}" if history.stopped else told


def _trained(history: History) -> str:
    return (
        f"trained: {history.values:,} values of {history.weights} constants, {history.scales} "
        f"scales; loss {history.loss}; {history.steps} steps on {history.samples} samples, "
        f"{_duration(history.seconds)} on {history.device}"
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
