"""Ranges of least divergence, against the definition and the textbook."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import special, stats

from onnxq.calibrate.choose import entropy_ends
from onnxq.types import Grid

ASYMMETRIC, SYMMETRIC = Grid(8), Grid(8, symmetric=True)
N = 60_000


def reference_entropy(values: np.ndarray, grid: Grid) -> tuple[float, float]:
    """The definition, threshold by threshold, over all of a dense grid of thresholds."""
    wide = values.astype(np.float64)
    lo, hi = wide.min(), wide.max()
    if grid.symmetric or lo >= 0 or hi <= 0:
        threshold = best_threshold(np.abs(wide[wide != 0]), 0.0, grid)
        return max(-threshold, lo), min(threshold, hi)
    kept = wide[wide != 0]
    return -best_threshold(-kept, hi, grid), best_threshold(kept, -lo, grid)


DENSE = 32  # thresholds per octave, nine of which make an average


def best_threshold(values: np.ndarray, behind: float, grid: Grid) -> float:
    """The mean of the thresholds that come near to the least divergence, from -behind on."""
    reach = values.max()
    width = 2.0 ** math.ceil(math.log2(max(reach, behind))) / 2048
    values, reach, behind = values / width, reach / width, behind / width
    edges = np.arange(math.floor(-behind), math.ceil(reach) + 2)
    mass = np.histogram(values, edges)[0] / len(values)
    end = math.floor(reach) - edges[0]
    gathered, mass[end] = mass[end], 0.0
    for _ in range(2):
        box = np.ones(65) / 65
        mass = np.convolve(np.pad(mass, 32, mode="symmetric"), box, mode="valid")
    mass[end] += gathered
    thresholds = reach * 2.0 ** -np.arange(0, 3, 1 / DENSE)
    found = [divergence(mass, edges, -behind, t, grid.steps + 1) for t in thresholds]
    around, last = 4, len(found) - 1

    def at(place: int) -> float:
        """The divergence, continued through the ends as if these were points of symmetry."""
        if place < 0:
            return 2 * found[0] - found[-place]
        return found[place] if place <= last else 2 * found[last] - found[2 * last - place]

    averages = [
        np.mean([at(p) for p in range(place - around, place + around + 1)])
        for place in range(last + 1)
    ]
    margin = 1e-5 + 0.03 * max(min(averages), 0.0)
    near = special.softmax(-np.array(averages) / margin)
    wide = thresholds * near  # they are spaced as far as they are large
    return float((wide @ thresholds) / wide.sum() * width)


def divergence(
    mass: np.ndarray, edges: np.ndarray, start: float, threshold: float, levels: int
) -> float:
    """Kullback-Leibler divergence of two densities that are constant between all borders."""
    borders = np.linspace(start, threshold, levels + 1)
    cuts = np.unique(np.concatenate([edges, borders, [threshold - 1]]))
    cuts = cuts[(cuts >= start) & (cuts <= threshold)]
    middle, length = (cuts[1:] + cuts[:-1]) / 2, np.diff(cuts)
    float_density = mass[np.floor(middle).astype(int) - int(edges[0])]
    held = float_density * length
    level = np.minimum(((middle - start) / (borders[1] - borders[0])).astype(int), levels - 1)
    quantized_density = np.bincount(level, held, levels)[level] / (borders[1] - borders[0])
    last = middle > threshold - 1
    reference = np.where(last, 0.0, float_density)
    reference[last] = held[last].sum() + 1 - held.sum()  # the last bin, one wide, takes all outside
    candidate = np.maximum(quantized_density / held.sum(), 1e-12)  # a level without values
    terms = special.rel_entr(reference * length, candidate * length)
    return float(terms.sum())


ENTROPY_KINDS = ["normal", "laplace", "exponential", "mixture", "lopsided", "relu", "student t",
                 "outliers", "far outliers", "relu6", "negative"]  # fmt: skip


def drawn_for_entropy(drawn: Callable[..., np.ndarray], kind: str, seed: int = 0) -> np.ndarray:
    if kind == "outliers":
        rng = np.random.default_rng(seed)
        values = np.append(np.abs(rng.normal(size=N)), rng.uniform(6, 12, 20))
        return values.astype(np.float32)
    if kind == "far outliers":  # thresholds lie where no value does
        far = np.random.default_rng(seed).uniform(-90, 90, 12)
        return np.append(drawn("normal", seed=seed), far[np.abs(far) > 60]).astype(np.float32)
    if kind == "relu6":
        return np.minimum(drawn("relu", seed=seed) * 4, np.float32(6))
    return drawn(kind, seed=seed)


@pytest.mark.parametrize("grid", [ASYMMETRIC, SYMMETRIC, Grid(4)], ids=str)
@pytest.mark.parametrize("kind", ENTROPY_KINDS)
def test_entropy_is_its_definition(drawn, seen, kind, grid):
    values = drawn_for_entropy(drawn, kind)
    found = entropy_ends(*seen(values), grid)
    # 1e-9 but for last levels that hold next to nothing: prefix sums round what these hold
    assert found == pytest.approx(reference_entropy(values, grid), rel=1e-3, abs=1e-6)


def test_entropy_moves_little_by_little_from_one_minimum_to_another(seen):
    """Beside half of a normal distribution ever more values that are worth a wider range."""
    share = (np.arange(50_000) + 0.5) / 50_000
    found = []
    for each in np.unique(np.geomspace(1, 1000, 40).astype(int)):
        histogram, ends = seen(np.linspace(3.5, 6, 500))
        histogram.add(np.linspace(3.5, 6, 500, dtype=np.float32), int(each))
        histogram.add(stats.halfnorm.ppf(share).astype(np.float32), 10_000)
        found.append(entropy_ends(histogram, (0.0, ends[1]), ASYMMETRIC)[1])
    # the threshold of the very least would jump by a sixth from one count to the next
    assert np.ptp(np.log(found)) > 0.1
    assert np.abs(np.diff(np.log(found))).max() < 0.02


def textbook(values: np.ndarray, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Migacz's slides: 2,048 bins, whole bins to a level, empty ones stay empty."""
    counts, edges = np.histogram(values, 2048)
    thresholds, found = [], []
    for last in range(levels, 2049):
        kept = counts[:last].astype(float)
        reference = kept.copy()
        reference[-1] += counts[last:].sum()
        level = np.minimum(np.arange(last) // (last // levels), levels - 1)
        filled = np.bincount(level, kept > 0, levels)
        candidate = (np.bincount(level, kept, levels) / np.maximum(filled, 1))[level] * (kept > 0)
        found.append(stats.entropy(reference, candidate))
        thresholds.append(edges[last])
    return np.array(thresholds), np.array(found)


@pytest.mark.parametrize("levels", [128, 256])
@pytest.mark.parametrize("kind", ["norm", "laplace", "expon", "logistic"])
def test_entropy_of_a_smooth_distribution_is_that_of_the_textbook(seen, kind, levels):
    n = 5_000_000  # spread evenly over the distribution: bins without noise, but for the last ones
    share = (np.arange(n) + 0.5) / n if kind == "expon" else 0.5 + (np.arange(n) + 0.5) / n / 2
    values = getattr(stats, kind).ppf(share).astype(np.float32)
    grid = SYMMETRIC if levels == 128 else ASYMMETRIC
    threshold = entropy_ends(*seen(values), grid)[1]
    thresholds, divergences = textbook(values, levels)
    # a flat minimum, and the mean of what is near to it lies on its flatter side, the wider one
    assert threshold == pytest.approx(thresholds[divergences.argmin()], rel=0.12)
    # Whole bins to a level: up to a quarter of the range falls into the last level, which moves
    # the textbook's own minimum. Three quarters of what clipping can gain are reached.
    near = divergences[np.abs(thresholds / threshold - 1) < 0.01].min()
    whole, least = divergences[-1], divergences.min()
    assert whole - near >= 0.75 * (whole - least) - 1e-5  # nats: next to nothing


def test_entropy_keeps_the_ends_where_it_can_tell_nothing(drawn, seen):
    few = drawn("normal", 200)
    histogram, ends = seen(few)
    assert entropy_ends(histogram, ends, ASYMMETRIC) == ends  # fewer values than levels
    histogram, ends = seen(drawn("normal"))
    assert entropy_ends(histogram, ends, Grid(16)) == ends  # a level to every bin
