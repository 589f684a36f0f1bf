"""Compare the outputs of two models, summed up batch by batch."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from onnxq.numerics import ErrorSums
from onnxq.types import Array, Feed
from onnxq.verify.receipt import OutputFacts, finite_db


def scores_outputs(outputs: dict[str, Array], feed: Feed) -> list[str]:
    """The outputs that look like class scores: float, one row of several per sample.

    An output of an input's own shape is a reconstruction, not scores.
    """
    shapes = {value.shape for value in feed.values()}
    return [
        name
        for name, value in outputs.items()
        if value.ndim == 2
        and value.shape[1] > 1
        and np.issubdtype(value.dtype, np.floating)
        and value.shape not in shapes
    ]


@dataclass
class _Output:
    """What is remembered of one output."""

    errors: ErrorSums = field(default_factory=ErrorSums)
    entries: int = 0
    equal: int = 0
    rows: int = 0
    agreeing: int = 0
    floating: bool = True
    reshaped: bool = False
    source_nan: bool = False

    def add(self, expected: Array, found: Array, *, scores: bool) -> None:
        self.floating = bool(np.issubdtype(expected.dtype, np.floating))
        if expected.shape != found.shape:
            self.reshaped = True
            return
        self.entries += expected.size
        if not self.floating:
            self.equal += int(np.sum(expected == found))
            return
        self.source_nan |= bool(np.isnan(expected).any())
        self.errors.add(expected, found)
        if scores:
            self.rows += len(expected)
            self.agreeing += int(np.sum(expected.argmax(1) == found.argmax(1)))

    def facts(self) -> OutputFacts:
        if self.reshaped:  # sizes that depend on the values: no entry has its counterpart
            return OutputFacts(sqnr_db=finite_db(-np.inf), cosine=0.0)
        if not self.entries:
            return OutputFacts()
        if not self.floating:
            return OutputFacts(equal=self.equal / self.entries)
        return OutputFacts(
            sqnr_db=finite_db(self.errors.sqnr_db),
            cosine=self.errors.cosine,
            top1_agreement=self.agreeing / self.rows if self.rows else None,
        )


class Comparison:
    """Sums over the test samples, for every output of a model."""

    def __init__(self) -> None:
        self._outputs: dict[str, _Output] = {}
        self.samples = 0

    def add(self, feed: Feed, expected: dict[str, Array], found: dict[str, Array]) -> None:
        """Take the outputs of one batch in: those of the source, and those of the output model."""
        scores = scores_outputs(expected, feed)
        for name, value in expected.items():
            known = self._outputs.setdefault(name, _Output())
            known.add(value, found[name], scores=name in scores)

    def facts(self) -> dict[str, OutputFacts]:
        """What came out, by output."""
        return {name: output.facts() for name, output in self._outputs.items()}

    def notes(self) -> tuple[str, ...]:
        """What the figures cannot say."""
        told = []
        for name, output in self._outputs.items():
            if output.reshaped:
                told.append(
                    f"output '{name}' has another shape than in float: its size depends on the "
                    "values, so that its entries cannot be compared; judge it with a metric"
                )
            elif not output.entries:
                told.append(f"output '{name}' was empty for every sample: nothing was compared")
            if output.source_nan:
                told.append(f"the float model itself gives NaN in output '{name}'")
        return tuple(told)
