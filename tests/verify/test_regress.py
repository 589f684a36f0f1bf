"""The gates of a check, on figures made up by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from scipy import stats

from onnxq.plan import CheckSettings, NodePlan, QuantPlan, Recipe
from onnxq.runtime import Coverage
from onnxq.types import Precision, Reason, TensorRange
from onnxq.verify import (
    CheckGate,
    FileFacts,
    Measured,
    MetricFacts,
    OutputFacts,
    Receipt,
    RunFacts,
    regressions,
)
from onnxq.verify.bitmap import from_bitmap, to_bitmap
from onnxq.verify.paired import paired_fall, unpaired_fall

SAMPLES = 600
HERE = {"system": "Linux x86_64", "processor": "one", "cores": "2"}


def hits(wrong: int, samples: int = SAMPLES) -> np.ndarray:
    """All right but the first so many."""
    return np.arange(samples) >= wrong


def metric(wrong: int, source: float = 1.0, samples: int = SAMPLES) -> MetricFacts:
    right = hits(wrong, samples)
    share = float(right.mean())
    return MetricFacts("top1", source, share, samples, "y", hits=to_bitmap(right))


@pytest.fixture
def receipt(measured: Callable[..., Measured]) -> Callable[..., Receipt]:
    """A receipt with some figures replaced; ``size`` in bytes, ``data`` names the test samples."""

    def make(size: int = 250, data: str = "d", **figures: Any) -> Receipt:
        fields = {"metric": metric(6), "samples": SAMPLES, "int8_coverage": Coverage(4, 4, ())}
        known = measured(**(fields | figures.pop("measured", {})))
        latency = known.latency
        if latency is not None:
            known = replace(
                known, latency=replace(latency, **({"undisturbed": 2.0} | figures.pop("ms", {})))
            )
        nodes = tuple(NodePlan(name, "Conv", Precision.INT8) for name in "abcd")
        made = Receipt(
            schema=1, onnxq="0", source=FileFacts("a.onnx", "0", 1000),
            output=FileFacts("b.onnx", "1", size), recipe=Recipe(), run=RunFacts(0, prepare=True),
            data={"test": data}, plan=QuantPlan("cpu-x86", nodes, {}),
            ranges={"x": TensorRange(-1, 1, -1, 1)}, measured=known, gates=(), environment=HERE,
        )  # fmt: skip
        return replace(made, **figures)

    return make


def gate(before: Receipt, after: Receipt, name: str, **settings: Any) -> CheckGate:
    found = {g.name: g for g in regressions(before, after, CheckSettings(**settings))}
    return found[name]


def test_same_figures_pass(receipt: Callable[..., Receipt]) -> None:
    found = regressions(receipt(), receipt(), CheckSettings())
    assert {g.status for g in found} == {"passed"}
    assert {g.worse for g in found} == {0.0}
    assert len(found) == 7


class TestMetric:
    """Tolerance half a point: 3 of 600."""

    @pytest.mark.parametrize(
        ("wrong", "status"),
        [
            (0, "passed"),
            (6, "passed"),
            (9, "passed"),  # half a point lost
            (11, "passed"),  # more, but five samples of 600 prove no more than 0.4 points
            (26, "failed"),
        ],
    )
    def test_what_samples_prove(
        self, receipt: Callable[..., Receipt], wrong: int, status: str
    ) -> None:
        found = gate(receipt(), receipt(measured={"metric": metric(wrong)}), "metric")
        assert found.status == status
        assert found.worse == pytest.approx((wrong - 6) / SAMPLES, abs=1e-12)
        assert found.bound <= found.worse

    def test_what_chance_explains_is_told(self, receipt: Callable[..., Receipt]) -> None:
        found = gate(receipt(), receipt(measured={"metric": metric(11)}), "metric")
        assert "may be chance" in found.note
        assert "5 lost and 0 won of the same 600 samples" in found.note

    def test_pairs_prove_what_numbers_alone_do_not(self, receipt: Callable[..., Receipt]) -> None:
        """The same fall, of 60 to 72 wrong: none won, so that the same samples prove it."""
        before, after = (receipt(measured={"metric": metric(wrong)}) for wrong in (60, 72))
        assert gate(before, after, "metric").status == "failed"
        elsewhere = replace(after, data={"test": "other"})
        found = gate(before, elsewhere, "metric")
        assert found.status == "passed"
        assert "others than the baseline's" in found.note

    def test_lost_and_won_even_out(self, receipt: Callable[..., Receipt]) -> None:
        other = hits(0)
        other[-6:] = False
        swapped = replace(metric(6), hits=to_bitmap(other))
        found = gate(receipt(), receipt(measured={"metric": swapped}), "metric")
        assert found.status == "passed"
        assert "6 lost and 6 won" in found.note

    def test_fault_is_told(self, receipt: Callable[..., Receipt]) -> None:
        lost = gate(receipt(), receipt(measured={"metric": metric(60, source=0.91)}), "metric")
        assert "the float model lost most of it: 1.0000 to 0.9100" in lost.note
        rounded = gate(receipt(), receipt(measured={"metric": metric(60)}), "metric")
        assert "float model" not in rounded.note

    def test_function_counts_by_its_value(self, receipt: Callable[..., Receipt]) -> None:
        own = {"metric": MetricFacts("m:f", 0.9, 0.8, SAMPLES)}
        worse = {"metric": MetricFacts("m:f", 0.9, 0.79, SAMPLES)}
        found = gate(receipt(measured=own), receipt(measured=worse), "metric")
        assert (found.status, found.bound) == ("failed", None)
        assert gate(receipt(measured=own), receipt(measured=own), "metric").status == "passed"

    @pytest.mark.parametrize(
        ("other", "told"),
        [
            (MetricFacts("m:f", 0.9, 1.0, SAMPLES), "is top1, and this run's m:f"),
            (replace(metric(0), judged="z"), "is of output 'y', and this run's of 'z'"),
        ],
        ids=["name", "output"],
    )
    def test_other_metric_fails(
        self, receipt: Callable[..., Receipt], other: MetricFacts, told: str
    ) -> None:
        """The baseline's figure is missing, however good the other one is."""
        found = gate(receipt(), receipt(measured={"metric": other}), "metric")
        assert (found.status, found.worse) == ("failed", None)
        assert told in found.note

    def test_missing_answers_are_told(self, receipt: Callable[..., Receipt]) -> None:
        without = receipt(measured={"metric": replace(metric(6), hits="")})
        for before, after, who in (
            (without, receipt(), "the baseline"),
            (receipt(), without, "this run"),
        ):
            note = gate(before, after, "metric").note
            assert f"600 samples, of which {who} holds no answers" in note
            assert "others than" not in note

    def test_no_metric_any_more_fails(self, receipt: Callable[..., Receipt]) -> None:
        nothing = receipt(measured={"metric": None})
        assert gate(receipt(), nothing, "metric").status == "failed"
        assert gate(nothing, receipt(), "metric").status == "skipped"


class TestOutputs:
    def test_sqnr_of_the_output_that_lost_most(self, receipt: Callable[..., Receipt]) -> None:
        after = {"outputs": {"scores": OutputFacts(29.0, 0.9, 0.98), "boxes": OutputFacts(16.0)}}
        found = gate(receipt(), receipt(measured=after), "sqnr")
        assert (found.status, found.before, found.after, found.worse) == ("failed", 20, 16, 4)
        assert "boxes" in found.note
        assert gate(receipt(), receipt(measured=after), "sqnr", max_sqnr_loss=4).status == "passed"

    def test_output_that_is_gone_fails(self, receipt: Callable[..., Receipt]) -> None:
        after = receipt(measured={"outputs": {"scores": OutputFacts(30.0, 0.9, 0.98)}})
        found = gate(receipt(), after, "sqnr")
        assert found.status == "failed"
        assert "no output 'boxes' any more" in found.note

    @pytest.mark.parametrize(("wrong", "status"), [(20, "passed"), (120, "failed")])
    def test_agreement(self, receipt: Callable[..., Receipt], wrong: int, status: str) -> None:
        def outputs(count: int) -> dict[str, Any]:
            right = hits(count)
            facts = OutputFacts(30.0, 0.9, float(right.mean()), agreeing=to_bitmap(right))
            return {"outputs": {"scores": facts}}

        found = gate(receipt(measured=outputs(12)), receipt(measured=outputs(wrong)), "agreement")
        assert found.status == status
        assert found.bound is not None

    def test_entries_of_integers_are_answers(self, receipt: Callable[..., Receipt]) -> None:
        old, new = ({"outputs": {"label": OutputFacts(equal=share)}} for share in (1.0, 0.9))
        found = gate(receipt(measured=old), receipt(measured=new), "agreement")
        assert (found.status, found.bound) == ("failed", None)
        assert gate(receipt(measured=old), receipt(measured=new), "sqnr").status == "skipped"


class TestLatency:
    """2.0 times as fast as float in the baseline; a quarter more time is 1.6."""

    @pytest.mark.parametrize(
        ("speed", "status"), [(3.0, "passed"), (1.7, "passed"), (1.55, "failed"), (0.5, "failed")]
    )
    def test_share_of_float(
        self, receipt: Callable[..., Receipt], speed: float, status: str
    ) -> None:
        found = gate(receipt(), receipt(ms={"undisturbed": speed}), "latency")
        assert found.status == status
        assert found.worse == pytest.approx(2.0 / speed - 1, rel=1e-12)

    def test_milliseconds_do_not_count(self, receipt: Callable[..., Receipt]) -> None:
        """A machine that is slower today is slower for the float model too."""
        after = receipt(ms={"source_ms": 90.0, "output_ms": 30.0})
        assert gate(receipt(), after, "latency").status == "passed"

    def test_measured_noise_counts(self, receipt: Callable[..., Receipt]) -> None:
        noisy = receipt(ms={"undisturbed": 1.5, "undisturbed_noise": 0.1})
        assert gate(receipt(), receipt(ms={"undisturbed": 1.5}), "latency").status == "failed"
        found = gate(receipt(), noisy, "latency")
        assert found.status == "passed"
        assert "may be chance" in found.note

    @pytest.mark.parametrize("key", ["system", "processor", "cores"])
    def test_another_machine_is_not_compared(
        self, receipt: Callable[..., Receipt], key: str
    ) -> None:
        slow = receipt(ms={"undisturbed": 0.1}, environment=HERE | {key: "other"})
        found = gate(receipt(), slow, "latency")
        assert found.status == "skipped"
        assert "other" in found.note

    @pytest.mark.parametrize("change", [{"threads": 2}, {"batch": 1}, {"provider": "X"}])
    def test_another_way_of_measuring_is_not_compared(
        self, receipt: Callable[..., Receipt], change: dict[str, Any]
    ) -> None:
        slow = receipt(ms={"undisturbed": 0.1} | change)
        assert gate(receipt(), slow, "latency").status == "skipped"

    def test_not_measured_any_more_fails(self, receipt: Callable[..., Receipt]) -> None:
        untimed = receipt(measured={"latency": None})
        assert gate(receipt(), untimed, "latency").status == "failed"
        assert gate(untimed, receipt(), "latency").status == "skipped"


class TestRest:
    @pytest.mark.parametrize(
        ("size", "status"), [(200, "passed"), (262, "passed"), (264, "failed")]
    )
    def test_size(self, receipt: Callable[..., Receipt], size: int, status: str) -> None:
        assert gate(receipt(), receipt(size=size), "size").status == status

    def test_node_that_runs_as_float(self, receipt: Callable[..., Receipt]) -> None:
        why = Reason("runs-as-float", "its output also feeds a float consumer", "c")
        missed = receipt(measured={"int8_coverage": Coverage(4, 3, (why,))})
        found = gate(receipt(), missed, "coverage")
        assert (found.status, found.before, found.after) == ("failed", 1.0, 0.75)
        assert "c: its output also feeds" in found.note

    def test_node_that_is_planned_as_float(self, receipt: Callable[..., Receipt]) -> None:
        before = receipt()
        last = replace(before.plan.nodes[-1], precision=Precision.FLOAT)
        plan = replace(before.plan, nodes=(*before.plan.nodes[:-1], last))
        after = receipt(plan=plan, measured={"int8_coverage": Coverage(3, 3, ())})
        assert gate(before, after, "coverage").worse == 0.25
        assert gate(before, after, "coverage", max_coverage_drop=0.25).status == "passed"

    @pytest.mark.parametrize(("hi", "status"), [(2.0, "passed"), (2.1, "failed"), (-0.1, "failed")])
    def test_ranges(self, receipt: Callable[..., Receipt], hi: float, status: str) -> None:
        """Of -1..1 an end may move by 1, half of the width."""
        after = receipt(ranges={"x": TensorRange(-1, hi, -1, hi)})
        assert gate(receipt(), after, "ranges").status == status

    def test_no_range_in_common_fails(self, receipt: Callable[..., Receipt]) -> None:
        assert gate(receipt(), receipt(ranges={}), "ranges").status == "failed"
        assert gate(receipt(ranges={}), receipt(), "ranges").status == "skipped"

    def test_skipped_ones_are_told(self, receipt: Callable[..., Receipt]) -> None:
        found = gate(receipt(), receipt(size=10**6), "size", skip=("size",))
        assert found.status == "skipped"
        assert "[check] skip" in found.note


class TestIntervals:
    @pytest.mark.parametrize(("lost", "won"), [(0, 0), (3, 0), (12, 3), (40, 60)])
    def test_paired_fall_is_where_tangos_score_is_z(self, lost: int, won: int) -> None:
        """The bound solves the score equation, with the variance that the limit implies.

        The likeliest shares are found here by numeric search, and not by the formula.
        """
        n = 500
        before, after = np.ones(n, bool), np.ones(n, bool)
        after[:lost] = False
        before[n - won :] = False
        bound = paired_fall(before, after)
        z = stats.norm.ppf(0.95)
        won_shares = np.linspace(1e-9, 1, 2_000_001)
        lost_shares = won_shares + bound
        fits = (lost_shares > 0) & (lost_shares + won_shares < 1)
        p, q = lost_shares[fits], won_shares[fits]
        likelihood = lost * np.log(p) + won * np.log(q) + (n - lost - won) * np.log(1 - p - q)
        best = likelihood.argmax()
        score = (lost - won - n * bound) / np.sqrt(n * (p[best] + q[best] - bound**2))
        # a grid of 5e-7 leaves an error of about 1e-3 in the score where shares are small
        assert score == pytest.approx(z, abs=5e-3)

    def test_paired_fall_covers(self) -> None:
        """Of 2,000 draws at most 5 % prove a fall of more than the true one, and a bit of luck."""
        rng, n, true = np.random.default_rng(0), 400, 0.02
        wrong = 0
        for _ in range(2000):
            kind = rng.choice(3, size=n, p=[0.03, 0.01, 0.96])  # lost, won, the same
            wrong += paired_fall(kind != 1, kind != 0) > true
        # three standard errors of a share of 5 % among 2,000 are 1.5 %
        assert wrong / 2000 <= 0.065

    def test_unpaired_fall_is_newcombes(self) -> None:
        """His example (1998, table II): 56/70 and 48/80 have a difference of 0.0524 at least.

        That is of a two-sided interval of 95 %; Wilson's limits at 5 % on each side are wider by
        the quotient of the quantiles, so that a one-sided bound lies above it.
        """
        two_sided = newcombe(56, 70, 48, 80, stats.norm.ppf(0.975))
        assert two_sided == pytest.approx(0.0524, abs=5e-5)  # four digits are printed
        one_sided = newcombe(56, 70, 48, 80, stats.norm.ppf(0.95))
        assert unpaired_fall(56 / 70, 70, 48 / 80, 80) == pytest.approx(one_sided, abs=1e-9)

    def test_few_samples_prove_nothing(self) -> None:
        assert unpaired_fall(1.0, 4, 0.75, 4) < 0


def newcombe(a: int, m: int, b: int, n: int, z: float) -> float:
    """Newcombe's method 10, from the closed form of Wilson's limits."""

    def wilson(k: int, of: int, sign: int) -> float:
        p = k / of
        root = z * np.sqrt(z * z + 4 * k * (1 - p))
        return float((2 * k + z * z + sign * root) / (2 * (of + z * z)))

    p, q = a / m, b / n
    return float(p - q - np.hypot(p - wilson(a, m, -1), wilson(b, n, 1) - q))


@pytest.mark.parametrize("samples", [1, 7, 8, 9, 597])
def test_bitmap_comes_back(samples: int) -> None:
    flags = np.random.default_rng(samples).random(samples) < 0.5
    found = from_bitmap(to_bitmap(flags), samples)
    assert found is not None
    assert found.tolist() == flags.tolist()
    assert len(to_bitmap(flags)) <= samples / 6 + 8  # base64 of one bit each


@pytest.mark.parametrize("text", ["", "no base64!", to_bitmap(hits(0, 8)), to_bitmap(hits(0, 17))])
def test_bitmap_of_something_else(text: str) -> None:
    assert from_bitmap(text, 16) is None
