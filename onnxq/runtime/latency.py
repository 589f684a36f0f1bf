"""Latency of several models, measured interleaved: what counts are ratios inside one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import msgspec
import numpy as np

from onnxq.graph import Model
from onnxq.runtime.session import Session
from onnxq.targets import CPU, Provider
from onnxq.types import Feed

WARM_UP = 3
# How often sessions are opened; once where opening takes longer than measuring.
OPENINGS, _LARGE = 3, 200_000_000
LEAST_ROUNDS, MOST_ROUNDS = 9, 400
# A run shorter than this is repeated inside a round: clocks and schedulers are too coarse for it.
LEAST_SPAN = 0.002
# A run shorter than this is made once more before it is timed. The model before it has taken the
# caches, which cost a detector of 3 ms up to 10 % and another form of it 2 %: whoever runs one
# model, runs it again and again.
WARMED_SPAN = 0.05


class Latency(msgspec.Struct, frozen=True):
    """Times of several models over the same rounds.

    Attributes:
        ms: Median milliseconds of one run, per model.
        rounds: How many rounds were measured; in a round every model runs.
        samples: Milliseconds by model and round.
        openings: Rounds per opening of the sessions, in their order; empty for a single one.
    """

    ms: tuple[float, ...]
    rounds: int
    samples: tuple[tuple[float, ...], ...]
    openings: tuple[int, ...] = ()

    def ratio(self, numerator: int, denominator: int) -> float:
        """Median over the rounds of one model's time divided by another's."""
        return float(np.median(self._ratios(numerator, denominator)))

    def spread(self, numerator: int, denominator: int) -> float:
        """Half the distance between the quartiles of the rounds' ratios, relative to it."""
        ratios = self._ratios(numerator, denominator)
        low, middle, high = np.percentile(ratios, (25, 50, 75))
        return float((high - low) / 2 / middle)

    def noise(self, numerator: int, denominator: int) -> float:
        """How far the median ratio may be off by chance, relative to it.

        Four standard errors: for normal noise the quartiles lie 0.6745 deviations from the median,
        whose standard error is 1.2533 deviations over the square root of the rounds. Where sessions
        were opened several times, half the range of the openings' medians, if that is more: what
        one opening has by chance, such as where its memory lies, every round of it has.
        """
        deviation = self.spread(numerator, denominator) / 0.6745
        within = float(4 * 1.2533 * deviation / np.sqrt(self.rounds))
        medians = [float(np.median(part)) for part in self._parts(numerator, denominator)]
        between = (max(medians) - min(medians)) / 2 / self.ratio(numerator, denominator)
        return max(within, between)

    def _parts(self, numerator: int, denominator: int) -> list[list[float]]:
        ratios, parts, start = self._ratios(numerator, denominator), [], 0
        for rounds in self.openings or (self.rounds,):
            parts.append(ratios[start : start + rounds])
            start += rounds
        return parts

    def _ratios(self, numerator: int, denominator: int) -> list[float]:
        pairs = zip(self.samples[numerator], self.samples[denominator], strict=True)
        return [a / b for a, b in pairs]


def measure_latency(
    sessions: Sequence[Session],
    feed: Feed,
    *,
    seconds: float,
    progress: Callable[[int, int], None] | None = None,
) -> Latency:
    """Run every session in turn, again and again, on one feed.

    Args:
        sessions: The models to compare.
        feed: What they are fed.
        seconds: About how long to measure; at least nine rounds are run in any case.
        progress: Called after every round with (percent of the time, 100).
    """
    for session in sessions:
        for _ in range(WARM_UP):
            session.run(feed)
    first = [_time(session, feed, 1) for session in sessions]
    repeats = [max(1, round(LEAST_SPAN / span)) for span in first]
    samples: list[list[float]] = [[] for _ in sessions]
    started = time.perf_counter()
    while len(samples[0]) < MOST_ROUNDS:
        spent = time.perf_counter() - started
        if len(samples[0]) >= LEAST_ROUNDS and spent > seconds:
            break
        order = list(enumerate(sessions))
        for index, session in order if len(samples[0]) % 2 else reversed(order):
            if first[index] < WARMED_SPAN:
                session.run(feed)
            samples[index].append(_time(session, feed, repeats[index]))
        if progress is not None:
            progress(min(100, int(100 * spent / max(seconds, 1e-9))), 100)
    return Latency(
        tuple(float(np.median(times)) * 1e3 for times in samples),
        len(samples[0]),
        tuple(tuple(t * 1e3 for t in times) for times in samples),
    )


def measure_models(
    models: Sequence[Model],
    feed: Feed,
    *,
    provider: Provider | Sequence[Provider] = CPU,
    threads: int = 1,
    seconds: float,
    progress: Callable[[int, int], None] | None = None,
) -> Latency:
    """Open models and run them in turn, and all of that several times.

    Five sessions of one small model differ by up to 9 % as long as they live, whatever the rounds:
    where their memory lies is chance. So sessions are opened anew, each time in another order.

    Args:
        models: The models to compare.
        feed: What they are fed.
        provider: Where they run: all of them, or one provider for each.
        threads: Threads inside an operator.
        seconds: About how long to measure in all.
        progress: Called with (percent of the time, 100).

    Raises:
        RuntimeFailure: A model cannot be loaded, or fails on the feed.
    """
    each = [provider] * len(models) if isinstance(provider, Provider) else list(provider)
    large = sum(model.weight_bytes for model in models) > _LARGE
    count = 1 if large else OPENINGS
    parts: list[Latency] = []
    for number in range(count):
        shift = number * max(1, len(models) // count) % len(models)
        order = [*range(shift, len(models)), *range(shift)]

        def tell(done: int, total: int, number: int = number) -> None:
            if progress is not None:
                progress((100 * number + 100 * done // total) // count, 100)

        with ExitStack() as stack:
            sessions = {
                index: stack.enter_context(
                    Session(models[index], provider=each[index], threads=threads)
                )
                for index in order
            }
            running = [sessions[index] for index in range(len(models))]
            parts.append(measure_latency(running, feed, seconds=seconds / count, progress=tell))
    samples = tuple(tuple(t for part in parts for t in part.samples[i]) for i in range(len(models)))
    return Latency(
        tuple(float(np.median(times)) for times in samples),
        sum(part.rounds for part in parts),
        samples,
        tuple(part.rounds for part in parts) if count > 1 else (),
    )


def _time(session: Session, feed: Feed, repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        session.run(feed)
    return (time.perf_counter() - started) / repeats
