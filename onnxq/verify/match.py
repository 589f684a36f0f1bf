"""Which tensor of one graph is which of another, also where another tool made the second one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from onnxq.graph import GraphView, NodeView

# What quantizers hang onto the name of the tensor whose value they carry on.
SUFFIXES = (
    "_quantized", "_dequantized", "_dequantize", "_dequant", "_quant", "_float16",
    "_QuantizeLinear_Input", "_QuantizeLinear_Output", "_DequantizeLinear_Output",
)  # fmt: skip
# What onnxq hangs onto it, and underscores where that is taken.
_INTEGERS, _DEQUANTIZED = re.compile(r"_q_*$"), re.compile(r"_dq_*$")
# Operators of one kind: forms of the same computation, under the name of the plain one.
_KINDS = {
    "Conv": ("QLinearConv", "ConvInteger", "FusedConv", "NhwcFusedConv"),
    "MatMul": (
        "Gemm", "FusedGemm", "FusedMatMul", "QLinearMatMul", "QGemm", "MatMulInteger",
        "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulNBits",
    ),
    "Clip": ("Relu",),
    "GlobalAveragePool": ("ReduceMean", "QLinearGlobalAveragePool", "QLinearReduceMean"),
}  # fmt: skip
_KIND_OF = {op: kind for kind, ops in _KINDS.items() for op in ops}
# What carries a value on as it is, but for its rounding.
_SAME_VALUE = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast", "Identity")
# What makes sums of products of integers, which a Mul then scales.
_SUMS = ("ConvInteger", "MatMulInteger")
# What a quantizer may fold into the layer before it, or into the range of its result.
_FOLDED = ("Clip", "BatchNormalization")
_FOLDED_CONSTANT = ("Add", "Sub", "Mul", "Div")
# ONNX's numbers of float, float16, double and bfloat16.
_FLOAT_TYPES = (1, 10, 11, 16)
# Which input of an operator on integers is the scale of its result; the zero point comes next.
_SCALE_OF_RESULT = {
    "QuantizeLinear": 1, "QLinearConcat": 0, "QLinearConv": 6, "QLinearMatMul": 6, "QGemm": 7,
    "QLinearAdd": 6, "QLinearMul": 6, "QLinearAveragePool": 3, "QLinearGlobalAveragePool": 3,
    "QLinearReduceMean": 3, "QLinearSigmoid": 3, "QLinearLeakyRelu": 3, "QLinearSoftmax": 3,
}  # fmt: skip
# What makes integers of the same scale out of integers.
_MOVING = (
    "DepthToSpace", "Expand", "Flatten", "Gather", "MaxPool", "Pad", "Reshape", "Resize", "Slice",
    "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
)  # fmt: skip

# How two tensors were found to be the same.
How = Literal["name", "structure"]


@dataclass(frozen=True)
class Reading:
    """Where a graph holds a value: a float tensor, or integers with what turns them into floats.

    Attributes:
        tensor: Name of the tensor.
        scale: Name of the scale; empty for a float tensor.
        zero_point: Name of the zero point; empty where it is 0.
        maker: The QuantizeLinear or DequantizeLinear whose attributes count; None elsewhere.
    """

    tensor: str
    scale: str = ""
    zero_point: str = ""
    maker: NodeView | None = None


@dataclass(frozen=True)
class Match:
    """A result of the float graph that the other graph holds too.

    Attributes:
        tensor: Its name in the float graph.
        node: The layer that makes it; empty for an input. What is folded into layers when they are
            quantized (biases, BatchNorm, Relu) belongs to the layer before.
        op: The layer's operator; ``input`` for an input.
        reading: Where the other graph holds it.
        by: How it was found.
    """

    tensor: str
    node: str
    op: str
    reading: Reading
    by: How


@dataclass(frozen=True)
class Matches:
    """What two graphs have in common.

    Attributes:
        found: The results that both hold, in the order of the float graph, inputs first.
        unmatched: How many more the float graph has.
    """

    found: tuple[Match, ...]
    unmatched: int


def match_tensors(reference: GraphView, other: GraphView) -> Matches:
    """Match the results of layers, in the order of the reference.

    First by name, with what quantizers hang onto names taken off; then by structure: a layer of
    the same kind that reads the same tensors. A quantizer leaves out an activation that the range
    of a result implies, and folds BatchNorm and biases, often under the name of what came before:
    so compared is what a layer makes *with* these, in both graphs.

    Args:
        reference: The float graph, types inferred.
        other: Another form of it, with the same inputs.
    """
    left, right = _Side(reference), _Side(other)
    inputs = [spec.name for spec in reference.inputs]
    paired = {name: name for name in inputs}
    ways: dict[str, tuple[str, str, How]] = dict.fromkeys(inputs, ("", "input", "name"))
    named = _by_name(right, set(left.order))
    chains = list(left.chains())
    known = {named[t] for chain in chains for t in chain.tensors if t in named}
    alike = _Alike(right, known)
    for chain in chains:
        start = next((t for t in reversed(chain.tensors) if t in named), None)
        if start is not None:
            twin = right.follow(named[start], chain.folded[chain.tensors.index(start) :])
        else:
            twin = alike.find(chain, [paired.get(t, "") for t in left.read(chain.node)])
        if twin:
            paired[chain.end] = twin
            by: How = "name" if start is not None else "structure"
            ways[chain.end] = chain.node.name, chain.node.full_op, by
    found = tuple(
        Match(tensor, node, op, right.reading(paired[tensor]), by)
        for tensor, (node, op, by) in ways.items()
    )
    return Matches(found, len(inputs) + len(chains) - len(found))


def sources(view: GraphView, tensor: str, position: Mapping[str, int]) -> tuple[str, ...]:
    """The nearest known tensors that another one is computed from, in order.

    Together they determine it: every way from an input leads through one of them, where all inputs
    are known.

    Args:
        view: The graph.
        tensor: What is computed; it is not among its own sources.
        position: Where each known tensor stands in the order.
    """
    stack, seen = [tensor], {tensor}
    found: list[str] = []
    while stack:
        maker = view.producer(stack.pop())
        for name in (*maker.inputs, *maker.captures) if maker is not None else ():
            if name and name not in seen:
                seen.add(name)
                (found if name in position else stack).append(name)
    return tuple(sorted(found, key=position.__getitem__))


def kind_of(op: str) -> str:
    """The plain operator that an operator is a form of."""
    return _KIND_OF.get(op) or op.removeprefix("QLinear")


@dataclass(frozen=True)
class _Chain:
    """A layer, and what may be folded into it: each reads the one before, and nobody else does.

    Attributes:
        node: The layer.
        port: Which of its outputs this is.
        tensors: What the layer makes, and each node behind it.
        folded: Kinds of the nodes behind it.
    """

    node: NodeView
    port: int
    tensors: tuple[str, ...]
    folded: tuple[str, ...]

    @property
    def end(self) -> str:
        return self.tensors[-1]


class _Side:
    """One graph, with all that only carries values on looked through.

    Attributes:
        order: The tensors that depend on an input, in the graph's order.
        makers: The layers that make them, and which output of each.
    """

    def __init__(self, view: GraphView) -> None:
        self._view = view
        self._roots: dict[str, str] = {}
        self._readers: dict[str, list[NodeView]] = {}
        self._scaled: dict[str, Reading] = {}
        self._rounded: dict[str, Reading] = {}
        self._restored: dict[str, Reading] = {}
        self._summed: dict[str, NodeView] = {}
        self.order: dict[str, None] = {spec.name: None for spec in view.inputs}
        self.makers: dict[str, tuple[NodeView, int]] = {}
        for node in view.nodes:
            if self.read(node):
                self._enter(node)
        self._ends = {self.root(name) for name in view.output_names}

    def root(self, tensor: str) -> str:
        """The tensor that a value comes from, before it was rounded or cast."""
        return self._roots.get(tensor, tensor)

    def read(self, node: NodeView) -> list[str]:
        """What a node reads that depends on an input."""
        return [self.root(t) for t in (*node.inputs, *node.captures) if t in self.order]

    def _enter(self, node: NodeView) -> None:
        data, out = self.read(node), node.outputs[0]
        self._note_scale(node, out)
        if node.op in _SAME_VALUE and (node.op != "Cast" or _is_float(node)):
            self.order[out], self._roots[out] = (
                None,
                data[0],
            )
            if node.op == "QuantizeLinear" and node.inputs[0] == data[0]:
                self._rounded.setdefault(data[0], self._scaled[out])
            if node.op == "DequantizeLinear":
                held, scale, zero = (*node.inputs, "")[:3]
                self._restored.setdefault(data[0], Reading(held, scale, zero, node))
            return
        self.order |= dict.fromkeys(name for name in node.outputs if name)
        if node.op == "Mul" and len(data) == 1 and data[0] in self._summed:
            self.makers[out] = self._summed[data[0]], 0
            return
        if node.op in _SUMS:
            self._summed[out] = node
        else:
            self.makers |= {name: (node, port) for port, name in enumerate(node.outputs) if name}
        for tensor in dict.fromkeys(data):
            self._readers.setdefault(tensor, []).append(node)

    def _note_scale(self, node: NodeView, out: str) -> None:
        """Remember what turns the integers that a node makes into floats."""
        place = _SCALE_OF_RESULT.get(node.op)
        if place is not None:
            scale, zero = (*node.inputs, "", "", "")[place : place + 2]
            if scale:  # QGemm without one makes floats
                maker = node if node.op == "QuantizeLinear" else None
                self._scaled[out] = Reading(out, scale, zero, maker)
        elif node.op in _MOVING:
            carried = self._scaled.get(node.inputs[0])
            if carried is not None:
                for name in filter(None, node.outputs):
                    self._scaled[name] = Reading(
                        name, carried.scale, carried.zero_point, carried.maker
                    )

    def reading(self, tensor: str) -> Reading:
        """How the layers behind a tensor read it: rounded, where it is.

        What makes floats of the integers again has a scale of its own, and its word counts.
        """
        ways = (self._restored, self._scaled, self._rounded)
        return next((way[tensor] for way in ways if tensor in way), Reading(tensor))

    def bare(self, tensor: str) -> str:
        """The name without what onnxq hangs onto integers, and onto floats that are made of them.

        Tensors of the source may end like that (``attn_q``, queries): only such tensors count.
        """
        if tensor in self._scaled:
            return _INTEGERS.sub("", tensor)
        maker = self._view.producer(tensor)
        restored = maker is not None and maker.op == "DequantizeLinear"
        return _DEQUANTIZED.sub("", tensor) if restored else tensor

    def chains(self) -> Iterator[_Chain]:
        """The layers in order, each with what may be folded into it."""
        inside: set[str] = set()
        for name, (node, port) in self.makers.items():
            if name in inside:
                continue
            tensors, folded = [name], []
            while (reader := self._only_reader(tensors[-1])) is not None and self._folds(reader):
                tensors.append(reader.outputs[0])
                folded.append(kind_of(reader.op))
            inside.update(tensors)
            yield _Chain(node, port, tuple(tensors), tuple(folded))

    def follow(self, tensor: str, folded: Iterable[str]) -> str:
        """What stands at the end of a chain, of whose nodes some are not there."""
        for kind in folded:
            reader = self._only_reader(tensor)
            if reader is not None and kind_of(reader.op) == kind and self._folds(reader):
                tensor = reader.outputs[0]
        return tensor

    def _only_reader(self, tensor: str) -> NodeView | None:
        readers = self._readers.get(tensor, [])
        return readers[0] if len(readers) == 1 and tensor not in self._ends else None

    def _folds(self, node: NodeView) -> bool:
        kind = kind_of(node.op)
        return kind in _FOLDED or (kind in _FOLDED_CONSTANT and len(self.read(node)) == 1)


class _Alike:
    """Finds layers by what they read, those that have a known name left out."""

    def __init__(self, side: _Side, known: set[str]) -> None:
        self._side = side
        self._made: dict[tuple[object, ...], list[str]] = {}
        for name, (node, port) in side.makers.items():
            if name not in known:
                self._made.setdefault(_key(node, port, side.read(node)), []).append(name)

    def find(self, chain: _Chain, sources: list[str]) -> str:
        """The end of the first chain of this kind that reads these tensors; empty if there is none.

        Each is found once: layers that read the same are told apart by their order.
        """
        made = self._made.get(_key(chain.node, chain.port, sources)) if all(sources) else None
        if not made:
            return ""
        folded = list(chain.folded)
        # a bias may have become a node of its own
        if len(chain.node.inputs) > 2 and kind_of(chain.node.op) in ("Conv", "MatMul"):
            folded = ["Add", *folded] if folded[:1] != ["Add"] else folded
        return self._side.follow(made.pop(0), folded)


def _key(node: NodeView, port: int, sources: list[str]) -> tuple[object, ...]:
    kind = kind_of(node.op)
    return kind, port, *(sorted(sources) if kind in ("Add", "Mul") else sources)


def _by_name(side: _Side, wanted: set[str]) -> dict[str, str]:
    """The tensors of a graph by the names that they had before it was quantized."""
    found = {name: side.root(name) for name in side.order if name in wanted}
    for name in side.order:
        plain = name if name in wanted else side.bare(name)
        while plain not in wanted and (suffix := next(filter(plain.endswith, SUFFIXES), "")):
            plain = plain.removesuffix(suffix)
        if plain in wanted:
            found.setdefault(plain, side.root(name))
    return found


def _is_float(cast: NodeView) -> bool:
    return cast.attrs.get("to") in _FLOAT_TYPES
