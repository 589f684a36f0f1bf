"""Checkpoints: all of a training's state in one file, so that a killed run goes on where it was.

The file is an ``.npz`` without pickled objects: arrays by name, and a header of JSON. It is written
beside its place and renamed, so that a kill leaves the old one or the new one.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor

from onnxq.data import Npz
from onnxq.errors import DataError, OutputError, UsageError
from onnxq.graph import write_bytes
from onnxq.qat.history import EpochFacts
from onnxq.types import Array, QParams

_HEADER = "header"
SCHEMA = 2


class Header(msgspec.Struct, frozen=True):
    """What is not an array.

    Attributes:
        run: Digest of everything that a run depends on.
        epoch: The epoch that the run is in, from 1.
        step: Steps of it that are done.
        loss: Sum of their losses.
        seconds: How long the run has trained.
        epochs: What the epochs before showed.
        best: The best of them; 0 for the state before training.
        frozen: Whether the warm-up is over.
        observed: Ranges of the warm-up by quantizer: lowest, highest, batches.
        params: Scales and zero points of activations by quantizer, where these are observed.
        best_params: The same of the best epoch.
        schema: Version of this structure.
    """

    run: str
    epoch: int
    step: int
    loss: float
    seconds: float
    epochs: tuple[EpochFacts, ...]
    best: int
    frozen: bool
    observed: dict[int, tuple[float, float, int]]
    params: tuple[QParams, ...]
    best_params: tuple[QParams, ...]
    schema: int = SCHEMA


class Checkpoint(msgspec.Struct, frozen=True):
    """The state of a run.

    Attributes:
        header: What is not an array.
        arrays: Everything else, by name: ``weight:N``, ``scale:N``, ``best:N``, ``optimizer:N:K``.
    """

    header: Header
    arrays: dict[str, Tensor]


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint; the one before stays until this one is whole.

    Raises:
        OutputError: It cannot be written.
    """
    arrays: dict[str, Array] = {n: t.detach().cpu().numpy() for n, t in checkpoint.arrays.items()}
    arrays[_HEADER] = np.frombuffer(msgspec.json.encode(checkpoint.header), np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    write_bytes(buffer.getvalue(), path)


def load_checkpoint(path: Path, run: str) -> Checkpoint | None:
    """Read a checkpoint; None when there is none.

    Args:
        path: The file.
        run: Digest of the run that wants to go on.

    Raises:
        UsageError: It is of another run.
        OutputError: It is damaged, or no checkpoint.
    """
    if not path.is_file():
        return None
    with whole(path), Npz(path) as archive:
        header = _header(archive)
        if (header.run, header.schema) != (run, SCHEMA):
            raise UsageError(
                f"'{path}' is a checkpoint of another run: model, data or settings were others",
                "start anew with --fresh",
            )
        arrays = {name: archive.read(name) for name in archive.names if name != _HEADER}
        return Checkpoint(header, {n: torch.from_numpy(array) for n, array in arrays.items()})


def kept_so_far(path: Path) -> Header | None:
    """Read the head of a checkpoint alone.

    Returns:
        What is not an array; None where there is no checkpoint, or a damaged one, which
        ``load_checkpoint`` refuses.
    """
    if not path.is_file():
        return None
    try:
        with whole(path), Npz(path) as archive:
            return _header(archive)
    except OutputError:
        return None


def _header(archive: Npz) -> Header:
    return msgspec.json.decode(archive.read(_HEADER).tobytes(), type=Header)


@contextmanager
def whole(path: Path | None) -> Iterator[None]:
    """Tell of a file that holds something else than what ``save_checkpoint`` wrote.

    Raises:
        OutputError: What is inside the block fails on it.
    """
    try:
        yield
    except (
        DataError, LookupError, ValueError, TypeError, RuntimeError, AttributeError,
        msgspec.DecodeError,
    ) as error:  # fmt: skip
        raise OutputError(
            f"'{path}' is no checkpoint that can be gone on from: {error}", "delete it, or --fresh"
        ) from error
