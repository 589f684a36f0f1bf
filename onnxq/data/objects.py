"""Data that are Python objects: arrays, feeds, iterators of feeds, and functions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from os import PathLike
from types import GeneratorType
from typing import Any, TypeAlias

import numpy as np

from onnxq.data.function import FunctionSource, SpooledSource, as_arrays
from onnxq.data.sources import Source, memory_source, required_inputs
from onnxq.data.validate import only_input
from onnxq.errors import DataError
from onnxq.types import Array, TensorSpec

FeedItem: TypeAlias = Mapping[str, Any] | tuple[Mapping[str, Any], Any]
"""A feed, or a feed and its labels."""

Objects: TypeAlias = (
    Mapping[str, Any] | Array | Callable[[], Iterable[FeedItem]] | Iterable[FeedItem]
)
"""Samples by input name; samples of the only input; or feeds."""

Data: TypeAlias = str | PathLike[str] | Objects
"""Whatever `open_data` takes."""


def object_source(
    data: Objects, inputs: Sequence[TensorSpec], where: str, optional: Collection[str] = ()
) -> Source:
    """Read from Python objects.

    Args:
        data: Arrays by input name, the samples on the first axis, ``labels`` beside them if there
            are any; one such array for the only input; a function that returns feeds; or feeds
            themselves. An iterator is read to its end here, and kept in files.
        inputs: The model's inputs.
        where: What messages call the data.
        optional: Names of inputs that may be left out.

    Raises:
        DataError: It is none of these, or does not fit the model.
    """
    if isinstance(data, Mapping):
        return memory_source(as_arrays(data, inputs, where), inputs, where, optional)
    if isinstance(data, np.ndarray):
        hint = "give a dictionary with an array for each input"
        spec = only_input(required_inputs(inputs, optional), where, hint)
        return memory_source({spec.name: data}, inputs, where, optional)
    if isinstance(data, Iterator):
        return SpooledSource(data, inputs, where)
    if isinstance(data, Sequence) and len(data) == 0:
        raise DataError(f"{where}: the data set is empty", "give at least one feed")
    if isinstance(data, Iterable):  # begins anew each time, as a function does
        return FunctionSource(lambda: data, inputs, where)
    if callable(data):
        return FunctionSource(data, inputs, where)
    raise DataError(
        f"{where} is no data",
        "give a path, arrays by input name, one array, feeds, or a function that returns feeds",
    )


def describe(data: Objects) -> str:
    """What messages call data that have no name."""
    kind = type(data).__name__
    if isinstance(data, GeneratorType):
        return f"the generator {data.__name__}"
    if isinstance(data, np.ndarray):
        return f"an array of shape {list(data.shape)}"
    if isinstance(data, Mapping):
        return f"a {kind} of {len(data)} arrays"
    if isinstance(data, Sequence):
        return f"a {kind} of {len(data)} feeds"
    if isinstance(data, Iterable):
        return f"an object of type {kind}"
    name = getattr(data, "__qualname__", kind)
    return f"the function {name}" if callable(data) else f"an object of type {kind}"
