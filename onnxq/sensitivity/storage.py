"""Int8 weights for layers that compute in float: a smaller file at no cost in time."""

from __future__ import annotations

import math
from dataclasses import replace

from onnxq.plan import REFUSALS
from onnxq.sensitivity.options import Assignment
from onnxq.sensitivity.search import Found, Trials
from onnxq.types import Precision

# How many groups of layers are tried.
_TRIALS = 12
# Where nobody said what may be lost: the noise that these weights may add to a plan's, which they
# make smaller and no faster, is as much as it has.
_DOUBLED_DB = 3.01


def with_storage(
    trials: Trials, assignment: Assignment, name: str, least: float = -math.inf
) -> Assignment:
    """An assignment whose float layers store int8 weights, as many as the limits allow.

    All are tried together first. A group that loses too much is cut in two, so that few layers are
    left out where few are to blame. Under the usual limits they may double a plan's noise at most.

    Args:
        trials: The model, the samples, and what may be lost.
        assignment: Precisions by node; nodes that are missing compute in float.
        name: What the result is called where it is told what was tried.
        least: The least SQNR in dB that is to be left.

    Returns:
        The assignment itself where it is not within the limits, or no weights help.
    """
    floating = [name for name in _storable(trials) if name not in assignment]
    if assignment:
        plain = trials.attempt(name, assignment)
        if not plain.within:
            return assignment
        if trials.limits.usual and plain.loss.sqnr_db is not None:
            least = max(least, plain.loss.sqnr_db - _DOUBLED_DB)
    best, left = assignment, [floating]
    for _ in range(_TRIALS):
        if not any(left):
            break
        group = left.pop(0)
        stored = best | dict.fromkeys(group, Precision.INT8_WEIGHTS)
        tried = trials.attempt(name, stored)
        db = tried.loss.sqnr_db
        if tried.within and (db is None or db >= least):
            best = stored
        elif len(group) > 1:
            left += [group[: len(group) // 2], group[len(group) // 2 :]]
    return best


def stored(trials: Trials, found: Found) -> Found:
    """What was found, with int8 weights where its layers stay float."""
    assignment = with_storage(trials, found.assignment, "+ int8 weights")
    if assignment == found.assignment:
        return found
    tried = tuple(trials.attempts.values())
    return replace(found, plan=trials.plan(assignment), assignment=assignment, attempts=tried)


def _storable(trials: Trials) -> list[str]:
    view, census = trials.maker.view, trials.maker.subject.census
    refuse, pins = REFUSALS[Precision.INT8_WEIGHTS], trials.maker.pins
    return [n.name for n in census.nodes if n.name not in pins and refuse(view, n) is None]
