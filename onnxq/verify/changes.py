"""What changed from one receipt to another: the graph, the plan, ranges, scales and the setting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from onnxq.plan import NodePlan, QuantPlan
from onnxq.types import TensorRange
from onnxq.verify.fingerprint import GraphFacts, NodeFacts
from onnxq.verify.receipt import FileFacts, Measured, Receipt

ChangeKind = Literal[
    "added", "removed", "operator", "attribute", "shape", "weights", "input", "output", "opset",
    "producer", "precision", "reason", "source", "recipe", "judging", "data", "version", "machine",
]  # fmt: skip
# What may differ, and nothing was decided otherwise: of a new export the file always does.
ASIDE: frozenset[ChangeKind] = frozenset({"reason", "source", "judging"})
# Keys of a recipe that say how a model is judged, and nothing of how it is made; and paths, which
# differ between folders while the samples, which have their digests, are the same.
_NOT_MADE_BY = ("check", "budgets", "qat", "verify", "data.calibration", "data.test")
# What a time per run depends on, of what ``environment`` tells.
MACHINE = ("system", "processor", "cores")
# Relative changes below this are rounding.
_SAME = 1e-6
_DIGITS = 12
# Which way a figure is better; ``none`` for one that is neither.
Better = Literal["higher", "lower", "none"]


class Change(msgspec.Struct, frozen=True):
    """One thing that is not as it was.

    Attributes:
        kind: What sort of thing.
        where: The node, tensor or key.
        before: What it was; empty for what was not there.
        after: What it is; empty for what is gone.
    """

    kind: ChangeKind
    where: str
    before: str = ""
    after: str = ""


class Moved(msgspec.Struct, frozen=True):
    """How far a calibrated range, or the scales of a tensor, moved.

    Attributes:
        tensor: Its name.
        before: Of a range its ends; of scales the smallest and the largest.
        after: The same now.
        change: Of a range the farther end's way, as a share of the width before; of scales the
            largest relative change of any.
    """

    tensor: str
    before: tuple[float, float]
    after: tuple[float, float]
    change: float


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
        rose = self.after > self.before
        return None if self.better == "none" else rose == (self.better == "higher")


class Changes(msgspec.Struct, frozen=True):
    """All that changed from one receipt, or plan, to another.

    Attributes:
        graph: Nodes, inputs and outputs, opset and producer.
        plan: Nodes of both with another precision, or another reason for it.
        ranges: Ranges of tensors of both that moved, the farthest first.
        setting: The source's file, recipe, data, versions and machine.
        scales: Scales of tensors of both that moved, the farthest first.
        figures: All figures that either receipt has; none between plans.
    """

    graph: tuple[Change, ...] = ()
    plan: tuple[Change, ...] = ()
    ranges: tuple[Moved, ...] = ()
    setting: tuple[Change, ...] = ()
    scales: tuple[Moved, ...] = ()
    figures: tuple[Figure, ...] = ()

    @property
    def none(self) -> bool:
        """Whether all is as it was; figures, and what is aside, may differ all the same."""
        told = (*self.graph, *self.plan, *self.setting)
        return not (self.ranges or self.scales or any(one.kind not in ASIDE for one in told))


def changes_of(before: Receipt | QuantPlan, after: Receipt | QuantPlan) -> Changes:
    """Hold a receipt, or a plan, against an earlier one.

    Args:
        before: The earlier one.
        after: The later one.
    """
    if isinstance(before, Receipt) and isinstance(after, Receipt):
        return Changes(
            _graph_changes(before, after),
            _plan_changes(before.plan, after.plan),
            range_moves(before.ranges, after.ranges),
            _setting_changes(before, after),
            _scale_moves(before.plan, after.plan),
            _figures(before, after),
        )
    old, new = (one.plan if isinstance(one, Receipt) else one for one in (before, after))
    return Changes(
        _node_changes(_planned(old), _planned(new)),
        _plan_changes(old, new),
        scales=_scale_moves(old, new),
    )


def _graph_changes(before: Receipt, after: Receipt) -> tuple[Change, ...]:
    if before.graph is None or after.graph is None:  # the baseline is of an older onnxq
        return _node_changes(_planned(before.plan), _planned(after.plan))
    return graph_changes(before.graph, after.graph)


def _planned(plan: QuantPlan) -> tuple[NodeFacts, ...]:
    """What a plan alone tells of the graph."""
    return tuple(NodeFacts(node.name, node.op) for node in plan.nodes)


def graph_changes(before: GraphFacts, after: GraphFacts) -> tuple[Change, ...]:
    """What a new export changed; nodes are the same where their names are."""
    found = []
    if before.opset != after.opset:
        found.append(Change("opset", "", str(before.opset), str(after.opset)))
    if before.producer != after.producer:
        found.append(Change("producer", "", before.producer, after.producer))
    found += _changed("input", before.inputs, after.inputs)
    found += _changed("output", before.outputs, after.outputs)
    return (*found, *_node_changes(before.nodes, after.nodes))


def _node_changes(
    before: tuple[NodeFacts, ...], after: tuple[NodeFacts, ...]
) -> tuple[Change, ...]:
    """Removed and added nodes, operators, attributes, shapes, weights: in this order."""
    old, new = ({node.name: node for node in nodes} for nodes in (before, after))
    found = [
        Change("removed", node.name, before=node.op) for node in before if node.name not in new
    ]
    found += [Change("added", node.name, after=node.op) for node in after if node.name not in old]
    pairs = [(old[node.name], node) for node in after if node.name in old]
    found += [Change("operator", b.name, a.op, b.op) for a, b in pairs if a.op != b.op]
    same = [(a, b) for a, b in pairs if a.op == b.op]
    for a, b in same:
        found += [
            Change("attribute", f"{b.name} {change.where}", change.before, change.after)
            for change in _changed("attribute", a.attributes, b.attributes)
        ]
    found += [
        Change("shape", b.name, " ".join(a.shapes), " ".join(b.shapes))
        for a, b in same
        if a.shapes != b.shapes
    ]
    found += [
        Change("weights", b.name, a.weights, b.weights) for a, b in same if a.weights != b.weights
    ]
    return tuple(found)


def _plan_changes(before: QuantPlan, after: QuantPlan) -> tuple[Change, ...]:
    known = {node.name: node for node in before.nodes}
    pairs = [(known[node.name], node) for node in after.nodes if node.name in known]
    return tuple(
        Change("reason" if old.precision is new.precision else "precision", new.name, *texts)
        for old, new in pairs
        if len(set(texts := (_precision_text(old), _precision_text(new)))) > 1
    )


def _precision_text(node: NodePlan) -> str:
    why = f" ({node.reason.sentence})" if node.reason is not None else ""
    return f"{node.precision.value}{why}"


def range_moves(
    before: Mapping[str, TensorRange], after: Mapping[str, TensorRange]
) -> tuple[Moved, ...]:
    """Ranges of tensors that both have, where they differ, the most moved first."""
    return _far(
        Moved(tensor, (old.lo, old.hi), (new.lo, new.hi), _moved(old, new))
        for tensor, new in after.items()
        if (old := before.get(tensor)) is not None
    )


def _moved(old: TensorRange, new: TensorRange) -> float:
    """The way of the farther end per width; of a range without width, per the new one's."""
    way = max(abs(new.lo - old.lo), abs(new.hi - old.hi))
    width = old.hi - old.lo or new.hi - new.lo or abs(old.hi) or 1.0
    return way / width


def _scale_moves(before: QuantPlan, after: QuantPlan) -> tuple[Moved, ...]:
    def moved(tensor: str, old: Sequence[float], new: Sequence[float]) -> Moved:
        ends = (min(old), max(old)), (min(new), max(new))
        # of one scale and one per channel the ends are what can be compared
        pairs = zip(old, new, strict=True) if len(old) == len(new) else zip(*ends, strict=True)
        return Moved(tensor, *ends, max(abs(b - a) / (abs(a) or 1.0) for a, b in pairs))

    return _far(
        moved(tensor, before.tensors[tensor].scale, params.scale)
        for tensor, params in after.tensors.items()
        if tensor in before.tensors
    )


def _far(moves: Iterator[Moved]) -> tuple[Moved, ...]:
    """Those that are more than rounding, the farthest first."""
    told = [move for move in moves if move.change > _SAME]
    return tuple(sorted(told, key=lambda move: (-move.change, move.tensor)))


def _setting_changes(before: Receipt, after: Receipt) -> tuple[Change, ...]:
    found: list[Change] = []
    if before.source.sha256 != after.source.sha256:
        found.append(Change("source", "", _file_text(before.source), _file_text(after.source)))
    for change in _changed("recipe", _keys(before), _keys(after)):
        aside = any(f"{change.where}.".startswith(f"{key}.") for key in _NOT_MADE_BY)
        found.append(msgspec.structs.replace(change, kind="judging") if aside else change)
    digests = ({k: d[:_DIGITS] for k, d in r.data.items()} for r in (before, after))
    found += _changed("data", *digests)
    for change in _changed("version", before.environment, after.environment):
        on_machine = change.where in MACHINE
        found.append(msgspec.structs.replace(change, kind="machine") if on_machine else change)
    return tuple(found)


def _file_text(file: FileFacts) -> str:
    return f"{file.path} ({file.sha256[:_DIGITS]})".strip()


def _keys(receipt: Receipt) -> dict[str, str]:
    """A recipe as text by the path of its key, without what is empty."""
    return dict(_leaves("", msgspec.to_builtins(receipt.recipe)))


def _leaves(path: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(f"{path}.{key}" if path else str(key), inner)
    elif value not in (None, {}, ()):
        yield path, value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _changed(kind: ChangeKind, before: Mapping[str, str], after: Mapping[str, str]) -> list[Change]:
    names = [*before, *(name for name in after if name not in before)]
    return [
        Change(kind, name, before.get(name, ""), after.get(name, ""))
        for name in names
        if before.get(name, "") != after.get(name, "")
    ]


def _figures(before: Receipt, after: Receipt) -> tuple[Figure, ...]:
    ones, others = (_known(receipt) for receipt in (before, after))
    none = (None, "none")
    return tuple(
        Figure(name, ones.get(name, none)[0], others.get(name, none)[0], better)
        for name, (_, better) in (ones | others).items()
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
