"""A plan that makes much less noise in little more time, for whoever set no budget."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

from onnxq.plan import Budgets
from onnxq.sensitivity.ladder import ladder
from onnxq.sensitivity.options import Assignment, Noise, Options
from onnxq.sensitivity.search import NoiseOf, Trials, noise_among
from onnxq.types import Precision

# Answers change about in proportion to the amplitude of the noise, and the few samples of a search
# often show none that does. So a model that gives answers, and whose noise is above
# -``QUIET_DB``, gets a plan with half of the noise where that costs less than a twelfth of the
# speed. Layers are picked for somewhat less than half: what adds up by the model of noise is not
# what is measured, and int8 weights are stored after that.
QUIET_DB, HALF_DB, SLOWER = 36.0, 3.0, 0.08
_AIM = 0.4
# Rungs that are tried: where the model of noise is that wrong, others are no better.
_TRIALS = 3


@dataclass(frozen=True)
class Quieter:
    """A plan that makes much less noise than the cheapest one.

    Attributes:
        assignment: What it gives to nodes.
        why: Why it leaves nodes in float that the cheapest plan does not.
    """

    assignment: Assignment
    why: Mapping[str, str]


def wants_quiet(trials: Trials) -> bool:
    """Whether less noise is worth time: a model gives answers, and nobody set a budget."""
    answers = trials.evaluator.floating.agreement is not None
    return trials.limits.usual and answers and trials.maker.subject.recipe.budgets == Budgets()


def quieter_than(trials: Trials, one: Assignment, other: Assignment) -> bool:
    """Whether the other plan is noisy, and this one half as noisy at most."""
    db, noisy = (trials.attempt("plan", plan).loss.sqnr_db for plan in (one, other))
    return db is not None and noisy is not None and noisy < QUIET_DB and db >= noisy + HALF_DB


def find_quieter(
    trials: Trials, options: Options, cheapest: Assignment, noise_of: NoiseOf
) -> Quieter | None:
    """The cheapest plan of the ladder with much less noise than the cheapest plan of all.

    Args:
        trials: The model, the samples, and what may be lost.
        options: What may be chosen, and what it costs.
        cheapest: The cheapest plan, which is within the limits.
        noise_of: The noise that every layer makes alone, by precision.

    Returns:
        A plan that was tried and found that quiet; None where noise is worth no time, the cheapest
        plan is quiet, or every such plan costs too much.
    """
    db = trials.attempt("plan", cheapest).loss.sqnr_db
    if not wants_quiet(trials) or db is None or db >= QUIET_DB:
        return None
    alone = {p: noise_among(noise_of, p, cheapest) for p in options.precisions}
    most = options.cost(cheapest) / (1 - SLOWER)
    least = _AIM * _sum(alone, cheapest)
    rungs = ladder(options, alone)[1:]
    quiet = (rung for rung in rungs if _sum(alone, rung) <= least)
    for rung in islice(quiet, _TRIALS):
        cost = options.cost(rung)
        if trials.plan(rung).empty or cost > most:
            return None
        within = trials.attempt("quieter plan", rung, cost).within
        if within and quieter_than(trials, rung, cheapest):
            return Quieter(rung, _why(alone, cheapest, rung))
    return None


def _why(alone: Noise, cheapest: Assignment, rung: Assignment) -> dict[str, str]:
    found = {}
    for name, precision in cheapest.items():
        noise = alone[precision].get(name)
        if name not in rung:
            found[name] = f"{precision} saves little here"
            if noise:
                leaves = f"{-10 * math.log10(noise):.1f} dB"
                found[name] = f"{precision} of this layer alone leaves {leaves}, and saves little"
    return found


def _sum(alone: Noise, assignment: Mapping[str, Precision]) -> float:
    """The noise of a plan, as if its layers were independent."""
    return sum(alone[p].get(name, 0.0) for name, p in assignment.items())
