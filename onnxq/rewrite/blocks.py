"""Weights behind DequantizeLinear, in the shapes that ONNX Runtime runs without dequantizing all.

``DequantizeLinear -> MatMul`` with a weight in blocks is what ONNX Runtime 1.31 fuses into one
MatMulNBits, and so is Gemm, unless it transposes its weight. A Gather it never fuses, and would
dequantize the whole table at every run. ``arrange_weights`` says the same in operators of ONNX
alone; ``lower_blocks`` writes the fused operators themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxq.graph import Editor, GraphView, Model, NodeView
from onnxq.rewrite.integer_ops import MICROSOFT
from onnxq.rewrite.names import Names
from onnxq.types import Array, QType

# MatMulNBits quantizes activations to 8 bits per block at this level. That costs 45 dB, far less
# than 4 bits of a weight do, and is what ONNX Runtime chooses where it fuses by itself. 1024 x 1024
# in blocks of 32, one thread: one row 0.028 ms against 0.108 at level 0 (8 bits: 0.030 against
# 1.58), 128 rows 2.4 ms against 1.9 (8 bits: 2.2 against 3.6).
ACCURACY_LEVEL = 4
# Block size for weights with a scale per channel: up to 1.5 times as fast as 32, and 256 is at most
# 1.2 times as fast again, for more padding.
CHANNEL_BLOCK = 128
_ONNX_FLOAT = 1


@dataclass(frozen=True)
class _Weight:
    """A constant behind a DequantizeLinear.

    Attributes:
        qtype: Type of the integers.
        names: The integers, the scale and the zero point, the last one empty when there is none.
        shape: Shape of the integers.
        axis: The axis of the scales; None when there is only one.
        size: Values per block; 0 for scales per channel.
    """

    qtype: QType
    names: tuple[str, str, str]
    shape: tuple[int, ...]
    axis: int | None
    size: int

    @property
    def offset(self) -> int:
        """What makes the integers unsigned."""
        return -self.qtype.qmin


def lower_blocks(model: Model) -> Model:
    """Put MatMulNBits and GatherBlockQuantized in the place of operators on weights in blocks.

    Lowered are MatMul and Gemm on floats with a matrix in blocks along the axis that is summed, or
    with scales per channel, and Gather of rows in blocks. Whatever else reads a DequantizeLinear
    stays.

    Args:
        model: A model as ``to_qdq`` writes it.

    Returns:
        A new model. GatherBlockQuantized computes the same values; MatMulNBits quantizes
        activations (``ACCURACY_LEVEL``).
    """
    return _Writer(model).run({"MatMul": _multiply, "Gemm": _multiply, "Gather": _gather_blocks})


def arrange_weights(model: Model) -> Model:
    """Transpose weights in blocks that a Gemm transposes, and dequantize behind Gather.

    Args:
        model: A model as ``to_qdq`` writes it, lowered or not.

    Returns:
        A new model that computes the same values.
    """
    return _Writer(model).run({"Gemm": _turn, "Gather": _gather_first})


class _Writer:
    """Edits the nodes of one model that read stored weights."""

    def __init__(self, model: Model) -> None:
        self.view: GraphView = model.view()
        self.editor = Editor(model)
        self.names = Names(self.view)
        self._large = not model.fits_one_file

    def run(self, rules: dict[str, Callable[[_Writer, NodeView, _Weight], None]]) -> Model:
        """Apply the rule of every node's operator, if there is one and it reads a weight."""
        for node in self.view.nodes:
            rule = rules.get(node.full_op)
            port = 0 if node.op == "Gather" else 1
            weight = self._weight(node.inputs[port]) if rule else None
            if rule is not None and weight is not None:
                rule(self, node, weight)
        return self.editor.finish()

    def _weight(self, tensor: str) -> _Weight | None:
        maker = self.view.producer(tensor)
        if maker is None or maker.full_op != "DequantizeLinear":
            return None
        names = (*maker.inputs, "")[:3]
        shape, kind = self.view.shape(names[0]), self.view.dtype(names[0])
        if not all(self.view.is_constant(name) for name in names if name) or kind not in set(QType):
            return None
        sizes = tuple(size for size in shape or () if isinstance(size, int))
        axis = int(maker.attrs.get("axis", 1)) if self.view.rank(names[1]) else None
        axis = axis + len(sizes) if axis is not None and axis < 0 else axis
        size = int(maker.attrs.get("block_size", 0))
        return _Weight(QType(kind), (names[0], names[1], names[2]), sizes, axis, size)

    def values(self, name: str) -> Array:
        """The values of a constant."""
        found = self.view.constant(name)
        assert found is not None
        return found

    def constant(
        self,
        name: str,
        make: Callable[[], Array],
        dtype: np.dtype[np.generic],
        shape: Sequence[int],
    ) -> str:
        """A constant, made once; in a large model not before it is written."""
        if self.editor.has_tensor(name):
            return name
        if self._large:
            return self.editor.add_made(name, make, dtype, shape)
        return self.editor.add_constant(name, make())

    def changed(self, name: str, part: str, change: Callable[[Array], Array]) -> str:
        """A small constant that is made out of another one."""
        made = self.names.of(name, part)
        return self.editor.add_constant(made, change(self.values(name)))


def _multiply(writer: _Writer, node: NodeView, weight: _Weight) -> None:
    """MatMul or Gemm as MatMulNBits."""
    turned = bool(node.attrs.get("transB", 0))
    size = _block_size(writer.view, node, weight, turned)
    if not size or not _multiplies_rows(writer.view, node):
        return
    columns, rows = weight.shape if turned else weight.shape[::-1]
    bits, count = weight.qtype.bits, -(-rows // size)
    bias = node.inputs[2] if len(node.inputs) > 2 else ""
    if bias and not (
        writer.view.is_constant(bias) and writer.view.shape(bias) in ((columns,), (1, columns))
    ):
        return

    def row_wise(values: Array) -> Array:
        return values if turned else values.T

    def per_block(values: Array) -> Array:
        """One value for every block of every row."""
        if weight.size:
            return np.ascontiguousarray(row_wise(values))
        return np.broadcast_to(values.reshape(-1, 1), (columns, count))

    def packed() -> Array:
        values = row_wise(_unsigned(writer.values(weight.names[0]), weight))
        whole = np.full((columns, count * size), weight.offset, np.uint8)
        whole[:, :rows] = values
        return _pack(whole, bits).reshape(columns, -1, size * bits // 8)

    stored, scale = weight.names[:2]
    part = "packed_turned" if turned else "packed"
    shape = (columns, count, size * bits // 8)
    inputs = [
        node.inputs[0],
        writer.constant(writer.names.of(stored, part), packed, np.dtype(np.uint8), shape),
        writer.changed(scale, part, lambda v: per_block(v).ravel()),
    ]
    zeros = per_block(_zeros(writer, weight))
    if (zeros != 1 << (bits - 1)).any():
        name = writer.names.of(stored, "zp", part)
        inputs.append(writer.editor.add_constant(name, _pack(zeros, bits).ravel()))
    if bias:
        flat = writer.changed(bias, "flat", np.ravel)
        inputs += [*[""] * (5 - len(inputs)), flat]
    writer.editor.replace(
        node.name,
        "MatMulNBits",
        inputs,
        attrs={
            "K": rows,
            "N": columns,
            "bits": bits,
            "block_size": size,
            "accuracy_level": ACCURACY_LEVEL,
        },
        domain=MICROSOFT,
    )


def _gather_blocks(writer: _Writer, node: NodeView, weight: _Weight) -> None:
    """Gather as GatherBlockQuantized, which takes 8 bits as unsigned ones."""
    last = len(weight.shape) - 1
    in_rows = _are_blocks(weight) and weight.axis == last > 0
    if not in_rows or not _takes_rows(node, weight):
        return
    stored, scale, zero = weight.names
    inputs = [stored, node.inputs[1], scale, *([zero] if zero else [])]
    attrs = {"block_size": weight.size, "gather_axis": 0, "quantize_axis": last}
    if weight.qtype.bits == 8:
        attrs["bits"] = 8
        inputs[0] = writer.constant(
            writer.names.of(stored, "unsigned"),
            lambda: _unsigned(writer.values(stored), weight),
            np.dtype(np.uint8),
            weight.shape,
        )
        zeros = _zeros(writer, weight)
        name = writer.names.of(stored, "zp", "unsigned")
        # the kernel's own default is the middle
        inputs[3:] = [writer.editor.add_constant(name, zeros)] if (zeros != 128).any() else []
    writer.editor.replace(node.name, "GatherBlockQuantized", inputs, attrs=attrs, domain=MICROSOFT)


def _turn(writer: _Writer, node: NodeView, weight: _Weight) -> None:
    """A Gemm that does not transpose its weight, which is stored transposed instead."""
    if not node.attrs.get("transB", 0) or not _is_matrix_in_blocks(weight, turned=True):
        return
    stored, made = weight.names[0], writer.names.of(node.inputs[1], "turned")
    if not writer.editor.has_tensor(made):
        turned = writer.constant(
            writer.names.of(stored, "turned"),
            lambda: np.ascontiguousarray(writer.values(stored).T),
            weight.qtype.dtype,
            weight.shape[::-1],
        )
        others = (
            writer.changed(name, "turned", lambda v: np.ascontiguousarray(v.T))
            for name in weight.names[1:]
            if name
        )
        writer.editor.add_node(
            "DequantizeLinear",
            [turned, *others],
            [made],
            name=writer.names.of(made, "DQ"),
            attrs={"axis": 0, "block_size": weight.size},
        )
    inputs = [node.inputs[0], made, *node.inputs[2:]]
    if writer.view.shape(inputs[-1]) == (1, weight.shape[0]) and writer.view.is_constant(
        inputs[-1]
    ):
        inputs[-1] = writer.changed(inputs[-1], "flat", np.ravel)  # else it would not be fused
    writer.editor.replace(node.name, "Gemm", inputs, attrs={**node.attrs, "transB": 0})


def _gather_first(writer: _Writer, node: NodeView, weight: _Weight) -> None:
    """Gather integers and their scales, and dequantize what was gathered.

    Integers of 4 bits cannot be gathered. Where a QuantizeLinear follows, the runtime gathers
    integers by itself.
    """
    view, editor, (stored, scale, zero) = writer.view, writer.editor, weight.names
    readers = [view.by_name[use.node].op for use in view.uses(node.outputs[0]) if use.port >= 0]
    if weight.qtype.bits != 8 or "QuantizeLinear" in readers or not _takes_rows(node, weight):
        return
    base, indices = node.outputs[0], node.inputs[1]

    def gathered(tensor: str, part: str) -> str:
        made = writer.names.of(base, part)
        name = writer.names.of(made, "Gather")
        editor.add_node("Gather", [tensor, indices], [made], name=name)
        return made

    by_row = (
        weight.axis == 0 and not weight.size and np.all(_zeros(writer, weight) == weight.offset)
    )
    if by_row and len(weight.shape) == 2:
        column = writer.changed(scale, "column", lambda v: v.reshape(-1, 1))
        real = writer.names.of(base, "steps")
        rows = gathered(stored, "q")
        name = writer.names.of(real, "Cast")
        editor.add_node("Cast", [rows], [real], name=name, attrs={"to": _ONNX_FLOAT})
        editor.replace(node.name, "Mul", [real, gathered(column, "s")])
    elif weight.axis is None:
        rows = gathered(stored, "q")
        editor.replace(node.name, "DequantizeLinear", [rows, *filter(None, (scale, zero))])
    elif weight.size and weight.axis == len(weight.shape) - 1 > 0:
        inputs = [gathered(stored, "q"), gathered(scale, "s")]
        inputs += [gathered(zero, "zp")] if zero else []
        attrs = {"axis": -1, "block_size": weight.size}
        editor.replace(node.name, "DequantizeLinear", inputs, attrs=attrs)


def _is_matrix_in_blocks(weight: _Weight, turned: bool) -> bool:
    return _are_blocks(weight) and len(weight.shape) == 2 and weight.axis == int(turned)


def _block_size(view: GraphView, node: NodeView, weight: _Weight, turned: bool) -> int:
    """The block size that a matrix gets in MatMulNBits; 0 where it gets none.

    A scale per channel, or for all, is written again for each block. Beside integers it is left to
    operators on integers.
    """
    if len(weight.shape) != 2 or weight.qtype.bits not in (4, 8):
        return 0
    rows = weight.shape[1 if turned else 0]
    fits = max(16, 1 << (rows - 1).bit_length())
    if weight.size:
        return min(weight.size, fits) if _is_matrix_in_blocks(weight, turned) else 0
    maker = view.producer(node.inputs[0])
    if weight.axis == int(turned) or (maker is not None and maker.op == "DequantizeLinear"):
        return 0
    return min(CHANNEL_BLOCK, fits)


def _are_blocks(weight: _Weight) -> bool:
    """Whether the kernels know blocks of this size and type."""
    size = weight.size
    return size >= 16 and size & (size - 1) == 0 and weight.qtype.bits in (4, 8)


def _multiplies_rows(view: GraphView, node: NodeView) -> bool:
    """Whether a node multiplies rows of its input with the weight, and does nothing else."""
    if node.op == "MatMul":
        return (view.rank(node.inputs[0]) or 0) >= 2
    scaled = any(node.attrs.get(key, 1.0) != 1.0 for key in ("alpha", "beta"))
    return not scaled and not node.attrs.get("transA", 0)


def _takes_rows(node: NodeView, weight: _Weight) -> bool:
    return int(node.attrs.get("axis", 0)) in (0, -len(weight.shape))


def _unsigned(stored: Array, weight: _Weight) -> Array:
    """Integers as uint8, moved so that the least one is 0."""
    return np.asarray(stored.astype(np.int8).view(np.uint8) + np.uint8(weight.offset))


def _zeros(writer: _Writer, weight: _Weight) -> Array:
    """Zero points, moved along with the integers."""
    scale, zero = weight.names[1:]
    if not zero:
        return np.full(writer.values(scale).shape, weight.offset, np.uint8)
    return _unsigned(writer.values(zero), weight)


def _pack(rows: Array, bits: int) -> Array:
    """Two values of 4 bits to a byte, the first one low; rows of an odd length end with a 0."""
    if bits == 8:
        return np.ascontiguousarray(rows)
    even = np.zeros((len(rows), -(-rows.shape[1] // 2) * 2), np.uint8)
    even[:, : rows.shape[1]] = rows
    return np.asarray(even[:, ::2] | (even[:, 1::2] << 4))
