"""Quantization-aware training of an ONNX graph: its weights are trained as integers will hold them.

Everything but this module and ``history`` needs PyTorch, the extra ``qat``.
"""

from __future__ import annotations

from importlib.util import find_spec

from onnxq.errors import UnusableError
from onnxq.qat.history import EpochFacts, History

__all__ = ["EpochFacts", "History", "require_torch"]


def require_torch() -> None:
    """Make sure that PyTorch is there.

    Raises:
        UnusableError: It is not; the message says how to install it.
    """
    if find_spec("torch") is None:
        raise UnusableError(
            "training needs PyTorch, which is not installed",
            "pip install 'onnxq[qat]'",
        )
