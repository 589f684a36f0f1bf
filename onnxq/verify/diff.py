"""``diff``: what changed from one receipt to another."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from onnxq.plan import QuantPlan
from onnxq.types import Precision, TensorRange
from onnxq.verify.receipt import Measured, Receipt

# Relative changes below this are rounding.
_SAME = 1e-6
# Which way a figure is better; ``none`` for one that is neither.
Better = Literal["higher", "lower", "none"]


class NodeChange(msgspec.Struct, frozen=True):
    """A node whose precision, or the reason for it, is another.

    Attributes:
        name: Name of the node.
        op: Its operator.
        before: Its precision; None where only the other plan has it.
        after: The same of the second plan.
        why_before: Why it does not compute as was asked for; empty where it does.
        why_after: The same of the second plan.
    """

    name: str
    op: str
    before: Precision | None
    after: Precision | None
    why_before: str = ""
    why_after: str = ""


class Moved(msgspec.Struct, frozen=True):
    """A range or a scale that is another.

    Attributes:
        tensor: Name of the tensor.
        before: Of a range its ends; of scales the smallest and the largest.
        after: The same of the second receipt.
        change: How far the end of a range moved that moved more, by the width before; of scales,
            the largest relative change of any. None where they cannot be told entry by entry,
            as of scales per tensor and per channel.
    """

    tensor: str
    before: tuple[float, float]
    after: tuple[float, float]
    change: float | None


class Figure(msgspec.Struct, frozen=True):
    """A figure that either receipt has.

    Attributes:
        name: What it is.
        before: None where it was not measured.
        after: The same of the second receipt.
        better: Which way it is better.
    """

    name: str
    before: float | None
    after: float | None
    better: Better

    @property
    def improved(self) -> bool | None:
        """Whether it is better than before; None where nothing tells, or nothing changed."""
        if self.before is None or self.after is None or self.before == self.after:
            return None
        return None if self.better == "none" else (self.after > self.before) == self.is_higher

    @property
    def is_higher(self) -> bool:
        """Whether higher is better."""
        return self.better == "higher"


class Changed(msgspec.Struct, frozen=True):
    """A key with another value; None where only one side has it.

    Attributes:
        key: Its name, with dots between tables.
        before: Its value as JSON.
        after: The same of the second receipt.
    """

    key: str
    before: str | None
    after: str | None


class ReceiptDiff(msgspec.Struct, frozen=True):
    """What changed from one receipt, or plan, to another.

    Attributes:
        nodes: Nodes of both whose precision or reason changed, in the order of the plan.
        only_before: Nodes that only the first plan has.
        only_after: Nodes that only the second plan has.
        ranges: Ranges that moved, the farthest first.
        scales: Scales that moved, the farthest first.
        figures: All figures that either receipt has; none between plans.
        recipe: Keys of the recipe that differ.
        versions: What differs of the environment, the versions among it.
        notes: What a reader must know to judge the figures.
    """

    nodes: tuple[NodeChange, ...]
    only_before: tuple[NodeChange, ...]
    only_after: tuple[NodeChange, ...]
    ranges: tuple[Moved, ...]
    scales: tuple[Moved, ...]
    figures: tuple[Figure, ...]
    recipe: tuple[Changed, ...]
    versions: tuple[Changed, ...]
    notes: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """True when nothing was decided otherwise; figures may differ all the same."""
        lists = (self.nodes, self.only_before, self.only_after, self.ranges, self.scales)
        return not any((*lists, self.recipe))


def diff(before: Receipt | QuantPlan, after: Receipt | QuantPlan) -> ReceiptDiff:
    """Hold a receipt, or a plan, against an earlier one.

    Args:
        before: The earlier one.
        after: The later one.
    """
    plans = _plan(before), _plan(after)
    both = isinstance(before, Receipt) and isinstance(after, Receipt)
    nodes, lost, added = _nodes(*plans)
    found = ReceiptDiff(nodes, lost, added, (), _scales(*plans), (), (), ())
    if not both:
        return found
    assert isinstance(before, Receipt)
    assert isinstance(after, Receipt)
    return msgspec.structs.replace(
        found,
        ranges=_ranges(before.ranges, after.ranges),
        figures=_figures(before, after),
        recipe=_changed(_flat(before.recipe), _flat(after.recipe)),
        versions=_changed(_flat(before.environment), _flat(after.environment)),
        notes=_notes(before, after),
    )


def _plan(given: Receipt | QuantPlan) -> QuantPlan:
    return given.plan if isinstance(given, Receipt) else given


def _nodes(
    before: QuantPlan, after: QuantPlan
) -> tuple[tuple[NodeChange, ...], tuple[NodeChange, ...], tuple[NodeChange, ...]]:
    """The nodes that changed, those that only the first has, and only the second."""
    ones, others = ({node.name: node for node in plan.nodes} for plan in (before, after))
    found: list[NodeChange] = []
    for name in {**ones, **others}:
        one, other = ones.get(name), others.get(name)
        either = one or other
        assert either is not None
        change = NodeChange(
            name,
            either.op,
            one.precision if one else None,
            other.precision if other else None,
            one.reason.sentence if one and one.reason else "",
            other.reason.sentence if other and other.reason else "",
        )
        if (change.before, change.why_before) != (change.after, change.why_after):
            found.append(change)
    return (
        tuple(c for c in found if c.before is not None and c.after is not None),
        tuple(c for c in found if c.after is None),
        tuple(c for c in found if c.before is None),
    )


def _ranges(before: dict[str, TensorRange], after: dict[str, TensorRange]) -> tuple[Moved, ...]:
    moved = []
    for tensor in before.keys() & after.keys():
        one, other = before[tensor], after[tensor]
        most = max(abs(other.lo - one.lo), abs(other.hi - one.hi))
        width = one.hi - one.lo
        change = most / width if width > 0 else (math.inf if most else 0.0)
        ends = (one.lo, one.hi), (other.lo, other.hi)
        moved.append(Moved(tensor, *ends, change if math.isfinite(change) else None))
    return _sorted(moved)


def _scales(before: QuantPlan, after: QuantPlan) -> tuple[Moved, ...]:
    moved = []
    for tensor in before.tensors.keys() & after.tensors.keys():
        one, other = before.tensors[tensor].scale, after.tensors[tensor].scale
        change = None
        if len(one) == len(other):
            change = max(abs(b / a - 1) if a else math.inf for a, b in zip(one, other, strict=True))
        ends = (min(one), max(one)), (min(other), max(other))
        known = change if change is not None and math.isfinite(change) else None
        moved.append(Moved(tensor, *ends, known))
    return _sorted(moved)


def _sorted(moved: list[Moved]) -> tuple[Moved, ...]:
    told = [one for one in moved if one.change is None or one.change > _SAME]
    far = {one.tensor: math.inf if one.change is None else one.change for one in told}
    return tuple(sorted(told, key=lambda one: (-far[one.tensor], one.tensor)))


def _figures(before: Receipt, after: Receipt) -> tuple[Figure, ...]:
    ones, others = (_known(receipt) for receipt in (before, after))
    either = ones | others
    names = dict.fromkeys((*ones, *others))
    none = (None, "none")
    return tuple(
        Figure(name, ones.get(name, none)[0], others.get(name, none)[0], either[name][1])
        for name in names
    )


def _known(receipt: Receipt) -> dict[str, tuple[float, Better]]:
    """The figures of one receipt, by their names."""
    return {
        name: (float(value), better)
        for name, value, better in _told(receipt.measured)
        if value is not None
    } | {"bytes": (float(receipt.output.bytes), "lower")}


def _told(measured: Measured) -> Iterator[tuple[str, float | None, Better]]:
    if metric := measured.metric:
        yield metric.name, metric.output, "higher"
        yield f"{metric.name} of the source", metric.source, "higher"
    for name, facts in measured.outputs.items():
        yield f"SQNR of {name}, dB", facts.sqnr_db, "higher"
        yield f"cosine of {name}", facts.cosine, "higher"
        yield f"same top class in {name}", facts.top1_agreement, "higher"
        yield f"equal entries of {name}", facts.equal, "higher"
    yield "size, by the source's", measured.size_ratio, "lower"
    if latency := measured.latency:
        yield "speed, by the prepared float model's", latency.ratio_prepared, "higher"
        yield "speed, by the source's", latency.ratio, "higher"
        yield "milliseconds", latency.output_ms, "lower"
    if coverage := measured.int8_coverage:
        share = coverage.int8 / coverage.wanted if coverage.wanted else None
        yield "planned nodes that run as int8", share, "higher"
        yield "nodes that run as int8", coverage.int8, "higher"
    yield "test samples", measured.samples or None, "none"


def _flat(value: object) -> dict[str, str]:
    """Keys with dots between tables, and their values as JSON."""
    return dict(_leaves("", msgspec.to_builtins(value)))


def _leaves(key: str, value: Any) -> Iterator[tuple[str, str]]:  # noqa: ANN401 - any JSON value
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}" if key else name, inner)
    else:
        yield key, value if isinstance(value, str) else json.dumps(value)


def _changed(before: dict[str, str], after: dict[str, str]) -> tuple[Changed, ...]:
    keys = dict.fromkeys((*before, *after))
    pairs = (Changed(key, before.get(key), after.get(key)) for key in keys)
    return tuple(one for one in pairs if one.before != one.after)


def _notes(before: Receipt, after: Receipt) -> tuple[str, ...]:
    notes = []
    if before.source.sha256 != after.source.sha256:
        notes.append(
            f"the receipts are of different models: '{before.source.path}' "
            f"({before.source.sha256[:12]}) and '{after.source.path}' ({after.source.sha256[:12]})"
        )
    if before.data.get("test") != after.data.get("test"):
        notes.append("accuracy was measured on different test samples")
    if before.data.get("calibration") != after.data.get("calibration"):
        notes.append("they were calibrated on different samples")
    return tuple(notes)
