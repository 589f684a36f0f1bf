"""``widen_stems``: the first convolution reads its few channels the way the fast kernel likes.

ONNX Runtime's fast kernel for a Conv of uint8 and int8 (MlasConvSym) reads four channels at a time,
takes no other number, and looks up the place of every pixel that its window covers. The first layer
of most networks reads one or three channels: it misses the kernel, or looks up much for little to
compute. Two arrangements help, and compute the same to the last bit:

* **Padding.** More channels, which hold the zero point and meet weights of 0, up to a multiple of
  four.
* **Folding.** Where channels come last, as they do in the kernel, four pixels in a row are one
  *cell* of four times the channels, by a Reshape. The convolution walks over cells: its window
  covers few of them, and it makes all the pixels of a cell at once, with one copy of each filter
  per pixel, shifted by one pixel each, and 0 for pixels that it does not read. What it makes is
  laid out as pixels again by a second Reshape. The Transposes around both vanish into those that
  ONNX Runtime puts around an integer Conv.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from onnxq.graph import Editor, GraphView, Model, NodeView
from onnxq.rewrite.names import Names, zero_point_name
from onnxq.types import Array, QType

# Beside more channels, copying the tensor costs more than it saves.
_MOST_CHANNELS = 3
# What costs as much as so many products: to look up a pixel, to copy one into a padded tensor, and
# to run one more node. Measured on ONNX Runtime 1.31 with AVX-512 VNNI.
_LOOK_UP, _COPY, _NODE = 400, 150, 400_000
_USUAL_SIZE = 32
# What may stand between a Conv and what quantizes its output: it treats all channels alike.
_ACTIVATIONS = ("Relu", "Clip")
_CHANNELS_LAST, _CHANNELS_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


def widen_stems(model: Model, nodes: Collection[str], multiple: int) -> Model:
    """Fold or pad what quantized convolutions read, where it was float before them.

    Args:
        model: A model as ``to_qdq`` writes it.
        nodes: Names of the nodes that compute on integers.
        multiple: The kernel reads a multiple of so many channels; cells have so many pixels.

    Returns:
        A new model that computes the same to the last bit.
    """
    view, writer = model.view(), _Writer(model)
    for node in view.nodes:
        stem = _stem(view, node, nodes, multiple) if node.op == "Conv" else None
        if stem is None:
            continue
        fold = _fold(view, stem, multiple)
        if fold is None or fold.cost(stem) > stem.padded_cost(multiple):
            writer.pad(stem, multiple)
        else:
            writer.fold(stem, fold)
    return writer.finish()


@dataclass(frozen=True)
class _Stem:
    """A Conv on integers that reads few channels of a tensor that was float.

    Attributes:
        conv: The Conv.
        data: The DequantizeLinear of what it reads.
        filters: That of its weight, which nothing else reads.
        weights: The stored weight, ``(outputs, channels, height, width)``.
        pixels: Of the output; sizes that are not known are taken for 32.
    """

    conv: NodeView
    data: NodeView
    filters: NodeView
    weights: Array
    pixels: int

    def padded_cost(self, multiple: int) -> float:
        """Of one image with padded channels, in products."""
        outputs, channels, height, width = self.weights.shape
        wider = channels + -channels % multiple
        seen = height * width * (_LOOK_UP + outputs * wider)
        return float(self.pixels * (seen + _COPY) + _NODE)


@dataclass(frozen=True)
class _Fold:
    """How a Conv walks over cells of pixels, along the width; all but the cells is in pixels.

    Attributes:
        cell: Pixels of a cell.
        stride: The Conv's stride.
        first: Where the window of a cell's first output starts, from the start of that cell.
        window: Cells that the window covers.
        border: Cells that the Conv adds at either side.
        before: Pixels that are added in front, so that windows lie better.
        after: Pixels that are added behind.
        read: Cells of what is read, with the pixels that are added.
        width: Pixels of the output.
    """

    cell: int
    stride: int
    first: int
    window: int
    border: tuple[int, int]
    before: int
    after: int
    read: int
    width: int

    @property
    def made(self) -> int:
        """Output pixels per cell."""
        return self.cell // self.stride

    def spread(self, weights: Array) -> Array:
        """Filters for cells: one for each output pixel of a cell."""
        outputs, channels, height, width = weights.shape
        shape = (self.made, outputs, self.cell, channels, height, self.window)
        spread = np.zeros(shape, weights.dtype)
        for made in range(self.made):
            for column in range(width):
                cell, pixel = divmod(self.first + self.stride * made + column, self.cell)
                spread[made, :, pixel, :, :, cell + self.border[0]] = weights[..., column]
        return spread.reshape(-1, self.cell * channels, height, self.window)

    def cost(self, stem: _Stem) -> float:
        """Of one image, in products."""
        outputs, channels, height, _ = stem.weights.shape
        products = outputs * channels * self.cell * height * self.window
        seen = height * self.window / self.made
        padded = self.before + self.after > 0
        copied = padded * (_NODE + stem.pixels * _COPY)
        return float(stem.pixels * (seen * _LOOK_UP + products) + copied)


def _fold(view: GraphView, stem: _Stem, cell: int) -> _Fold | None:
    """The cheapest fold; None where the sizes do not allow one."""
    conv, attrs = stem.conv, stem.conv.attrs
    width, made = ((view.shape(name) or (None,))[-1] for name in (conv.inputs[0], conv.outputs[0]))
    if not isinstance(width, int) or not isinstance(made, int):
        return None
    stride, pads = attrs.get("strides", (1, 1))[1], attrs.get("pads", (0, 0, 0, 0))
    plain = attrs.get("auto_pad", "NOTSET") == "NOTSET"
    plain &= all(step == 1 for step in attrs.get("dilations", (1, 1)))
    if not plain or cell % stride or made * stride % cell:
        return None
    if cell > stride and not (_to_quantizer(view, conv) and _has_own_bias(view, conv)):
        return None
    found = _folds(cell, stride, (width, made), pads[1], stem.weights.shape[3])
    return min(found, key=lambda fold: fold.cost(stem), default=None)


def _folds(
    cell: int, stride: int, sizes: tuple[int, int], pad: int, kernel: int
) -> Iterator[_Fold]:
    """The fold of the image as it is, and that behind as many pixels as the Conv pads."""
    width, made = sizes
    steps = made * stride // cell  # cells of the output
    for before in sorted({0, pad}):
        first = before - pad
        left = -(first // cell)
        window = (first + cell - stride + kernel - 1) // cell + left + 1
        cells = steps + window - 1 - left  # that windows reach, the border on the left aside
        after = -(width + before) % cell
        right = cells - (width + before + after) // cell
        if before and right > 0:
            after, right = after + right * cell, 0
        read = (width + before + after) // cell
        if right >= 0:
            yield _Fold(cell, stride, first, window, (left, right), before, after, read, made)


def _stem(view: GraphView, node: NodeView, nodes: Collection[str], multiple: int) -> _Stem | None:
    """The Conv with what feeds it; None where widening does not pay."""
    if node.domain or node.attrs.get("group", 1) != 1 or node.name not in nodes:
        return None
    data, filters = (view.producer(node.inputs[port]) for port in (0, 1))
    if data is None or filters is None or len(data.inputs) < 3 or "axis" in data.attrs:
        return None
    if data.op != "DequantizeLinear" or filters.op != "DequantizeLinear":
        return None
    made, weights = view.producer(data.inputs[0]), view.constant(filters.inputs[0])
    if made is None or made.op != "QuantizeLinear" or weights is None or weights.ndim != 4:
        return None
    before = view.producer(made.inputs[0])
    if before is not None and before.name in nodes:  # the pair vanishes into an integer kernel
        return None
    alone = len(view.uses(filters.outputs[0])) == 1
    few = weights.shape[1] <= _MOST_CHANNELS and weights.shape[1] % multiple != 0
    sizes = (view.shape(node.outputs[0]) or (None,))[2:]
    pixels = prod(size if isinstance(size, int) else _USUAL_SIZE for size in sizes)
    return _Stem(node, data, filters, weights, pixels) if alone and few else None


def _to_quantizer(view: GraphView, conv: NodeView) -> list[NodeView]:
    """From a Conv to the QuantizeLinear behind it; empty where others read what is between."""
    chain = [conv]
    while chain[-1].op != "QuantizeLinear":
        made = chain[-1].outputs[0]
        uses = view.uses(made)
        if len(uses) != 1 or made in view.output_names:
            return []
        following = view.by_name[uses[0].node]
        if following.op not in (*_ACTIVATIONS, "QuantizeLinear"):
            return []
        chain.append(following)
    return chain


def _has_own_bias(view: GraphView, conv: NodeView) -> bool:
    """True where no other node reads the integers of a Conv's bias."""
    if len(conv.inputs) < 3:
        return True
    maker = view.producer(conv.inputs[2])
    dequantizes = maker is not None and maker.op == "DequantizeLinear"
    return dequantizes and len(view.uses(conv.inputs[2])) == 1


class _Writer:
    """Writes both arrangements into one model; what several stems read is arranged once."""

    def __init__(self, model: Model) -> None:
        self._view = model.view()
        self._editor = Editor(model)
        self._names = Names(self._view)
        self._arranged: dict[tuple[str, ...], str] = {}

    def finish(self) -> Model:
        return self._editor.finish()

    def pad(self, stem: _Stem, multiple: int) -> None:
        """Add channels that hold the zero point, and meet weights of 0."""
        missing = -stem.weights.shape[1] % multiple
        stored, zero = stem.data.inputs[0], stem.data.inputs[2]

        def arrange() -> str:
            pads = [0, 0, 0, 0, 0, missing, 0, 0]  # begins, then ends, by axis
            return self._step("Pad", stored, stored, "padded", sizes=pads, zero=zero)

        data = self._once(stem, f"padded {missing}", arrange)
        self._editor.redirect(stem.conv.name, 0, data)
        self._store(stem, np.pad(stem.weights, [(0, 0), (0, missing), (0, 0), (0, 0)]))

    def fold(self, stem: _Stem, fold: _Fold) -> None:
        """Let the Conv walk over cells, and lay out what it makes as pixels again."""
        conv, attrs = stem.conv, dict(stem.conv.attrs)
        top, _, bottom, _ = attrs.get("pads", (0, 0, 0, 0))
        attrs["pads"] = (top, fold.border[0], bottom, fold.border[1])
        attrs["strides"] = (attrs.get("strides", (1, 1))[0], 1)
        attrs["kernel_shape"] = (stem.weights.shape[2], fold.window)
        data = self._once(
            stem, f"cells {fold.before} {fold.after}", lambda: self._cells(stem, fold)
        )
        self._editor.replace(conv.name, "Conv", [data, *conv.inputs[1:]], attrs=attrs)
        self._store(stem, fold.spread(stem.weights))
        if fold.made > 1:
            self._repeat(stem, fold.made)
            self._pixels(stem, fold)

    def _once(self, stem: _Stem, how: str, arrange: Callable[[], str]) -> str:
        """What dequantizes an arrangement of what a stem reads."""
        stored, scale, zero = stem.data.inputs
        if (stored, how) not in self._arranged:
            made, name = (
                self._names.new(old, "wide") for old in (stem.data.outputs[0], stem.data.name)
            )
            inputs = [arrange(), scale, zero]
            self._editor.add_node("DequantizeLinear", inputs, [made], name=name)
            self._arranged[stored, how] = made
        self._editor.discard(stem.data.name)
        return self._arranged[stored, how]

    def _cells(self, stem: _Stem, fold: _Fold) -> str:
        stored, zero = stem.data.inputs[0], stem.data.inputs[2]
        found = self._step("Transpose", stored, stored, "rows", perm=_CHANNELS_LAST)
        if fold.before or fold.after:
            pads = [0, 0, fold.before, 0, 0, 0, fold.after, 0]  # begins, then ends, by axis
            found = self._step("Pad", found, stored, "padded", sizes=pads, zero=zero)
        shape = [0, 0, fold.read, fold.cell * stem.weights.shape[1]]
        found = self._step("Reshape", found, stored, "cells", sizes=shape)
        return self._step("Transpose", found, stored, "nchw", perm=_CHANNELS_FIRST)

    def _pixels(self, stem: _Stem, fold: _Fold) -> None:
        """Lay out the cells that a Conv makes as pixels again, behind its QuantizeLinear."""
        *makers, quantizer = _to_quantizer(self._view, stem.conv)
        for maker in makers:
            self._editor.rename(maker.outputs[0], self._names.new(maker.outputs[0], "cells"))
        stored = quantizer.outputs[0]
        shape = self._constant(stored, "shape", [0, 0, fold.width, stem.weights.shape[0]])
        pixels, rows, cells = (
            self._names.new(stored, part) for part in ("pixels", "rows", "cells")
        )
        behind = self._editor.put_behind  # from the last one to the first
        name = self._names.new(stored, "Transpose")
        behind(stored, pixels, "Transpose", [pixels], name=name, attrs={"perm": _CHANNELS_FIRST})
        behind(pixels, rows, "Reshape", [rows, shape], name=self._names.new(stored, "Reshape"))
        name = self._names.new(stored, "Transpose")
        behind(rows, cells, "Transpose", [cells], name=name, attrs={"perm": _CHANNELS_LAST})

    def _repeat(self, stem: _Stem, times: int) -> None:
        """Repeat what belongs to output channels: scales, zero points and the bias."""
        makers = [self._view.producer(tensor) for tensor in stem.conv.inputs[1:]]
        for maker in makers:
            assert maker is not None
            for port, tensor in enumerate(maker.inputs):
                values = self._view.constant(tensor)
                if values is not None and values.ndim == 1:
                    self._editor.redirect(maker.name, port, self._tiled(tensor, values, times))

    def _tiled(self, tensor: str, values: Array, times: int) -> str:
        """A constant repeated; zero points may be there already for another layer."""
        tiled = np.tile(values, times)
        name = self._names.of(tensor, f"x{times}")
        if values.dtype.name in set(QType):
            same = zero_point_name(QType(values.dtype.name), values[0], tiled.size)
            known = self._view.constant(same)
            if known is not None and known.dtype == tiled.dtype and np.array_equal(known, tiled):
                name = same
        return self._editor.add_constant(name, tiled)

    def _store(self, stem: _Stem, weights: Array) -> None:
        name = self._names.new(stem.filters.inputs[0], "wide")
        self._editor.redirect(stem.filters.name, 0, self._editor.add_constant(name, weights))

    def _constant(self, tensor: str, part: str, sizes: Sequence[int]) -> str:
        return self._editor.add_constant(self._names.new(tensor, part), np.array(sizes, np.int64))

    def _step(
        self,
        op: str,
        tensor: str,
        stored: str,
        part: str,
        *,
        sizes: Sequence[int] = (),
        zero: str = "",
        perm: Sequence[int] = (),
    ) -> str:
        """One node on the way from the stored image to its arrangement."""
        made, name = self._names.new(stored, part), self._names.new(stored, op)
        inputs = [tensor, *([self._constant(made, "sizes", sizes)] if sizes else []), zero]
        attrs = {"perm": perm} if perm else None
        self._editor.add_node(op, [i for i in inputs if i], [made], name=name, attrs=attrs)
        return made
