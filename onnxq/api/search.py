"""``searched``: a draft whose plan was found by measurement."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import msgspec
from msgspec.structs import replace as with_fields

from onnxq.api.job import Job
from onnxq.api.outliers import leaving_outliers_out
from onnxq.api.shelf import Shelf
from onnxq.api.stages import Draft, draw
from onnxq.data import Batch, Reader
from onnxq.graph import sha256
from onnxq.plan import Budgets, Recipe
from onnxq.runtime import Session, StateLoop, default_target, environment
from onnxq.sensitivity import Evaluator, analyze, recipe_for
from onnxq.sensitivity.fastest import Fastest, find_fastest
from onnxq.sensitivity.journal import Journal
from onnxq.sensitivity.limits import Limits, limits_of
from onnxq.sensitivity.maker import Maker, key_of
from onnxq.sensitivity.options import untimed
from onnxq.sensitivity.plans import Subject
from onnxq.sensitivity.race import Time
from onnxq.sensitivity.search import Attempt, Found, NoiseOf, Trials, search_plan
from onnxq.sensitivity.storage import stored
from onnxq.sensitivity.untold import fastest_of
from onnxq.sensitivity.values import FrontPoint
from onnxq.targets import get_target
from onnxq.types import Feed, Precision
from onnxq.verify import Candidate, Gate, Measured, MetricChoice, Receipt, check_gates

# Evaluation samples: as many as the float model runs in these seconds, between the two numbers.
_SECONDS, _LEAST, _MOST = 1.5, 16, 512
# Runs of which the fastest counts.
_LOOKS = 3
# Samples that the noise of single layers is measured on.
_NOISE_SAMPLES = 16
# A difference in speed that nobody notices.
_SAME_SPEED, _MOST_NOISE = 0.02, 0.1
_USUAL = "asked of every model that has no budget of its own"
# Noise falls by so much at most where a proof failed: half of the amplitude. The last time it falls
# by so much more than the proof asks for.
_MOST_DB, _LAST_DB = 6.0, 2.5
_OF_ACCURACY = ("max_drop", "min_sqnr", "min_agreement")
_HELP = (
    "no plan keeps {limits}: more calibration samples, another --calibrator, or training "
    "(quantization-aware) may help"
)
_NEARER = (
    "a plan kept {limits} on the samples of the search, and missed a limit on those of the proof: "
    "so plans are judged by {nearer} here"
)
# What a search may choose where the recipe leaves it open.
_AUTO = (Precision.INT8, Precision.INT8_DYNAMIC)


@dataclass(frozen=True)
class Searched:
    """A draft with the plan that a search found.

    Attributes:
        draft: The draft.
        candidates: What was tried.
        limits: What the plan may lose at most.
        within: Whether it does, and as much less as it was told to.
        trials: The samples that it was judged by, and what was measured.
        front: The best plans from the cheapest to all float; empty where the first one did.
        observed: The draft with the ranges that were observed, and its trials, where this one's
            leave outliers out.
    """

    draft: Draft
    candidates: tuple[Candidate, ...]
    limits: Limits
    within: bool
    trials: Trials
    front: tuple[FrontPoint, ...] = ()
    observed: tuple[Draft, Trials] | None = None

    @property
    def nearer(self) -> bool:
        """Whether it was told to lose less than the limits, since a proof had failed."""
        return self.trials.limits.nearer


def objective_of(recipe: Recipe) -> str:
    """What the best plan is: what the recipe says, or latency unless it names a precision."""
    if recipe.objective is not None:
        return recipe.objective
    return "latency" if recipe.precision is None else "int8-everywhere"


def wants_search(recipe: Recipe, drafted: Draft) -> bool:
    """Whether a plan is to be found by measurement.

    It is where there is something to choose, and samples to judge it with: a precision, a fastest
    or a smallest plan, or layers that go back to float for a budget on accuracy.
    """
    budgets = recipe.budgets
    limited = any(
        v is not None for v in (budgets.max_drop, budgets.min_sqnr, budgets.min_agreement)
    )
    if drafted.test is None or drafted.plan.empty or not drafted.source.fits_one_file:
        return False
    return limited or recipe.objective == "size" or recipe.precision is None or _timed(recipe)


def _timed(recipe: Recipe) -> bool:
    """Whether the best plan is the fastest one, and that can be measured."""
    return objective_of(recipe) == "latency" and recipe.verify.seconds > 0 and _runs_here(recipe)


def searched(drafted: Draft, job: Job, metric: MetricChoice) -> Searched:
    """Find the best plan for a draft.

    Args:
        drafted: The model, its ranges, and its samples.
        job: What is wanted. Its recipe is the one before it was completed.
        metric: The metric for labelled samples.

    Raises:
        OnnxqError: See ``onnxq.errors`` for the tree.
    """
    reader, drafted = _samples(drafted)
    recipe, view = drafted.recipe, drafted.prepared.view()
    journal = _journal(reader, drafted, job, metric)
    if "samples" not in journal:
        journal.put("samples", _count(reader, drafted))
    evaluator = Evaluator(
        drafted.prepared,
        _batches(reader, journal.get("samples", int), recipe, job.seed),
        metric=metric,
        judge=recipe.verify.output,
        state=recipe.data.state,
        threads=recipe.verify.threads,
        provider=recipe.provider,
    )
    target = get_target(recipe.target or default_target())
    subject = Subject(view, drafted.census, drafted.ranges.tensors, recipe, target)
    limits = limits_of(recipe.budgets, evaluator.floating)
    judged = limits.in_answers(evaluator.samples)
    trials = Trials(Maker(drafted.prepared, subject), evaluator, judged, journal, job.progress)
    return _search(drafted, job, trials, limits)


def searched_nearer(found: Searched, job: Job, proof: Receipt) -> Searched:
    """Search for a plan that loses less than what was found, by as much as the proof asks for.

    For when more is lost on other samples. Of a few samples often no answer changes at all, so that
    the noise is to fall too. At first it falls by half of what the miss says, since the plan is
    wanted that just keeps the limits; a plan that misses again is to make good for all of it.

    Where its ranges leave outliers out, and much more is lost, or again, these were no accidents,
    but what other samples are like: then the search goes on with the ranges that were observed.

    Raises:
        OnnxqError: See ``onnxq.errors`` for the tree.
    """
    missed = _missed_db(proof)
    if found.observed is not None and (found.nearer or missed > _MOST_DB):
        drafted, trials = found.observed
        return _search(drafted, job, trials, found.limits)
    db = missed / 2
    db = min(2 * db + _LAST_DB, 2 * _MOST_DB) if found.nearer else min(db, _MOST_DB)
    limits = found.trials.limits.tightened(10 ** (-db / 20))
    loss = found.trials.attempts[key_of(found.draft.plan)].loss
    exact = loss.typical_db == found.trials.evaluator.floating.typical_db
    if loss.typical_db is not None and not exact:
        limits = with_fields(limits, min_typical=loss.typical_db + db)
    elif loss.sqnr_db is not None:  # half of the samples are as in float: the others decide
        wanted = loss.sqnr_db + db
        limits = with_fields(limits, min_sqnr=max(wanted, limits.min_sqnr or wanted))
    trials = replace(found.trials, limits=limits, attempts={}, assignments={})
    again = _search(found.draft, job, trials, found.limits)
    if found.observed is not None and not again.within:
        drafted, trials = found.observed
        return _search(drafted, job, trials, found.limits)
    return replace(again, observed=again.observed or found.observed)


def _missed_db(proof: Receipt) -> float:
    """By how much noise is to fall for the proof to hold, in dB.

    Answers that change are about proportional to its amplitude; they are counted at the worst that
    chance leaves. What was measured in dB is missed on the way from one set of samples to another,
    and counts twice: none of it can be spared.
    """
    found = [0.0]
    for gate in proof.gates:
        if gate.passed or gate.name not in _OF_ACCURACY:
            continue
        worst = gate.value if gate.bound is None else gate.bound
        if worst is None:
            return math.inf
        if gate.name == "min_sqnr":
            found.append(2 * (gate.limit - worst))
        else:
            kept = gate.name == "min_agreement"
            lost, most = (1 - worst, 1 - gate.limit) if kept else (worst, gate.limit)
            found.append(20 * math.log10(lost / most) if most > 0 else math.inf)
    return max(found)


def _search(drafted: Draft, job: Job, trials: Trials, limits: Limits) -> Searched:
    """Search, at first with ranges that leave outliers out where layers lose less so."""
    other = leaving_outliers_out(drafted, trials, limits)
    if other is None:
        return _searched(drafted, trials, limits, job)
    observed = replace(drafted, trimmed=None), replace(trials, attempts={}, assignments={})
    found = _searched(*other, limits, job)
    if found.within:
        before = _listed(trials.attempts.values())
        return replace(found, candidates=before + found.candidates, observed=observed)
    plain = _searched(*observed, limits, job)
    before = tuple(with_fields(candidate, chosen=False) for candidate in found.candidates)
    return replace(plain, candidates=before + plain.candidates)


def _searched(drafted: Draft, trials: Trials, limits: Limits, job: Job) -> Searched:
    noise_of = _Noise(drafted, trials.evaluator, trials, job).of
    feed = _complete_feed(drafted, trials.evaluator.batches[0])
    found, fastest = _find(trials, feed, noise_of, job.recipe, drafted)
    return Searched(
        replace(drafted, plan=found.plan),
        _candidates(found, fastest),
        limits,
        found.within,
        trials,
        found.front,
    )


def _find(
    trials: Trials, feed: Feed, noise_of: NoiseOf, asked: Recipe, drafted: Draft
) -> tuple[Found, Fastest | None]:
    recipe = drafted.recipe
    if _timed(asked) and recipe.provider.is_cpu:
        fastest = find_fastest(
            trials,
            feed,
            noise_of,
            _precisions(asked, drafted),
            storage=asked.precision is None,
            threads=recipe.verify.threads,
            seconds=recipe.verify.seconds,
        )
        return fastest.found, fastest
    smallest = objective_of(asked) == "size" and asked.precision is None
    options = untimed(trials.maker, None if smallest else recipe.usual)
    found = search_plan(trials, options, noise_of)
    if objective_of(asked) == "latency" and asked.precision is None:
        found = stored(trials, found)
    if _timed(asked):
        fastest = fastest_of(
            trials,
            feed,
            found,
            provider=recipe.provider,
            storage=asked.precision is None,
            threads=recipe.verify.threads,
            seconds=recipe.verify.seconds,
        )
        return fastest.found, fastest
    return found, None


def _precisions(asked: Recipe, drafted: Draft) -> tuple[Precision, ...]:
    if asked.precision is not None:
        return (asked.usual,)
    return _AUTO if drafted.ranges.tensors else (Precision.INT8_DYNAMIC,)


def _runs_here(recipe: Recipe) -> bool:
    target = get_target(recipe.target or default_target(recipe.provider))
    return target.provider == recipe.provider.runtime_name


def _samples(drafted: Draft) -> tuple[Reader, Draft]:
    """The samples that plans are judged by, and the draft with those that prove the result."""
    assert drafted.test is not None
    if drafted.judging is None:
        judging, proving = drafted.test.split(0.5)
        return judging, replace(drafted, test=proving)
    return drafted.judging, drafted


def _journal(reader: Reader, drafted: Draft, job: Job, metric: MetricChoice) -> Journal:
    """What was found by the same run before."""
    facts = (
        sha256(drafted.source), job.recipe.digest(), reader.digest(), job.seed,
        metric.name, metric.code, job.prepare, _digest(drafted.ranges.tensors),
        environment(drafted.recipe.provider), drafted.plan.target,
    )  # fmt: skip
    shelf = Shelf.of(job.cache / "plans", facts, certain=False) if job.cache is not None else None
    return Journal(shelf.journal if shelf is not None else None, repr(facts))


def _digest(value: object) -> str:
    """SHA-256 of anything that serialises."""
    return hashlib.sha256(msgspec.json.encode(value, order="sorted")).hexdigest()


def _complete_feed(drafted: Draft, batch: Batch) -> Feed:
    view = drafted.prepared.view()
    return StateLoop(drafted.recipe.data.state, view.inputs, view.output_names).complete(batch.feed)


def _count(reader: Reader, drafted: Draft) -> int:
    """As many samples as the float model runs in a given time."""
    first = next(reader.batches(drafted.recipe.data.batch_size))
    recipe, feed = drafted.recipe, _complete_feed(drafted, first)
    with Session(
        drafted.prepared, provider=recipe.provider, threads=recipe.verify.threads
    ) as session:
        session.run(feed)
        spent = min(_seconds(session, feed) for _ in range(_LOOKS))  # what disturbs makes longer
    each = spent / max(first.count, 1)
    return int(min(max(_SECONDS / max(each, 1e-9), _LEAST), _MOST))


def _seconds(session: Session, feed: Feed) -> float:
    started = time.perf_counter()
    session.run(feed)
    return time.perf_counter() - started


def _batches(reader: Reader, samples: int, recipe: Recipe, seed: int) -> list[Batch]:
    return list(draw(reader, samples, recipe, seed).batches(recipe.data.batch_size))


class _Noise:
    """The noise that every layer makes alone, found when it is asked for."""

    def __init__(self, drafted: Draft, evaluator: Evaluator, trials: Trials, job: Job) -> None:
        self._drafted, self._trials, self._job = drafted, trials, job
        self._ranges = _digest(trials.maker.subject.ranges)
        few, count = [], 0
        for batch in evaluator.batches:
            if count < _NOISE_SAMPLES:
                few.append(batch)
                count += batch.count
        self._batches = few

    def of(self, precision: Precision, names: Collection[str]) -> dict[str, float]:
        """Noise energy per unit of signal at the worst output, by layer."""
        journal = self._trials.journal
        known = f"noise {precision} {self._ranges}"
        found: dict[str, float] = {}
        if known in journal:
            found = journal.get(known, dict[str, float])
        missing = [name for name in names if name not in found]
        if missing:
            # what has no noise of its own, such as a Relu, is known to have none
            found |= dict.fromkeys(missing, 0.0) | self._measure(precision, missing)
            journal.put(known, found)
        return found

    def _measure(self, precision: Precision, names: Collection[str]) -> dict[str, float]:
        subject, recipe = self._trials.maker.subject, self._drafted.recipe
        evaluator = Evaluator(
            self._drafted.prepared,
            self._batches,
            state=recipe.data.state,
            threads=recipe.verify.threads,
            provider=recipe.provider,
        )
        report = analyze(
            self._drafted.prepared,
            subject.census,
            subject.ranges,
            recipe_for(recipe, precision),
            subject.target,
            evaluator,
            [precision],
            method="screen",
            rest=False,
            layers=names,
            workers=self._job.workers,
            progress=self._job.progress,
        )
        return {
            layer.name: 10 ** (-layer.only.sqnr_db / 10)
            for layer in report.layers
            if layer.only.sqnr_db is not None
        }


def _candidates(found: Found, fastest: Fastest | None) -> tuple[Candidate, ...]:
    times = fastest.times if fastest is not None else {}
    return _listed(found.attempts, times, key_of(found.plan))


def _listed(
    attempts: Collection[Attempt], times: Mapping[str, Time] | None = None, chosen: str = ""
) -> tuple[Candidate, ...]:
    listed = []
    for attempt in attempts:
        timed = (times or {}).get(attempt.key)
        loss = attempt.loss
        listed.append(
            Candidate(
                attempt.name,
                None,
                timed.ms if timed is not None else None,
                timed.ratio if timed is not None else None,
                attempt.nodes,
                loss.sqnr_db,
                loss.agreement,
                loss.metric,
                attempt.within,
                attempt.key == chosen,
            )
        )
    return tuple(listed)


def keeps_limits(receipt: Receipt) -> bool:
    """Whether the proof holds: what may be lost is not lost on samples nobody searched with."""
    return all(gate.passed for gate in receipt.gates if gate.name in _OF_ACCURACY)


def usual_gates(limits: Limits, measured: Measured) -> tuple[Gate, ...]:
    """What is asked of everybody, held against a proof by its figures alone."""
    read = limits.in_answers(measured.samples)
    budgets = Budgets(
        max_drop=read.max_drop, min_sqnr=read.min_sqnr, min_agreement=read.min_agreement
    )
    return tuple(
        with_fields(gate, note=_usual_note(gate, limits, measured.samples))
        for gate in check_gates(budgets, measured)
    )


def _usual_note(gate: Gate, limits: Limits, samples: int) -> str:
    if gate.name != "min_agreement" or limits.min_agreement is None:
        return _USUAL
    changed = round((1 - gate.limit) * samples)
    return (
        f"{_USUAL}: {limits.min_agreement:.4g} of the answers the same, in whole answers, "
        f"so that {changed} of {samples} may change"
    )


def with_search(receipt: Receipt, found: Searched, asked: Recipe) -> Receipt:
    """The receipt with what was tried, and gates for what was asked beside the budgets."""
    measured = receipt.measured
    gates = receipt.gates
    if found.limits.usual:
        gates += usual_gates(found.limits, measured)
    latency = measured.latency
    timed = objective_of(asked) == "latency" and _runs_here(asked)
    if timed and latency is not None and not asked.allow_slower:
        least = round(1 - min(max(_SAME_SPEED, latency.noise), _MOST_NOISE), 3)
        passed = latency.ratio_prepared >= least
        note = "" if passed else "nothing that was tried is faster; --allow-slower takes it so"
        gates += (Gate("not_slower", least, latency.ratio_prepared, passed, note=note),)
    receipt = with_fields(receipt, gates=gates)
    notes = () if keeps_limits(receipt) else (_HELP.format(limits=found.limits),)
    if found.nearer:
        notes = (_NEARER.format(limits=found.limits, nearer=found.trials.limits), *notes)
    measured = with_fields(
        measured,
        candidates=measured.candidates + found.candidates,
        notes=measured.notes + notes,
    )
    return with_fields(receipt, measured=measured)
