"""Observers by name: onnxq's own, and a user's ``module:Class``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from onnxq.calibrate.observers import (
    EntropyObserver,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageObserver,
    MseObserver,
    Observer,
    PercentileObserver,
    SigmaObserver,
    TrimmedObserver,
)
from onnxq.calibrate.state import state_of
from onnxq.data import find_function, parse_code, user_code
from onnxq.errors import UsageError, nearest

# The word for "mse, as soon as there are enough samples to tell a distribution".
AUTO = "auto"
# Fewer samples than this seldom show a tensor's whole range: then nothing of it is clipped.
ENOUGH_SAMPLES = 64

OBSERVERS: dict[str, Callable[..., Observer]] = {
    AUTO: HistogramObserver,
    "mse": MseObserver,
    "percentile": PercentileObserver,
    "entropy": EntropyObserver,
    "minmax": MinMaxObserver,
    "moving-average": MovingAverageObserver,
    "sigma": SigmaObserver,
    "trimmed": TrimmedObserver,
}


class ObserverSpec(msgspec.Struct, frozen=True):
    """Which observer, and its options.

    Attributes:
        name: One of ``OBSERVERS``, or ``module:Class`` or ``file.py:Class`` of a user's.
        options: Keyword arguments of the class.
        keep_histogram: Whether a min-max observer counts values all the same, so that other
            methods can choose ranges later, and statistics can be told.
    """

    name: str
    options: dict[str, Any] = {}
    keep_histogram: bool = False

    def factory(self, base: Path | None = None) -> Callable[[], Observer]:
        """A function that makes such an observer, which has seen nothing.

        Args:
            base: Folder that a relative ``file.py`` starts from; the working directory if None.

        Raises:
            UsageError: The name, an option or its value is not known.
            DataError: A user's class cannot be imported.
        """
        kind = _find(self.name, base or Path())
        own = self.name in OBSERVERS
        if self.keep_histogram and kind is MinMaxObserver:
            kind = HistogramObserver
        with user_code(f"observer '{self.name}' has no signature"):
            known = inspect.signature(kind).parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in known.values())
        for option in self.options:
            if option not in known and not takes_any:
                takes = ", ".join(known) or "none"
                raise UsageError(
                    f"observer '{self.name}' has no option '{option}', its options: {takes}"
                )
        if own:
            _check_types(self, known)

        def make() -> Observer:
            if own:
                return kind(**self.options)
            with user_code(f"observer '{self.name}' cannot be made"):
                return kind(**self.options)

        first = make()  # a wrong option fails here, not after the first batch
        if not own:
            _check_class(self.name, first)
        return make


def _check_class(name: str, observer: object) -> None:
    """Refuse a user's class that could not be used to the end."""
    for method in ("observe", "merge", "range"):
        if not callable(getattr(observer, method, None)):
            raise UsageError(
                f"observer '{name}' has no method '{method}'", "it needs observe, merge and range"
            )
    if not hasattr(observer, "__dict__"):
        raise UsageError(f"observer '{name}' has __slots__", "leave them out: they are not saved")
    try:
        state_of(observer)
    except RecursionError as error:
        raise UsageError(
            f"observer '{name}' has an attribute that holds itself, which cannot be saved"
        ) from error


def _check_types(spec: ObserverSpec, known: Mapping[str, inspect.Parameter]) -> None:
    """Refuse a value that is no number of the option's kind; its bounds the class checks."""
    kinds = {"float": float, "int": int}
    for option, value in spec.options.items():
        kind = kinds[known[option].annotation]
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            raise UsageError(
                f"observer '{spec.name}': option '{option}' is {value!r}",
                f"give {'a whole number' if kind is int else 'a number'}",
            ) from error


def auto_observer(samples: int) -> str:
    """The observer that suits a number of samples."""
    return "mse" if samples >= ENOUGH_SAMPLES else "minmax"


def _find(name: str, base: Path) -> Callable[..., Observer]:
    if name in OBSERVERS:
        return OBSERVERS[name]
    code = parse_code(name, base)
    if code is not None:
        return find_function(*code)
    known = f"known are {', '.join(OBSERVERS)}, and module:Class for your own"
    raise UsageError(f"unknown observer '{name}'", nearest(name, OBSERVERS, known))
