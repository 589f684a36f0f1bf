"""``fold_mirrored``: a MatMul whose weights are their own mirror image, at half the work.

Models that listen bring their Fourier transform as a MatMul, and int8 ruins it: so it stays float,
and takes a quarter of the time of all that is int8 around it. Cosines read the same from both ends,
and sines the same with the other sign. So the signal is folded at the middle first, and its halves
added or subtracted; half of the weights are left, and half of the file that they take.

The fold of a discrete Fourier transform of real signals: Cooley, Lewis and Welch, "The Fast Fourier
Transform Algorithm: Programming Considerations in the Calculation of Sine, Cosine and Laplace
Transforms", 1970.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from onnxq.graph import Editor, GraphView, Model, NodeView, infer_shapes
from onnxq.rewrite.names import Names
from onnxq.types import Array

# Fewer columns, of all layers that read a signal, save no more time than it takes to fold it.
_FEW_COLUMNS, _FEW_ROWS = 160, 64
# Rows are the same where they differ by a few roundings of the largest weight: the sines of whole
# turns are zero but for that.
_SAME = 2.0**-22


@dataclass(frozen=True)
class Mirror:
    """Rows i and ``total - i`` of a weight are the same, or the same with the other sign.

    Attributes:
        rows: How many rows there are.
        total: What the numbers of two rows add up to that belong together.
        odd: Whether they have opposite signs.
    """

    rows: int
    total: int
    odd: bool

    @property
    def half(self) -> int:
        """How many rows are left: those up to the middle."""
        return self.total // 2 + 1

    @property
    def pads(self) -> tuple[int, int]:
        """Zeros before and behind what is folded over, for rows that belong to no other."""
        before = self.total - self.rows + 1
        return before, 2 * self.half - self.rows - before


@dataclass(frozen=True)
class _Reader:
    """A MatMul with mirrored weights."""

    node: NodeView
    weight: Array
    mirror: Mirror


def fold_mirrored(model: Model) -> Model:
    """Fold what float MatMuls with mirrored weights read, and halve the weights.

    Args:
        model: The model; where the rank of what is read cannot be inferred, nodes stay.

    Returns:
        A new model that computes the same but for the order of sums; the model itself where there
        is nothing to fold.
    """
    view = infer_shapes(model).view()
    folds = _folds(view)
    if not folds:
        return model
    editor, names = Editor(model), Names(view)
    for (tensor, total), found in folds.items():
        ends = _ends(editor, names, tensor, view.rank(tensor) or 0, found[0].mirror)
        for reader in found:
            op = "Sub" if reader.mirror.odd else "Add"
            folded = names.of(tensor, str(total), op)
            if not editor.has_tensor(folded):
                editor.add_node(op, ends, [folded], name=names.new(folded, "node"))
            half = names.of(reader.node.inputs[1], "half")
            editor.redirect(reader.node.name, 0, folded)
            editor.redirect(
                reader.node.name, 1, editor.add_constant(half, reader.weight[: reader.mirror.half])
            )
    return editor.finish()


def _folds(view: GraphView) -> dict[tuple[str, int], list[_Reader]]:
    """The MatMuls with mirrored weights, by what they read and where it is to be folded."""
    matmuls = defaultdict[str, list[tuple[NodeView, Array]]](list)
    for node in view.nodes:
        weight = view.constant(node.inputs[1]) if node.full_op == "MatMul" else None
        if weight is not None and weight.ndim == 2 and weight.dtype == np.float32:
            matmuls[node.inputs[0]].append((node, weight))
    folds = defaultdict[tuple[str, int], list[_Reader]](list)
    for tensor, found in matmuls.items():
        wide = sum(weight.shape[1] for _, weight in found) >= _FEW_COLUMNS
        for node, weight in found if wide and view.rank(tensor) is not None else ():
            if len(weight) >= _FEW_ROWS and (mirror := mirror_of(weight)) is not None:
                folds[tensor, mirror.total].append(_Reader(node, weight, mirror))
    columns = {key: sum(reader.weight.shape[1] for reader in folds[key]) for key in folds}
    return {key: folds[key] for key, count in columns.items() if count >= _FEW_COLUMNS}


def _ends(editor: Editor, names: Names, tensor: str, rank: int, mirror: Mirror) -> tuple[str, str]:
    """Both halves of a tensor along its last axis, the second one backwards."""

    def number(value: int) -> str:
        return editor.add_constant(names.of("index", str(value)), np.array([value], np.int64))

    def made(op: str, part: str, *inputs: str) -> str:
        output = names.new(tensor, str(mirror.total), part)
        editor.add_node(op, inputs, [output], name=names.new(output, op))
        return output

    last = number(-1)
    front = made("Slice", "front", tensor, number(0), number(mirror.half), last)
    span = number(mirror.rows - 1), number(mirror.half - 1)
    back = made("Slice", "back", tensor, *span, last, last)
    if any(mirror.pads):
        before, behind = ([0] * (rank - 1) + [pad] for pad in mirror.pads)
        sizes = names.of("pads", tensor, str(mirror.total))
        editor.add_constant(sizes, np.array(before + behind, np.int64))
        back = made("Pad", "padded", back, sizes)
    return front, back


def mirror_of(weight: Array) -> Mirror | None:
    """How the rows of a weight mirror each other; None where less than two thirds of them do.

    Args:
        weight: Of shape [rows, columns].
    """
    sizes = np.abs(weight).max(1, initial=0)
    rows, close = len(weight), _SAME * float(sizes.max(initial=0))
    if not np.isfinite(close):
        return None
    for total in range(rows - 1, rows + rows // 3):
        first, middle = total - rows + 1, (total + 1) // 2
        others = total - np.arange(first, middle)
        if np.abs(sizes[first:middle] - sizes[others]).max(initial=0) > close:
            continue
        for odd, signed in ((False, np.subtract), (True, np.add)):
            apart = (np.abs(signed(weight[i], weight[total - i])) for i in range(first, middle))
            if all(values.max(initial=0) <= close for values in apart):
                return Mirror(rows, total, odd)
    return None
