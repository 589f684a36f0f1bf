"""One-sided bounds: how far a figure may be off because other samples might have been drawn.

Units, mostly single samples, are drawn again with replacement, the source's and the output's
answers to a unit together (a paired bootstrap). What is quoted is the pessimistic end of the
interval that covers the true figure with ``CONFIDENCE``. Everything is drawn with a seed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

CONFIDENCE = 0.95
# A quantile of the tail takes thousands of draws; a standard deviation does with dozens.
ROUNDS = 2000
# A round of a user's function calls it twice. These are its rounds and its seconds at most, and
# the rounds that are done however long they take.
FUNCTION_ROUNDS, FUNCTION_SECONDS, FEWEST_ROUNDS = 50, 10.0, 10
# Indices that are drawn at a time: 32 MB of them.
_AT_ONCE = 4_000_000
_NORMAL = NormalDist()
_Z = _NORMAL.inv_cdf(CONFIDENCE)
_HALVINGS = 60


def ratio_bound(above: ArrayLike, below: ArrayLike, seed: int = 0) -> float:
    """Upper bound of a ratio of sums, ``sum(above) / sum(below)``.

    By bias-corrected and accelerated percentiles (BCa; Efron 1987), which are right for skewed
    figures such as sums of energies, where plain percentiles are too narrow.

    Args:
        above: One number per unit, of shape (units,), converted to float64.
        below: The same; not negative.
        seed: Draws the units.

    Returns:
        The bound; the ratio itself with fewer than two units, or when it is not finite.
    """
    numbers = np.asarray(above, np.float64), np.asarray(below, np.float64)
    totals = numbers[0].sum(), numbers[1].sum()
    value = float(_ratio(*totals))
    if len(numbers[0]) < 2 or not np.isfinite(value):
        return value
    drawn = _draw_ratios(*numbers, np.random.default_rng(seed))
    without = _ratio(totals[0] - numbers[0], totals[1] - numbers[1])
    return float(np.quantile(drawn, _level(drawn, value, without), method="higher"))


def share_bound(lost: ArrayLike, won: ArrayLike, rows: ArrayLike, seed: int = 0) -> float:
    """Upper bound of the share of rows that are lost, less that of rows that are won.

    A bootstrap draws nothing that the samples do not hold: with no loss among 100 samples it has
    no width at all, and with one it is too narrow. So the bound is never below the score limit of
    the paired difference, which holds there: 2.7 losses where none was seen (the "rule of three"
    of exact limits, 3 / n, for the score test).

    Args:
        lost: Rows of each unit that the source has right and the output wrong, of shape (units,).
        won: The reverse.
        rows: All rows of each unit; a sample is one row.
        seed: Draws the units.

    Returns:
        The bound, at most 1; the share itself with fewer than two units.
    """
    losses, wins = np.asarray(lost, np.float64), np.asarray(won, np.float64)
    rows = np.asarray(rows, np.float64)
    bound, units = ratio_bound(losses - wins, rows, seed), len(rows)
    if units < 2:
        return bound
    # rows of one unit are no independent samples: it is units that count
    per_unit = units / rows.sum()
    scaled = float(losses.sum() * per_unit), float(wins.sum() * per_unit)
    return min(1.0, max(bound, score_limit(*scaled, units)))


def score_limit(lost: float, won: float, samples: int) -> float:
    """Upper limit of the difference of two paired shares, by the score test of Tango (1998).

    With ``won`` 0 it is the limit of Wilson for a single share.

    Args:
        lost: Samples that count for the difference.
        won: Samples that count against it.
        samples: All samples.
    """

    def score(limit: float) -> float:
        variance = 2 * _won_share(lost, won, samples, limit) + limit * (1 - limit)
        distance = lost - won - samples * limit
        return distance / math.sqrt(samples * max(variance, 1e-300))

    low, high = (lost - won) / samples, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if score(middle) < -_Z else (middle, high)
    return high


def _won_share(lost: float, won: float, samples: int, limit: float) -> float:
    """The likeliest share of won samples when the difference is ``limit``."""
    a = 2 * samples
    b = (2 * samples - lost + won) * limit - lost - won
    c = -won * limit * (1 - limit)
    return (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)


def sqnr_bound(signal: ArrayLike, noise: ArrayLike, seed: int = 0) -> float:
    """Lower bound of a signal-to-noise ratio in dB.

    Args:
        signal: Energy of the reference in each unit, of shape (units,).
        noise: Energy of the error in each unit.
        seed: Draws the units.

    Returns:
        The bound; inf without any noise.
    """
    worst = ratio_bound(noise, signal, seed)
    if np.isnan(worst) or np.isinf(worst):
        return -np.inf
    return float(-10 * np.log10(worst)) if worst > 0 else np.inf


def function_bound(
    drop: float, resampled: Callable[[Indices], float | None], units: int, scale: float, seed: int
) -> tuple[float, int] | None:
    """Upper bound of the drop of any metric, in few calls.

    By the standard deviation of the drop over the draws: unlike a quantile of the tail, it takes
    dozens of them only. Where the drop is the same in every draw, the output is as good as the
    source on each unit; as many units as could be lost unseen may then take their part of the
    metric along.

    Args:
        drop: The drop on all units.
        resampled: The drop on these units, of shape (units,) with repetitions; None where the
            metric is not defined on them.
        units: How many there are.
        scale: What the metric is worth on all units.
        seed: Draws the units.

    Returns:
        The bound, and the draws that it rests on; None with fewer than two units, or when the
        metric is undefined on too many draws.
    """
    if units < 2:
        return None
    rng, drops, start = np.random.default_rng(seed), [], time.monotonic()
    for done in range(FUNCTION_ROUNDS):
        if done >= FEWEST_ROUNDS and time.monotonic() - start > FUNCTION_SECONDS:
            break
        drops.append(resampled(rng.integers(units, size=units)))
    found = np.array([value for value in drops if value is not None])
    if len(found) < FEWEST_ROUNDS:
        return None
    deviation = float(found.std(ddof=1))
    if deviation <= 1e-12 * abs(scale):
        return drop + abs(scale) * score_limit(0, 0, units), len(found)
    return drop + _Z * deviation, len(found)


def needed_samples(samples: int, value: float, bound: float, limit: float) -> float:
    """About how many samples bring the bound to the limit, if the value stays as it is.

    A width shrinks with the root of the number of samples; where nothing at all was lost, with the
    number itself. It is inf when the value is the limit.
    """
    width, room = abs(bound - value), abs(limit - value)
    if room == 0:
        return np.inf
    if width <= score_limit(0, 0, samples) * (1 + 1e-9):
        return _Z**2 * max(1 / room - 1, 0)
    return samples * (width / room) ** 2


def _draw_ratios(above: Floats, below: Floats, rng: np.random.Generator) -> Floats:
    """The ratio in every draw, of shape (ROUNDS,)."""
    units, found = len(above), []
    step = max(1, _AT_ONCE // units)
    for first in range(0, ROUNDS, step):
        rows = min(step, ROUNDS - first)
        drawn = rng.integers(units, size=(rows, units))
        found.append(_ratio(above[drawn].sum(1), below[drawn].sum(1)))
    return np.concatenate(found)


def _level(drawn: Floats, value: float, without: Floats) -> float:
    """The quantile of the draws that is the bound, by bias and acceleration.

    Args:
        drawn: The figure in every draw.
        value: The figure itself.
        without: The figure when one unit is left out, for each unit.
    """
    below = float(((drawn < value).mean() + (drawn <= value).mean()) / 2)
    half = 0.5 / len(drawn)
    bias = _NORMAL.inv_cdf(min(max(below, half), 1 - half))
    shifted, skew = bias + _Z, _skew(without)
    if skew * shifted >= 1:
        return 1.0
    return _NORMAL.cdf(bias + shifted / (1 - skew * shifted))


def _skew(without: Floats) -> float:
    """The acceleration of BCa, from the figures without each unit."""
    if not np.isfinite(without).all():  # the only unit with a signal was left out
        return 0.0
    apart = without.mean() - without
    squares = float((apart**2).sum())
    return float((apart**3).sum()) / (6 * squares**1.5) if squares > 0 else 0.0


def _ratio(above: ArrayLike, below: ArrayLike) -> Floats:
    """The ratio; 0 where there is nothing above, inf where there is only something above."""
    over, under = np.asarray(above, np.float64), np.asarray(below, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(over == 0, 0.0, over / under)
