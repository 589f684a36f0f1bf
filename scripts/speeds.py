"""Speeds of several models, told apart where measuring can."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from onnxq.graph import Model
from onnxq.runtime import Latency, measure_models
from onnxq.types import Feed

# Measurements that a pair is given of its own, each as long as the first one of all models.
AGAIN = 3
# Confidence that a ratio lies on one side: 95 % for all looks at it together (Bonferroni).
_SURE = 1 - 0.05 / (1 + AGAIN)


@dataclass(frozen=True)
class Ratio:
    """Latency of one model per latency of another.

    Attributes:
        value: How many times as fast the second one is.
        noise: How far that may be off by chance, relative to it, with 95 % confidence to
            each side, however often it was measured again.
    """

    value: float
    noise: float

    def below(self, least: float) -> bool:
        """Whether it is less, and not by chance."""
        return self.value * (1 + self.noise) < least

    def above(self, least: float) -> bool:
        """Whether it is no less, and not by chance."""
        return self.value * (1 - self.noise) >= least


class Speeds:
    """Times models in turns, and a pair of them again where it is too near to call.

    Args:
        models: By name.
        feed: What they are fed.
        seconds: About how long to measure all of them, and each pair again.
    """

    def __init__(self, models: dict[str, Model], feed: Feed, seconds: float) -> None:
        self._models, self._feed, self._seconds = models, feed, seconds
        names = list(models)
        latency = measure_models(list(models.values()), feed, seconds=seconds)
        self.ms = dict(zip(names, latency.ms, strict=True))
        self._pairs = {
            (slow, fast): openings(latency, i, j)
            for i, slow in enumerate(names)
            for j, fast in enumerate(names)
        }

    def ratio(self, slow: str, fast: str) -> Ratio:
        """How many times as fast one model is as another, by all that was measured."""
        return ratio_of(self._pairs[slow, fast])

    def settled(self, slow: str, fast: str, least: float) -> Ratio:
        """The same, measured again while chance could decide on which side of ``least`` it is."""
        for _ in range(AGAIN):
            found = self.ratio(slow, fast)
            if found.below(least) or found.above(least):
                break
            pair = [self._models[slow], self._models[fast]]
            latency = measure_models(pair, self._feed, seconds=self._seconds)
            self._pairs[slow, fast] += openings(latency, 0, 1)
        return self.ratio(slow, fast)


def openings(latency: Latency, slow: int, fast: int) -> list[float]:
    """The median ratio of the rounds of every opening of the sessions.

    In a round models run directly one after the other, so that what else the machine does divides
    out; where a session's memory lies is chance that all rounds of an opening share.
    """
    ratios = np.divide(latency.samples[slow], latency.samples[fast])
    ends = np.cumsum(latency.openings or (latency.rounds,))[:-1]
    return [float(np.median(part)) for part in np.split(ratios, ends)]


def ratio_of(found: list[float]) -> Ratio:
    """The geometric mean of openings, and its standard error times Student's quantile.

    Of a single opening nothing is known about others: any ratio is possible.
    """
    logs, freedom = np.log(found), len(found) - 1
    value = float(np.exp(logs.mean()))
    if not freedom:
        return Ratio(value, float("inf"))
    error = float(logs.std(ddof=1)) / np.sqrt(len(found))
    return Ratio(value, float(np.expm1(student.ppf(_SURE, freedom) * error)))
