"""``fastest_of``: the fastest plan on a provider that tells no times of nodes."""

from __future__ import annotations

from dataclasses import replace

from onnxq.plan import QuantPlan
from onnxq.sensitivity.costs import LayerTimes
from onnxq.sensitivity.fastest import Fastest
from onnxq.sensitivity.maker import key_of
from onnxq.sensitivity.race import Time, race
from onnxq.sensitivity.search import Found, Trials
from onnxq.sensitivity.storage import with_storage
from onnxq.targets import Provider
from onnxq.types import Feed


def fastest_of(
    trials: Trials,
    feed: Feed,
    found: Found,
    *,
    provider: Provider,
    storage: bool = True,
    threads: int = 1,
    seconds: float = 5.0,
) -> Fastest:
    """What a search found, or a model that stores int8 weights alone where that is faster.

    Whole models are timed: most providers compile a graph into a single kernel, so that nothing is
    known of its nodes.

    Args:
        trials: The model, the samples, and what may be lost.
        feed: What is timed.
        found: The plan with the most nodes on integers inside the limits.
        provider: Where models run.
        storage: Whether int8 weights alone will do.
        threads: Threads inside an operator.
        seconds: About how long to measure.

    Raises:
        RuntimeFailure: A model cannot be loaded, or fails.
    """
    assignments = [found.assignment]
    if storage:
        assignments.append(with_storage(trials, {}, "int8 weights alone"))
    plans = {key_of(plan): (plan, a) for a in assignments if not (plan := trials.plan(a)).empty}
    times = _times(
        trials, {key: plan for key, (plan, _) in plans.items()}, feed, provider, threads, seconds
    )
    attempts = trials.attempts
    inside = [key for key in plans if key in attempts and attempts[key].within]
    best = max(inside, key=lambda key: times[key].ratio, default=None)
    tried = tuple(attempts.values())
    if best is not None and best != key_of(found.plan):
        plan, assignment = plans[best]
        found = replace(found, plan=plan, assignment=assignment, within=True)
    return Fastest(replace(found, attempts=tried), times, LayerTimes({}, {}, {}))


def _times(
    trials: Trials,
    plans: dict[str, QuantPlan],
    feed: Feed,
    provider: Provider,
    threads: int,
    seconds: float,
) -> dict[str, Time]:
    known = f"race {' '.join(sorted(plans))}"
    if plans and known not in trials.journal:
        models = {key: trials.maker.build(plan) for key, plan in plans.items()}
        trials.journal.put(
            known,
            race(
                trials.maker.model,
                models,
                feed,
                provider=provider,
                threads=threads,
                seconds=seconds,
            ),
        )
    return trials.journal.get(known, dict[str, Time]) if plans else {}
