"""Outputs that would be data: what is written into a folder of samples is read by the next run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from onnxq.data.images import is_image
from onnxq.errors import OutputError


def check_output(target: Path, sources: Sequence[Path], *, force: bool) -> None:
    """Fail before the work, not after it, when an output cannot be written or would do harm.

    Args:
        target: The file to write.
        sources: Files and folders that are read.
        force: Whether it may overwrite a file that is not read.

    Raises:
        OutputError: It exists already, is a folder or is read, its folder cannot be written to, or
            it would be one of the samples in a folder that is read.
    """
    from onnxq.graph import check_writable  # reading data must not cost the import of onnx

    check_writable(target, sources, force=force)
    place = target.resolve()
    for folder in (source for source in sources if source.is_dir()):
        if place.is_relative_to(folder.resolve()) and _is_data(place):
            raise OutputError(
                f"output '{target}' would be one of the data in '{folder}', which are read",
                "choose another place with -o",
            )


def _is_data(path: Path) -> bool:
    """Whether a folder's reader takes a file of this name for samples."""
    tensor = re.fullmatch(r"input_\d+\.pb", path.name) is not None
    return tensor or path.suffix in (".npz", ".npy") or is_image(path)
