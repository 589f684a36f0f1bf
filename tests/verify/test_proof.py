"""From samples to gates: what is collected of each, and what a budget makes of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from msgspec.structs import replace

from onnxq.graph import Model
from onnxq.ops import classify
from onnxq.plan import Budgets, NodePlan, QuantPlan, Recipe
from onnxq.targets import get_target
from onnxq.types import Precision, Reason
from onnxq.verify import (
    Comparison,
    Demands,
    Gate,
    Int8Share,
    Judging,
    Measured,
    MetricChoice,
    Subjects,
    check_gates,
    verify,
)
from onnxq.verify.bootstrap import score_limit, share_bound, sqnr_bound
from onnxq.verify.int8 import int8_share

MATMUL = """
net (float[N,4] x) => (float[N,3] y) <float[4,3] w = {{{}}}> {{ [mul] y = MatMul (x, w) }}
"""
EXACT = "1, 0, 0, 0, 1, 0, 0, 0, 1, 0.5, 0.5, 0.5"
NEAR = "0.9, 0, 0.1, 0, 1.1, 0, 0, 0, 1, 0.5, 0.6, 0.5"
ACCURACY = Budgets(max_drop=0.5, min_sqnr=0, min_agreement=0.1)
PLAN = QuantPlan("cpu-x86", (NodePlan("mul", "MatMul", Precision.INT8_WEIGHTS),), {})


class Samples:
    """Stands in for a reader of labelled samples."""

    def __init__(self, x: np.ndarray, labels: np.ndarray | None = None) -> None:
        self.x, self.labels, self.size = x, labels, len(x)

    def batches(self, size: int) -> list[object]:
        return [
            type("Batch", (), {
                "feed": {"x": self.x[i : i + size]}, "count": len(self.x[i : i + size]),
                "labels": None if self.labels is None else self.labels[i : i + size],
            })
            for i in range(0, len(self.x), size)
        ]  # fmt: skip


@pytest.fixture
def proven(build: Callable[[str], Model]) -> Callable[..., Measured]:
    """What is measured of a model that is nearly its source."""
    source, output = build(MATMUL.format(EXACT)), build(MATMUL.format(NEAR))
    subjects = Subjects(source, source, output, 100, 100, 100)

    def run(samples: int, plan: QuantPlan = PLAN, **options: object) -> Measured:
        x = np.random.default_rng(0).normal(size=(samples, 4)).astype(np.float32)
        labels = (x @ np.array(EXACT.split(", "), np.float32).reshape(4, 3)).argmax(1)
        options = {"demands": Demands(ACCURACY), "seconds": 0.0} | options
        return verify(subjects, plan, Samples(x, labels), **options)

    return run


class TestCollecting:
    def test_bounds_are_those_of_the_samples(self, proven: Callable[..., Measured]) -> None:
        """Computed here from the samples at once."""
        found = proven(200, batch_size=7)
        x = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32).astype(np.float64)
        exact, near = (
            x @ np.array(text.split(", "), np.float32).astype(np.float64).reshape(4, 3)
            for text in (EXACT, NEAR)
        )
        lost = exact.argmax(1) != near.argmax(1)  # the labels are the source's answers
        assert 5 < lost.sum() < 50
        expected = share_bound(lost, 0 * lost, np.ones(200))
        assert found.metric is not None
        assert found.metric.drop_bound == pytest.approx(expected, rel=1e-12)
        assert found.outputs["y"].agreement_bound == pytest.approx(1 - expected, rel=1e-12)
        # outputs are of float32, whose roundings the sums here do not have
        sqnr = sqnr_bound((exact**2).sum(1), ((exact - near) ** 2).sum(1))
        assert found.outputs["y"].sqnr_bound_db == pytest.approx(sqnr, abs=1e-4)
        assert found.outputs["y"].sqnr_bound_db < found.outputs["y"].sqnr_db

    def test_batches_do_not_matter(self, proven: Callable[..., Measured]) -> None:
        one, many = proven(100, batch_size=1), proven(100, batch_size=32)
        assert one.metric == many.metric
        assert one.outputs["y"].agreement_bound == many.outputs["y"].agreement_bound
        # a MatMul may sum in another order for another batch
        assert one.outputs["y"].sqnr_bound_db == pytest.approx(
            many.outputs["y"].sqnr_bound_db, abs=1e-4
        )

    def test_only_what_a_budget_asks_for(self, proven: Callable[..., Measured]) -> None:
        nothing = proven(100, demands=Demands(Budgets(max_size_ratio=2)))
        assert nothing.metric.drop_bound is None
        assert nothing.outputs["y"].sqnr_bound_db is None
        noise = proven(100, demands=Demands(Budgets(min_sqnr=1)))
        assert noise.metric.drop_bound is None
        assert noise.outputs["y"].sqnr_bound_db is not None

    @pytest.mark.parametrize(
        ("samples", "options", "why"),
        [
            (1, {}, "one sample"),
            (100, {"plan": QuantPlan("cpu-x86", (), {})}, "the output is the source"),
            (100, {"state": {"y": "x"}}, "steps of one sequence"),
        ],
    )
    def test_no_bound(
        self, build: Callable[[str], Model], proven: Callable[..., Measured], samples: int,
        options: dict[str, object], why: str,
    ) -> None:  # fmt: skip
        if "state" in options:  # a state has the shape of its output
            net = "net (float[N,4] x, float[N,4] h) => (float[N,4] y) { [add] y = Add (x, h) }"
            model = build(net)
            x = np.ones((samples, 4), np.float32)
            found = verify(
                Subjects(model, model, model, 1, 1, 1), PLAN, Samples(x), state={"y": "h"},
                demands=Demands(Budgets(min_sqnr=1)), seconds=0,
            )  # fmt: skip
        else:
            found = proven(samples, **options)
        assert why in found.unproven
        assert found.outputs["y"].sqnr_bound_db is None
        for gate in check_gates(Budgets(min_sqnr=-300), found):
            assert gate.passed
            assert gate.bound is None
            assert f"by the value alone: {found.unproven}" in gate.note

    def test_an_output_without_a_row_per_sample_counts_by_batch(self) -> None:
        comparison, rng = Comparison(), np.random.default_rng(0)
        signals, noises = [], []
        for _ in range(12):
            expected = rng.normal(size=(5, 6)).astype(np.float32)  # of 8 samples
            found = expected + rng.normal(scale=0.1, size=(5, 6)).astype(np.float32)
            comparison.add({"x": np.zeros((8, 2))}, {"y": expected}, {"y": found}, 8)
            signals.append((expected.astype(float) ** 2).sum())
            noises.append(((expected.astype(float) - found) ** 2).sum())
        assert comparison.samples == 96
        found = comparison.facts(seed=0)["y"].sqnr_bound_db
        assert found == pytest.approx(sqnr_bound(signals, noises), abs=1e-9)


class TestFunctionMetric:
    def judged(self, function: Callable[..., float], count: int = 60) -> object:
        rng = np.random.default_rng(0)
        judging = Judging(MetricChoice("mine", function), None)
        for _ in range(0, count, 6):
            y = rng.normal(size=(6, 1)).astype(np.float32)
            noisy = y + rng.normal(scale=0.3, size=(6, 1)).astype(np.float32)
            judging.update({}, (y[:, 0] > 0).astype(int), {"y": y}, {"y": noisy})
        return judging.facts(count, seed=0)

    def test_gets_whole_sets_of_samples(self) -> None:
        sizes: list[tuple[int, int]] = []

        def accuracy(outputs: dict[str, np.ndarray], labels: np.ndarray) -> float:
            sizes.append((len(outputs["y"]), len(labels)))
            return float(((outputs["y"][:, 0] > 0) == labels).mean())

        facts = self.judged(accuracy)
        assert set(sizes) == {(60, 60)}
        assert len(sizes) == 2 + 2 * facts.draws <= 102
        drop = facts.source - facts.output
        lost = round(drop * 60)  # the labels are the source's answers
        assert lost >= 2
        # a deviation of 50 draws, against the exact one of a share
        width = 1.645 * np.sqrt(drop * (1 - drop) / 60)
        assert facts.drop_bound - drop == pytest.approx(width, rel=0.35)

    def test_fails_on_most_draws(self) -> None:
        calls = iter(range(1000))

        def fragile(outputs: dict[str, np.ndarray], labels: np.ndarray) -> float:
            if next(calls) > 1:
                raise ValueError("no positives")
            return 1.0

        facts = self.judged(fragile)
        assert (facts.drop_bound, facts.draws) == (None, 0)

    def test_batches_are_drawn_where_rows_are_no_samples(self) -> None:
        judging = Judging(MetricChoice("mine", lambda o, _l: float(len(o["y"]))), None)
        rng = np.random.default_rng(0)
        for _ in range(20):
            boxes = rng.normal(size=(rng.integers(1, 9), 4))
            judging.update({}, np.zeros((2, 5)), {"y": boxes}, {"y": boxes[1:]})
        facts = judging.facts(40, seed=0)
        assert facts.source - facts.output == 20  # one row less in each batch
        assert facts.drop_bound == pytest.approx(20 + facts.source * score_limit(0, 0, 20))


class TestGates:
    def gate(self, measured: Measured, **budget: float) -> Gate:
        (gate,) = check_gates(Budgets(**budget), measured)
        return gate

    def test_value_and_bound_keep_the_limit(self, proven: Callable[..., Measured]) -> None:
        found = proven(200)
        assert found.metric is not None
        drop, bound = found.metric.source - found.metric.output, found.metric.drop_bound
        gate = self.gate(found, max_drop=bound + 0.001)
        assert (gate.passed, gate.bound, gate.note) == (True, bound, "")
        between = self.gate(found, max_drop=(drop + bound) / 2)
        assert not between.passed
        assert between.note.startswith("200 samples do not prove it; about ")
        assert not self.gate(found, max_drop=drop / 2).passed

    def test_few_samples_without_a_loss(
        self, measured: Callable[..., Measured], proven: Callable[..., Measured]
    ) -> None:
        facts = replace(proven(200).metric, samples=50, output=1.0, source=1.0)
        found = measured(metric=replace(facts, drop_bound=score_limit(0, 0, 50)))
        gate = self.gate(found, max_drop=0.005)
        assert (gate.passed, gate.value) == (False, 0.0)
        assert gate.note == "50 samples do not prove it; about 540 may"
        assert self.gate(found, max_drop=0.06).passed

    def test_at_the_limit_more_samples_do_not_help(self, measured: Callable[..., Measured]) -> None:
        found = measured()
        found = measured(metric=replace(found.metric, drop_bound=0.03))
        gate = self.gate(found, max_drop=found.metric.source - found.metric.output)
        assert not gate.passed
        assert "too near to the limit for more samples to help" in gate.note

    def test_the_worst_output_and_its_bound(self, measured: Callable[..., Measured]) -> None:
        outputs = measured().outputs
        outputs = {
            "scores": replace(outputs["scores"], sqnr_bound_db=18.0),  # 30 dB, but a wild guess
            "boxes": replace(outputs["boxes"], sqnr_bound_db=19.0),
        }
        gate = self.gate(measured(outputs=outputs), min_sqnr=18.5)
        assert (gate.value, gate.bound, gate.passed) == (20.0, 18.0, False)


class TestInt8Share:
    NET = """
    net (float[N,8] x) => (float[N,8] y)
    <float[8,64] a = seeded, float[64,64] b = seeded, float[64,8] c = seeded>
    { [one] p = MatMul (x, a) [act] q = Relu (p) [two] r = MatMul (q, b) [three] y = MatMul (r, c) }
    """

    def share(self, quantize: Callable, build: Callable, keep: tuple[str, ...]) -> Int8Share:
        made = quantize(build(self.NET), Recipe(keep_float=keep))
        return int8_share(made.model, made.plan, made.census)

    def test_planning_less_does_not_gain(self, quantize: Callable, build: Callable) -> None:
        whole, less = (self.share(quantize, build, keep) for keep in ((), ("three",)))
        assert (whole.able, whole.int8, whole.float_nodes) == (3, 3, ())
        assert (less.able, less.int8) == (3, 2)  # the Relu is no layer
        (reason,) = less.float_nodes
        assert (reason.node, reason.code) == ("three", "kept-float")

    def test_weights_alone_compute_in_float(self, quantize: Callable, build: Callable) -> None:
        made = quantize(build(self.NET), Recipe(precision="int8-weights"))
        share = int8_share(made.model, made.plan, made.census)
        assert (share.able, share.int8) == (3, 0)
        assert {r.sentence for r in share.float_nodes} >= {
            "stores its weight as int8, and computes in float"
        }

    def test_why_it_has_not_fewer_bits_is_no_answer(
        self, quantize: Callable, build: Callable
    ) -> None:
        made = quantize(build(self.NET), Recipe(precision="int8-weights"))
        why = Reason("measured", "has int8-weights: int4-weights of it leaves 3 dB", "two")
        nodes = tuple(replace(n, reason=why) if n.name == "two" else n for n in made.plan.nodes)
        share = int8_share(made.model, replace(made.plan, nodes=nodes), made.census)
        (told,) = (r for r in share.float_nodes if r.node == "two")
        assert told.code == "not-planned"

    def test_dynamic_layers_compute_on_integers(self, quantize: Callable, build: Callable) -> None:
        made = quantize(build(self.NET), Recipe(precision="int8-dynamic"))
        share = int8_share(made.model, made.plan, made.census)
        dynamic = made.plan.count(Precision.INT8_DYNAMIC)
        assert 1 <= dynamic == share.int8

    def test_what_the_kernels_do_counts(self, quantize: Callable, build: Callable) -> None:
        """A float model under an int8 plan: nothing runs as int8."""
        made = quantize(build(self.NET))
        assert int8_share(made.source, made.plan, made.census).int8 == 0

    def test_missed_gate_names_nodes(self, measured: Callable[..., Measured]) -> None:
        floats = tuple(Reason("kept-float", "kept float", f"n{i}") for i in range(7))
        found = measured(int8_share=Int8Share(10, 3, floats))
        (gate,) = check_gates(Budgets(min_int8=0.9), found)
        assert not gate.passed
        assert gate.note.startswith("3 of 10 layers that can run as int8 do; n0: kept float; n1: ")
        assert gate.note.endswith("n4: kept float; and 2 more")
        (kept,) = check_gates(Budgets(min_int8=0.3), found)
        assert (kept.passed, kept.note) == (True, "")

    def test_measured_for_the_budget_only(
        self, quantize: Callable, build: Callable, proven: Callable[..., Measured]
    ) -> None:
        source = build(MATMUL.format(EXACT))
        census = classify(source.view(), get_target("cpu-x86"))
        assert proven(3, demands=Demands(Budgets(), census)).int8_share is None
        found = proven(3, demands=Demands(Budgets(min_int8=0.1), census)).int8_share
        assert found is not None
        assert found.able == 1
