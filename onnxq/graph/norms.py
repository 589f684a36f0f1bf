"""Layer normalizations in pieces, written as what they are: LayerNormalization.

Exporters write them as a dozen nodes, and not all in a form that a runtime knows. Here algebra
tells: every tensor that is computed from ``x`` and constants alone is a polynomial in ``x``, its
mean ``m``, its variance ``v`` and ``r = 1 / sqrt(v + epsilon)``, all over the last axis, with
coefficients for each channel. One that is ``gamma x r - gamma m r + beta`` is a layer
normalization, in whatever order it was computed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import ModelError
from onnxq.graph.edit import Editor
from onnxq.graph.model import Model
from onnxq.graph.opset import NORM_OPSET, raise_opset
from onnxq.graph.pools import reduced_axes
from onnxq.graph.view import GraphView, NodeView, unused
from onnxq.types import Array

# The powers of x, m, v and r in a term, and the coefficient of each term: a float64 scalar, or one
# value per channel, so that products of float32 constants are exact.
Powers = tuple[int, int, int, int]
Coefficient = NDArray[np.float64]
Form = Mapping[Powers, Coefficient]

ONE, X, MEAN, VARIANCE = (0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0)
X_R, MEAN_R = (1, 0, 0, 1), (0, 1, 0, 1)
DEVIATION_SQUARED = {(2, 0, 0, 0): 1.0, (1, 1, 0, 0): -2.0, (0, 2, 0, 0): 1.0}
# No layer normalization has higher powers; without a limit polynomials of polynomials would grow.
HIGHEST = 2
# Nodes that one is looked for in: it has a dozen. Long chains behind means cost no more than that.
MOST_NODES = 64


@dataclass(frozen=True)
class _Norm:
    """One layer normalization: the node that ends it, what it reads, and what it makes of it."""

    node: NodeView
    x: str
    epsilon: float
    scale: Array
    bias: Array | None
    inside: frozenset[str]


def name_norms(model: Model) -> Model:
    """Write layer normalizations over the last axis as LayerNormalization, which came in opset 17.

    Only those whose every part has no other reader, in float32, with a constant epsilon and scale
    and bias per channel. The new node has the name of the last one of its parts.

    Args:
        model: A model with inferred shapes, of opset 13 or later; it is not changed.

    Returns:
        A model that computes the same but for rounding, of opset 17 or later; the same one if there
        is none, or if the opset cannot be raised, which its notes then tell.
    """
    view = model.view()
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused
        norms = list(_norms(view))
    if not norms:
        return model
    count = f"{len(norms)} layer normalization{'s' if len(norms) > 1 else ''}"
    try:
        editor = Editor(raise_opset(model, NORM_OPSET))
    except ModelError as error:
        return model.with_notes(f"left {count} in pieces: {error}")
    taken = set(view.names)
    for norm in norms:
        inputs = [norm.x]
        for part, values in (("scale", norm.scale), ("bias", norm.bias)):
            if values is not None:
                name = _known(view, norm, values) or unused(f"{norm.node.outputs[0]}_{part}", taken)
                taken.add(name)
                inputs.append(editor.add_constant(name, values))
        attrs = {"axis": -1, "epsilon": norm.epsilon}
        editor.replace(norm.node.name, "LayerNormalization", inputs, attrs=attrs)
    return editor.finish().with_notes(f"wrote {count} by name")


def _known(view: GraphView, norm: _Norm, values: Array) -> str | None:
    """The constant that held these values before."""
    for tensor in (t for name in sorted(norm.inside) for t in view.by_name[name].inputs):
        held = view.constant(tensor) if view.shape(tensor) == values.shape else None
        if held is not None and np.array_equal(held, values):
            return tensor
    return None


def _values(view: GraphView, tensor: str) -> Array | None:
    values = view.constant(tensor)
    return None if values is None or not np.all(np.isfinite(values)) else values


def _norms(view: GraphView) -> Iterator[_Norm]:
    means = (node for node in view.nodes if _is_mean(view, node) and _is_taken_off(view, node))
    for x in dict.fromkeys(node.inputs[0] for node in means):
        shape = view.shape(x) or (None,)
        if view.dtype(x) == "float32" and isinstance(shape[-1], int):
            yield from _norms_of(view, x, shape[-1])


def _is_taken_off(view: GraphView, mean: NodeView) -> bool:
    """Whether a mean is subtracted from what it is the mean of: a norm has such a deviation."""
    readers = (view.by_name[use.node] for use in view.uses(mean.outputs[0]))
    return any(reader.op == "Sub" and mean.inputs[0] in reader.inputs for reader in readers)


def _norms_of(view: GraphView, x: str, channels: int) -> Iterator[_Norm]:
    """The normalizations of one tensor, each with as much of scale and bias as belongs to it."""
    forms = _forms(view, x, channels)
    taken: set[str] = set()
    for tensor in reversed(forms):
        affine = _affine(forms[tensor], channels)
        node = view.producer(tensor)
        if affine is None or node is None or node.name in taken:
            continue
        inside = _between(view, x, node)
        read = [forms.get(n.inputs[0], {}) for n in inside if n.op in ("Sqrt", "Pow")]
        roots = {_epsilon(form) for form in read} - {None}
        names = frozenset(n.name for n in inside)
        if len(roots) == 1 and _closed(view, inside, names, tensor):
            taken |= names
            (epsilon,) = roots
            assert epsilon is not None
            yield _Norm(node, x, epsilon, *affine, names)


def _affine(form: Form, channels: int) -> tuple[Array, Array | None] | None:
    """Scale and bias of a normalization, float32 ``[channels]``; None for any other polynomial."""
    if not {X_R, MEAN_R} <= set(form) <= {X_R, MEAN_R, ONE}:
        return None
    if not np.array_equal(form[X_R], -form[MEAN_R]):
        return None
    scale, bias = (
        np.broadcast_to(form[powers], channels).astype(np.float32) if powers in form else None
        for powers in (X_R, ONE)
    )
    assert scale is not None
    finite = all(np.all(np.isfinite(part)) for part in (scale, bias) if part is not None)
    return (scale, bias) if finite else None


def _epsilon(form: Form) -> float | None:
    """Epsilon, of ``v + epsilon``; None for any other polynomial."""
    if set(form) != {VARIANCE, ONE} or form[ONE].ndim or form[VARIANCE].ndim:
        return None
    epsilon = float(form[ONE])
    return epsilon if form[VARIANCE] == 1 and 0 < epsilon < np.inf else None


def _between(view: GraphView, x: str, last: NodeView) -> list[NodeView]:
    """All nodes between ``x`` and the last one; none if they are more than one norm has."""
    found = {last.name: last}
    stack = [last]
    while stack:
        if len(found) > MOST_NODES:
            return []
        for tensor in stack.pop().inputs:
            maker = view.producer(tensor) if tensor != x else None
            if maker is not None and maker.name not in found:
                found[maker.name] = maker
                stack.append(maker)
    return list(found.values())


def _closed(
    view: GraphView, inside: Iterable[NodeView], names: frozenset[str], result: str
) -> bool:
    made = {node.outputs[0] for node in inside} - {result}
    return made.isdisjoint(view.output_names) and all(
        use.node in names and use.port >= 0 for tensor in made for use in view.uses(tensor)
    )


# --- The algebra -----------------------------------------------------------------------------


def _forms(view: GraphView, x: str, channels: int) -> dict[str, Form]:
    """The tensors that are such polynomials, each behind those that it is made of."""
    found: dict[str, Form] = {x: {X: np.ones(())}}
    pending = deque([x])
    while pending and len(found) <= 2 * MOST_NODES:
        for use in view.uses(pending.popleft()):
            node = view.by_name[use.node]
            if use.port < 0 or node.outputs[0] in found:
                continue
            read = [found.get(t) or _constant(view, t, x, channels) for t in node.inputs]
            made = _form(view, node, read)
            if made is not None:
                found[node.outputs[0]] = made
                pending.append(node.outputs[0])
    return found


def _constant(view: GraphView, tensor: str, x: str, channels: int) -> Form | None:
    """A scalar, or one value per channel; None for any other constant."""
    shape = view.shape(tensor)
    if shape is None or not view.is_constant(tensor) or len(shape) > (view.rank(x) or 0):
        return None
    single, per_channel = set(shape) <= {1}, shape[-1:] == (channels,) and set(shape[:-1]) <= {1}
    values = _values(view, tensor) if single or per_channel else None
    if values is None:
        return None
    return {ONE: np.asarray(values, np.float64).reshape(() if single else channels)}


def _form(view: GraphView, node: NodeView, read: list[Form | None]) -> Form | None:
    if _is_mean(view, node):
        return _mean(read[0]) if read[0] is not None else None
    rule, forms = _RULES.get(node.op), [form for form in read if form is not None]
    if rule is None or node.domain or len(forms) < len(read):
        return None
    made = rule(*forms)
    return made if made and max(abs(p) for powers in made for p in powers) <= HIGHEST else None


def _is_mean(view: GraphView, node: NodeView) -> bool:
    """True for a mean over the last axis, which keeps that axis."""
    if node.domain or node.op not in ("GlobalAveragePool", "ReduceMean"):
        return False
    rank = view.rank(node.inputs[0]) or 0
    if node.op == "GlobalAveragePool":
        return rank == 3  # it averages over all axes but the first two
    axes = reduced_axes(view, node)
    return axes in ([-1], [rank - 1]) and bool(node.attrs.get("keepdims", 1))


def _is(form: Form, terms: Mapping[Powers, float]) -> bool:
    """True for a polynomial with just these terms, the same for every channel."""
    return set(form) == set(terms) and all(np.array_equal(form[p], terms[p]) for p in terms)


def _mean(form: Form) -> Form | None:
    if _is(form, {X: 1.0}):
        return {MEAN: np.ones(())}
    return {VARIANCE: np.ones(())} if _is(form, DEVIATION_SQUARED) else None


def _add(left: Form, right: Form) -> Form:
    terms = {p: left.get(p, 0.0) + right.get(p, 0.0) for p in (*left, *right)}
    return {powers: np.asarray(c) for powers, c in terms.items() if np.any(c)}


def _subtract(left: Form, right: Form) -> Form:
    return _add(left, _negate(right))


def _negate(form: Form) -> Form:
    return {powers: -c for powers, c in form.items()}


def _multiply(left: Form, right: Form) -> Form:
    product: Form = {}
    for (a, b, c, d), factor in left.items():
        for (e, f, g, h), other in right.items():
            product = _add(product, {(a + e, b + f, c + g, d + h): np.asarray(factor * other)})
    return product


def _invert(form: Form) -> Form | None:
    """1 over a single term."""
    ((a, b, c, d), factor), *more = form.items()
    return None if more or not np.all(factor) else {(-a, -b, -c, -d): np.asarray(1 / factor)}


def _divide(left: Form, right: Form) -> Form | None:
    inverse = _invert(right)
    return _multiply(left, inverse) if inverse is not None else None


def _root(form: Form) -> Form | None:
    return {(0, 0, 0, -1): np.ones(())} if _epsilon(form) is not None else None


def _power(base: Form, exponent: Form) -> Form | None:
    if _is(exponent, {ONE: 2.0}):
        return _multiply(base, base)
    root = _root(base)
    if root is not None and _is(exponent, {ONE: -0.5}):
        return _invert(root)
    return root if _is(exponent, {ONE: 0.5}) else None


_RULES: Mapping[str, Callable[..., Form | None]] = {
    "Add": _add, "Sub": _subtract, "Neg": _negate, "Mul": _multiply, "Div": _divide,
    "Reciprocal": _invert, "Sqrt": _root, "Pow": _power,
}  # fmt: skip
