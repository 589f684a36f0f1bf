"""Groups of nodes that a runtime fuses into one float kernel: a Q/DQ pair inside breaks them."""

from __future__ import annotations

from onnxq.graph import GraphView, NodeView


def float_patterns(view: GraphView) -> dict[str, str]:
    """Nodes that belong to a float pattern, and what the pattern is called."""
    found: dict[str, str] = {}
    for node in view.nodes:
        matcher = _MATCHERS.get(node.op)
        if matcher is not None and not node.domain:
            found.update(matcher(view, node))
    return found


def _gelu(view: GraphView, middle: NodeView) -> dict[str, str]:
    """``x/2 * (1 + erf(x/sqrt(2)))``, and the same with tanh of a cubic polynomial.

    From the Erf or Tanh: the Add of 1 behind it and the products behind that, and, before it,
    the arithmetic up to the tensor that the products share.
    """
    adds = [view.by_name[u.node] for u in view.uses(middle.outputs[0])]
    if len(adds) != 1 or adds[0].op != "Add" or not _has_constant(view, adds[0]):
        return {}
    name = "Gelu, which runs fastest as one float kernel"
    found = {middle.name: name, adds[0].name: name}
    forward = view.uses(adds[0].outputs[0])
    for _ in range(2):
        products = [view.by_name[u.node] for u in forward if view.by_name[u.node].op == "Mul"]
        found.update({p.name: name for p in products})
        halves = [view.producer(t) for p in products for t in p.inputs]
        found.update({h.name: name for h in halves if h and h.op == "Mul" and _scales(view, h)})
        forward = [u for p in products for u in view.uses(p.outputs[0])]
    found.update({n.name: name for n in _arithmetic_before(view, middle)})
    return found


def _arithmetic_before(view: GraphView, node: NodeView, depth: int = 5) -> list[NodeView]:
    found: list[NodeView] = []
    front = [node]
    for _ in range(depth):
        producers = [view.producer(t) for n in front for t in n.inputs]
        front = [
            p for p in producers
            if p is not None and p.op in ("Mul", "Div", "Pow", "Add") and _scales(view, p)
        ]  # fmt: skip
        found += front
    return found


def _scales(view: GraphView, node: NodeView) -> bool:
    """True for arithmetic of one tensor with scalars or with itself, as polynomials are."""
    if node.op == "Add":  # x + 0.044715 x^3: the cube comes from a product or a power
        before = [view.producer(t) for t in node.inputs]
        return any(p is not None and p.op in ("Mul", "Pow") for p in before) and not _has_constant(
            view, node
        )
    scalar = [view.constant(t) for t in node.inputs]
    return any(c is not None and c.size == 1 for c in scalar) or len(set(node.inputs)) == 1


def _has_constant(view: GraphView, node: NodeView) -> bool:
    return any(view.is_constant(t) for t in node.inputs)


def _layer_norm(view: GraphView, root: NodeView) -> dict[str, str]:
    """``(x - mean) / sqrt(variance + epsilon)``: from the square root of ``variance + epsilon``.

    Marks the Add of epsilon, and the quotient and its affine Mul and Add behind it.
    """
    add = view.producer(root.inputs[0])
    if add is None or add.op != "Add" or not _has_constant(view, add):
        return {}
    mean = next((p for t in add.inputs if (p := view.producer(t))), None)
    if mean is None or mean.op not in ("ReduceMean", "GlobalAveragePool", "Reshape"):
        return {}
    name = "layer normalization, which stays float"
    found = {mean.name: name, add.name: name, root.name: name}
    forward = view.uses(root.outputs[0])
    for _ in range(4):
        affine = [view.by_name[u.node] for u in forward]
        affine = [n for n in affine if n.op in ("Div", "Mul", "Add", "Reciprocal", "Sub")]
        if len(affine) != len(forward):
            break
        found.update({n.name: name for n in affine})
        forward = [u for n in affine for u in view.uses(n.outputs[0])]
    return found


_MATCHERS = {"Erf": _gelu, "Tanh": _gelu, "Sqrt": _layer_norm}
