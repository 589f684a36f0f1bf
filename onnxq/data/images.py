"""Folders of image files, which are decoded when they are read.

Pillow does the work; it is imported when there are images to read.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from onnxq.data.extras import import_extra
from onnxq.data.npz import Column, MemoryColumn, Rows
from onnxq.data.preprocess import Preprocess
from onnxq.data.sources import LABELS, ArraySource, entries_of, files_digest, required_inputs
from onnxq.data.validate import only_input
from onnxq.errors import DataError
from onnxq.types import Array, TensorSpec

if TYPE_CHECKING:
    from PIL.Image import Image

UInt8 = NDArray[np.uint8]

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
# no others, whatever a file is called: Pillow has decoders that start programs (EPS)
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")


def is_image(path: Path) -> bool:
    """Whether a file of this name is read as an image."""
    return path.suffix.lower() in _SUFFIXES


def images_in(entries: Sequence[Path]) -> list[Path]:
    """The image files among the entries of a folder, by their suffix."""
    return [path for path in entries if is_image(path) and path.is_file()]


def find_images(root: Path, entries: Sequence[Path]) -> tuple[list[Path], list[int] | None]:
    """The images of a folder, or of its class folders.

    Args:
        root: The folder.
        entries: What it holds, in order.

    Returns:
        The files, none when there are no images, and for class folders the class of each: the
        index of its folder.

    Raises:
        DataError: There are images and class folders, or a class folder has no image.
    """
    files = images_in(entries)
    classes = {path: images_in(entries_of(path)) for path in entries if path.is_dir()}
    if not any(classes.values()):
        return files, None
    if files:
        raise DataError(f"{root}: holds images and folders of images", "keep one kind in a folder")
    for folder, found in classes.items():
        if not found:
            raise DataError(
                f"{folder}: no image in this class folder",
                "every folder beside class folders counts as a class: add an image or move it away",
            )
    labels = [label for label, found in enumerate(classes.values()) for _ in found]
    return [file for found in classes.values() for file in found], labels


class ImageSource(ArraySource):
    """Images for a model with one input, as N,H,W,C, or N,H,W when nothing wants a channel axis.

    Args:
        root: Folder that names in messages and in the digest start from.
        files: The images, in order.
        labels: The class of each; None when not known.
        inputs: The model's inputs.
        preprocess: Resizing, cropping and the order of channels are done here.
        optional: Names of inputs that are left out; exactly one other is there.

    Raises:
        DataError: Pillow is missing, or images do not suit the model's input.
    """

    def __init__(
        self,
        root: Path,
        files: Sequence[Path],
        labels: Sequence[int] | None,
        inputs: Sequence[TensorSpec],
        preprocess: Preprocess | None,
        optional: Collection[str] = (),
    ) -> None:
        import_extra("PIL.Image", f"{root}: a folder of images", "pip install 'onnxq[images]'")
        spec = only_input(
            required_inputs(inputs, optional),
            f"{root}: a folder of images",
            "write one .npz file per feed, with an array for each input",
        )
        if labels is not None and any(item.name == LABELS for item in inputs):
            raise DataError(f"{root}: the model's input is called '{LABELS}'", "use one folder")
        decoder = Decoder(spec, preprocess or Preprocess(), str(root))

        @contextmanager
        def columns() -> Iterator[dict[str, Column]]:
            arrays: dict[str, Column] = {spec.name: _ImageColumn(files, decoder)}
            if labels is not None:
                arrays[LABELS] = MemoryColumn(np.array(labels, np.int64))
            yield arrays

        super().__init__(columns, lambda: files_digest(files, root), inputs, str(root), optional)


@dataclass(frozen=True)
class _Pixels:
    """How an input takes images.

    Attributes:
        grey: One channel; else three.
        channel_axis: Whether grey images get a last axis of one channel.
        height: In pixels, if the model fixes it.
        width: The same.
    """

    grey: bool
    channel_axis: bool
    height: int | None
    width: int | None


class Decoder:
    """Turns image files into the array that a model's input takes.

    Args:
        spec: The model's input.
        settings: Resizing, cropping, order of channels; the rest is checked alone.
        where: What messages call the folder.

    Raises:
        DataError: Images do not suit the input, or the settings do not.
    """

    def __init__(self, spec: TensorSpec, settings: Preprocess, where: str) -> None:
        what = f"{where}: input '{spec.name}'"
        _check_values(spec, settings, what)
        self._pixels, self._settings = _pixels(spec, settings, what), settings
        self._uint8 = spec.dtype == "uint8"

    def batch(self, files: Sequence[Path]) -> Array:
        """Decode images of one size: uint8, the first axis is the files.

        Raises:
            DataError: A file cannot be decoded, or its size does not fit; the message names it.
        """
        images = [self._load(file) for file in files]
        for file, image in zip(files, images, strict=True):
            if image.shape != images[0].shape:
                raise DataError(
                    f"{file}: {_size(image)} pixels, but {files[0].name} in the same batch has "
                    f"{_size(images[0])}",
                    "set resize and crop in [data.preprocess]",
                )
        stacked = np.stack(images)
        if not self._uint8:
            return stacked  # it is preprocessed as arrays from elsewhere are
        settings = Preprocess(layout=self._settings.layout, add_channel=self._settings.add_channel)
        return settings.apply(stacked).astype(np.uint8)  # 0 to 255 are exact in float32

    def _load(self, file: Path) -> UInt8:
        settings, takes = self._settings, self._pixels
        image = _decode(file, "L" if takes.grey else "RGB")
        if settings.resize is not None:
            image = _resize(image, settings.resize, settings.interpolation, file)
        if settings.crop is not None:
            image = _crop(image, settings.crop, file)
        pixels: UInt8 = np.asarray(image)
        height, width = takes.height or image.height, takes.width or image.width
        if pixels.shape[:2] != (height, width):
            raise DataError(
                f"{file}: {_size(pixels)} pixels, but the model takes {height}x{width}",
                f"set resize = [{height}, {width}], or resize and crop, in [data.preprocess]",
            )
        if takes.grey:
            return pixels[..., np.newaxis] if takes.channel_axis else pixels
        return pixels[..., ::-1] if settings.channels == "BGR" else pixels


class _ImageColumn:
    """A column of images. Its shape tells their number alone: sizes are known when decoded."""

    def __init__(self, files: Sequence[Path], decoder: Decoder) -> None:
        self._files, self._decoder = files, decoder
        self.shape = (len(files),)

    def take(self, rows: Rows) -> Array:
        return self._decoder.batch([self._files[row] for row in rows])


def _check_values(spec: TensorSpec, settings: Preprocess, what: str) -> None:
    """See that pixels from 0 to 255 become what the input's type asks for."""
    scaled = (settings.scale, settings.mean, settings.std) != (None, None, None)
    if spec.dtype == "float32" and not scaled:
        raise DataError(
            f"{what} takes float32, and nothing says how to scale an image's 0..255",
            "set scale, mean and std in [data.preprocess] to those of the training, such as "
            "scale = 0.00392156862745098 (1/255), or scale = 1.0 to feed 0..255",
        )
    if spec.dtype == "uint8" and scaled:
        raise DataError(
            f"{what} takes uint8, so that an image is fed as it is",
            "leave scale, mean and std out of [data.preprocess]",
        )
    if spec.dtype not in ("float32", "uint8"):
        raise DataError(
            f"{what} takes {spec.dtype or 'an unknown type'}, but images are for float32 or uint8",
            "use module:function",
        )


def _pixels(spec: TensorSpec, settings: Preprocess, what: str) -> _Pixels:
    """How the input takes images: by its shape, and by what is done to the layout."""
    layout, add = settings.layout, settings.add_channel
    if layout == "NCHW->NHWC" and not add:
        raise DataError(f"{what}: images are N,H,W,C already", f'leave out layout "{layout}"')
    channels: int | str | None = 1 if add else None
    height: int | str | None = None
    width: int | str | None = None
    if spec.shape is not None and len(spec.shape) == 3 and not (layout or add):
        channels, (_, height, width) = 1, spec.shape
    elif spec.shape is not None and len(spec.shape) == 4:
        first = layout == "NHWC->NCHW" or (add and layout is None)
        _check_layout(spec.shape, first, settings, what)
        _, *sizes = spec.shape
        channels, height, width = sizes if first else (sizes[2], *sizes[:2])
    elif spec.shape is not None:
        raise DataError(
            f"{what} takes arrays of rank {len(spec.shape)}, and an image has N,H,W,C",
            "use module:function",
        )
    if isinstance(channels, int) and channels not in ((1,) if add else (1, 3)):
        kind = "add_channel is for grey images" if add else "an image has 1 or 3"
        raise DataError(f"{what} takes {channels} channels, but {kind}", "use module:function")
    grey = channels == 1 or add
    if grey and settings.channels == "BGR":
        raise DataError(f"{what}: grey images have no order of colours", 'leave out "BGR"')
    return _Pixels(
        grey,
        channel_axis=not add and (spec.shape is None or len(spec.shape) == 4),
        height=height if isinstance(height, int) else None,
        width=width if isinstance(width, int) else None,
    )


def _check_layout(
    shape: tuple[int | str | None, ...], first: bool, settings: Preprocess, what: str
) -> None:
    """Raise a DataError when the channels plainly are not where the settings put them."""
    looks_first = shape[1] in (1, 3) and shape[3] not in (1, 3)
    looks_last = shape[3] in (1, 3) and shape[1] not in (1, 3)
    takes = f"{what} takes [{', '.join('?' if size is None else str(size) for size in shape)}]"
    if looks_first and not first:
        hint = 'set [data.preprocess] layout = "NHWC->NCHW"'
        if settings.add_channel:
            hint = f'leave out layout "{settings.layout}"'
        raise DataError(f"{takes}, channels first, but images are N,H,W,C", hint)
    if looks_last and first:
        hint = "leave out add_channel" if settings.add_channel else "leave out layout"
        raise DataError(f"{takes}, channels last, as images are", hint)


def _decode(file: Path, mode: str) -> Image:
    """Read an image upright, with 8 bits per channel."""
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, which do not matter
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=_FORMATS) as image:
                upright = ImageOps.exif_transpose(image)
                return _in_8_bits(upright, image.format).convert(mode)
    except Exception as error:  # Pillow raises errors of many kinds for damaged files
        raise DataError(
            f"{file} cannot be decoded ({type(error).__name__}: {error})",
            "repair or leave out that image",
        ) from error


def _in_8_bits(image: Image, form: str | None) -> Image:
    """Keep the upper byte of 16-bit grey, as Pillow itself does with 16-bit colours."""
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and form == "PNG"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode} does not tell which value is white")
    return image


def _resize(image: Image, size: int | tuple[int, int], interpolation: str, file: Path) -> Image:
    """Resize the shorter side, keeping the proportions, or to height and width."""
    from PIL import Image

    if isinstance(size, tuple):
        height, width = size
    else:
        longer = int(size * max(image.size) / min(image.size))  # rounds as torchvision does
        height, width = (longer, size) if image.width <= image.height else (size, longer)
    if Image.MAX_IMAGE_PIXELS is not None and height * width > Image.MAX_IMAGE_PIXELS:
        raise DataError(
            f"{file}: resize would make {height}x{width} pixels of {image.height}x{image.width}",
            "set resize = [height, width], or leave out that image",
        )
    return image.resize((width, height), Image.Resampling[interpolation.upper()])


def _crop(image: Image, size: int | tuple[int, int], file: Path) -> Image:
    """Cut out the centre."""
    height, width = size if isinstance(size, tuple) else (size, size)
    if image.height < height or image.width < width:
        raise DataError(
            f"{file}: {image.height}x{image.width} pixels are too few for the crop "
            f"{height}x{width}",
            "set resize to the crop's size or more, or leave out that image",
        )
    top = round((image.height - height) / 2)  # rounds as torchvision does
    left = round((image.width - width) / 2)
    return image.crop((left, top, left + width, top + height))


def _size(pixels: UInt8) -> str:
    return f"{pixels.shape[0]}x{pixels.shape[1]}"
