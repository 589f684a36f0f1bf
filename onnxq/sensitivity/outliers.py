"""Other ranges for all plans of a search, where layers lose less by them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from onnxq.sensitivity.limits import Limits
from onnxq.sensitivity.options import untimed
from onnxq.sensitivity.search import Attempt, Trials
from onnxq.types import Precision, TensorRange

# By how much noise falls at least for other ranges to be worth it, in dB: by more than chance.
_LESS_DB = 3.0


def with_ranges(
    trials: Trials, ranges: Mapping[str, TensorRange], precision: Precision, limits: Limits
) -> Trials | None:
    """Trials with other ranges, where a plan of one precision everywhere loses less by them.

    A range that is wide for the sake of a few values rounds all others coarsely. A search that has
    no other means would then leave layer after layer in float, for what is no fault of theirs.
    Samples that the other ranges of the inputs do not hold judge no plan, if they are few: of what
    is an outlier itself any plan loses the answer.

    Args:
        trials: The trials with the ranges that were observed.
        ranges: Others, of the same tensors.
        precision: What every layer has that can.
        limits: What may be lost, of any number of samples; the trials' own count where a search was
            told to lose less.

    Returns:
        None where the plan is within the limits as it is, or gains nothing by the other ranges.

    Raises:
        RuntimeFailure: A model fails on the samples.
    """
    everything = untimed(trials.maker, precision).assign(0.0, {})
    given = trials.attempt("cheapest plan", everything)
    if given.within:
        return None
    subject = trials.maker.subject
    maker = replace(trials.maker, subject=replace(subject, ranges=ranges))
    inputs = [spec.name for spec in subject.view.inputs if spec.name in ranges]
    narrower = {name: ranges[name] for name in inputs if ranges[name] != subject.ranges[name]}
    evaluator = trials.evaluator.inside(narrower)
    judged = trials.limits if trials.limits.nearer else limits.in_answers(evaluator.samples)
    other = replace(
        trials, maker=maker, evaluator=evaluator, limits=judged, attempts={}, assignments={}
    )
    trial = other.attempt("ranges without outliers", everything)
    return other if trial.within or _gain(trial, given) >= _LESS_DB else None


def _gain(trial: Attempt, given: Attempt) -> float:
    mine, theirs = trial.loss.typical_db, given.loss.typical_db
    return 0.0 if mine is None or theirs is None else mine - theirs
