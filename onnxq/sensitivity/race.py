"""``race``: which of several models is the fastest, by runs that take turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from onnxq.graph import Model
from onnxq.runtime import measure_models
from onnxq.targets import CPU, Provider
from onnxq.types import Feed

# A model that is slower than the best by more than this and by more than the noise is out.
_BEHIND = 0.03
_LAPS = 2


class Time(msgspec.Struct, frozen=True):
    """How fast a model ran beside the prepared float model.

    Attributes:
        ms: Median milliseconds of a run.
        ratio: Of the float model's time to this one's: above 1 this one is faster.
        noise: How far the ratio may be off by chance, relative to it.
    """

    ms: float
    ratio: float
    noise: float


def race(
    floating: Model,
    models: Mapping[str, Model],
    feed: Feed,
    *,
    provider: Provider = CPU,
    threads: int = 1,
    seconds: float = 3.0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Time]:
    """Time models beside the float model; those that fall behind leave early.

    Args:
        floating: The prepared float model.
        models: The others, by name.
        feed: What all are fed.
        provider: Where they run.
        threads: Threads inside an operator.
        seconds: About how long to measure in all.
        progress: Called with (laps done, laps).

    Returns:
        The time of every model, measured the longer the faster it is.

    Raises:
        RuntimeFailure: A model cannot be loaded, or fails on the feed.
    """
    left = dict(models)
    times: dict[str, Time] = {}
    for lap in range(_LAPS):
        if left:
            times |= _lap(floating, left, feed, provider, threads, seconds / _LAPS)
        best = max((times[name].ratio for name in left), default=0.0)
        left = {
            name: model
            for name, model in left.items()
            if times[name].ratio * (1 + _BEHIND + times[name].noise) >= best
        }
        if progress is not None:
            progress(lap + 1, _LAPS)
    return times


def _lap(
    floating: Model,
    models: Mapping[str, Model],
    feed: Feed,
    provider: Provider,
    threads: int,
    seconds: float,
) -> dict[str, Time]:
    found = measure_models(
        [floating, *models.values()], feed, provider=provider, threads=threads, seconds=seconds
    )
    return {
        name: Time(found.ms[i], found.ratio(0, i), found.noise(0, i))
        for i, name in enumerate(models, start=1)
    }
