"""Channels that say nothing are taken out: constant ones, and those that nothing reads.

Training with weight decay drives whole filters to zero: MobileNets lose up to nine of ten channels
of their last layers so. What such a filter makes is its bias, whatever the image: the layers behind
it can hold that in biases of their own, and the filter, its channel, and the weights that read it
go away.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.graph.edit import Editor
from onnxq.graph.model import Model
from onnxq.graph.view import GraphView, NodeView, unused
from onnxq.types import Array

Numbers = NDArray[np.float64]
Flags = NDArray[np.bool_]

# Weights so small beside the largest one of their layer are nothing: decay leaves some of 1e-30,
# and no model scales the like up again.
_NOTHING = 1e-20
# Kernels compute so many channels at a time: fewer than the next multiple are no faster, and ONNX
# Runtime's blocked layouts (NCHWc) take no other count.
_LANES = 16
_ALONE: dict[str, Callable[[Numbers], Numbers]] = {
    "Identity": lambda x: x,
    "Relu": lambda x: np.maximum(x, 0),
    "Sigmoid": lambda x: 0.5 + 0.5 * np.tanh(x / 2),
    "Tanh": np.tanh,
    "HardSwish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
}
_PAIRS: dict[str, Callable[[Numbers, Numbers], Numbers]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
}
_POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
_FLAT = ("Flatten", "Reshape", "Squeeze")


def drop_dead_channels(model: Model) -> Model:
    """Take out the channels of convolutions that are constant, or that nothing reads.

    A constant channel has to be so everywhere: one that is not zero goes away only where what reads
    it pads nothing. Counts become multiples of 16, with channels of zeros where they are not.

    Args:
        model: A model with inferred shapes; it is not changed.

    Returns:
        A model that computes the same but for the order of sums; the same one if there are none.
    """
    dead = _DeadChannels(model.view())
    count = sum(kept.size - _filled(kept) for kept in dead.kept.values())
    if not count:
        return model
    said = "1 channel that is" if count == 1 else f"{count} channels that are"
    return _cut(model, dead).with_notes(f"took out {said} constant or never read")


@dataclass(frozen=True)
class _Layer:
    """What a layer that mixes channels, or keeps them apart, makes of constant ones.

    Attributes:
        idle: Which outputs do not depend on which inputs, of shape [outputs, inputs]; [channels, 1]
            of a layer that keeps channels apart.
        gains: What an input of ones adds to each output, far from the edges, of the same shape.
        bias: Of shape [outputs].
        apart: Whether it keeps channels apart.
        padded: Whether it reads zeros beyond the edges.
        biased: Whether it has a bias, or can be given one.
    """

    idle: Flags
    gains: Numbers
    bias: Numbers
    apart: bool = False
    padded: bool = False
    biased: bool = True

    def absorbs(self, values: Numbers) -> Flags:
        """Which inputs the bias can stand for, given their values, NaN where they vary."""
        return np.isfinite(values) if self.biased and not self.padded else values == 0

    def made(self, values: Numbers) -> Numbers:
        """The values of its outputs, NaN where they vary."""
        known = self.idle | (self.absorbs(values)[:, None] if self.apart else self.absorbs(values))
        values = np.nan_to_num(values)
        found = self.gains[:, 0] * values if self.apart else self.gains @ values
        return np.where(known.all(1), self.bias + found, np.nan)


@dataclass
class _Group:
    """Tensors that have the same channels, since what lies between them keeps channels apart."""

    tensors: list[str]
    readers: list[NodeView] = field(default_factory=list)
    fixed: bool = False


class _DeadChannels:
    """Which channels are constant, which tensors share their channels, and what may go.

    Attributes:
        values: By tensor: the values of its channels, NaN for those that vary.
        kept: By the identity of a group: which of its channels stay, where some go.
    """

    def __init__(self, view: GraphView) -> None:
        self._view = view
        self._groups: dict[str, _Group] = {}
        self.values: dict[str, Numbers] = {}
        self.kept: dict[int, Flags] = {}
        for node in view.nodes:
            self._see(node)
        groups = list({id(group): group for group in self._groups.values()}.values())
        for name in view.output_names & self._groups.keys():
            self._groups[name].fixed = True
        for group in reversed(groups):  # what reads a channel may go away itself
            if not group.fixed:
                self._choose(group)

    def kept_of(self, tensor: str) -> Flags | None:
        """Which channels of a tensor stay; None where it keeps all, or has none."""
        group = self._groups.get(tensor)
        return self.kept.get(id(group)) if group is not None else None

    def layer(self, node: NodeView) -> _Layer | None:
        """A convolution, or a fully connected layer behind one, with weights that are constant."""
        connected = node.op in ("Gemm", "MatMul") and node.inputs[0] in self._groups
        flat = connected and self._view.rank(node.inputs[0]) == 2
        if node.domain or not (node.op == "Conv" or flat):
            return None
        weight, bias = (self._view.constant(t) for t in (*node.inputs, "")[1:3])
        missing = bias is None and any(node.inputs[2:])
        if weight is None or missing or weight.dtype.kind != "f" or not weight.size:
            return None
        if not np.isfinite(weight).all():
            return None
        return (_convolution if node.op == "Conv" else _fully_connected)(node, weight, bias)

    def _see(self, node: NodeView) -> None:
        layer = self.layer(node)
        if layer is not None and not layer.apart:
            if node.inputs[0] in self._groups:
                self._groups[node.inputs[0]].readers.append(node)
            if node.op == "Conv":
                self._groups[node.outputs[0]] = _Group([node.outputs[0]])
                unknown = np.full(layer.idle.shape[1], np.nan)
                self.values[node.outputs[0]] = layer.made(self.values.get(node.inputs[0], unknown))
        elif (values := self._kept_apart(node, layer)) is not None:
            group = self._merged([self._groups[tensor] for tensor in _data(node)])
            group.tensors.append(node.outputs[0])
            self._groups[node.outputs[0]], self.values[node.outputs[0]] = group, values
        else:
            for tensor in {*node.inputs, *node.captures} & self._groups.keys():
                self._groups[tensor].fixed = True

    def _kept_apart(self, node: NodeView, layer: _Layer | None) -> Numbers | None:
        """The channels that a node makes, which keeps them apart; None for any other node."""
        read = [self.values.get(tensor) for tensor in _data(node)]
        first = read[0] if read else None
        if node.domain or len(node.outputs) != 1 or first is None:
            return None
        if layer is not None:
            return layer.made(first)
        if node.op in _PAIRS:
            second, ranks = read[1], {self._view.rank(tensor) for tensor in _data(node)}
            if second is None or len(ranks) > 1 or None in ranks or len(first) != len(second):
                return None
            return _PAIRS[node.op](first, second)
        if node.op == "Clip":
            return self._clipped(node, first)
        if node.op == "AveragePool" and node.attrs.get("count_include_pad", 0):
            return np.where(first == 0, 0, np.nan)  # the edges are nearer to zero
        if node.op in _POOLS or (node.op in _FLAT and self._flattens(node)):
            return first
        return _ALONE[node.op](first) if node.op in _ALONE else None

    def _clipped(self, node: NodeView, values: Numbers) -> Numbers | None:
        if node.attrs:  # the bounds of opset 10 and before
            return None
        for name, limit in zip(node.inputs[1:], (np.maximum, np.minimum), strict=False):
            bound = self._view.constant(name) if name else None
            if name and bound is None:
                return None
            values = values if bound is None else limit(values, bound)
        return values

    def _flattens(self, node: NodeView) -> bool:
        """Whether a node makes [N, C] of [N, C, 1, 1]."""
        before = self._view.shape(node.inputs[0]) or ()
        after = self._view.shape(node.outputs[0]) or ()
        ones = len(before) > 2 and all(size == 1 for size in before[2:])
        return ones and len(after) == 2 and isinstance(before[1], int) and after[1] == before[1]

    def _merged(self, groups: list[_Group]) -> _Group:
        first = groups[0]
        for other in groups[1:]:
            if other is not first:
                first.tensors += other.tensors
                first.readers += other.readers
                first.fixed |= other.fixed
                self._groups.update(dict.fromkeys(other.tensors, first))
        return first

    def _choose(self, group: _Group) -> None:
        """Find the channels that no reader needs."""
        dead = np.ones(len(self.values[group.tensors[0]]), bool)
        for node in group.readers:
            layer, rows = self.layer(node), self.kept_of(node.outputs[0])
            assert layer is not None
            idle = layer.idle if rows is None else layer.idle[rows]
            dead &= idle.all(0) | layer.absorbs(self.values[node.inputs[0]])
        if _filled(~dead) < dead.size:
            self.kept[id(group)] = ~dead


def _filled(kept: Flags) -> int:
    """How many channels there are when the last lanes are filled with zeros."""
    return max(-(-int(kept.sum()) // _LANES), 1) * _LANES


def _without(array: Array, kept: Flags | None, axis: int = 0) -> Array:
    """An array without the channels along an axis that go, and zeros to fill the lanes."""
    if kept is None:
        return array
    rest = np.compress(kept, array, axis)
    widths = [(0, _filled(kept) - rest.shape[axis] if at == axis else 0) for at in range(rest.ndim)]
    return np.pad(rest, widths)


def _data(node: NodeView) -> tuple[str, ...]:
    """The tensors whose channels a node may keep apart."""
    return node.inputs[:2] if node.op in _PAIRS else node.inputs[:1]


def _convolution(node: NodeView, weight: Array, bias: Array | None) -> _Layer | None:
    groups = node.attrs.get("group", 1)
    if groups != 1 and not (weight.shape[1] == 1 and groups == len(weight)):
        return None
    automatic = node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    return _Layer(
        *_reach(weight.reshape(*weight.shape[:2], -1)),
        _held(bias, len(weight)),
        apart=groups != 1,
        padded=automatic or any(node.attrs.get("pads", ())),
    )


def _fully_connected(node: NodeView, weight: Array, bias: Array | None) -> _Layer | None:
    told = node.attrs
    plain = told.get("alpha", 1) == 1 and told.get("beta", 1) == 1 and not told.get("transA", 0)
    if weight.ndim != 2 or not plain:
        return None
    matrix = weight if told.get("transB", 0) else weight.T
    if bias is not None and bias.shape != (len(matrix),):
        return None
    held = _held(bias, len(matrix))
    return _Layer(*_reach(matrix[..., None]), held, biased=node.op == "Gemm")


def _reach(weight: Array) -> tuple[Flags, Numbers]:
    """Which weights of shape [outputs, inputs, window] are nothing, and the sums of the others."""
    sizes = np.abs(weight).max(-1)
    idle: Flags = sizes <= _NOTHING * sizes.max()
    return idle, np.where(idle, 0, weight.sum(-1, dtype=np.float64))


def _held(bias: Array | None, outputs: int) -> Numbers:
    return np.zeros(outputs) if bias is None else bias.astype(np.float64)


def _cut(model: Model, dead: _DeadChannels) -> Model:
    view = model.view()
    editor, taken = Editor(model), set(view.names)
    made = defaultdict[str, list[tuple[str, Array]]](list)

    def held(name: str, array: Array) -> str:
        """The name of a constant; layers that share one share what is left of it."""
        for known, values in made[name]:
            if np.array_equal(values, array):
                return known
        new = unused(f"{name}_alive", taken)
        taken.add(new)
        made[name].append((new, array))
        return editor.add_constant(new, array)

    for node in view.nodes:
        rows = dead.kept_of(node.outputs[0]) if node.outputs else None
        columns = dead.kept_of(node.inputs[0]) if node.inputs else None
        if rows is None and columns is None:
            continue
        attrs, inputs, layer = dict(node.attrs), list(node.inputs), dead.layer(node)
        if layer is not None:
            weight, bias = _rest(view, node, layer, dead)
            inputs[1] = held(inputs[1], weight)
            if bias is not None:
                inputs[2:] = [held((*inputs, "")[2] or f"{node.name}_bias", bias)]
            if layer.apart:
                attrs["group"] = len(weight)
        elif node.op == "Reshape" and rows is not None:
            inputs[1], attrs = held(inputs[1], np.array([-1, _filled(rows)])), {}
        else:
            continue
        editor.replace(node.name, node.op, inputs, attrs=attrs)
    new = editor.finish()
    _tell_shapes(new.ir.graph, dead)
    return new


def _rest(
    view: GraphView, node: NodeView, layer: _Layer, dead: _DeadChannels
) -> tuple[Array, Array | None]:
    """Weights and bias of a layer without the channels that go; no bias where it needs none."""
    columns = dead.kept_of(node.inputs[0])
    rows = dead.kept_of(node.outputs[0]) if node.op == "Conv" else None
    weight, bias = view.constant(node.inputs[1]), layer.bias
    assert weight is not None
    if columns is not None and not layer.apart:
        read = np.where(columns, 0, np.nan_to_num(dead.values[node.inputs[0]]))
        bias = bias + layer.gains @ read
        by_rows = node.op == "MatMul" or (node.op == "Gemm" and not node.attrs.get("transB", 0))
        weight = _without(weight, columns, 0 if by_rows else 1)
    needed = bias.any() or any(node.inputs[2:])
    held = _without(bias, rows).astype(weight.dtype) if needed else None
    return _without(weight, rows), held


def _tell_shapes(graph: ir.Graph, dead: _DeadChannels) -> None:
    for value in (value for node in graph for value in node.outputs):
        mask = dead.kept_of(value.name or "")
        if mask is not None and value.shape is not None:
            first, _, *others = value.shape
            value.shape = ir.Shape([first, _filled(mask), *others])
