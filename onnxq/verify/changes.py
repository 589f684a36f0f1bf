"""What changed between a baseline and a run: the graph, the plan, the ranges, and the setting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from onnxq.plan import NodePlan, QuantPlan
from onnxq.types import TensorRange
from onnxq.verify.fingerprint import GraphFacts, NodeFacts
from onnxq.verify.receipt import Receipt

ChangeKind = Literal[
    "added", "removed", "operator", "attribute", "shape", "weights", "input", "output", "opset",
    "producer", "precision", "recipe", "data", "version", "machine",
]  # fmt: skip
# Keys of a recipe that say how a model is judged, and nothing of how it is made; and paths, which
# differ between folders while the samples, which have their digests, are the same.
_NOT_MADE_BY = ("check", "budgets", "qat", "verify", "data.calibration", "data.test")
# What a time per run depends on, of what ``environment`` tells.
MACHINE = ("system", "processor", "cores")


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


class RangeMove(msgspec.Struct, frozen=True):
    """How far the calibrated range of a tensor moved.

    Attributes:
        tensor: Its name.
        before: Its ends in the baseline.
        after: Its ends now.
        change: The farther end's way, as a share of the baseline's width.
    """

    tensor: str
    before: tuple[float, float]
    after: tuple[float, float]
    change: float


class Changes(msgspec.Struct, frozen=True):
    """All that changed since the baseline.

    Attributes:
        graph: Nodes, inputs and outputs, opset and producer.
        plan: Nodes of both graphs with another precision than before.
        ranges: Tensors of both whose ranges moved, the farthest first.
        setting: Recipe, data, versions and machine.
    """

    graph: tuple[Change, ...]
    plan: tuple[Change, ...]
    ranges: tuple[RangeMove, ...]
    setting: tuple[Change, ...]

    @property
    def none(self) -> bool:
        """Whether everything is as it was."""
        return not (self.graph or self.plan or self.ranges or self.setting)


def changes_of(before: Receipt, after: Receipt) -> Changes:
    """Compare a run with its baseline."""
    return Changes(
        _graph_changes(before, after),
        _plan_changes(before.plan, after.plan),
        range_moves(before.ranges, after.ranges),
        _setting_changes(before, after),
    )


def _graph_changes(before: Receipt, after: Receipt) -> tuple[Change, ...]:
    if before.graph is None or after.graph is None:  # the baseline is of an older onnxq
        old, new = (tuple(NodeFacts(n.name, n.op) for n in r.plan.nodes) for r in (before, after))
        return _node_changes(old, new)
    return graph_changes(before.graph, after.graph)


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
    known = before.precision()
    return tuple(
        Change("precision", node.name, known[node.name].value, _precision_text(node))
        for node in after.nodes
        if node.name in known and node.precision is not known[node.name]
    )


def _precision_text(node: NodePlan) -> str:
    why = f" ({node.reason.sentence})" if node.reason is not None else ""
    return f"{node.precision.value}{why}"


def range_moves(
    before: Mapping[str, TensorRange], after: Mapping[str, TensorRange]
) -> tuple[RangeMove, ...]:
    """Ranges of tensors that both have, where they differ, the most moved first."""
    moves = [
        RangeMove(tensor, (old.lo, old.hi), (new.lo, new.hi), _moved(old, new))
        for tensor, new in after.items()
        if (old := before.get(tensor)) is not None
    ]
    moves = [move for move in moves if move.change > 0]
    return tuple(sorted(moves, key=lambda move: (-move.change, move.tensor)))


def _moved(old: TensorRange, new: TensorRange) -> float:
    """The way of the farther end per width; of a range without width, per the new one's."""
    way = max(abs(new.lo - old.lo), abs(new.hi - old.hi))
    width = old.hi - old.lo or new.hi - new.lo or abs(old.hi) or 1.0
    return way / width


def _setting_changes(before: Receipt, after: Receipt) -> tuple[Change, ...]:
    found = _changed("recipe", _keys(before), _keys(after))
    found += [
        Change("data", kind, before.data[kind][:12], digest[:12])
        for kind, digest in after.data.items()
        if before.data.get(kind, digest) != digest
    ]
    known, here = before.environment, after.environment
    for name, value in here.items():
        kind: ChangeKind = "machine" if name in MACHINE else "version"
        if known.get(name, value) != value:
            found.append(Change(kind, name, known[name], value))
    return tuple(found)


def _keys(receipt: Receipt) -> dict[str, str]:
    """What a model was made by, as text by the path of its key."""
    found: dict[str, str] = {}
    _flatten("", msgspec.to_builtins(receipt.recipe), found)
    return {
        path: value
        for path, value in found.items()
        if not any(path == key or path.startswith(f"{key}.") for key in _NOT_MADE_BY)
    }


def _flatten(path: str, value: object, found: dict[str, str]) -> None:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            _flatten(f"{path}.{key}" if path else str(key), inner, found)
    elif value not in (None, {}, []):
        found[path] = value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _changed(kind: ChangeKind, before: Mapping[str, str], after: Mapping[str, str]) -> list[Change]:
    names = [*before, *(name for name in after if name not in before)]
    return [
        Change(kind, name, before.get(name, ""), after.get(name, ""))
        for name in names
        if before.get(name, "") != after.get(name, "")
    ]
