"""``measured_front``: latency against accuracy, along plans that keep more and more float."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from msgspec.structs import replace as with_fields

from onnxq.plan import QuantPlan
from onnxq.runtime import Session, measure_latency
from onnxq.sensitivity.costs import PRICES, LayerTimes
from onnxq.sensitivity.evaluate import Evaluator
from onnxq.sensitivity.ladder import ladder
from onnxq.sensitivity.maker import Maker, chosen, key_of
from onnxq.sensitivity.options import Assignment, LatencyOptions
from onnxq.sensitivity.values import FrontPoint, LayerSensitivity, Loss
from onnxq.types import Feed, Precision

# Plans of a ladder that are built, judged and timed; what lies between them is predicted.
BUILT = 8
# Shares of the seconds that latency may take.
_PRICES, _POINTS = 0.3, 0.7
# plans judged, plans in all
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Stopwatch:
    """How models are timed.

    Attributes:
        feed: What they are fed.
        threads: Threads inside an operator.
        seconds: About how long to measure in all.
    """

    feed: Feed
    threads: int = 1
    seconds: float = 5.0

    def ms(self, maker: Maker, plans: Iterable[QuantPlan], share: float) -> list[float]:
        """Milliseconds of a run of the model that each plan makes, in turns."""
        sessions = [Session(maker.build(plan), threads=self.threads) for plan in plans]
        found = measure_latency(sessions, self.feed, seconds=self.seconds * share)
        return list(found.ms)


def measured_front(
    maker: Maker,
    evaluator: Evaluator,
    layers: Sequence[LayerSensitivity],
    times: LayerTimes,
    watch: Stopwatch,
    progress: Progress | None = None,
) -> tuple[FrontPoint, ...]:
    """The Pareto front of latency against accuracy.

    A ladder of plans is drawn out of what every layer takes and the noise that it makes alone.
    Some of them, and the plan that keeps nothing float, are built, judged and timed in turns; those
    that another one beats in both go.

    Args:
        maker: The model.
        evaluator: The samples to judge plans with.
        layers: What each layer loses.
        times: What each node takes; only what computes with static or dynamic integers counts.
        watch: How plans are timed.
        progress: Called with (plans judged, plans in all).

    Returns:
        Points in the order of their predicted latency; none where nothing was timed that can be
        faster than float.

    Raises:
        RuntimeFailure: A plan's model cannot be loaded, or fails.
    """
    wanted = {p: by for p, by in times.quantized.items() if by and _computes(p)}
    if not wanted:
        return ()
    options = _options(maker, with_fields(times, quantized=wanted), watch)
    whole = _whole(options)
    rungs = sorted([whole, *ladder(options, _noise(options, layers))], key=options.cost)
    plans: dict[str, QuantPlan] = {}
    points: dict[str, FrontPoint] = {}
    for rung in rungs:
        plan = _plan(maker, rung)
        plans[key_of(plan)] = plan
        point = FrontPoint(_kept_float(plan, layers), options.cost(rung) / 1e3)
        points.setdefault(key_of(plan), point)
    built = dict.fromkeys([*_spread(list(plans), BUILT), key_of(_plan(maker, whole))])
    spent = watch.ms(maker, [plans[key] for key in built], _POINTS)
    for number, (key, ms) in enumerate(zip(built, spent, strict=True), start=1):
        loss = evaluator.loss(maker.build(plans[key]))
        points[key] = with_fields(points[key], loss=loss, ms=ms)
        if progress is not None:
            progress(number, len(built))
    found = tuple(points.values())
    return tuple(point for point in found if not any(_beats(other, point) for other in found))


def _spread(keys: Sequence[str], count: int) -> list[str]:
    """Some keys, the first and the last one among them, at even distances."""
    places = np.linspace(0, len(keys) - 1, min(count, len(keys)))
    return [keys[int(place)] for place in places.round()]


def _computes(precision: Precision) -> bool:
    return precision.static or precision is Precision.INT8_DYNAMIC


def _plan(maker: Maker, assignment: Assignment) -> QuantPlan:
    return maker.plan(chosen(assignment))


def _whole(options: LatencyOptions) -> Assignment:
    """What keeps nothing float that can be quantized; static integers come before dynamic ones."""
    known = sorted(options.times.quantized.items(), key=lambda item: item[0].static)
    pins = options.maker.pins
    return {name: precision for precision, by in known for name in by if name not in pins}


def _options(maker: Maker, times: LayerTimes, watch: Stopwatch) -> LatencyOptions:
    """Options at the price of a crossing whose cheapest plan is the fastest."""
    found = [LatencyOptions(maker, times, price) for price in PRICES]
    plans = {key_of(plan): plan for plan in (_plan(maker, o.assign(0.0, {})) for o in found)}
    ms = dict(zip(plans, watch.ms(maker, plans.values(), _PRICES), strict=True))
    return min(found, key=lambda o: ms[key_of(_plan(maker, o.assign(0.0, {})))])


def _noise(
    options: LatencyOptions, layers: Iterable[LayerSensitivity]
) -> dict[Precision, dict[str, float]]:
    """Noise by precision and node; what vanishes into a layer before it adds nothing."""
    noise = {p: dict.fromkeys(by, 0.0) for p, by in options.times.quantized.items()}
    for layer in layers:
        if layer.precision in noise and layer.only.sqnr_db is not None:
            noise[layer.precision][layer.name] = 10 ** (-layer.only.sqnr_db / 10)
    return noise


def _kept_float(plan: QuantPlan, layers: Iterable[LayerSensitivity]) -> tuple[str, ...]:
    floating = set(plan.named(Precision.FLOAT))
    names = dict.fromkeys(layer.name for layer in layers if _computes(layer.precision))
    return tuple(name for name in names if name in floating)


def _beats(one: FrontPoint, other: FrontPoint) -> bool:
    """Whether a plan is at least as good in both, and better in one."""
    if one.loss is None or other.loss is None or one.ms is None or other.ms is None:
        return False
    mine, theirs = (one.ms, _lost(one.loss)), (other.ms, _lost(other.loss))
    return mine != theirs and mine[0] <= theirs[0] and mine[1] <= theirs[1]


def _lost(loss: Loss) -> tuple[float, float, float]:
    """How far from the float model: by SQNR, or else by class scores or answers."""
    ratio = -math.inf if loss.sqnr_db is None else loss.sqnr_db
    return -ratio, loss.kl or 0.0, -(loss.agreement or 0.0)
