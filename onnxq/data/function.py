"""Feeds that Python code makes: a function called for each pass, or an iterator read once."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.data.code import user_code
from onnxq.data.npz import Npz, Rows
from onnxq.data.sources import LABELS, Raw, pop_labels, update_digest
from onnxq.errors import DataError
from onnxq.types import Array, Feed, TensorSpec


class FunctionSource:
    """A function that yields feed dictionaries, or ``(feed, labels)``; called for each pass.

    Args:
        function: It takes no argument.
        inputs: The model's inputs.
        where: What messages call the function.
    """

    unit = 1

    def __init__(
        self, function: Callable[[], Iterable[object]], inputs: Sequence[TensorSpec], where: str
    ) -> None:
        self._function, self._inputs, self._where = function, inputs, where

    @property
    def size(self) -> int:
        """Number of feeds, counted by one pass."""
        return self._survey[0]

    @property
    def has_labels(self) -> bool:
        """Whether labels come with the feeds."""
        return self._survey[1]

    def digest(self) -> str:
        """SHA-256 over the names, types, shapes and bytes of all arrays."""
        return self._survey[2]

    def read(self, rows: Rows | None, batch_size: int) -> Iterator[Raw]:
        """Call the function and hand out the feeds asked for."""
        del batch_size
        wanted = None if rows is None else iter(rows.tolist())
        row = None if wanted is None else next(wanted, None)
        index = -1
        for index, item in enumerate(_items(self._function, self._where)):
            if wanted is None:
                yield _raw(index, item, self._inputs, self._where)
            elif index == row:
                yield _raw(index, item, self._inputs, self._where)
                row = next(wanted, None)
                if row is None:
                    return
        if index < 0:
            raise DataError(
                f"{self._where} yields no feed", "every call must start anew and yield all feeds"
            )
        if row is not None:
            raise DataError(
                f"{self._where} yields {index + 1} feeds, fewer than in an earlier pass",
                "every call must yield the same feeds",
            )

    @cached_property
    def _survey(self) -> tuple[int, bool, str]:
        """Number of feeds, whether they have labels, and their digest."""
        count, labelled, digest = 0, False, hashlib.sha256()
        for count, raw in enumerate(self.read(None, 1), 1):  # noqa: B007 used after the loop
            labelled = labelled or raw.labels is not None
            _add_to_digest(digest, raw)
        return count, labelled, digest.hexdigest()


class SpooledSource:
    """Feeds of an iterator that can be read but once: kept in files, which go with this object.

    Memory holds one feed at a time.

    Args:
        items: Yields feed dictionaries, or ``(feed, labels)``; it is read to its end here.
        inputs: The model's inputs.
        where: What messages call the iterator.

    Raises:
        DataError: It fails, yields what is no feed, or nothing; or the disk is full.
    """

    unit = 1

    def __init__(self, items: Iterator[object], inputs: Sequence[TensorSpec], where: str) -> None:
        self._inputs, self._where = inputs, where
        self._folder = Path(tempfile.mkdtemp(prefix="onnxq_"))
        delete = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        # of the arrays in each file: an .npz takes not every name and not every type (bfloat16)
        self._contents: list[tuple[tuple[str, np.dtype[np.generic]], ...]] = []
        self.has_labels = False
        total = hashlib.sha256()
        try:
            for index, item in enumerate(_items(lambda: items, where)):
                raw = _raw(index, item, inputs, where)
                self.has_labels = self.has_labels or raw.labels is not None
                _add_to_digest(total, raw)
                self._write(raw)
            if not self._contents:
                raise DataError(f"{where} yields no feed", "was it read to its end before?")
        except BaseException:
            delete()
            raise
        self.size = len(self._contents)
        self._digest = total.hexdigest()

    def digest(self) -> str:
        """SHA-256 over the names, types, shapes and bytes of all arrays."""
        return self._digest

    def read(self, rows: Rows | None, batch_size: int) -> Iterator[Raw]:
        """Read feeds from their files."""
        del batch_size
        for index in range(self.size) if rows is None else rows.tolist():
            with Npz(self._file(index)) as archive:
                arrays = [archive.read(name) for name in archive.names]
            contents = self._contents[index]
            feed = {
                name: array.view(dtype) if array.dtype.kind == "V" else array
                for (name, dtype), array in zip(contents, arrays, strict=False)
            }
            labels = arrays[-1] if len(arrays) > len(contents) else None
            yield Raw(feed, labels, np.array([index]), f"{self._where}, feed {index}")

    def _write(self, raw: Raw) -> None:
        arrays = [_without_objects(array, raw.where) for array in raw.feed.values()]
        dtypes = [array.dtype for array in arrays]
        if raw.labels is not None:
            arrays.append(raw.labels)
        file = self._file(len(self._contents))
        try:
            np.savez(file, *arrays)
        except OSError as error:
            raise DataError(
                f"{raw.where} cannot be kept in {file} ({error})",
                "set TMPDIR to a folder with more space",
            ) from error
        self._contents.append(tuple(zip(raw.feed, dtypes, strict=True)))

    def _file(self, index: int) -> Path:
        return self._folder / f"{index}.npz"


def _items(function: Callable[[], Iterable[object]], where: str) -> Iterator[object]:
    """Call a user's function and go through what it gives."""
    with user_code(f"{where} failed"):
        items = iter(function())
    index = 0
    while True:
        with user_code(f"{where} failed at feed {index}"):
            try:
                item = next(items)
            except StopIteration:
                return
        yield item
        index += 1


def _raw(index: int, item: object, inputs: Sequence[TensorSpec], where: str) -> Raw:
    where = f"{where}, feed {index}"
    labels: Array | None = None
    if isinstance(item, tuple) and len(item) == 2:
        item, given = item
        labels = None if given is None else _labels(given, where)
    if not isinstance(item, Mapping):
        raise DataError(
            f"{where}: expected a dictionary of arrays or (feed, labels), found "
            f"{type(item).__name__}",
            "a feed is {input name: array}",
        )
    feed = as_arrays(item, inputs, where)
    inside = pop_labels(feed, inputs)
    return Raw(feed, inside if labels is None else labels, np.array([index]), where)


def as_arrays(values: Mapping[Any, object], inputs: Sequence[TensorSpec], where: str) -> Feed:
    """Check that a user's values are NumPy arrays by name; labels may be any numbers.

    Raises:
        DataError: A name is no string, or a value no array.
    """
    feed: Feed = {}
    is_input = any(spec.name == LABELS for spec in inputs)
    for name, value in values.items():
        if not isinstance(name, str):
            raise DataError(f"{where}: {name!r} is no name of an input", "names are strings")
        if name == LABELS and not is_input:
            feed[name] = _labels(value, where)
        elif isinstance(value, np.ndarray | np.generic):
            feed[name] = np.asarray(value)
        else:
            raise DataError(
                f"{where}: input '{name}' takes a NumPy array, found {type(value).__name__}",
                "convert it with np.asarray(..., dtype)",
            )
    return feed


def _labels(value: object, where: str) -> Array:
    try:
        labels: Array = np.atleast_1d(np.asarray(value))
    except ValueError as error:
        raise DataError(f"{where}: the labels are no array ({error})") from error
    if labels.dtype.hasobject:
        raise DataError(f"{where}: the labels are no array of numbers", "yield a NumPy array")
    return labels


def _without_objects(array: Array, where: str) -> Array:
    """Turn strings that are Python objects into an array that can be written without pickle."""
    if not array.dtype.hasobject:
        return array
    if not all(isinstance(value, str) for value in array.ravel().tolist()):
        raise DataError(f"{where}: an array holds Python objects", "use numbers or strings")
    return array.astype(np.str_)


def _add_to_digest(digest: hashlib._Hash, raw: Raw) -> None:
    for name in sorted(raw.feed):
        update_digest(digest, name, raw.feed[name])
    if raw.labels is not None:
        update_digest(digest, LABELS, raw.labels)
