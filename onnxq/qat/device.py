"""Where to train."""

from __future__ import annotations

import torch

from onnxq.errors import UnusableError


def choose_device(wanted: str | None) -> str:
    """The device that is wanted; a GPU where there is one if None.

    Raises:
        UnusableError: PyTorch cannot use it.
    """
    usable = torch.cuda.is_available()
    if wanted == "cuda" and not usable:
        raise UnusableError("PyTorch finds no GPU to train on", "leave out --device, or say cpu")
    return wanted or ("cuda" if usable else "cpu")
