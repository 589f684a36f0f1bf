"""Bounds: held against scipy, published figures, exact enumeration and simulated coverage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from onnxq.verify import bootstrap
from onnxq.verify.bootstrap import (
    FEWEST_ROUNDS,
    FUNCTION_ROUNDS,
    function_bound,
    needed_samples,
    ratio_bound,
    score_limit,
    share_bound,
    sqnr_bound,
)


def energies(units: int, seed: int, tail: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Signal, and noise with a long tail, of some samples."""
    rng = np.random.default_rng(seed)
    return rng.gamma(4, 0.5, units), 0.01 * rng.lognormal(0, tail, units)


class TestRatio:
    @pytest.mark.parametrize("units", [12, 60, 300])
    @pytest.mark.parametrize("tail", [0.5, 1.5])
    def test_is_that_of_scipy(self, units: int, tail: float) -> None:
        signal, noise = energies(units, seed=units, tail=tail)
        found = ratio_bound(noise, signal)
        expected = stats.bootstrap(
            (noise, signal), lambda a, b, axis=-1: a.sum(axis) / b.sum(axis), paired=True,
            method="BCa", n_resamples=9999, confidence_level=0.95, alternative="less",
            rng=np.random.default_rng(1),
        ).confidence_interval.high  # fmt: skip
        value = noise.sum() / signal.sum()
        # quantiles of 2,000 draws are off by 5 % of the width or so, in the long tail by more
        assert found - value == pytest.approx(expected - value, rel=0.15)

    def test_is_drawn_with_the_seed(self) -> None:
        signal, noise = energies(50, seed=3)
        assert ratio_bound(noise, signal, 7) == ratio_bound(noise, signal, 7)
        assert ratio_bound(noise, signal, 7) != ratio_bound(noise, signal, 8)

    def test_draws_in_portions_are_the_same_draws(self, monkeypatch: pytest.MonkeyPatch) -> None:
        signal, noise = energies(50, seed=3)
        whole = ratio_bound(noise, signal)
        monkeypatch.setattr(bootstrap, "_AT_ONCE", 1000)
        assert ratio_bound(noise, signal) == whole

    def test_has_no_width_without_spread(self) -> None:
        assert ratio_bound([2.0, 2.0, 2.0], [4.0, 4.0, 4.0]) == 0.5
        assert ratio_bound([2.0], [4.0]) == 0.5


class TestSqnr:
    @pytest.mark.parametrize(("units", "tail", "least"), [(40, 0.5, 0.89), (100, 1.0, 0.86)])
    def test_covers_the_truth(self, units: int, tail: float, least: float) -> None:
        """In 150 sets of samples; three standard deviations of that are 5.3 % around 95 %.

        With a long tail, intervals of any bootstrap cover a little less.
        """
        truth = 10 * np.log10(2.0 / (0.01 * np.exp(tail**2 / 2)))
        hits = [sqnr_bound(*energies(units, seed, tail), seed) <= truth for seed in range(150)]
        assert least <= np.mean(hits) <= 0.99

    def test_units_of_one_ratio(self) -> None:
        assert sqnr_bound([1.0, 4.0, 9.0], [0.01, 0.04, 0.09]) == pytest.approx(20)

    @pytest.mark.parametrize(
        ("signal", "noise", "bound"),
        [
            ([1.0, 1.0], [0.0, 0.0], np.inf),
            ([1.0, 1.0], [0.0, np.inf], -np.inf),
            ([0.0, 0.0], [1.0, 1.0], -np.inf),
        ],
    )
    def test_without_a_ratio(self, signal: list[float], noise: list[float], bound: float) -> None:
        assert sqnr_bound(signal, noise) == bound

    def test_all_signal_in_one_sample(self) -> None:
        """Most draws without it are nothing but noise: nothing can be promised."""
        assert sqnr_bound([1.0] + 9 * [0.0], 10 * [0.01]) == -np.inf


class TestShare:
    def test_published_limits_of_tango(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Airway data in Fagerland, Lydersen and Laake (2014): 1 and 7 of 21, two-sided 95 %."""
        monkeypatch.setattr(bootstrap, "_Z", stats.norm.ppf(0.975))
        assert score_limit(1, 7, 21) == pytest.approx(-0.026, abs=5e-4)
        assert -score_limit(7, 1, 21) == pytest.approx(-0.517, abs=5e-4)

    @pytest.mark.parametrize(("lost", "samples"), [(0, 20), (0, 597), (3, 50), (40, 100)])
    def test_without_gains_it_is_wilsons(self, lost: int, samples: int) -> None:
        interval = stats.binomtest(lost, samples).proportion_ci(0.90, method="wilson")
        assert score_limit(lost, 0, samples) == pytest.approx(interval.high, rel=1e-9)

    @pytest.mark.parametrize("lost", [0, 1, 2, 5, 20])
    def test_is_near_the_exact_limit(self, lost: int) -> None:
        """Clopper and Pearson's, which is never too narrow: by at most 11 %."""
        exact = stats.binomtest(lost, 200).proportion_ci(0.90, method="exact").high
        assert 0.89 * exact <= score_limit(lost, 0, 200) <= exact

    @pytest.mark.parametrize(("lost", "won"), [(0.02, 0.0), (0.03, 0.01), (0.06, 0.02)])
    def test_covers_the_truth(self, lost: float, won: float) -> None:
        """By exact enumeration of all tables of 100 samples."""
        n, covered = 100, 0.0
        for x in range(n + 1):
            for y in range(min(n - x, 15) + 1):  # more than 15 gains have a probability of 1e-10
                if score_limit(x, y, n) >= lost - won:
                    rest = 1 - lost - won
                    covered += stats.multinomial.pmf([x, y, n - x - y], n, [lost, won, rest])
        assert covered >= 0.93

    def test_no_loss_is_not_no_risk(self) -> None:
        none = np.zeros(100)
        assert share_bound(none, none, np.ones(100)) == pytest.approx(0.0263, abs=1e-4)

    def test_many_samples_need_no_care(self) -> None:
        """The normal interval of the mean of differences, once there are plenty."""
        rng = np.random.default_rng(0)
        kinds = rng.choice(3, 3000, p=[0.9, 0.06, 0.04])
        differences = (kinds == 1).astype(float) - (kinds == 2)
        expected = differences.mean() + 1.645 * differences.std() / 3000**0.5
        found = share_bound(kinds == 1, kinds == 2, np.ones(3000))
        value = differences.mean()
        assert found - value == pytest.approx(expected - value, rel=0.1)

    def test_rows_of_one_sample_are_no_samples(self) -> None:
        """100 samples of 50 rows each, lost as a whole or not at all, are 100 samples."""
        lost = np.zeros(100)
        lost[:3] = 1
        rows = np.full(100, 50.0)
        assert share_bound(50 * lost, 0 * lost, rows) == pytest.approx(
            share_bound(lost, 0 * lost, np.ones(100)), rel=1e-9
        )

    def test_pairing_counts(self) -> None:
        """Losses that come with gains widen the bound; hits of both models do not."""
        none, ten = np.zeros(500), np.zeros(500)
        ten[:10] = 1
        moved = share_bound(ten, ten[::-1], np.ones(500))
        assert share_bound(none, none, np.ones(500)) < moved < 0.03


class TestFunction:
    def test_is_the_interval_of_a_mean(self) -> None:
        values = np.random.default_rng(0).normal(0.02, 0.1, 400)
        bound, draws = function_bound(values.mean(), lambda u: values[u].mean(), 400, 0.9, seed=0)
        width = 1.645 * values.std() / 20
        # a deviation of 50 draws is known within a tenth; three of these
        assert bound - values.mean() == pytest.approx(width, rel=0.3)
        assert draws == FUNCTION_ROUNDS

    def test_slow_functions_are_called_less_often(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bootstrap, "FUNCTION_SECONDS", 0.0)
        calls: list[int] = []

        def drop(units: np.ndarray) -> float:
            calls.append(len(units))
            return float(units.mean())

        bound, draws = function_bound(4.5, drop, 10, 1.0, seed=0)
        assert draws == FEWEST_ROUNDS
        assert calls == [10] * FEWEST_ROUNDS
        assert bound > 4.5

    def test_draws_that_the_metric_is_not_defined_on_do_not_count(self) -> None:
        calls = iter(range(FUNCTION_ROUNDS))
        found = function_bound(
            0.0, lambda u: None if next(calls) % 2 else float(u.mean()), 10, 1.0, 0
        )
        assert found is not None
        assert found[1] == FUNCTION_ROUNDS // 2
        assert function_bound(0.0, lambda _u: None, 10, 1.0, 0) is None
        assert function_bound(0.0, lambda _u: 0.0, 1, 1.0, 0) is None

    def test_the_same_drop_in_every_draw(self) -> None:
        """The bound is that of ``top1`` where nothing is lost, in units of the metric."""
        bound, _ = function_bound(0.0, lambda _u: 0.0, 100, 594.0, 0)
        assert bound == pytest.approx(594 * score_limit(0, 0, 100))


class TestNeeded:
    @pytest.mark.parametrize(("lost", "limit"), [(0, 0.005), (0, 0.01), (2, 0.04), (6, 0.07)])
    def test_so_many_do(self, lost: int, limit: float) -> None:
        value, bound = lost / 100, score_limit(lost, 0, 100)
        needed = needed_samples(100, value, bound, limit)
        assert bound > limit
        # "about": the root law is a little too careful where losses are few
        assert 0.55 * limit <= score_limit(value * needed, 0, round(needed)) <= 1.01 * limit

    def test_never(self) -> None:
        assert needed_samples(100, 0.05, 0.08, 0.05) == np.inf
