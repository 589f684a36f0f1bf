"""Other ranges for a search: taken where layers lose less by them, and only then."""

from __future__ import annotations

from dataclasses import replace

import pytest

from onnxq.sensitivity.limits import Limits
from onnxq.sensitivity.options import untimed
from onnxq.sensitivity.outliers import with_ranges
from onnxq.sensitivity.search import search_plan
from onnxq.types import Precision, TensorRange

INT8 = Precision.INT8
NET = """g (float[N,8,6,6] x) => (float[N,8,6,6] y)
  <float[8,8,3,3] w = seeded, float[8,8,3,3] v = seeded> {
    [conv1] c = Conv <pads = [1,1,1,1]> (x, w) [relu] r = Relu (c)
    [conv2] y = Conv <pads = [1,1,1,1]> (r, v) }"""


def times(ranges: dict[str, TensorRange], factor: float) -> dict[str, TensorRange]:
    """Ranges that are wider for nothing."""
    return {
        t: TensorRange(r.min * factor, r.max * factor, r.lo * factor, r.hi * factor)
        for t, r in ranges.items()
    }


@pytest.fixture
def wide(build, study):
    """A study whose ranges are a hundred times too wide, and the right ones."""
    found = study(build(NET))
    return replace(found, ranges=times(found.ranges, 100)), found.ranges


def test_ranges_that_keep_the_limits_are_taken(wide) -> None:
    study_of, right = wide
    trials = study_of.trials(Limits(min_sqnr=30))
    other = with_ranges(trials, right, INT8, trials.limits)
    assert other.maker.subject.ranges == right
    (given,), (trial,) = trials.attempts.values(), other.attempts.values()
    assert (given.name, given.within) == ("cheapest plan", False)
    assert (trial.name, trial.within) == ("ranges without outliers", True)
    (assignment,) = other.assignments.values()
    assert study_of.decibels(other, assignment) >= 30  # from nothing but outputs
    assert study_of.decibels(trials, assignment) < 15


def test_ranges_that_only_help_are_taken(wide) -> None:
    study_of, right = wide
    trials = study_of.trials(Limits(min_sqnr=150))
    other = with_ranges(trials, right, INT8, trials.limits)
    (trial,), (assignment,) = other.attempts.values(), other.assignments.values()
    assert not trial.within
    assert trial.loss.typical_db == pytest.approx(study_of.decibels(other, assignment), abs=2)


def test_a_plan_within_the_limits_keeps_its_ranges(build, study) -> None:
    """And costs one evaluation, which the search does not repeat."""
    found = study(build(NET))
    trials = found.trials(Limits(min_sqnr=10))
    assert with_ranges(trials, times(found.ranges, 0.9), INT8, trials.limits) is None
    assert len(trials.attempts) == 1


@pytest.mark.parametrize("factor", [0.02, 0.98], ids=["worse", "as good"])
def test_ranges_that_do_not_help_are_not_taken(build, study, factor) -> None:
    found = study(build(NET))
    trials = found.trials(Limits(min_sqnr=150))
    assert with_ranges(trials, times(found.ranges, factor), INT8, trials.limits) is None
    assert len(trials.attempts) == 1


def test_samples_outside_of_the_inputs_ranges_do_not_judge(build, study, noise) -> None:
    model = build(NET)
    batches = noise(model, batches=4, samples=5)
    small = study(model, batches)
    batches[1].feed["x"][3] *= 100
    large = study(model, batches)
    trials = large.trials(Limits(min_sqnr=30))
    other = with_ranges(trials, small.ranges, INT8, trials.limits)
    assert (trials.evaluator.samples, other.evaluator.samples) == (20, 19)
    assert [batch.count for batch in other.evaluator.batches] == [5, 4, 5, 5]
    assert [a.within for t in (trials, other) for a in t.attempts.values()] == [False, True]


def test_limits_in_whole_answers_are_read_on_the_samples_that_are_left(build, study, noise) -> None:
    """Of 34 samples two answers may change where three of a hundred may, of 33 one."""
    model = build(NET)
    batches = noise(model, batches=2, samples=17)
    small = study(model, batches)
    batches[1].feed["x"][3] *= 100
    asked = Limits(min_agreement=0.97, min_sqnr=150, whole=True)
    trials = study(model, batches).trials(asked.in_answers(34))
    other = with_ranges(trials, small.ranges, INT8, asked)
    assert (trials.limits.min_agreement, other.limits.min_agreement) == (1 - 2 / 34, 1 - 1 / 33)
    # what is asked after a failed proof stays as it is
    told = trials.limits.tightened(0.7)
    other = with_ranges(replace(trials, limits=told, attempts={}), small.ranges, INT8, asked)
    assert other.limits == told


def test_a_search_goes_on_with_them(wide) -> None:
    """Layers go back to float for what is left of the noise, and not for their ranges."""
    study_of, right = wide
    fine = replace(study_of, ranges=right)
    trials = fine.trials(Limits())
    options = untimed(trials.maker, INT8)
    whole, one = options.assign(0.0, {}), {"conv2": INT8}
    middle = (fine.decibels(trials, whole) + fine.decibels(trials, one)) / 2
    limits = Limits(min_sqnr=middle)
    other = with_ranges(study_of.trials(limits), right, INT8, limits)
    found = search_plan(other, options, fine.noise)
    assert found.within
    assert 0 < found.plan.count(INT8) < other.maker.whole(INT8).count(INT8)
    assert found.evaluations == len(other.attempts)
