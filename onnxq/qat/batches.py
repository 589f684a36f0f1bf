"""Batches for training: every sample once per epoch, in an order that the seed decides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.data import Batch, Reader, user_code
from onnxq.errors import DataError
from onnxq.types import Array, Feed

# Samples that are held in memory at a time, in bytes. More of them are read in several passes, each
# of which draws its samples from all over the data.
MEMORY = 1 << 30
Rows = NDArray[np.int64]
Augment = Callable[[Feed, np.random.Generator], Feed]
# The sides of an image are padded by so much of their length before they are cut out again.
SHIFT = 8


@dataclass(frozen=True, eq=False)
class Step:
    """What one step trains on.

    Attributes:
        feed: Arrays by input name.
        labels: One entry per sample; None when not known.
        count: Samples in it.
    """

    feed: Feed
    labels: Array | None
    count: int = 1


class Batches:
    """The batches of any epoch; the same epoch and seed, the same batches.

    Args:
        reader: The samples.
        size: Samples per batch. Models with a fixed batch and data of whole feeds have their own.
        seed: Decides the order.
        augment: What is done to each feed.
        memory: Bytes of samples that are held at a time.
    """

    def __init__(
        self,
        reader: Reader,
        size: int,
        seed: int,
        augment: Augment | None = None,
        memory: int = MEMORY,
    ) -> None:
        self._reader, self._size, self._seed, self._augment = reader, size, seed, augment
        self._unit = reader.fixed_batch
        first = next(reader.take(self._unit).batches(self._unit))
        each = sum(array.nbytes for array in first.feed.values())
        units = reader.size // self._unit
        self._per_part = max(size, min(units, memory // max(each, 1)))
        self._units = units
        self._whole: list[Batch] | None = None
        self._sliced = self._unit == 1 and _has_rows(reader)

    @property
    def samples(self) -> int:
        """Samples per epoch."""
        return self._units * self._unit

    @property
    def steps(self) -> int:
        """Batches per epoch."""
        parts = [len(part) for part in self._parts(np.arange(self._units))]
        return sum(-(-count // self._size) if self._sliced else count for count in parts)

    def epoch(self, number: int, start: int = 0) -> Iterator[Step]:
        """The batches of an epoch.

        Args:
            number: Which epoch.
            start: How many batches to leave out at its beginning.
        """
        rng = np.random.default_rng((self._seed, number))
        step = 0
        for part in self._parts(rng.permutation(self._units)):
            order = rng.permutation(len(part))
            for made in self._cut(self._load(part), order):
                if step >= start:
                    yield self._augmented(made, number, step)
                step += 1

    def _parts(self, order: Rows) -> list[Rows]:
        return np.split(order, range(self._per_part, len(order), self._per_part))

    def _load(self, units: Rows) -> list[Batch]:
        """The samples of a part, in the order of the data; of all parts the only one is kept."""
        if self._whole is not None:
            return self._whole
        first = np.sort(units)[:, None] * self._unit
        rows = (first + np.arange(self._unit)).ravel()
        loaded = list(self._reader.select(rows.tolist()).batches(len(rows)))
        if len(units) == self._units:
            self._whole = loaded
        return loaded

    def _cut(self, loaded: list[Batch], order: Rows) -> Iterator[Step]:
        if not self._sliced:
            for index in order:
                yield Step(loaded[index].feed, loaded[index].labels, loaded[index].count)
            return
        (whole,) = loaded
        for at in range(0, len(order), self._size):
            rows = order[at : at + self._size]
            labels = None if whole.labels is None else whole.labels[rows]
            feed = {name: array[rows] for name, array in whole.feed.items()}
            yield Step(feed, labels, len(rows))

    def _augmented(self, made: Step, epoch: int, step: int) -> Step:
        if self._augment is None:
            return made
        rng = np.random.default_rng((self._seed, epoch, step))
        with user_code("augmenting failed"):
            feed = self._augment(dict(made.feed), rng)
        shapes = {name: (array.shape, array.dtype) for name, array in made.feed.items()}
        if {name: (np.shape(a), getattr(a, "dtype", None)) for name, a in feed.items()} != shapes:
            raise DataError(
                "the function that augments returned other arrays than it was given",
                "return a dictionary of the same names, shapes and types",
            )
        return Step(feed, made.labels, made.count)


def _has_rows(reader: Reader) -> bool:
    """Whether samples are rows of arrays, which may be put together at will."""
    two = reader.take(2)
    if two.size < 2:
        return False
    return len(list(two.batches(2))) == 1


def image_augment(*, flip: bool, shift: bool) -> Augment:
    """Mirror images left to right, or move them, each at random.

    Images are float32 inputs of shape (N, C, H, W). What a move uncovers is 0, the mean of
    normalised images.
    """

    def augment(feed: Feed, rng: np.random.Generator) -> Feed:
        if not any(_is_image(array) for array in feed.values()):
            shapes = ", ".join(f"'{name}' {array.shape}" for name, array in feed.items())
            raise DataError(
                f"there are no images to augment: {shapes}",
                "images are float32 of shape (N, C, H, W); leave out augment, or write a function",
            )
        return {n: _moved(a, rng, flip, shift) if _is_image(a) else a for n, a in feed.items()}

    return augment


def _is_image(array: Array) -> bool:
    return array.ndim == 4 and array.dtype == np.float32 and min(array.shape[2:]) > 1


def _moved(images: Array, rng: np.random.Generator, flip: bool, shift: bool) -> Array:
    if flip:
        mirrored = rng.random(len(images)) < 0.5
        images = np.where(mirrored[:, None, None, None], images[..., ::-1], images)
    if not shift:
        return images
    height, width = images.shape[2:]
    down, right = -(-height // SHIFT), -(-width // SHIFT)
    padded = np.pad(images, ((0, 0), (0, 0), (down, down), (right, right)))
    top = rng.integers(0, 2 * down + 1, len(images))
    left = rng.integers(0, 2 * right + 1, len(images))
    cut = [
        image[:, y : y + height, x : x + width]
        for image, y, x in zip(padded, top, left, strict=True)
    ]
    return np.stack(cut)
