"""Small public data sets: digits comes with scikit-learn, MNIST and CIFAR-10 are downloaded.

MNIST and CIFAR-10 are kept as ``mnist.npz`` and ``cifar10.npz`` with the uint8 arrays
``x_train``, ``y_train``, ``x_test`` and ``y_test`` in the folder that the environment variable
``ONNXQ_DATA`` names, else in the user's cache folder. CIFAR-10's usual archive holds pickles, so
the binary one is taken.
"""

from __future__ import annotations

import gzip
import math
import os
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onnxq.data.extras import import_extra
from onnxq.data.npz import Npz
from onnxq.errors import DataError
from onnxq.types import Array, Feed

NAMES = ("digits", "mnist", "cifar10")
SPLITS = ("train", "test")

UInt8 = NDArray[np.uint8]

_INSTALL = "pip install 'onnxq[datasets]'"
_DIGITS_TRAIN = 1200  # of 1797

_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_SOURCES = {  # name: {file: (address, MD5 as published beside it)}
    "mnist": {
        "x_train": (f"{_MNIST}train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
        "y_train": (f"{_MNIST}train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432"),
        "x_test": (f"{_MNIST}t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3"),
        "y_test": (f"{_MNIST}t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c"),
    },
    "cifar10": {
        "archive": (
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            "c32a1d4ab5d03f1284b67883e8d87530",
        ),
    },
}


def load_dataset(name: str, split: str) -> tuple[Array, NDArray[np.int64]]:
    """Load one split of a data set.

    Args:
        name: ``digits``, ``mnist`` or ``cifar10``.
        split: ``train`` or ``test``.

    Returns:
        Images and class numbers: digits float32 [N, 8, 8] from 0 to 1, MNIST uint8 [N, 28, 28],
        CIFAR-10 uint8 [N, 32, 32, 3].

    Raises:
        DataError: The name or split is not known, or the data cannot be had.
    """
    if name not in NAMES or split not in SPLITS:
        raise DataError(f"no data set {name}/{split}", f"there are {NAMES}, each with {SPLITS}")
    if name == "digits":
        return _digits(split)
    path = _folder() / f"{name}.npz"
    if not path.exists():
        _download(name, path)
    with Npz(path) as archive:
        missing = {f"x_{split}", f"y_{split}"}.difference(archive.names)
        if missing:
            raise DataError(f"{path}: no array {sorted(missing)}", "delete it to download it again")
        return archive.read(f"x_{split}"), archive.read(f"y_{split}").astype(np.int64)


def _digits(split: str) -> tuple[Array, NDArray[np.int64]]:
    digits = import_extra("sklearn.datasets", "this data set", _INSTALL).load_digits()
    order = np.random.default_rng(0).permutation(len(digits.images))
    rows = order[:_DIGITS_TRAIN] if split == "train" else order[_DIGITS_TRAIN:]
    images = (digits.images[rows] / 16.0).astype(np.float32)
    return images, digits.target[rows].astype(np.int64)


def _folder() -> Path:
    if named := os.environ.get("ONNXQ_DATA"):
        return Path(named)
    advice = f"{_INSTALL}, or set ONNXQ_DATA to a folder with mnist.npz and cifar10.npz"
    return Path(import_extra("pooch", "this data set", advice).os_cache("onnxq"))


def _download(name: str, path: Path) -> None:
    """Download the official files, convert them to ``path`` and delete them."""
    advice = f"set ONNXQ_DATA to a folder that holds {path.name}"
    pooch = import_extra("pooch", "this data set", f"{_INSTALL}, or {advice}")
    convert: Callable[[Mapping[str, Path]], Feed] = _CONVERT[name]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            files = {
                key: Path(pooch.retrieve(url, known_hash=f"md5:{md5}", path=folder))
                for key, (url, md5) in _SOURCES[name].items()
            }
            arrays = convert(files)
            part = Path(folder) / path.name
            np.savez_compressed(part, allow_pickle=False, **arrays)
            part.replace(path)  # whole or not at all
    except (OSError, ValueError) as error:  # no network, no space; a wrong checksum
        raise DataError(
            f"{path} is not there and cannot be downloaded ({error})", advice
        ) from error


def convert_mnist(files: Mapping[str, Path]) -> Feed:
    """Read MNIST's four idx files, by the name of the array that each becomes."""
    return {key: read_idx(file) for key, file in files.items()}


def read_idx(path: Path) -> UInt8:
    """Read a gzip-compressed idx file of unsigned bytes.

    The format: two zero bytes, 8 for uint8, the rank, each size as big-endian 32 bit, values.
    """
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error})") from error
    start = 4 + 4 * data[3] if len(data) > 3 else 0
    if data[:3] != b"\0\0\x08" or len(data) < start:
        raise DataError(f"{path} is not an idx file of unsigned bytes")
    shape = [int(size) for size in np.frombuffer(data[4:start], ">u4")]
    if len(data) - start != math.prod(shape):
        raise DataError(f"{path}: {len(data) - start} bytes of values, expected shape {shape}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def convert_cifar10(files: Mapping[str, Path]) -> Feed:
    """Read CIFAR-10's binary archive: records of a label byte and 3x32x32 planar bytes."""
    path = files["archive"]
    train = [f"cifar-10-batches-bin/data_batch_{number}.bin" for number in range(1, 6)]
    try:
        with tarfile.open(path, "r:gz") as archive:
            train_records = np.concatenate([_records(archive, name, path) for name in train])
            test_records = _records(archive, "cifar-10-batches-bin/test_batch.bin", path)
    except (OSError, EOFError, KeyError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"{path} cannot be read ({error})") from error
    arrays: Feed = {}
    for split, records in (("train", train_records), ("test", test_records)):
        images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        arrays[f"x_{split}"] = np.ascontiguousarray(images)
        arrays[f"y_{split}"] = records[:, 0]
    return arrays


def _records(archive: tarfile.TarFile, name: str, path: Path) -> UInt8:
    member = archive.extractfile(name)
    data = member.read() if member is not None else b""
    size = 1 + 3 * 32 * 32
    if not data or len(data) % size:
        raise DataError(f"{path}: {name} has {len(data)} bytes, no multiple of {size}")
    return np.frombuffer(data, np.uint8).reshape(-1, size)


_CONVERT: dict[str, Callable[[Mapping[str, Path]], Feed]] = {
    "mnist": convert_mnist,
    "cifar10": convert_cifar10,
}
