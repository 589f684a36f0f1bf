"""Metrics on labelled samples: ``top1``, or a function of the user's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from onnxq.data import find_function, parse_code, user_code
from onnxq.errors import DataError, UsageError
from onnxq.types import Array


class Metric(Protocol):
    """Sums up batches of outputs and labels to one number; higher is better."""

    def update(self, outputs: dict[str, Array], labels: Array) -> None:
        """Take one batch in."""

    def result(self) -> float:
        """The metric over all batches."""


class Top1:
    """Share of samples whose largest score is the label's.

    Args:
        output: The output that holds one row of scores per sample.
    """

    def __init__(self, output: str) -> None:
        self._output = output
        self._hits = self._count = 0

    def update(self, outputs: dict[str, Array], labels: Array) -> None:
        """Take one batch in."""
        self._hits += int((outputs[self._output].argmax(1) == labels).sum())
        self._count += len(labels)

    def result(self) -> float:
        """The share, between 0 and 1."""
        return self._hits / max(self._count, 1)


class FunctionMetric:
    """A user's ``function(outputs, labels) -> float`` over all samples at once.

    Outputs and labels are kept until the end, joined along their first axis where their shapes
    agree, as lists of batches where they do not.
    """

    def __init__(self, name: str, function: Callable[..., float]) -> None:
        self._name, self._function = name, function
        self._outputs: dict[str, list[Array]] = {}
        self._labels: list[Array] = []

    def update(self, outputs: dict[str, Array], labels: Array) -> None:
        """Keep one batch."""
        for name, value in outputs.items():
            self._outputs.setdefault(name, []).append(value)
        self._labels.append(labels)

    def result(self) -> float:
        """What the function makes of all batches.

        Raises:
            DataError: The function fails, or returns no finite number.
        """
        outputs = {name: _join(values) for name, values in self._outputs.items()}
        with user_code(f"metric '{self._name}' failed"):
            value = float(self._function(outputs, _join(self._labels)))
        if not math.isfinite(value):
            raise DataError(f"metric '{self._name}' returned {value}", "return a finite number")
        return value


def _join(values: list[Array]) -> Array | list[Array]:
    if len({v.shape[1:] for v in values}) == 1 and values[0].ndim:
        return np.concatenate(values)
    return values


@dataclass(frozen=True)
class MetricChoice:
    """The metric that a recipe asks for.

    Attributes:
        name: What it is called.
        function: The user's function; None for ``top1``.
    """

    name: str = "top1"
    function: Callable[..., float] | None = None

    def make(self, judged: str | None) -> Metric | None:
        """A fresh metric; None for ``top1`` when no output can be judged by it."""
        if self.function is not None:
            return FunctionMetric(self.name, self.function)
        return Top1(judged) if judged is not None else None


def load_metric(name: str, *, allow_code: bool, base: Path | None = None) -> MetricChoice:
    """Find a metric: ``top1``, or ``module:function``.

    Args:
        name: What the user named.
        allow_code: Whether a function may be imported.
        base: Folder that the path of a ``.py`` file starts from.

    Raises:
        UsageError: There is no such metric, or code may not be run.
        DataError: The module cannot be imported, or has no such function.
    """
    if name == "top1":
        return MetricChoice()
    code = parse_code(name, base or Path())
    if code is None:
        raise UsageError(
            f"unknown metric '{name}'", "use 'top1', 'module:function' or 'file.py:function'"
        )
    if not allow_code:
        raise UsageError(
            f"metric '{name}' is Python code, which a recipe that was merely found beside the "
            "model may not name",
            "pass the recipe with --recipe, or the metric with --metric",
        )
    return MetricChoice(name, find_function(*code))
