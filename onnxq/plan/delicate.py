"""Nodes that float16 breaks together with their neighbours, though no single one says so.

* Layer normalization in pieces: deviations from a mean, their squares, the mean of these, its root.
* Masks: what a number beyond float16 was added to or multiplied with, up to the Softmax.
* Powers of tensors, and the polynomials that they belong to.
* Spectra of the input whose logarithm is taken, where small values count as much as large ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from weakref import WeakKeyDictionary

import numpy as np

from onnxq.graph import GraphView, NodeView
from onnxq.numerics import slices
from onnxq.ops import OPERATORS, Role
from onnxq.types import Array

LARGEST = 65504.0
SQUARES, MASK = "squares, or what is made of them", "a mask beyond 65504"
# Limits beyond float16 become infinite, which for these means the same: no limit.
LIMITING = ("Clip", "Min", "Max")
# Operators that make statistics out of squares, before something is divided by them.
STATISTICS = ("Add", "Sqrt", "Reciprocal", "ReduceMean", "ReduceSum", "GlobalAveragePool", "Div")
SQUARING = ("ReduceSumSquare", "ReduceL2")
# Operators that keep huge values (of a mask) huge.
SPREADING = ("Add", "Sub", "Where", "Mul", "Cast")
# Operators of a spectrum: linear ones, powers and limits, but no activation of a network.
SPECTRAL = (*STATISTICS, *SQUARING, *LIMITING, "Mul", "Sub", "Pow", "Conv", "MatMul", "Gemm", "Abs",
            "Neg", "Cast", "DFT", "STFT")  # fmt: skip

_FOUND: WeakKeyDictionary[GraphView, dict[str, str]] = WeakKeyDictionary()


def delicate_nodes(view: GraphView) -> dict[str, str]:
    """The nodes that are to stay float32, and why; found once per view, in three passes."""
    if view not in _FOUND:
        _FOUND[view] = _normalizations(view) | _masked(view) | _spectra(view)
    return _FOUND[view]


def _masked(view: GraphView) -> dict[str, str]:
    """Nodes that read squares or masks, and what these are made of."""
    tensors: dict[str, str] = {}
    nodes: dict[str, str] = {}
    for node in view.nodes:
        what = next((tensors[t] for t in node.inputs if t in tensors), "")
        if what:
            nodes[node.name] = f"reads {what}"
        if made := _makes(view, node, tensors):
            tensors.update(dict.fromkeys(node.outputs, made))
    return nodes


def _makes(view: GraphView, node: NodeView, found: dict[str, str]) -> str:
    moving = moves(node)
    read = {found.get(t, "") for t in node.inputs if t and not view.is_constant(t)}
    if squares(view, node) or (node.op in SQUARING and not node.domain):
        return SQUARES
    if SQUARES in read and node.op in ("Add", "Sub"):  # a polynomial, or a variance
        return SQUARES
    if read == {SQUARES} and (moving or node.op in (*STATISTICS, *LIMITING, "Mul")):
        return SQUARES
    if MASK in read and (moving or node.op in (*SPREADING, *LIMITING)):
        return MASK
    if node.op in (*SPREADING, "Constant", "ConstantOfShape"):
        floats = [p for p, t in enumerate(node.inputs) if view.dtype(t) == "float32"]
        if any(huge(values) for _, values in known_values(view, node, floats)):
            return MASK
    return ""


def _normalizations(view: GraphView) -> dict[str, str]:
    """``x - mean(x)`` before a square, and its mean."""
    found: dict[str, str] = {}
    for square in view.nodes:
        deviation = view.producer(square.inputs[0]) if squares(view, square) else None
        if deviation is None or deviation.op != "Sub":
            continue
        means = (view.producer(t) for t in deviation.inputs)
        parts = [n for n in means if n is not None and n.op in ("ReduceMean", "GlobalAveragePool")]
        text = "makes deviations from a mean, which are squared"
        found.update(dict.fromkeys((n.name for n in (deviation, *parts)), text))
    return found


def _spectra(view: GraphView) -> dict[str, str]:
    """Everything between the graph's inputs and a Log, if it has no activation."""
    plain = {spec.name for spec in view.inputs if spec.dtype == "float32"}
    pending: list[str] = []
    for node in view.nodes:
        read = [t for t in node.inputs if view.dtype(t) == "float32" and not view.is_constant(t)]
        if not read or node.domain or not plain.issuperset(read):
            continue
        if node.op == "Log":
            pending += read
        elif node.op in SPECTRAL or moves(node):
            plain.update(node.outputs)
    found: dict[str, str] = {}
    while pending:
        maker = view.producer(pending.pop())
        if maker is not None and maker.name not in found:
            found[maker.name] = "belongs to a spectrum whose logarithm is taken"
            pending += maker.inputs
    return found


def moves(node: NodeView) -> bool:
    """True for operators whose every output value is one of their input values, or a constant."""
    spec = OPERATORS.get(node.op)
    moving = spec is not None and spec.role in (Role.MOVE, Role.JOIN)
    return not node.domain and (moving or node.op in ("Identity", "Constant", "ConstantOfShape"))


def squares(view: GraphView, node: NodeView) -> bool:
    """True for powers, ``x * (c * x)`` too, other than roots with an exponent from 0 to 1."""
    if node.domain or node.op not in ("Mul", "Pow"):
        return False
    if node.op == "Mul":
        left, right = node.inputs
        return left == right or left in _factors(view, right) or right in _factors(view, left)
    exponent = view.constant(node.inputs[1])
    return exponent is None or bool((np.abs(np.asarray(exponent, np.float32) - 0.5) > 0.5).any())


def _factors(view: GraphView, product: str) -> tuple[str, ...]:
    maker = view.producer(product)
    return maker.inputs if maker is not None and maker.op == "Mul" and not maker.domain else ()


def known_values(
    view: GraphView, node: NodeView, ports: Iterable[int]
) -> Iterator[tuple[str, Array]]:
    """Names and values of what a node knows beforehand: constant inputs, and its own value."""
    for port in ports:
        values = view.constant(node.inputs[port])
        if values is not None:
            yield node.inputs[port], values
    if node.op in ("Constant", "ConstantOfShape") and not node.domain:
        held = [value for name, value in node.attrs.items() if name.startswith("value")]
        if view.dtype(node.outputs[0]) == "float32":
            yield node.outputs[0], np.asarray(held[0] if held else 0.0, np.float32)


def huge(values: Array) -> float:
    """The first finite value that is beyond float16; 0 without one."""
    for rows in slices(values):
        part = np.asarray(values[rows])
        beyond = part[np.isfinite(part) & (np.abs(part) > LARGEST)]
        if beyond.size:
            return float(beyond.flat[0])
    return 0.0
