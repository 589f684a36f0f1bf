"""Where samples come from: one small class per kind of source.

A source hands out raw feeds. `onnxq.data.reader.Reader` preprocesses and checks them.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from onnxq.data.npz import (
    Column,
    MappedColumn,
    MemoryColumn,
    Npz,
    Rows,
    read_npy,
    read_npz,
)
from onnxq.data.validate import check_names, only_input, quoted
from onnxq.errors import DataError, UnusableError
from onnxq.types import Array, Feed, TensorSpec

LABELS = "labels"


@dataclass(frozen=True, eq=False)
class Raw:
    """A feed as it was read.

    Attributes:
        feed: Arrays by input name.
        labels: What the outputs should say, if known.
        samples: Index of each sample in its source.
        where: File or function it came from, for messages.
    """

    feed: Feed
    labels: Array | None
    samples: Rows
    where: str


class Source(Protocol):
    """A restartable supply of feeds, in a fixed order."""

    @property
    def unit(self) -> int:
        """Samples come in whole batches of this many: 1 unless the model fixes its batch."""

    @property
    def size(self) -> int:
        """Number of samples that can be selected."""

    @property
    def has_labels(self) -> bool:
        """Whether labels come with the feeds."""

    def read(self, rows: Rows | None, batch_size: int) -> Iterator[Raw]:
        """Read the samples ``rows`` (ascending; all when None), once."""

    def digest(self) -> str:
        """SHA-256 of the content, in hexadecimal."""


def entries_of(folder: Path) -> list[Path]:
    """What a folder holds, hidden entries left out, in natural order.

    Raises:
        DataError: It cannot be read.
    """
    try:
        return sorted((path for path in folder.iterdir() if path.name[0] != "."), key=_natural)
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error})") from error


def _natural(path: Path) -> tuple[list[tuple[int, int | str]], str]:
    """Sort key that puts item_2 before item_10."""
    parts = re.findall(r"\d+|\D+", path.name)
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts], path.name


def required_inputs(inputs: Sequence[TensorSpec], optional: Collection[str]) -> list[TensorSpec]:
    """The inputs that every feed must hold."""
    return [spec for spec in inputs if spec.name not in optional]


def pop_labels(feed: Feed, inputs: Sequence[TensorSpec]) -> Array | None:
    """Take the labels out of a feed, unless the model has an input of that name."""
    if LABELS not in feed or any(spec.name == LABELS for spec in inputs):
        return None
    return np.atleast_1d(feed.pop(LABELS))


def update_digest(digest: hashlib._Hash, name: str, array: Array) -> None:
    """Add an array to a digest: its name, type, shape and values."""
    digest.update(f"{name}\0{array.dtype.name}\0{array.shape}\0".encode())
    digest.update(repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes())


OpenColumns = Callable[[], AbstractContextManager[dict[str, Column]]]


class ArraySource:
    """Arrays by input name whose first axis is the samples.

    Args:
        open_columns: Opens the arrays anew for every pass.
        digest: Computes the digest of the arrays.
        inputs: The model's inputs.
        where: What messages call the source.
        optional: Names of inputs that may be left out.
    """

    def __init__(
        self,
        open_columns: OpenColumns,
        digest: Callable[[], str],
        inputs: Sequence[TensorSpec],
        where: str,
        optional: Collection[str] = (),
    ) -> None:
        self._open, self.digest, self._where = open_columns, digest, where
        with open_columns() as columns:
            shapes = {name: column.shape for name, column in columns.items()}
        self.has_labels = LABELS in shapes and all(spec.name != LABELS for spec in inputs)
        names = [name for name in shapes if not (name == LABELS and self.has_labels)]
        check_names(names, inputs, where, optional)
        for name, shape in shapes.items():
            if not shape:
                raise DataError(f"{where}: array '{name}' has no axis of samples", _AS_FEEDS)
        counts = {name: shape[0] for name, shape in shapes.items()}
        if len(set(counts.values())) > 1:
            told = ", ".join(f"'{name}' {count}" for name, count in counts.items())
            raise DataError(f"{where}: the arrays differ in their samples: {told}", _AS_FEEDS)
        self.size = next(iter(counts.values()), 0)
        self._fixed = _fixed_batch(required_inputs(inputs, optional), where)
        self.unit = self._fixed or 1

    def read(self, rows: Rows | None, batch_size: int) -> Iterator[Raw]:
        """Read slices of the arrays; a remainder too small for a fixed batch is dropped."""
        count = self.size if rows is None else len(rows)
        if count < self.unit:
            raise DataError(
                f"{self._where}: {count} samples, but the model's batch is fixed at {self.unit}",
                f"give at least {self.unit} samples, or export the model with a dynamic batch",
            )
        step = self._fixed or batch_size
        with self._open() as columns:
            for start in range(0, count - self.unit + 1, step):
                stop = min(start + step, count)
                part = np.arange(start, stop) if rows is None else rows[start:stop]
                feed = {name: column.take(part) for name, column in columns.items()}
                labels = feed.pop(LABELS) if self.has_labels else None
                yield Raw(feed, labels, part, self._where)


_AS_FEEDS = "all arrays need the samples on their first axis; else use a folder of .npz feeds"


def _fixed_batch(inputs: Sequence[TensorSpec], where: str) -> int | None:
    """The batch size that the model prescribes; None when it takes any."""
    sizes: dict[int, str] = {}
    for spec in inputs:
        if spec.shape == ():
            raise DataError(f"{where}: the model's input '{spec.name}' is a scalar", _AS_FEEDS)
        if spec.shape and isinstance(spec.shape[0], int):
            sizes[spec.shape[0]] = spec.name
    if len(sizes) > 1:
        told = ", ".join(f"'{name}' {size}" for size, name in sizes.items())
        raise DataError(f"{where}: the inputs' first axes are fixed and differ: {told}", _AS_FEEDS)
    return next(iter(sizes), None)


def npz_source(
    path: Path, inputs: Sequence[TensorSpec], optional: Collection[str] = ()
) -> ArraySource:
    """The arrays of one ``.npz`` file, streamed."""

    @contextmanager
    def columns() -> Iterator[dict[str, Column]]:
        with Npz(path) as archive:
            yield {name: archive.column(name) for name in archive.names}

    return ArraySource(columns, lambda: _file_digest(path), inputs, str(path), optional)


def npy_source(
    path: Path, inputs: Sequence[TensorSpec], optional: Collection[str] = ()
) -> ArraySource:
    """The array of one ``.npy`` file, memory-mapped, for a model with one input."""
    spec = only_input(
        required_inputs(inputs, optional),
        f"{path}: an .npy file",
        "write an .npz file with an array for each input",
    )

    @contextmanager
    def columns() -> Iterator[dict[str, Column]]:
        yield {spec.name: MappedColumn(path, spec.name)}

    return ArraySource(columns, lambda: _file_digest(path), inputs, str(path), optional)


def memory_source(
    arrays: Feed, inputs: Sequence[TensorSpec], where: str, optional: Collection[str] = ()
) -> ArraySource:
    """Arrays in memory."""

    @contextmanager
    def columns() -> Iterator[dict[str, Column]]:
        yield {name: MemoryColumn(array) for name, array in arrays.items()}

    def digest() -> str:
        total = hashlib.sha256()
        for name in sorted(arrays):
            update_digest(total, name, arrays[name])
        return total.hexdigest()

    return ArraySource(columns, digest, inputs, where, optional)


class FeedFolder(ABC):
    """Files, or folders, that hold one whole feed each; they are never batched.

    Args:
        items: A path for each feed, in order.
        inputs: The model's inputs.
    """

    unit = 1

    def __init__(self, items: Sequence[Path], inputs: Sequence[TensorSpec]) -> None:
        self._items, self._inputs = items, inputs
        self.size = len(items)

    @property
    def has_labels(self) -> bool:
        """Whether the first feed holds labels."""
        return pop_labels(self.load(self._items[0]), self._inputs) is not None

    @abstractmethod
    def load(self, item: Path) -> Feed:
        """Read one feed, labels included."""

    def files(self, item: Path) -> list[Path]:
        """The files that one feed is made of."""
        return [item]

    def read(self, rows: Rows | None, batch_size: int) -> Iterator[Raw]:
        """Read one feed per sample."""
        del batch_size
        for index in range(self.size) if rows is None else rows.tolist():
            feed = self.load(self._items[index])
            labels = pop_labels(feed, self._inputs)
            yield Raw(feed, labels, np.array([index]), str(self._items[index]))

    def digest(self) -> str:
        """SHA-256 over each file's name and SHA-256."""
        files = [file for item in self._items for file in self.files(item)]
        return files_digest(files, self._items[0].parent)


class NpzFolder(FeedFolder):
    """A feed per ``.npz`` file: exactly what the session takes, and maybe ``labels``."""

    def load(self, item: Path) -> Feed:
        """Read one feed."""
        return read_npz(item)


class NpyFolder(FeedFolder):
    """A feed, or a sample without its batch axis, per ``.npy`` file.

    Args:
        items: A path for each file, in order.
        inputs: The model's inputs.
        optional: Names of inputs that are left out; exactly one other is there.
        add_channel: Whether preprocessing adds an axis to the arrays.
    """

    def __init__(
        self,
        items: Sequence[Path],
        inputs: Sequence[TensorSpec],
        optional: Collection[str] = (),
        *,
        add_channel: bool = False,
    ) -> None:
        super().__init__(items, inputs)
        self._spec = only_input(
            required_inputs(inputs, optional),
            f"{items[0].parent}: a folder of .npy files",
            "write one .npz file per feed, with an array for each input",
        )
        shape = self._spec.shape
        self._rank = None if shape is None else len(shape) - add_channel

    def load(self, item: Path) -> Feed:
        """Read one feed."""
        array = read_npy(item)
        # a file whose rank is one lower than a feed's is a sample without its batch axis
        return {self._spec.name: array[np.newaxis] if array.ndim + 1 == self._rank else array}


class TestDataSets(FeedFolder):
    """A feed per folder of ``input_0.pb``, ``input_1.pb`` ..., in the order of the inputs."""

    __test__ = False  # no test, whatever pytest thinks of the name

    def load(self, item: Path) -> Feed:
        """Read one feed."""
        from onnxq.graph import read_tensor  # opens onnx, which no other source needs

        feed: Feed = {}
        for file in self.files(item):
            index = int(file.stem.removeprefix("input_"))
            if index >= len(self._inputs):
                raise DataError(
                    f"{file}: the model has no input {index}, only "
                    f"{quoted(spec.name for spec in self._inputs)}",
                    "was this test data set made for another model?",
                )
            try:
                feed[self._inputs[index].name] = read_tensor(file)
            except (UnusableError, OSError, ValueError) as error:
                raise DataError(f"{file} cannot be read as an ONNX tensor ({error})") from error
        return feed

    def files(self, item: Path) -> list[Path]:
        """The inputs' files; the outputs' do not matter."""
        files = [file for file in item.iterdir() if re.fullmatch(r"input_\d+\.pb", file.name)]
        return sorted(files, key=lambda file: int(file.stem.removeprefix("input_")))


def files_digest(files: Sequence[Path], root: Path) -> str:
    """SHA-256 over each file's name, relative to ``root``, and SHA-256."""
    total = hashlib.sha256()
    for file in files:
        name = file.relative_to(root).as_posix()
        total.update(f"{name}\0{_file_digest(file)}\0".encode())
    return total.hexdigest()


def _file_digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error})") from error
