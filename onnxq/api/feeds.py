"""One feed to time models with: of samples, or made up."""

from __future__ import annotations

import numpy as np
from msgspec.structs import replace as with_fields

from onnxq.data import Data, open_data
from onnxq.runtime import synthetic_feed
from onnxq.types import Feed, TensorSpec


def one_feed(
    inputs: tuple[TensorSpec, ...], data: Data | None, batch_size: int | None
) -> tuple[Feed, int]:
    """What is fed, and how many samples that is.

    Args:
        inputs: What the model reads.
        data: Samples, of which the first batch is taken; noise if None.
        batch_size: Samples in the feed, 1 if None; a model whose first axis is fixed has its own.

    Raises:
        DataError: The data are unusable.
        RuntimeFailure: Nothing can be made up for an input.
    """
    if data is not None:
        batch = next(open_data(data, inputs).batches(batch_size or 1))
        return batch.feed, batch.count
    specs = tuple(with_fields(spec, shape=_sized(spec.shape, batch_size or 1)) for spec in inputs)
    feed = synthetic_feed(specs)
    first = next(iter(feed.values()), np.zeros(0))
    return feed, first.shape[0] if first.ndim else 1


def _sized(
    shape: tuple[int | str | None, ...] | None, batch_size: int
) -> tuple[int | str | None, ...] | None:
    """The shape with a batch on its first axis, if that is free."""
    if not shape or isinstance(shape[0], int):
        return shape
    return (batch_size, *shape[1:])
