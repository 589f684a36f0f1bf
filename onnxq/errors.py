"""Every error that onnxq raises on purpose.

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

A message says what is wrong and where; ``hint`` says what to do next. Both end up on one line,
which no terminal obeys: models, data and receipts bring names of their own into it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection


def printable(text: str) -> str:
    """Text in one line that no terminal and no CI runner obeys, whatever the names in it hold.

    What is not printable (line breaks, escapes, marks of writing direction) becomes a space or
    ``?``. Of ``##[``, which GitHub and Azure take for a command anywhere in a line, the signs are
    parted.
    """
    shown = (c if c.isprintable() else " " if c.isspace() else "?" for c in text)
    return re.sub("#(?=#)", "# ", "".join(shown))


def printable_lines(text: str) -> str:
    """The same of every line of a text."""
    return "\n".join(map(printable, text.split("\n")))


def nearest(name: str, known: Collection[str], otherwise: str | None = None) -> str:
    """A hint for a name that is not known: the nearest that is.

    Args:
        name: What was asked for.
        known: All that there are.
        otherwise: What to say when none is near; all that are known if None.
    """
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"known: {', '.join(known)}" if otherwise is None else otherwise


class OnnxqError(Exception):
    """Base of all errors that onnxq raises on purpose.

    Args:
        message: What is wrong, and where.
        hint: What the user can do next; joined to the message with a semicolon.
    """

    exit_code = 3

    def __init__(self, message: str, hint: str = "") -> None:
        text = f"{message}; {hint}" if hint else message
        super().__init__(" ".join(printable(text).split()))  # whatever was interpolated
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
