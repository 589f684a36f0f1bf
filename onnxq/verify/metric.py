"""Metrics on labelled samples: ``top1``, or a function of the user's."""

from __future__ import annotations

import hashlib
import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from onnxq.data import find_function, parse_code, user_code
from onnxq.errors import DataError, UsageError
from onnxq.types import Array
from onnxq.verify.bootstrap import Indices

# Batches along their first axis, or as they came where their shapes differ.
Joined = Array | list[Array]


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
        self._hits = bytearray()

    def update(self, outputs: dict[str, Array], labels: Array) -> None:
        """Take one batch in."""
        self._hits += (outputs[self._output].argmax(1) == labels).tobytes()

    @property
    def hits(self) -> NDArray[np.bool_]:
        """Whether each sample is a hit, of shape (samples,)."""
        return np.frombuffer(self._hits, np.bool_)

    def result(self) -> float:
        """The share, between 0 and 1."""
        return float(self.hits.mean()) if self._hits else 0.0


class FunctionMetric:
    """A user's ``function(outputs, labels) -> float`` over all samples at once.

    Outputs and labels are kept until the end, joined along their first axis where their shapes
    agree, as lists of batches where they do not.
    """

    def __init__(self, name: str, function: Callable[..., float]) -> None:
        self._name, self._function = name, function
        self._outputs: dict[str, list[Array]] = {}
        self._labels: list[Array] = []
        self._by_sample = True

    def update(self, outputs: dict[str, Array], labels: Array) -> None:
        """Keep one batch."""
        rows = labels.shape[:1]
        self._by_sample &= bool(rows) and all(v.shape[:1] == rows for v in outputs.values())
        for name, value in outputs.items():
            self._outputs.setdefault(name, []).append(value)
        self._labels.append(labels)

    def result(self) -> float:
        """What the function makes of all batches.

        Raises:
            DataError: The function fails, or returns no finite number.
        """
        outputs = {name: _join(values) for name, values in self._outputs.items()}
        return self._call(outputs, _join(self._labels))

    def resampler(self) -> tuple[int, Callable[[Indices], float | None]]:
        """How many units there are, and the metric of any of them.

        Units are samples where every output and the labels have a row for each, and batches
        elsewhere. The metric is None where the function fails on them.
        """
        outputs = {name: _join(values) for name, values in self._outputs.items()}
        labels = _join(self._labels)
        rows = {name: v for name, v in outputs.items() if not isinstance(v, list)}
        if self._by_sample and len(rows) == len(outputs) and not isinstance(labels, list):
            return len(labels), lambda units: self._try(
                {name: value[units] for name, value in rows.items()}, labels[units]
            )
        return len(self._labels), lambda units: self._try(
            {name: _join([v[unit] for unit in units]) for name, v in self._outputs.items()},
            _join([self._labels[unit] for unit in units]),
        )

    def _try(self, outputs: Mapping[str, Joined], labels: Joined) -> float | None:
        with warnings.catch_warnings():  # a class that was not drawn deserves none
            warnings.simplefilter("ignore")
            try:
                return self._call(outputs, labels)
            except DataError:
                return None

    def _call(self, outputs: Mapping[str, Joined], labels: Joined) -> float:
        with user_code(f"metric '{self._name}' failed"):
            value = float(self._function(outputs, labels))
        if not math.isfinite(value):
            raise DataError(f"metric '{self._name}' returned {value}", "return a finite number")
        return value


def _join(values: list[Array]) -> Joined:
    if len({v.shape[1:] for v in values}) == 1 and values[0].ndim:
        return np.concatenate(values)
    return values


@dataclass(frozen=True)
class MetricChoice:
    """The metric that a recipe asks for.

    Attributes:
        name: What it is called.
        function: The user's function; None for ``top1``.
        base: Folder that it was looked for from; None when it was not named, but handed over.
    """

    name: str = "top1"
    function: Callable[..., float] | None = None
    base: Path | None = None

    def __reduce__(self) -> tuple[Callable[..., MetricChoice], tuple[object, ...]]:
        """For another process, which imports a function that was named."""
        if self.base is None:
            return MetricChoice, (self.name, self.function)
        return _named_again, (self.name, self.base)

    @property
    def code(self) -> str:
        """Digest of the file that the function is in: with other code, it is another metric."""
        try:
            file = inspect.getsourcefile(self.function) if self.function is not None else None
            return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""
        except (TypeError, OSError):  # made by C code, or typed into an interpreter
            return ""

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
    return MetricChoice(name, find_function(*code), base or Path())


def _named_again(name: str, base: Path) -> MetricChoice:
    return load_metric(name, allow_code=True, base=base)
