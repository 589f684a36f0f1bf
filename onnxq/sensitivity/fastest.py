"""``find_fastest``: the fastest plan inside the limits, as measured on this machine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from onnxq.plan import QuantPlan
from onnxq.sensitivity.costs import PRICES, LayerTimes, measure_times
from onnxq.sensitivity.maker import Maker, key_of
from onnxq.sensitivity.options import Assignment, LatencyOptions
from onnxq.sensitivity.quieter import (
    HALF_DB,
    SLOWER,
    Quieter,
    find_quieter,
    quieter_than,
    wants_quiet,
)
from onnxq.sensitivity.race import Time, race
from onnxq.sensitivity.search import Found, NoiseOf, Trials, reason_alone, search_plan
from onnxq.sensitivity.storage import with_storage
from onnxq.types import Feed, Precision

# Ratios closer than this are the same speed: the smaller file wins.
_SAME = 0.02
# Shares of the seconds that latency may take.
_PROFILE, _RACE, _FINAL = 0.3, 0.8, 0.8
_QUIETER, _ANY = "quieter plan", -math.inf


@dataclass(frozen=True)
class Fastest:
    """What was found, and how fast everything ran beside the prepared float model.

    Attributes:
        found: The best plan, and what was tried.
        times: By the keys of plans.
        layers: What every node takes.
    """

    found: Found
    times: Mapping[str, Time]
    layers: LayerTimes

    @property
    def time(self) -> Time | None:
        """The time of the plan; None where it is the float model."""
        return self.times.get(key_of(self.found.plan))


def find_fastest(
    trials: Trials,
    feed: Feed,
    noise_of: NoiseOf,
    precisions: tuple[Precision, ...],
    *,
    storage: bool = True,
    threads: int = 1,
    seconds: float = 5.0,
) -> Fastest:
    """Find the fastest plan inside the limits.

    Every node is profiled in float and in each precision. Minimum cuts at several prices of a
    crossing give plans, which race each other and the plans that have one precision everywhere;
    the price whose plan wins is the one that the search goes on with. What it finds races once more
    against all that is inside the limits.

    Args:
        trials: The model, the samples, and what may be lost.
        feed: What is timed.
        noise_of: The noise that every layer makes alone.
        precisions: What nodes may compute in beside float: static ones and dynamic.
        storage: Whether layers that stay float may store int8 weights, which costs no time.
        threads: Threads inside an operator.
        seconds: About how long to measure.

    Raises:
        RuntimeFailure: A model cannot be loaded, or fails.
    """
    return _Hunt(trials, feed, noise_of, threads, seconds, storage).run(precisions)


@dataclass
class _Hunt:
    trials: Trials
    feed: Feed
    noise_of: NoiseOf
    threads: int
    seconds: float
    storage: bool
    times: dict[str, Time] = field(default_factory=dict)

    @property
    def maker(self) -> Maker:
        return self.trials.maker

    def run(self, precisions: tuple[Precision, ...]) -> Fastest:
        wholes = {p: plan for p in precisions if (plan := self.maker.whole(p)).count(p)}
        layers = self._layers(wholes)
        families = {f"all {p}": _assigned(plan, p) for p, plan in wholes.items()}
        cuts = {
            f"cut at {price:g} ns": LatencyOptions(self.maker, layers, price).assign(0.0, {})
            for price in PRICES
        }
        self._race(families | cuts, self.seconds * _RACE)
        price = max(PRICES, key=lambda price: self._ratio(cuts[f"cut at {price:g} ns"]))
        options = LatencyOptions(self.maker, layers, price)
        for name, assignment in families.items():
            self.trials.attempt(name, assignment)
        cheapest = options.assign(0.0, {})
        found = search_plan(self.trials, options, self.noise_of, [cheapest])
        quiet = None
        if found.within and found.assignment == cheapest:
            quiet = find_quieter(self.trials, options, cheapest, self.noise_of)
        return Fastest(self._best(found, families | cuts, quiet), self.times, layers)

    def _layers(self, wholes: Mapping[Precision, QuantPlan]) -> LayerTimes:
        journal, known = self.trials.journal, "layers"
        if known not in journal:
            seconds = self.seconds * _PROFILE
            found = measure_times(
                self.maker, wholes, self.feed, threads=self.threads, seconds=seconds
            )
            journal.put(known, found)
        layers: LayerTimes = journal.get(known, LayerTimes)
        return layers

    def _best(self, found: Found, others: Mapping[str, Assignment], quiet: Quieter | None) -> Found:
        """The fastest of what was found and all else inside the limits; of equals the smallest."""
        final = {"mix": found.assignment}
        final |= {} if quiet is None else {_QUIETER: quiet.assignment}
        keys = {key_of(self.trials.plan(a)): (name, a) for name, a in others.items()}
        within = {key for key, attempt in self.trials.attempts.items() if attempt.within}
        final |= dict(keys[key] for key in keys if key in within)
        if self.storage:
            final = self._stored(final)
        self._race(final, self.seconds * _FINAL)
        inside = [a for n, a in final.items() if a and self.trials.attempt(n, a).within]
        chosen = self._chosen(inside) if inside else self.trials.least_lossy()
        why = {
            node.name: reason_alone(node.reason.sentence)
            for node in found.plan.nodes
            if node.reason is not None and node.precision in (Precision.FLOAT, Precision.FP16)
        }
        if quiet is not None and _computing(chosen) == quiet.assignment:
            why |= quiet.why
        plan = self.trials.plan(chosen, {n: why[n] for n in why if n not in chosen})
        tried = tuple(self.trials.attempts.values())
        return replace(found, plan=plan, assignment=chosen, within=bool(inside), attempts=tried)

    def _chosen(self, inside: Sequence[Assignment]) -> Assignment:
        """The fastest; or a much quieter one that is little slower, where that is wanted."""
        fastest = self._fastest(inside)
        if not wants_quiet(self.trials):
            return fastest
        least = self._ratio(fastest) * (1 - SLOWER)
        calm = [a for a in inside if self._ratio(a) >= least and _computing(a)]
        calm = [a for a in calm if quieter_than(self.trials, a, fastest)]
        return self._fastest(calm) if calm else fastest

    def _fastest(self, inside: Sequence[Assignment]) -> Assignment:
        """Of those that are as fast as the fastest, the one with the smallest file."""
        best = max(self._ratio(assignment) for assignment in inside)
        level = [a for a in inside if self._ratio(a) >= best * (1 - _SAME)]
        return max(level, key=lambda a: (_saved(self.maker, a), len(a)))

    def _stored(self, final: Mapping[str, Assignment]) -> dict[str, Assignment]:
        """The same plans, with int8 weights where their layers stay float."""
        db = self.trials.attempt("mix", final["mix"]).loss.sqnr_db
        least = {_QUIETER: db + HALF_DB} if db is not None else {}  # it is to stay a quieter one
        found = {
            name: with_storage(self.trials, given, f"{name} + int8 weights", least.get(name, _ANY))
            for name, given in final.items()
        }
        alone = with_storage(self.trials, {}, "int8 weights alone")
        return found | {"int8 weights alone": alone}

    def _ratio(self, assignment: Assignment) -> float:
        time = self.times.get(key_of(self.trials.plan(assignment)))
        return time.ratio if time is not None else 1.0

    def _race(self, assignments: Mapping[str, Assignment], seconds: float) -> None:
        """Time plans, each model once; what was timed before in the same field is remembered."""
        plans = {key_of(plan): plan for plan in map(self.trials.plan, assignments.values())}
        plans = {key: plan for key, plan in plans.items() if not plan.empty}
        known, journal = f"race {' '.join(sorted(plans))}", self.trials.journal
        if known not in journal:
            models = {key: self.maker.build(plan) for key, plan in plans.items()}
            found = race(self.maker.model, models, self.feed, threads=self.threads, seconds=seconds)
            journal.put(known, found)
        self.times |= journal.get(known, dict[str, Time])


def _computing(assignment: Assignment) -> Assignment:
    """What computes on integers, and does not only store them."""
    return {name: p for name, p in assignment.items() if p is not Precision.INT8_WEIGHTS}


def _assigned(plan: QuantPlan, precision: Precision) -> Assignment:
    return dict.fromkeys(plan.named(precision), precision)


def _saved(maker: Maker, assignment: Assignment) -> int:
    """Values of weights that are stored as integers."""
    nodes = {node.name: node for node in maker.subject.census.nodes if node.name in assignment}
    shapes = (maker.view.shape(s.tensor) or () for node in nodes.values() for s in node.stored)
    total = 0
    for shape in shapes:
        size = 1
        for axis in shape:
            size *= axis if isinstance(axis, int) else 1
        total += size
    return total
