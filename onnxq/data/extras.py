"""Packages that only some data need, and how to get them."""

from __future__ import annotations

import importlib
from types import ModuleType

from onnxq.errors import DataError


def import_extra(module: str, what: str, advice: str) -> ModuleType:
    """Import a module that an extra of onnxq installs.

    Args:
        module: Its dotted name.
        what: What needs it, for the message.
        advice: How to get it.

    Raises:
        DataError: It cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(f"{what} needs {module}, which cannot be imported", advice) from error
