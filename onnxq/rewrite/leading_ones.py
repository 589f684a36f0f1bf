"""``drop_leading_ones``: nodes that only put axes of 1 before a tensor, or take them off, go away.

Exporters put a Reshape, Squeeze or Unsqueeze around every MatMul, Gemm and Softmax that they write
for another number of axes than its neighbours. Each is a node that a runtime calls and that stands
between what it could merge. To most operators leading axes of 1 make no difference: they pair axes
from the last one backwards, or name the axis that they work along. Where a whole region consists of
such operators, its tensors lose their leading axes of 1 down to two axes, as Gemm wants them, and
what only changed them is left out. Reshapes put them back at the region's borders, if those are
fewer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from onnxq.graph import Editor, GraphView, Model, NodeView, infer_shapes
from onnxq.rewrite.names import Names

Sizes = tuple[int, ...]

_PLAIN_AXES = 2  # of Gemm
_NO_NUMBERS = ("object", "string")
_AXES_OPSET = 13  # from here on Softmax works along one axis
_POINTWISE = frozenset(
    [
        *("Abs", "Cast", "Ceil", "Celu", "Clip", "Cos", "DequantizeLinear"),
        *("DynamicQuantizeLinear", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid"),
        *("HardSwish", "Identity", "LeakyRelu", "Log", "Mish", "Neg", "Not", "QuantizeLinear"),
        *("Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus"),
        *("Softsign", "Sqrt", "Tan", "Tanh", "ThresholdedRelu"),
    ]
)
_BROADCAST = frozenset(
    [
        *("Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"),
        *("Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor"),
    ]
)
_PRODUCTS = ("MatMul", "MatMulInteger")
# What works along one axis, and where that is if nothing is said.
_ALONG = {"Softmax": -1, "LogSoftmax": -1, "LayerNormalization": -1, "Split": 0, "Concat": 0}
_REGROUPS = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")


def drop_leading_ones(model: Model) -> Model:
    """Leave out nodes that only add or take off leading axes of 1.

    Args:
        model: The model; where the shapes of its inner tensors cannot be inferred, nodes stay.

    Returns:
        A new model that computes the same, but for the order in which a MatMul adds up: a weight of
        fewer axes may take another kernel, and ONNX Runtime may fuse more. The model itself where
        that leaves out nothing.
    """
    view = infer_shapes(model).view()
    if view.opset < _AXES_OPSET:
        return model
    regions = _Regions(view)
    return _Writer(model, view, regions).write() if regions.chosen else model


def shortened(sizes: Sequence[int]) -> Sizes:
    """Without leading ones, as long as two axes are left."""
    first = 0
    while len(sizes) - first > _PLAIN_AXES and sizes[first] == 1:
        first += 1
    return tuple(sizes[first:])


@dataclass(frozen=True)
class _Form:
    """How a node computes on short tensors.

    Attributes:
        op: Its operator.
        attrs: Its attributes.
    """

    op: str
    attrs: Mapping[str, Any]


class _Shapes:
    """Static shapes of tensors, long as they are and short as they may be."""

    def __init__(self, view: GraphView) -> None:
        self._view = view
        read = {tensor for node in view.nodes for tensor in node.inputs}
        given = {spec.name for spec in view.inputs}
        made = {tensor for node in view.nodes for tensor in node.outputs}
        # constants that a caller may override have whatever shape the caller gives them
        self._defaults = {t for t in read - given - made if not view.is_constant(t)}
        self.long = cache(self._long)
        self.short = cache(self._short)

    def _long(self, tensor: str) -> Sizes | None:
        sizes = self._view.shape(tensor)
        if sizes is None or tensor in self._defaults or self._view.dtype(tensor) in _NO_NUMBERS:
            return None
        # a Reshape takes 0 for the size that is there
        known = tuple(size for size in sizes if isinstance(size, int) and size)
        return known if len(known) == len(sizes) else None

    def _short(self, tensor: str) -> Sizes | None:
        sizes = self.long(tensor)
        return None if sizes is None else shortened(sizes)

    def known(self, tensor: str) -> Sizes:
        """The short shape of a tensor that has one."""
        sizes = self.short(tensor)
        assert sizes is not None
        return sizes

    def dropped(self, tensor: str) -> int:
        """Axes that a tensor loses."""
        long, short = self.long(tensor), self.short(tensor)
        return 0 if long is None or short is None else len(long) - len(short)


class _Forms:
    """How nodes compute on short tensors; None where they cannot."""

    def __init__(self, view: GraphView, shapes: _Shapes) -> None:
        self._view, self._shapes = view, shapes

    def of(self, node: NodeView) -> _Form | None:
        """The form of a node of which all tensors that may be short are so."""
        if node.domain or node.bodies or not node.inputs:
            return None
        read = self._reads(node)
        made, sizes = self._shapes.short(node.outputs[0]), list(map(self._shapes.short, read))
        given = [found for found in sizes if found is not None]
        if made is None or len(given) < len(sizes) or self._has_long_extras(node):
            return None
        attrs = dict(node.attrs)
        if node.op in _REGROUPS:
            return _Form("Reshape", {})
        if node.op in _POINTWISE:
            return _Form(node.op, attrs) if self._has_one_scale(node) else None
        if node.op in _BROADCAST:
            return _Form(node.op, attrs) if _broadcast(given) == made else None
        if node.op in _PRODUCTS:
            same = min(map(len, given)) >= _PLAIN_AXES and _product(*given) == made
            return _Form(node.op, attrs) if same else None
        if node.op == "Transpose":
            return self._transposed(node, attrs)
        return self._along(node, read, attrs) if node.op in _ALONG else None

    def _reads(self, node: NodeView) -> tuple[str, ...]:
        """The tensors whose axes are those of the node's work."""
        if node.op in _POINTWISE or node.op in _REGROUPS:
            return node.inputs[:1]
        if node.op in ("LayerNormalization", "Split"):
            return node.inputs[:1]
        if node.op in _PRODUCTS:
            return node.inputs[:2]
        return tuple(filter(None, node.inputs))

    def _has_long_extras(self, node: NodeView) -> bool:
        """True where inputs beside those that the node works on have more axes than they may."""
        others = set(node.inputs) - set(self._reads(node)) - {""}
        return node.op not in _REGROUPS and any(self._shapes.dropped(tensor) for tensor in others)

    def _has_one_scale(self, node: NodeView) -> bool:
        """True unless a node scales along an axis."""
        if node.op not in ("QuantizeLinear", "DequantizeLinear"):
            return True
        sizes = self._shapes.long(node.inputs[1])
        return sizes in ((), (1,)) and not node.attrs.get("block_size")

    def _transposed(self, node: NodeView, attrs: dict[str, Any]) -> _Form | None:
        drop = self._shapes.dropped(node.inputs[0])
        axes = len(self._shapes.long(node.inputs[0]) or ())
        perm = tuple(attrs.get("perm", range(axes)[::-1]))
        if drop != self._shapes.dropped(node.outputs[0]) or perm[:drop] != tuple(range(drop)):
            return None
        return _Form(node.op, {"perm": tuple(axis - drop for axis in perm[drop:])})

    def _along(self, node: NodeView, read: Sequence[str], attrs: dict[str, Any]) -> _Form | None:
        tensors = (*read, *filter(None, node.outputs))
        drop = self._shapes.dropped(tensors[0])
        axes = len(self._shapes.long(tensors[0]) or ())
        axis = int(attrs.get("axis", _ALONG[node.op]))
        if axis % axes < drop or any(self._shapes.dropped(tensor) != drop for tensor in tensors):
            return None
        return _Form(node.op, {**attrs, "axis": axis - drop} if axis >= 0 else attrs)


def _broadcast(shapes: Iterable[Sizes]) -> Sizes | None:
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        return None


def _product(a: Sizes, b: Sizes) -> Sizes | None:
    batch = _broadcast((a[:-2], b[:-2]))
    return None if batch is None else (*batch, a[-2], b[-1])


class _Regions:
    """Which tensors become short: those of regions where that leaves out more than it adds.

    A region is a set of tensors with leading ones that nodes, which work on short ones as well,
    connect.

    Attributes:
        forms: How nodes compute on short tensors, by name.
        regroups: Nodes whose input and output are the same short tensor.
        shapes: Shapes of tensors.
        chosen: Tensors that become short.
    """

    def __init__(self, view: GraphView) -> None:
        self._view, self.shapes = view, _Shapes(view)
        forms = _Forms(view, self.shapes)
        found = {node.name: forms.of(node) for node in view.nodes}
        self.forms = {name: form for name, form in found.items() if form is not None}
        self._above: dict[str, str] = {}
        for node in view.nodes:
            if node.name in self.forms:
                self._join(self._long_tensors(node))
        self.regroups = frozenset(node.name for node in view.nodes if self._only_regroups(node))
        self.chosen = self._choose()

    def wants_long(self, tensor: str) -> bool:
        """True for a tensor that someone must see with axes that it could lose."""
        users = (use.node for use in self._view.uses(tensor))
        seen = tensor in self._view.output_names or any(user not in self.forms for user in users)
        return seen and self.shapes.dropped(tensor) > 0

    def leaves_out(self, node: NodeView) -> bool:
        """True for a node that only regroups, and whose output nothing needs as it is."""
        made = node.outputs[0]
        named = made in self._view.output_names
        named |= any(use.port < 0 for use in self._view.uses(made))  # in a subgraph
        return node.name in self.regroups and not named and not self.wants_long(made)

    def _only_regroups(self, node: NodeView) -> bool:
        """True for a node whose input and output are the same short tensor."""
        if node.op not in _REGROUPS or node.name not in self.forms:
            return False
        data, made = node.inputs[0], node.outputs[0]
        same = self.shapes.short(data) == self.shapes.short(made)
        long = self.shapes.long(data) != self.shapes.long(made)
        return same and long and not self._view.is_constant(data) and not self._is_packed(node)

    def _is_packed(self, node: NodeView) -> bool:
        """True between pairs: there a node runs on integers, and the pairs belong together."""
        maker = self._view.producer(node.inputs[0])
        readers = {self._view.by_name[use.node].op for use in self._view.uses(node.outputs[0])}
        dequantized = maker is not None and maker.op == "DequantizeLinear"
        return dequantized and "QuantizeLinear" in readers

    def _long_tensors(self, node: NodeView) -> list[str]:
        """Tensors of a node that have axes to lose; constants are cut where they are read."""
        tensors = dict.fromkeys((*filter(None, node.inputs), *filter(None, node.outputs)))
        constant = self._view.is_constant
        return [t for t in tensors if self.shapes.dropped(t) and not constant(t)]

    def _join(self, tensors: Sequence[str]) -> None:
        for tensor in tensors:
            self._above[self._root(tensor)] = self._root(tensors[0])

    def _root(self, tensor: str) -> str:
        above = self._above.setdefault(tensor, tensor)
        while above != self._above[above]:
            self._above[above] = self._above[self._above[above]]
            above = self._above[above]
        self._above[tensor] = above
        return above

    def _choose(self) -> frozenset[str]:
        gain: Counter[str] = Counter()
        for node in self._view.nodes:
            if self.leaves_out(node):
                tensor = next(t for t in (node.inputs[0], node.outputs[0]) if t in self._above)
                gain[self._root(tensor)] += 1
        for tensor in tuple(self._above):
            maker = self._view.producer(tensor)
            if maker is None or maker.name not in self.forms:
                gain[self._root(tensor)] -= 1
            elif maker.name not in self.regroups:
                gain[self._root(tensor)] -= self.wants_long(tensor)
        return frozenset(t for t in tuple(self._above) if gain[self._root(t)] > 0)


class _Writer:
    """Writes the nodes of chosen regions on short tensors, from the first to the last."""

    def __init__(self, model: Model, view: GraphView, regions: _Regions) -> None:
        self._view, self._regions, self._editor = view, regions, Editor(model)
        self._names = Names(view)
        self._short: dict[str, str] = {}  # where what a tensor holds is found without its ones

    def write(self) -> Model:
        for spec in self._view.inputs:
            self._shorten(spec.name)
        for node in self._view.nodes:
            self._take(node)
        return self._editor.finish()

    def _take(self, node: NodeView) -> None:
        """Write one node, whose inputs are there already."""
        regions, chosen = self._regions, self._regions.chosen
        inside = any(tensor in chosen for tensor in (*node.inputs, *node.outputs))
        if inside and node.name in regions.forms:
            if node.name in regions.regroups:
                self._leave_out(node)
            else:
                self._rewrite(node, regions.forms[node.name])
            return
        for port, tensor in enumerate(node.inputs):
            # with as many axes as before
            if tensor in self._short and tensor not in chosen:
                self._editor.redirect(node.name, port, self._short[tensor])
        for tensor in node.outputs:
            self._shorten(tensor)

    def _leave_out(self, node: NodeView) -> None:
        data, made = node.inputs[0], node.outputs[0]
        self._short[made] = self._short.get(data, data)
        if self._regions.leaves_out(node):
            self._editor.discard(node.name)
        else:  # for those who need it as it is
            long = self._regions.shapes.long(made) or ()
            self._editor.replace(node.name, "Reshape", [self._short[made], self._sizes(long)])

    def _rewrite(self, node: NodeView, form: _Form) -> None:
        shapes, made = self._regions.shapes, node.outputs[0]
        inputs = [self._cut(tensor) for tensor in node.inputs]
        if form.op == "Reshape":
            self._editor.replace(node.name, form.op, [inputs[0], self._sizes(shapes.known(made))])
        elif form.attrs != node.attrs:
            self._editor.replace(node.name, form.op, inputs, attrs=form.attrs)
        else:
            for port, tensor in enumerate(inputs):
                if tensor != node.inputs[port]:
                    self._editor.redirect(node.name, port, tensor)
        for tensor in node.outputs:
            if tensor in self._regions.chosen:
                self._shrink(tensor)

    def _shrink(self, made: str) -> None:
        """Let a tensor be short, and a Reshape behind it make it long for those who want that."""
        shapes = self._regions.shapes
        if self._regions.wants_long(made):
            inner, name = self._names.new(made, "short"), self._names.new(made, "Reshape")
            inputs = [inner, self._sizes(shapes.long(made) or ())]
            self._editor.put_behind(made, inner, "Reshape", inputs, name=name)
            self._short[made] = inner
        else:
            self._editor.forget_shape(made)

    def _cut(self, tensor: str) -> str:
        """What a node that computes on short tensors reads."""
        values = self._view.constant(tensor) if tensor else None
        if values is None or not self._regions.shapes.dropped(tensor):
            return self._short.get(tensor, tensor)
        name = self._names.of(tensor, "short")
        return self._editor.add_constant(name, values.reshape(shortened(values.shape)))

    def _shorten(self, tensor: str) -> None:
        """Let a Reshape make the short form of what is made with all axes."""
        if tensor not in self._regions.chosen:
            return
        made, name = self._names.new(tensor, "short"), self._names.new(tensor, "Reshape")
        short = self._regions.shapes.known(tensor)
        self._editor.add_node("Reshape", [tensor, self._sizes(short)], [made], name=name)
        self._short[tensor] = made

    def _sizes(self, sizes: Sizes) -> str:
        name = self._names.of("sizes", "x".join(map(str, sizes)))
        return self._editor.add_constant(name, np.array(sizes, np.int64))
