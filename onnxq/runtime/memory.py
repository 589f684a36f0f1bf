"""Memory that the C library keeps."""

from __future__ import annotations

import ctypes
import sys


def give_back() -> None:
    """Hand freed memory back to the system.

    ONNX Runtime packs the weights of a session for its kernels and frees what they came from;
    glibc keeps such blocks for later, which is one and a half times the model for every session.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
