"""What a checkpoint says of its run, before anything is gone on with."""

from __future__ import annotations

from pathlib import Path

import msgspec

from onnxq.data import Npz
from onnxq.errors import DataError
from onnxq.qat.checkpoint import Header


def kept_so_far(path: Path) -> Header | None:
    """Read the head of a checkpoint alone.

    Returns:
        What is not an array; None where there is no checkpoint, or a damaged one, which
        ``load_checkpoint`` refuses.
    """
    if not path.is_file():
        return None
    try:
        with Npz(path) as archive:
            return msgspec.json.decode(archive.read("header").tobytes(), type=Header)
    except (DataError, KeyError, msgspec.DecodeError):
        return None
