"""Turn raw arrays, such as uint8 images, into what a model was trained on."""

from __future__ import annotations

import math
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from onnxq.errors import DataError
from onnxq.types import Array

Float32 = NDArray[np.float32]

_LAYOUTS = {"NHWC->NCHW": (0, 3, 1, 2), "NCHW->NHWC": (0, 2, 3, 1)}


class Preprocess(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is done to raw arrays, in this order: cast, channel axis, scale, mean, std, layout.

    It is applied to the array of every float32 input of the model; arrays of other inputs are fed
    as they are. A model that needs more than that takes ``module:function`` data.

    The images of a folder become such an array, N,H,W,C, by ``resize``, ``crop`` and ``channels``,
    which are for nothing else. For a uint8 input they get ``add_channel`` and ``layout`` too.

    Attributes:
        scale: Factor, such as 1/255.
        mean: Subtracted after scaling: one value, or one per channel.
        std: Divisor after subtracting: one value, or one per channel.
        layout: Change of layout, done last.
        add_channel: Turn N,H,W into N,1,H,W, done first.
        resize: Images: length of the shorter side, or height and width.
        crop: Images: side of the square, or height and width, that is cut out of the centre.
        interpolation: Images: how `resize` computes pixels; all but nearest are antialiased.
        channels: Images: order of the colours.
    """

    scale: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    layout: Literal["NHWC->NCHW", "NCHW->NHWC"] | None = None
    add_channel: bool = False
    resize: int | tuple[int, int] | None = None
    crop: int | tuple[int, int] | None = None
    interpolation: Literal["bilinear", "nearest", "bicubic", "lanczos"] = "bilinear"
    channels: Literal["RGB", "BGR"] = "RGB"

    def __post_init__(self) -> None:
        numbers = (self.scale, *(self.mean or ()), *(self.std or ()))
        if not all(math.isfinite(number) for number in numbers if number is not None):
            raise ValueError("scale, mean and std must be finite numbers")
        if self.mean == () or self.std == () or 0.0 in (self.std or ()):
            raise ValueError("mean and std need at least one value, and std none that is zero")
        if self.add_channel and self.layout == "NHWC->NCHW":
            raise ValueError('add_channel makes N,1,H,W already: leave out layout "NHWC->NCHW"')
        for size in (self.resize, self.crop):
            if size is not None and min(size if isinstance(size, tuple) else (size,)) < 1:
                raise ValueError("resize and crop take sizes of 1 or more")
        if self.interpolation != "bilinear" and self.resize is None:
            raise ValueError("interpolation is how resize computes pixels, but resize is not set")

    @property
    def for_images(self) -> list[str]:
        """The keys that are set and that only images have a use for."""
        keys = ("resize", "crop", "interpolation", "channels")
        fields = {field.name: field for field in msgspec.structs.fields(self)}
        return [key for key in keys if getattr(self, key) != fields[key].default]

    def apply(self, array: Array, where: str = "the array") -> Float32:
        """Preprocess one array.

        Args:
            array: Real numbers of any type; axis 0 holds the samples.
            where: What an error calls the array.

        Returns:
            A contiguous float32 array.

        Raises:
            DataError: The array holds no real numbers, or its rank or channels do not fit.
        """
        if array.dtype.kind in "OUSMmc":
            raise DataError(f"{where}: cannot turn {array.dtype.name} into float32")
        with np.errstate(over="ignore", invalid="ignore"):  # Inf and NaN are refused afterwards
            return self._apply(array.astype(np.float32), where)

    def _apply(self, x: Float32, where: str) -> Float32:
        if self.add_channel:
            if x.ndim != 3:
                raise _rank("add_channel", "3 (N,H,W)", x, where)
            x = x[:, np.newaxis]
        if self.scale is not None:
            x *= np.float32(self.scale)
        if self.mean is not None:
            x -= self._per_channel("mean", self.mean, x, where)
        if self.std is not None:
            x /= self._per_channel("std", self.std, x, where)
        if self.layout is not None:
            if x.ndim != 4:
                raise _rank(f'layout "{self.layout}"', "4", x, where)
            x = x.transpose(_LAYOUTS[self.layout])
        return np.ascontiguousarray(x)

    def _per_channel(self, key: str, values: tuple[float, ...], x: Float32, where: str) -> Float32:
        """Shape ``values`` so that they broadcast along the channel axis of ``x``.

        That is the last axis when the data are NHWC on their way to NCHW, else axis 1; data that
        stay NHWC (no ``layout``) are known by their last axis alone fitting the values.
        """
        if len(values) == 1:
            return np.full((1,) * x.ndim, values[0], np.float32)
        if x.ndim < 2:
            raise _rank(f"{key} per channel", "2 or more", x, where)
        last = x.ndim - 1
        axis = last if self.layout == "NHWC->NCHW" else 1
        if self.layout is None and x.shape[1] != len(values) and x.shape[last] == len(values):
            axis = last
        if x.shape[axis] != len(values):
            raise DataError(
                f"{where}: [data.preprocess] {key} has {len(values)} values, but axis {axis} of "
                f"{list(x.shape)} has {x.shape[axis]} channels",
                "give one value, or one per channel, and the layout of the raw arrays",
            )
        shape = [1] * x.ndim
        shape[axis] = len(values)
        return np.array(values, np.float32).reshape(shape)


def _rank(what: str, expected: str, x: Float32, where: str) -> DataError:
    return DataError(
        f"{where}: [data.preprocess] {what} takes arrays of rank {expected}, "
        f"found rank {x.ndim} {list(x.shape)}",
        "preprocessing is applied to every float32 input; use module:function data if it "
        "should not be",
    )
