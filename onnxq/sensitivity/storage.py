"""Int8 weights for layers that compute in float: a smaller file at no cost in time."""

from __future__ import annotations

from dataclasses import replace

from onnxq.plan import REFUSALS
from onnxq.sensitivity.options import Assignment
from onnxq.sensitivity.search import Found, NoiseOf, Trials
from onnxq.types import Precision

# How often the noisiest half of the layers is left out.
_HALVINGS = 3


def with_storage(
    trials: Trials, assignment: Assignment, noise_of: NoiseOf, name: str
) -> Assignment:
    """An assignment whose float layers store int8 weights, as many as the limits allow.

    Args:
        trials: The model, the samples, and what may be lost.
        assignment: Precisions by node; nodes that are missing compute in float.
        noise_of: The noise that every layer makes alone.
        name: What the result is called where it is told what was tried.

    Returns:
        The assignment itself where it is not within the limits, or no weights help.
    """
    floating = [name for name in _storable(trials) if name not in assignment]
    if not floating or (assignment and not trials.attempt(name, assignment).within):
        return assignment
    for number in range(_HALVINGS):
        stored = assignment | dict.fromkeys(floating, Precision.INT8_WEIGHTS)
        if trials.attempt(name, stored).within:
            return stored
        if number == 0:
            noise = noise_of(Precision.INT8_WEIGHTS, floating)
            floating.sort(key=lambda name: noise.get(name, 0.0))
        floating = floating[: len(floating) // 2]
    return assignment


def stored(trials: Trials, found: Found, noise_of: NoiseOf) -> Found:
    """What was found, with int8 weights where its layers stay float."""
    assignment = with_storage(trials, found.assignment, noise_of, "other weights int8")
    if assignment == found.assignment:
        return found
    tried = tuple(trials.attempts.values())
    return replace(found, plan=trials.plan(assignment), assignment=assignment, attempts=tried)


def _storable(trials: Trials) -> list[str]:
    view, census = trials.maker.view, trials.maker.subject.census
    refuse, pins = REFUSALS[Precision.INT8_WEIGHTS], trials.maker.pins
    return [n.name for n in census.nodes if n.name not in pins and refuse(view, n) is None]
