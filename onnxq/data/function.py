"""Feeds that a user's Python function yields."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from onnxq.data.code import find_function, user_code
from onnxq.data.npz import Rows
from onnxq.data.sources import LABELS, Raw, pop_labels, update_digest
from onnxq.errors import DataError
from onnxq.types import Array, Feed, TensorSpec


class FunctionSource:
    """A function that yields feed dictionaries, or ``(feed, labels)``; called for each pass.

    Args:
        module: A dotted module, or a ``.py`` file.
        name: The function in it; it takes no argument.
        inputs: The model's inputs.
    """

    unit = 1

    def __init__(self, module: str | Path, name: str, inputs: Sequence[TensorSpec]) -> None:
        self._where = f"{module}:{name}"
        self._inputs = inputs
        self._function = find_function(module, name)

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
        for index, item in enumerate(self._call()):
            if wanted is None:
                yield self._raw(index, item)
            elif index == row:
                yield self._raw(index, item)
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
            for name in sorted(raw.feed):
                update_digest(digest, name, raw.feed[name])
            if raw.labels is not None:
                update_digest(digest, LABELS, raw.labels)
        return count, labelled, digest.hexdigest()

    def _call(self) -> Iterator[object]:
        with user_code(f"{self._where} failed"):
            items = iter(self._function())
        index = 0
        while True:
            with user_code(f"{self._where} failed at feed {index}"):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item
            index += 1

    def _raw(self, index: int, item: object) -> Raw:
        where = f"{self._where}, feed {index}"
        labels: Array | None = None
        if isinstance(item, tuple) and len(item) == 2:
            item, given = item
            labels = None if given is None else _labels(given, where)
        if not isinstance(item, Mapping):
            raise DataError(
                f"{where}: expected a dictionary of arrays or (feed, labels), found "
                f"{type(item).__name__}",
                "yield {input name: array}",
            )
        feed: Feed = {}
        is_input = any(spec.name == LABELS for spec in self._inputs)
        for name, value in item.items():
            if name == LABELS and not is_input:
                feed[name] = _labels(value, where)
            elif isinstance(value, np.ndarray | np.generic):
                feed[name] = np.asarray(value)
            else:
                raise DataError(
                    f"{where}: input '{name}' takes a NumPy array, found {type(value).__name__}",
                    "convert it with np.asarray(..., dtype)",
                )
        inside = pop_labels(feed, self._inputs)
        return Raw(feed, inside if labels is None else labels, np.array([index]), where)


def _labels(value: object, where: str) -> Array:
    try:
        labels: Array = np.atleast_1d(np.asarray(value))
    except ValueError as error:
        raise DataError(f"{where}: the labels are no array ({error})") from error
    if labels.dtype.hasobject:
        raise DataError(f"{where}: the labels are no array of numbers", "yield a NumPy array")
    return labels
