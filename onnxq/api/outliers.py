"""``leaving_outliers_out``: a draft whose ranges hold no outliers, where layers lose less so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from onnxq.api.stages import Draft
from onnxq.sensitivity import Evaluator
from onnxq.sensitivity.limits import Limits
from onnxq.sensitivity.outliers import with_ranges
from onnxq.sensitivity.search import Trials
from onnxq.types import TensorRange

_TRIMMED = (
    "a few values lie far outside of all others ('{tensor}' is {times:.0f} times as wide by them): "
    "the ranges of {count} leave them out, since layers lose less so"
)
_LEFT_OUT = "; of the samples that judge plans {count} do not fit and do not count (numbers {some})"
# Samples that such a note names at most.
_NAMED = 5


def leaving_outliers_out(
    drafted: Draft, trials: Trials, limits: Limits
) -> tuple[Draft, Trials] | None:
    """Both with ranges without outliers; None where there are none, or nothing is gained.

    A note of the draft tells which ranges are narrower, and which samples judge no plan.

    Args:
        drafted: The draft with the ranges that were observed.
        trials: Its trials, before anything was tried.
        limits: What may be lost, of any number of samples.

    Raises:
        RuntimeFailure: A model fails on the samples.
    """
    if drafted.trimmed is None or not drafted.recipe.usual.static:
        return None
    ranges = drafted.trimmed
    other = with_ranges(trials, ranges.tensors, drafted.recipe.usual, limits)
    if other is None:
        return None
    note = _trimmed_note(drafted.ranges.tensors, ranges.tensors)
    left_out = sorted(_numbers(trials.evaluator) - _numbers(other.evaluator))
    if left_out:
        some = ", ".join(map(str, left_out[:_NAMED])) + (", ..." if left_out[_NAMED:] else "")
        note += _LEFT_OUT.format(count=len(left_out), some=some)
    notes = (*drafted.notes, note)
    return replace(drafted, ranges=ranges, leaves_out=True, trimmed=None, notes=notes), other


def _trimmed_note(given: Mapping[str, TensorRange], ranges: Mapping[str, TensorRange]) -> str:
    wider = [tensor for tensor in ranges if given[tensor] != ranges[tensor]]
    times = {t: (given[t].hi - given[t].lo) / (ranges[t].hi - ranges[t].lo) for t in wider}
    most = max(wider, key=lambda tensor: times[tensor])
    count = f"{len(wider)} tensor{'s' if len(wider) > 1 else ''}"
    return _TRIMMED.format(count=count, tensor=most, times=times[most])


def _numbers(evaluator: Evaluator) -> set[int]:
    return {int(number) for batch in evaluator.batches for number in batch.numbers}
