"""Every error that onnxq raises on purpose.

::

    OnnxqError                      exit  what went wrong
    ├── UsageError                     2  the call itself: options, recipe, patterns
    │   └── RecipeError                2  a recipe that cannot be read or holds unknown keys
    ├── UnusableError                  3  something from outside cannot be used
    │   ├── ModelError                 3  the ONNX file
    │   │   └── AlreadyQuantizedError  3  the model holds quantized operators already
    │   ├── DataError                  3  calibration or test data
    │   ├── RuntimeFailure             3  ONNX Runtime is missing, or refuses the model
    │   └── OutputError                3  the output cannot be written
    └── SelfCheckError                 4  onnxq made something wrong: a bug in onnxq

A message says what is wrong and where; ``hint`` says what to do next. Both end up on one line.
"""

from __future__ import annotations


class OnnxqError(Exception):
    """Base of all errors that onnxq raises on purpose.

    Args:
        message: What is wrong, and where.
        hint: What the user can do next; joined to the message with a semicolon.
    """

    exit_code = 3

    def __init__(self, message: str, hint: str = "") -> None:
        text = f"{message}; {hint}" if hint else message
        super().__init__(" ".join(text.split()))  # one line, whatever was interpolated
        self.hint = hint


class UsageError(OnnxqError):
    """The call is wrong: an option, a pattern that matches nothing, a contradiction."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe cannot be read, or holds a key or a value that is not known."""


class UnusableError(OnnxqError):
    """Something that came from outside cannot be used."""


class ModelError(UnusableError):
    """The model cannot be read, or holds what onnxq cannot keep intact."""


class AlreadyQuantizedError(ModelError):
    """The model holds quantized operators already."""


class DataError(UnusableError):
    """The data do not fit the model, or cannot be read."""


class RuntimeFailure(UnusableError):
    """ONNX Runtime is missing, lacks a provider, or refuses a model."""


class OutputError(UnusableError):
    """An output exists already or cannot be written."""


class SelfCheckError(OnnxqError):
    """onnxq's check of its own output failed: a bug in onnxq, never the user's fault."""

    exit_code = 4

    def __init__(self, message: str) -> None:
        super().__init__(message, "this is a bug in onnxq: please report it with the model")
