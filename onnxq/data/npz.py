"""Read ``.npy`` and ``.npz`` files without unpickling, row by row where that is possible."""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Protocol, Self

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from onnxq.errors import DataError
from onnxq.types import Array, Feed

Rows = NDArray[np.int64]

# What zipfile, zlib and NumPy's header parser raise on damaged files; RuntimeError is an
# encrypted member or an unknown compression.
_DAMAGED = (
    zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, RuntimeError, TypeError,
    SyntaxError, tokenize.TokenError, MemoryError, OverflowError,
)  # fmt: skip


@contextmanager
def _reading(path: Path, name: str = "") -> Iterator[None]:
    try:
        yield
    except _DAMAGED as error:
        what = f"{path}: array '{name}'" if name else str(path)
        raise DataError(
            f"{what} cannot be read ({type(error).__name__}: {error})",
            "write it again with np.savez or np.save, without object arrays",
        ) from error


class Column(Protocol):
    """An array whose rows are read in ascending order."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole array."""

    def take(self, rows: Rows) -> Array:
        """Read rows; ``rows`` ascend, and start behind those of the call before."""


class MemoryColumn:
    """A column that is an array in memory."""

    def __init__(self, array: Array) -> None:
        self._array = array
        self.shape = array.shape

    def take(self, rows: Rows) -> Array:
        """Copy rows."""
        return self._array[rows]


class MappedColumn:
    """A column that is an ``.npy`` file: only the rows asked for are read from the disk.

    Args:
        path: The file. Its header is checked against its size here.
        name: Name of the model's input that it is for.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name
        with _reading(path):
            self._array = _map(path)
        self.shape = self._array.shape

    def take(self, rows: Rows) -> Array:
        """Read rows."""
        with _reading(self._path, self._name):
            part = self._array[rows]
            return np.ascontiguousarray(part, part.dtype.newbyteorder("="))


class StreamColumn:
    """A column of an ``.npz``, read sequentially: memory holds only the rows asked for."""

    def __init__(self, file: IO[bytes], path: Path, name: str) -> None:
        self._file, self._path, self._name = file, path, name
        with _reading(path, name):
            self.shape, self.fortran, self._dtype = _header(file)
        self._next = 0

    def take(self, rows: Rows) -> Array:
        """Read rows, each run of neighbours at once."""
        runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
        with _reading(self._path, self._name):
            return np.concatenate([self._read(int(run[0]), len(run)) for run in runs])

    def all(self) -> Array:
        """Read the whole array, of whatever rank and order."""
        with _reading(self._path, self._name):
            return _body(self._file, self.shape, self.fortran, self._dtype)

    def _read(self, start: int, count: int) -> Array:
        row = self.shape[1:]
        self._file.seek((start - self._next) * self._dtype.itemsize * math.prod(row), 1)
        self._next = start + count
        return _body(self._file, (count, *row), False, self._dtype)


class Npz:
    """An open ``.npz`` file.

    Raises:
        DataError: From every method, when the file is damaged, or holds pickled objects.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _reading(path):
            self._zip = zipfile.ZipFile(path)
        self._open = ExitStack()
        self._open.callback(self._zip.close)
        self.names = [name.removesuffix(".npy") for name in self._zip.namelist()]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open.close()

    def column(self, name: str) -> Column:
        """Open one array for reading by rows."""
        stream = self._stream(name)
        # rows of a Fortran-ordered array are scattered over the file; a scalar has none
        return MemoryColumn(stream.all()) if stream.fortran or not stream.shape else stream

    def read(self, name: str) -> Array:
        """Read one array whole."""
        return self._stream(name).all()

    def _stream(self, name: str) -> StreamColumn:
        with _reading(self.path, name):
            member = name if f"{name}.npy" not in self._zip.namelist() else f"{name}.npy"
            file = self._open.enter_context(self._zip.open(member))
        return StreamColumn(file, self.path, name)


def read_npz(path: Path) -> Feed:
    """Read all arrays of an ``.npz`` file."""
    with Npz(path) as archive:
        return {name: archive.read(name) for name in archive.names}


def read_npy(path: Path) -> Array:
    """Read an ``.npy`` file."""
    with _reading(path), path.open("rb") as file:
        return _body(file, *_header(file))


def _map(path: Path) -> Array:
    with path.open("rb") as file:
        shape, fortran, dtype = _header(file)
        start, size = file.tell(), dtype.itemsize * math.prod(shape)
        there = file.seek(0, 2) - start
    if there < size:  # read beyond its end, a mapped file would kill the process
        raise EOFError(f"it ends after {there} of {size} bytes")
    if not size:  # nothing cannot be mapped
        return np.empty(shape, dtype)
    order: Literal["F", "C"] = "F" if fortran else "C"
    return np.asarray(np.memmap(path, dtype, "r", start, shape, order))


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"format version {version} is not a plain array")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds pickled Python objects, which are never loaded")
    if any(size < 0 for size in shape):
        raise ValueError(f"impossible shape {shape}")
    return shape, fortran, dtype


def _body(file: IO[bytes], shape: tuple[int, ...], fortran: bool, dtype: np.dtype[Any]) -> Array:
    size = dtype.itemsize * math.prod(shape)
    data = bytearray(file.read(size))  # a bytearray makes the array writable
    if len(data) != size:
        raise EOFError(f"it ends after {len(data)} of {size} bytes")
    array = np.frombuffer(data, dtype) if size else np.empty(math.prod(shape), dtype)
    array = array.astype(dtype.newbyteorder("="), copy=False)
    return array.reshape(shape, order="F" if fortran else "C")
