"""``take_shortcuts``: what float nodes compute, with fewer or faster ones.

Beside int8 layers what was little before is much: in a face detector whose convolutions run on
integers, decoding boxes takes an eighth of the time. Two ways of writing it, which exporters use,
cost ONNX Runtime more than they must:

* **Slices of a Concat** that are what it put together, as where box centres become corners: the
  slices' readers read the Concat's inputs, and a Concat that nothing else reads goes away.
* **Softmax over two classes**, of thousands of anchors. The kernel works row by row, and takes as
  long for 2 values as for 16. The same probabilities are Sigmoid of the classes' difference, of
  all rows at once: ten times as fast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import accumulate, pairwise
from math import prod

import numpy as np

from onnxq.graph import Editor, GraphView, Model, NodeView, infer_shapes
from onnxq.rewrite.names import Names

Span = tuple[int, int]

# So few rows take Softmax no longer than two other nodes.
_FEW_ROWS = 64
_AXIS_OPSET = 13  # from here on Softmax works along one axis
_DIFFERENCES = np.array([[1, -1], [-1, 1]], np.float32)
# Sigmoid's kernel knows no probability below 1.5e-8. What moves probabilities, and what takes the
# large ones, do not tell that from 0; a logarithm or a division would.
_MOVES = ("Concat", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze",
          "Transpose", "Unsqueeze")  # fmt: skip
_TAKES = ("ArgMax", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "NonMaxSuppression",
          "QuantizeLinear", "ReduceMax", "TopK")  # fmt: skip


def take_shortcuts(model: Model) -> Model:
    """Skip Concats that are sliced again, and write Softmax of two classes as Sigmoid.

    Args:
        model: The model; where the shapes of its inner tensors cannot be inferred, nodes stay.

    Returns:
        A new model that computes the same; probabilities within 3e-7, and of infinite logits a
        number where Softmax makes none. The model itself where there is nothing to skip.
    """
    view = infer_shapes(model).view()
    concats = _Concats(view)
    parts = {node.name: found for node in view.nodes if (found := concats.parts(node))}
    pairs = [node for node in view.nodes if _is_pairwise(view, node)]
    if not parts and not pairs:
        return model
    editor, names, taken = Editor(model), Names(view), dict[str, str]()
    for name, found in parts.items():
        for made, tensor in found.items():
            taken[made] = taken.get(tensor, tensor)
            for use in view.uses(made):
                editor.redirect(use.node, use.port, taken[made])
        editor.discard(name)
    for node in pairs:
        data = taken.get(node.inputs[0], node.inputs[0])
        made, name = names.new(data, "differences"), names.new(node.name, "MatMul")
        by = editor.add_constant(names.of("differences"), _DIFFERENCES)
        editor.add_node("MatMul", [data, by], [made], name=name)
        editor.replace(node.name, "Sigmoid", [made])
    return editor.finish()


class _Concats:
    """What Slices and Splits take out of Concats."""

    def __init__(self, view: GraphView) -> None:
        self._view = view
        self._inputs = cache(self._inputs_by_span)

    def parts(self, node: NodeView) -> dict[str, str]:
        """The outputs of a node that are inputs of a Concat, all of them or none, with these."""
        cuts = _cuts(self._view, node)
        concat = self._view.producer(node.inputs[0]) if cuts else None
        if cuts is None or concat is None or concat.full_op != "Concat" or self._is_named(node):
            return {}
        axis, spans = cuts
        end, inputs = self._inputs(concat.name, axis)
        found = [inputs.get((start, min(stop, end))) for start, stop in spans]
        parts = {made: part for made, part in zip(node.outputs, found, strict=True) if part}
        return parts if len(parts) == len(found) else {}

    def _inputs_by_span(self, name: str, axis: int) -> tuple[int, Mapping[Span, str]]:
        """The size of a Concat along an axis, and its inputs by where they lie there."""
        concat = self._view.by_name[name]
        rank, sizes = self._view.rank(concat.outputs[0]), _sizes(self._view, concat.inputs, axis)
        if rank is None or sizes is None or (concat.attrs["axis"] - axis) % rank:
            return 0, {}
        ends = [0, *accumulate(sizes)]
        return ends[-1], dict(zip(pairwise(ends), concat.inputs, strict=True))

    def _is_named(self, node: NodeView) -> bool:
        """True where an output of the graph or a subgraph calls what a node makes by its name."""
        made, outputs = set(node.outputs), self._view.output_names
        return bool(made & outputs) or any(u.port < 0 for t in made for u in self._view.uses(t))


def _cuts(view: GraphView, node: NodeView) -> tuple[int, list[Span]] | None:
    """The axis and the spans of a Slice or Split along one axis; None where they are not known."""
    if node.full_op == "Split":
        axis = node.attrs.get("axis", 0)
        sizes = _sizes(view, node.outputs, axis)
        return None if sizes is None else (axis, list(pairwise([0, *accumulate(sizes)])))
    if node.full_op != "Slice":
        return None
    told = [view.constant(tensor) for tensor in node.inputs[1:] if tensor]
    single = [int(numbers.item()) for numbers in told if numbers is not None and numbers.size == 1]
    if len(single) < len(node.inputs) - 1 or len(single) < 3:
        return None
    start, stop, axis, *steps = single
    forward = start >= 0 and stop >= 0 and steps in ([], [1])
    return (axis, [(start, stop)]) if forward else None


def _sizes(view: GraphView, tensors: Sequence[str], axis: int) -> list[int] | None:
    """The sizes of tensors along an axis; None where one is not known."""
    shapes = [view.shape(tensor) for tensor in tensors]
    sizes = [size for shape in shapes if shape and isinstance(size := shape[axis], int)]
    return sizes if len(sizes) == len(shapes) else None


def _is_pairwise(view: GraphView, node: NodeView) -> bool:
    """True for a Softmax over two classes of many rows, of which nothing takes a logarithm."""
    if node.full_op != "Softmax" or view.opset < _AXIS_OPSET:
        return False
    shape, axis = view.shape(node.inputs[0]), node.attrs.get("axis", -1)
    if not shape or view.dtype(node.inputs[0]) != "float32" or axis not in (-1, len(shape) - 1):
        return False
    many = prod(size for size in shape[:-1] if isinstance(size, int)) >= _FEW_ROWS
    return shape[-1] == 2 and many and _is_taken_as_large(view, node)


def _is_taken_as_large(view: GraphView, node: NodeView) -> bool:
    """True where all that reads what a node makes, wherever it is moved, takes large values."""
    seen, left = set[str](), list(node.outputs)
    while left:
        for use in view.uses(left.pop()):
            reader = view.by_name[use.node]
            if use.port < 0 or reader.domain or reader.op not in _MOVES + _TAKES:
                return False
            if reader.op in _MOVES and reader.name not in seen:
                seen.add(reader.name)
                left += reader.outputs
    return True
