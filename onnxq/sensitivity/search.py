"""``search_plan``: the best plan inside a budget, found with few evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from onnxq.plan import Choice, QuantPlan
from onnxq.sensitivity.evaluate import Evaluator
from onnxq.sensitivity.journal import Journal
from onnxq.sensitivity.ladder import ladder
from onnxq.sensitivity.limits import Limits
from onnxq.sensitivity.maker import Maker, chosen, key_of
from onnxq.sensitivity.options import Assignment, Options
from onnxq.sensitivity.values import FrontPoint, Loss
from onnxq.types import Precision

# Layers are given back to integers in so many trials, the quietest of them after the rung below.
_EXCHANGES, _LISTENED = 8, 32
# The noise that some layers make, each alone in a precision.
NoiseOf = Callable[[Precision, Collection[str]], Mapping[str, float]]
Progress = Callable[[str, int, int], None]


class Attempt(msgspec.Struct, frozen=True, omit_defaults=True):
    """A plan that was tried.

    Attributes:
        name: What it is called in the table of candidates.
        nodes: How many nodes compute in each precision.
        loss: What it lost on the evaluation samples.
        within: Whether that is inside the limits; never for a plan that is all float.
        cost: What it costs by the model of costs of the objective; None where it has none.
        key: What tells its model from others.
    """

    name: str
    nodes: dict[str, int]
    loss: Loss
    within: bool
    cost: float | None = None
    key: str = ""


@dataclass(frozen=True)
class Found:
    """What a search ended with.

    Attributes:
        plan: The best plan; where none is within the limits, the one that loses least.
        assignment: The precision that it gives to every node that is not float.
        within: Whether it is within the limits.
        attempts: What was tried, in order.
        front: The best plans from the cheapest to all float.
    """

    plan: QuantPlan
    assignment: Assignment
    within: bool
    attempts: tuple[Attempt, ...]
    front: tuple[FrontPoint, ...] = ()

    @property
    def evaluations(self) -> int:
        """How many models were run on the evaluation samples."""
        return len(self.attempts)


@dataclass
class Trials:
    """Tries plans, each once, and remembers what came out.

    Attributes:
        maker: Makes their models.
        evaluator: Judges them.
        limits: What they may lose.
        journal: Remembers losses beyond this run.
        progress: Called with (``search``, plans tried, 0).
        attempts: What was tried, by the keys of plans.
        assignments: The assignments of these plans.
    """

    maker: Maker
    evaluator: Evaluator
    limits: Limits
    journal: Journal
    progress: Progress | None = None
    attempts: dict[str, Attempt] = field(default_factory=dict)
    assignments: dict[str, Assignment] = field(default_factory=dict)

    def plan(self, assignment: Assignment, why: Mapping[str, str] | None = None) -> QuantPlan:
        """The plan of an assignment; nodes that it leaves out are float. Some have a reason."""
        told = {
            name: Choice(assignment.get(name, Precision.FLOAT), sentence)
            for name, sentence in (why or {}).items()
        }
        return self.maker.plan(chosen(assignment) | told)

    def attempt(self, name: str, assignment: Assignment, cost: float | None = None) -> Attempt:
        """Judge a plan; one that makes the same model as an earlier one is not run again."""
        plan = self.plan(assignment)
        key = key_of(plan)
        if key not in self.attempts:
            loss = self._loss(key, plan)
            kept = self.limits.kept(loss, self.evaluator.floating.metric)
            within = kept and not plan.empty  # the float model itself is no answer
            counts = {p.value: plan.count(p) for p in Precision if plan.count(p)}
            self.attempts[key] = Attempt(name, counts, loss, within, cost, key)
            self.assignments[key] = assignment
            if self.progress is not None:
                self.progress("search", len(self.attempts), 0)
        return self.attempts[key]

    def least_lossy(self) -> Assignment:
        """Of what was tried and quantizes anything, what comes nearest to the float model."""
        tried = [key for key, attempt in self.attempts.items() if set(attempt.nodes) != {"float"}]
        if not tried:
            return {}
        return self.assignments[max(tried, key=lambda key: _nearness(self.attempts[key].loss))]

    def _loss(self, key: str, plan: QuantPlan) -> Loss:
        known = f"loss {key} of {self.evaluator.samples}"
        if known not in self.journal:
            self.journal.put(known, self.evaluator.loss(self.maker.build(plan)))
        loss: Loss = self.journal.get(known, Loss)
        return loss


def search_plan(
    trials: Trials,
    options: Options,
    noise_of: NoiseOf,
    first: Sequence[Assignment] = (),
) -> Found:
    """Find the cheapest plan within the limits.

    The cheapest plan of all is tried first. Where it loses too much, a unit of noise is given a
    price: the higher it is, the more of the layers that hurt most for what they save go back to
    float. Swept, it draws a ladder of plans, from the cheapest to all float, each the exact optimum
    for its price; the first one within the limits is found by steps that double, and bisection.
    Then layers are given back to integers, in groups, while the limits are kept: first those that
    the rung below still had, then others.

    Args:
        trials: The model, the samples, and what may be lost.
        options: What may be chosen, and what it costs.
        noise_of: The noise that every layer makes alone, by precision; asked for only when the
            cheapest plan loses too much.
        first: Assignments to try before all others: the first that is within the limits is taken.

    Returns:
        The plan, and all that was tried.

    Raises:
        RuntimeFailure: A model fails on the samples.
    """
    return _Search(trials, options, noise_of).run(first)


class _Search:
    def __init__(self, trials: Trials, options: Options, noise_of: NoiseOf) -> None:
        self._trials, self._options, self._noise_of = trials, options, noise_of
        self._ladder: list[Assignment] = []
        self._alone: Mapping[Precision, Mapping[str, float]] = {}

    def run(self, first: Sequence[Assignment]) -> Found:
        for assignment in first or [self._options.assign(0.0, {})]:
            if self._within(assignment, "cheapest plan"):
                return self._found(assignment)
        self._ladder = self._rungs()
        rung = self._climb()
        best = self._ladder[rung]
        if self._reaches(rung) and rung > 0:
            best = self._give_back(best, self._ladder[rung - 1])
        return self._found(best)

    def _rungs(self) -> list[Assignment]:
        """The ladder; noise is measured of what the cheapest plan has on integers."""
        cheapest = self._options.assign(0.0, {})
        self._alone = {
            p: noise_among(self._noise_of, p, cheapest) for p in self._options.precisions
        }
        return ladder(self._options, self._alone)

    def _climb(self) -> int:
        """The first rung within the limits; where none is, the last one.

        Steps that double, then bisection: few answers that change make a plan's loss jump from
        rung to rung, and of several that would do the lowest is wanted. The float model itself is
        no answer: rungs that make it are left out.
        """
        last = len(self._ladder) - 1
        while last > 0 and self._trials.plan(self._ladder[last]).empty:
            last -= 1
        low, high = min(1, last), min(1, last)
        while high < last and not self._reaches(high):
            low, high = high + 1, min(2 * high, last)
        while low < high:
            middle = (low + high) // 2
            if self._reaches(middle):
                high = middle
            else:
                low = middle + 1
        return low

    def _reaches(self, rung: int) -> bool:
        name = f"step {rung} of {len(self._ladder) - 1} to float"
        return self._within(self._ladder[rung], name)

    def _within(self, assignment: Assignment, name: str) -> bool:
        return self._trials.attempt(name, assignment, self._options.cost(assignment)).within

    def _give_back(self, best: Assignment, faster: Assignment) -> Assignment:
        """Add what faster plans have beyond this one, while the limits are kept.

        First what the rung below has, then all else that went to float. Groups that are kept double
        and others are halved, so that a few bad layers among many harmless ones cost few trials.
        """
        queue = _beyond(best, faster)
        size = max(len(queue), 1)
        queue |= self._by_harm(best, _beyond(best | queue, self._ladder[0]))
        left = list(queue)
        most = len(self._trials.attempts) + min(_EXCHANGES, (len(left) + 1) // 2)
        while left and len(self._trials.attempts) < most:
            size = min(size, len(left))
            trial = best | {name: queue[name] for name in left[:size]}
            helps = self._options.cost(trial) < self._options.cost(best)
            if helps and self._within(trial, "layers given back"):
                best, left, size = trial, left[size:], 2 * size
            elif size > 1:
                size //= 2
            else:
                left = left[1:]
        return best

    def _by_harm(self, best: Assignment, part: Assignment) -> Assignment:
        """Layers in the order in which they are given back: first those that round no more tensors.

        A tensor between two layers is rounded as long as one of them computes on integers, so that
        the other one adds the error of its weights alone.
        """
        rounded = self._trials.plan(best).tensors.keys()
        alone = {name: self._alone[part[name]].get(name, 0.0) for name in part}
        quiet = sorted(part, key=lambda name: alone[name])[:_LISTENED]  # a plan for each of these

        def harm(name: str) -> tuple[int, float]:
            tensors = self._trials.plan(best | {name: part[name]}).tensors.keys() - rounded
            view = self._trials.maker.view
            moved = sum(not view.is_constant(tensor) for tensor in tensors)
            return moved, alone[name]

        return {name: part[name] for name in sorted(quiet, key=harm)}

    def _found(self, assignment: Assignment) -> Found:
        trials = self._trials
        within = self._within(assignment, "plan")
        assignment = assignment if within else trials.least_lossy()
        plan = trials.plan(assignment, self._why(assignment))
        tried = tuple(trials.attempts.values())
        return Found(plan, assignment, within, tried, self._front())

    def _why(self, assignment: Assignment) -> dict[str, str]:
        """Why nodes have not what the cheapest plan gives them, or are float that could be less."""
        cheapest = self._ladder[0] if self._ladder else assignment
        whole = self._trials.maker.whole(self._options.precisions[0])
        unable = {
            n.name: reason_alone(n.reason.sentence) for n in whole.nodes if n.reason is not None
        }
        found = {}
        for node in self._trials.maker.subject.census.nodes:
            got, precision = assignment.get(node.name), cheapest.get(node.name)
            if not (node.quantizable or node.stored) or (got and got is precision):
                continue
            noise = self._alone.get(precision, {}).get(node.name) if precision else None
            if noise:
                alone = -10 * np.log10(noise)
                found[node.name] = f"{precision} of this layer alone leaves {alone:.1f} dB"
            elif got is None and (said := self._options.why(node.name) or unable.get(node.name)):
                found[node.name] = said
        return found

    def _front(self) -> tuple[FrontPoint, ...]:
        free = [n.name for n in self._trials.maker.subject.census.nodes if n.quantizable]
        points = []
        for assignment in self._ladder:
            known = self._trials.attempts.get(key_of(self._trials.plan(assignment)))
            kept = tuple(name for name in free if name not in assignment)
            loss = known.loss if known is not None else None
            points.append(FrontPoint(kept, self._options.cost(assignment) / 1e3, loss))
        return tuple(points)


def noise_among(
    noise_of: NoiseOf, precision: Precision, names: Collection[str]
) -> dict[str, float]:
    """What is known of some layers; what vanishes into a layer before it adds nothing."""
    found = noise_of(precision, names)
    return {name: found.get(name, 0.0) for name in names}


def _beyond(best: Assignment, other: Assignment) -> Assignment:
    """What another plan has beyond one."""
    return {name: p for name, p in other.items() if best.get(name) is not p}


def reason_alone(sentence: str) -> str:
    """What follows "stays float: " in a reason, which a plan says anew."""
    return sentence.rpartition("stays float: ")[2]


def _nearness(loss: Loss) -> tuple[float, float]:
    """How near a model is to the float model: by SQNR, or else by its answers."""
    return loss.sqnr_db if loss.sqnr_db is not None else -math.inf, loss.agreement or 0.0
