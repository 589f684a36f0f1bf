"""Compare the outputs of two models, summed up batch by batch."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import numpy as np
from msgspec.structs import replace as with_fields

from onnxq.numerics import ErrorSums
from onnxq.types import Array, Feed
from onnxq.verify.bitmap import to_bitmap
from onnxq.verify.bootstrap import share_bound, sqnr_bound
from onnxq.verify.receipt import OutputFacts, finite_db

# By how much the SQNR of all samples exceeds that of the one in the middle for it to be told.
_HIDDEN_DB = 10.0


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


def _numbers() -> array[float]:
    return array("d")


@dataclass
class _Output:
    """What is remembered of one output: sums, and four numbers per unit.

    A unit is a sample where the output has a row for each (``by_sample``), and a batch elsewhere.
    """

    errors: ErrorSums = field(default_factory=ErrorSums)
    entries: int = 0
    equal: int = 0
    signal: array[float] = field(default_factory=_numbers)
    noise: array[float] = field(default_factory=_numbers)
    rows: array[float] = field(default_factory=_numbers)
    disagreeing: array[float] = field(default_factory=_numbers)
    floating: bool = True
    reshaped: bool = False
    source_nan: bool = False
    by_sample: bool = True

    def add(self, expected: Array, found: Array, *, scores: bool, count: int) -> None:
        self.floating = bool(np.issubdtype(expected.dtype, np.floating))
        if expected.shape != found.shape:
            self.reshaped = True
            return
        self.entries += expected.size
        if not self.floating:
            self.equal += int(np.sum(expected == found))
            return
        self.source_nan |= bool(np.isnan(expected).any())
        units = count if expected.shape[:1] == (count,) else 1
        self.by_sample &= units == count
        for unit, other in zip(expected.reshape(units, -1), found.reshape(units, -1), strict=True):
            sums = ErrorSums()
            sums.add(unit, other)
            self.errors.merge(sums)
            self.signal.append(sums.signal)
            self.noise.append(sums.noise)
        if scores:
            differ = (expected.argmax(1) != found.argmax(1)).reshape(units, -1)
            self.rows.extend([float(differ.shape[1])] * units)
            self.disagreeing.extend(differ.sum(1).astype(float))

    def facts(self, seed: int | None) -> OutputFacts:
        if self.reshaped:  # sizes that depend on the values: no entry has its counterpart
            return OutputFacts(sqnr_db=finite_db(-np.inf), cosine=0.0)
        if not self.entries:
            return OutputFacts()
        if not self.floating:
            return OutputFacts(equal=self.equal / self.entries)
        rows = sum(self.rows)
        found = OutputFacts(
            sqnr_db=finite_db(self.errors.sqnr_db),
            cosine=self.errors.cosine,
            top1_agreement=1 - sum(self.disagreeing) / rows if rows else None,
            agreeing=self._agreeing(),
        )
        if seed is None or len(self.signal) < 2:
            return found
        agreement = None
        if rows:
            agreement = 1 - share_bound(self.disagreeing, [0.0] * len(self.rows), self.rows, seed)
        sqnr = finite_db(sqnr_bound(self.signal, self.noise, seed))
        return with_fields(found, sqnr_bound_db=sqnr, agreement_bound=agreement)

    def typical_db(self) -> float | None:
        """SQNR of the unit in the middle; None where no unit has a signal."""
        signal, noise = np.asarray(self.signal), np.asarray(self.noise)
        heard = (signal > 0) | np.isinf(noise)  # what is silent has no ratio, what is NaN the worst
        if self.reshaped or not heard.any():
            return None
        with np.errstate(divide="ignore", invalid="ignore"):  # both may be 0, or infinite
            ratios = 10 * np.log10(signal[heard] / noise[heard])
        return float(np.median([finite_db(ratio) for ratio in ratios]))

    def _agreeing(self) -> str:
        """Which samples agree, where each has one row of scores."""
        if not self.rows or any(rows != 1 for rows in self.rows):
            return ""
        return to_bitmap(np.asarray(self.disagreeing) == 0)


class Comparison:
    """Sums over the test samples, for every output of a model."""

    def __init__(self) -> None:
        self._outputs: dict[str, _Output] = {}
        self.samples = 0

    def add(
        self,
        feed: Feed,
        expected: dict[str, Array],
        found: dict[str, Array],
        count: int = 1,
    ) -> None:
        """Take in one batch.

        Args:
            feed: What the models read.
            expected: The outputs of the source.
            found: The outputs of the output model.
            count: Samples in it.
        """
        scores = scores_outputs(expected, feed)
        for name, value in expected.items():
            known = self._outputs.setdefault(name, _Output())
            known.add(value, found[name], scores=name in scores, count=count)
        self.samples += count

    def facts(self, seed: int | None = None) -> dict[str, OutputFacts]:
        """What came out, by output.

        Args:
            seed: Draws samples anew for bounds; without it there are none.
        """
        return {name: output.facts(seed) for name, output in self._outputs.items()}

    def typical_db(self) -> float | None:
        """SQNR of the sample in the middle, of the worst output; a few outliers do not move it.

        None where no output is float, or none has a signal.
        """
        medians = (output.typical_db() for output in self._outputs.values())
        return min((db for db in medians if db is not None), default=None)

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
            whole, typical = output.facts(None).sqnr_db, output.typical_db()
            if not output.by_sample or whole is None or typical is None:
                continue
            if whole >= typical + _HIDDEN_DB:
                told.append(
                    f"output '{name}': the sample in the middle is at {typical:.1f} dB; those with "
                    f"the largest values make it {whole:.1f} dB"
                )
        return tuple(told)
