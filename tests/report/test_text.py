"""Text for people: what matters is there, at any width, whatever the nodes are called."""

from __future__ import annotations

from io import StringIO

import pytest
from msgspec.structs import replace
from rich.console import Console, RenderableType

from onnxq.ops import Census, NodeInfo, Role
from onnxq.plan import NodePlan, QuantPlan, Recipe
from onnxq.report import census_table, plan_table, receipt_view
from onnxq.runtime import Coverage
from onnxq.targets import Kernel
from onnxq.types import Precision, Reason
from onnxq.verify import (
    FileFacts,
    Gate,
    LatencyFacts,
    Measured,
    MetricFacts,
    OutputFacts,
    PreparedFacts,
    Receipt,
    RunFacts,
)

ODD = "block[bold]/conv[/]"  # would be markup, and an error for the closing tag
SLOW = Reason("no-int8-kernel", "Softmax stays float: the int8 kernel is slower", "soft")
PLAN = QuantPlan(
    "cpu-x86",
    (NodePlan(ODD, "Conv", Precision.INT8), NodePlan("soft", "Softmax", Precision.FLOAT, SLOW)),
    {},
)
LATENCY = LatencyFacts(
    source_ms=3.0, output_ms=1.25, ratio=2.4, ratio_prepared=1.6, spread=0.05, noise=0.01,
    rounds=9, batch=8,
    threads=1, provider="CPUExecutionProvider",
)  # fmt: skip
MEASURED = Measured(
    size_ratio=0.25,
    prepared=PreparedFacts(1_900_000, 2.0, ()),
    outputs={"scores[red]": OutputFacts(31.25, 0.9991, 0.985), "boxes": OutputFacts(22.5, 0.99)},
    samples=100,
    metric=MetricFacts("top1", 0.9, 0.895, 100),
    latency=LATENCY,
    int8_coverage=Coverage(2, 1, (Reason("runs-as-float", "runs as Conv on float", ODD),)),
    candidates=(),
    notes=("calibrated with [8] samples",),
)
RECEIPT = Receipt(
    schema=1,
    onnxq="0",
    source=FileFacts("a.onnx", "0" * 64, 2_000_000),
    output=FileFacts("b.onnx", "1" * 64, 500_000),
    recipe=Recipe(),
    run=RunFacts(0, prepare=True),
    data={},
    plan=PLAN,
    ranges={},
    measured=MEASURED,
    gates=(Gate("max_drop", 0.01, 0.005, True), Gate("min_int8", 0.9, 0.5, False)),
    environment={},
)
WIDTHS = pytest.mark.parametrize("width", [80, 120])


def shown(view: RenderableType, width: int = 120) -> str:
    """What a terminal shows, with line breaks turned into spaces."""
    console = Console(file=StringIO(), width=width)
    console.print(view)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    return " ".join(" ".join(lines).split())


def info(name: str, op: str, role: Role, reason: Reason | None = None) -> NodeInfo:
    return NodeInfo(
        name, op, role, Kernel.FUSED, data=(), constants=(), outputs=(), weight=None, bias=None,
        channel_axis=None, reason=reason,
    )  # fmt: skip


class TestReceipt:
    @WIDTHS
    def test_gates_tell_their_bounds(self, width: int) -> None:
        gates = (
            Gate("max_drop", 0.01, 0.0, True, 0.0045),
            Gate("min_agreement", 0.99, 1.0, False, 0.97, "100 samples do not prove it"),
            Gate("min_int8", 0.9, 0.5, False, note=f"1 of 2 do; {ODD}: it is odd"),
        )
        text = shown(receipt_view(replace(RECEIPT, gates=gates)), width)
        for words in (
            "budget max_drop 0.01: 0 (at most 0.0045 with 95% confidence), kept",
            "budget min_agreement 0.99: 1 (at least 0.97 with 95% confidence), missed: 100 samples",
            f"budget min_int8 0.9: 0.5, missed: 1 of 2 do; {ODD}: it is odd",
        ):
            assert words in text, (words, text)

    @WIDTHS
    def test_says_what_matters(self, width: int) -> None:
        text = shown(receipt_view(RECEIPT), width)
        for word in (
            "2.0 MB", "1.9 MB", "500.0 kB", "0.25x",  # size
            "0.9000", "0.8950", "-0.50 points",  # metric
            "3 ms", "2 ms", "1.25 ms", "1.60x as fast", "(±5%)",  # latency
            "SQNR 31.2 dB", "cosine 0.999100", "same top class on 98.50% of 100 samples",
            "1 of 2 planned nodes really run as int8, of 2 in all (cpu-x86)",
            "runs as Conv on float",
            "budget max_drop 0.01: 0.005, kept",
            "budget min_int8 0.9: 0.5, missed",
        ):  # fmt: skip
            assert word in text, (word, text)

    @WIDTHS
    def test_markup_is_escaped(self, width: int) -> None:
        text = shown(receipt_view(RECEIPT), width)
        assert f"float {ODD}: runs as Conv" in text
        assert "output scores[red]:" in text
        assert "note: calibrated with [8] samples" in text

    @pytest.mark.parametrize(
        ("ratio", "noise", "words"),
        [
            (1.6, 0.05, "1.60x as fast"),
            (0.8, 0.05, "0.80x: slower"),
            (1.05, 0.06, "1.05x, as fast"),  # inside the noise, nothing is known
            (0.95, 0.06, "0.95x, as fast"),
            (0.97, 0.001, "0.97x: slower"),
            (0.99, 0.001, "0.99x, as fast"),  # sure, but nobody notices
        ],
    )
    def test_speed_in_words(self, ratio: float, noise: float, words: str) -> None:
        latency = replace(LATENCY, ratio_prepared=ratio, noise=noise)
        text = shown(receipt_view(replace(RECEIPT, measured=replace(MEASURED, latency=latency))))
        assert f"{words} (±{LATENCY.spread:.0%})" in text

    def test_no_agreement_at_all_is_told(self) -> None:
        measured = replace(MEASURED, outputs={"y": OutputFacts(0.0, 0.0, 0.0)})
        text = shown(receipt_view(replace(RECEIPT, measured=measured)))
        assert "same top class on 0.00% of 100 samples" in text

    def test_what_was_not_measured_is_left_out(self) -> None:
        measured = replace(MEASURED, metric=None, latency=None, outputs={}, int8_coverage=None)
        text = shown(receipt_view(replace(RECEIPT, measured=measured, gates=())))
        for word in ("top1", "latency", "SQNR", "budget", "None", "planned nodes"):
            assert word not in text

    @pytest.mark.parametrize(
        ("precision", "one", "two"),
        [
            ("int8-dynamic", "1 quantizes its inputs while it runs", "2 quantize their inputs"),
            ("fp16", "1 computes in float16", "2 compute in float16"),
            ("int4-weights", "1 with 4 bit weights", "2 with 4 bit weights"),
        ],
    )
    def test_one_node_and_several(self, precision: str, one: str, two: str) -> None:
        nodes = tuple(NodePlan(name, "MatMul", Precision(precision)) for name in "ab")
        measured = replace(MEASURED, int8_coverage=None)
        for count, words in ((1, one), (2, two)):
            plan = QuantPlan("cpu-x86", nodes[:count], {})
            text = shown(receipt_view(replace(RECEIPT, plan=plan, measured=measured)))
            assert f"of {count} nodes {words}" in text

    def test_gate_without_a_value(self) -> None:
        gate = Gate("min_speedup", 1.5, None, False)
        text = shown(receipt_view(replace(RECEIPT, gates=(gate,))))
        assert "budget min_speedup 1.5: not measured, missed" in text

    def test_other_metrics_have_no_points(self) -> None:
        metric = MetricFacts("mine:map", 0.5, 0.49, 100)
        text = shown(receipt_view(replace(RECEIPT, measured=replace(MEASURED, metric=metric))))
        assert "mine:map (100 samples)" in text
        assert "-0.0100" in text
        assert "points" not in text

    def test_nothing_to_quantize(self) -> None:
        plan = QuantPlan("cpu-x86", (PLAN.nodes[1],), {})
        measured = replace(MEASURED, int8_coverage=None)
        text = shown(receipt_view(replace(RECEIPT, plan=plan, measured=measured)))
        assert f"nothing to quantize: {SLOW.sentence}; the file was copied" in text

    def test_weights_only(self) -> None:
        node = NodePlan("fc", "Gemm", Precision.INT8_WEIGHTS)
        plan = QuantPlan("cpu-x86", (node, PLAN.nodes[1]), {})
        measured = replace(MEASURED, int8_coverage=None)
        text = shown(receipt_view(replace(RECEIPT, plan=plan, measured=measured)))
        assert "of 2 nodes 1 with int8 weights (" in text

    def test_long_list_of_float_nodes_is_cut(self) -> None:
        reasons = tuple(Reason("runs-as-float", "runs on float", f"conv{i}") for i in range(8))
        measured = replace(MEASURED, int8_coverage=Coverage(9, 1, reasons))
        text = shown(receipt_view(replace(RECEIPT, measured=measured)))
        assert "conv4: runs on float" in text
        assert "conv5" not in text
        assert "and 3 more, see the receipt" in text


@WIDTHS
def test_plan(width: int) -> None:
    text = shown(plan_table(PLAN), width)
    assert ODD in text
    assert "Softmax stays float: the int8 kernel" in text
    assert "2 nodes for cpu-x86: 1 int8, 1 float" in text


@WIDTHS
def test_census(width: int) -> None:
    nodes = (
        info(ODD, "Conv", Role.COMPUTE),
        info("soft", "Softmax", Role.ACTIVATION, SLOW),
        info("odd", "acme::[red]Op", Role.OTHER, SLOW),
    )
    text = shown(census_table(Census("cpu-x86", nodes)), width)
    assert f"{ODD} Conv compute yes" in text
    assert "acme::[red]Op" in text
    assert "soft Softmax activation no Softmax stays float" in text
    last = "1 of 3 nodes can run as int8 on cpu-x86; the others: 1 Softmax, 1 acme::[red]Op"
    assert text.endswith(last)


@pytest.mark.parametrize("view", [plan_table, census_table])
def test_no_nodes(view: object) -> None:
    empty = QuantPlan("cpu-x86", (), {}) if view is plan_table else Census("cpu-x86", ())
    text = shown(view(empty))
    assert "cpu-x86" in text
    assert "0 " in text


def test_long_names_are_folded_not_cut() -> None:
    name = "/".join(f"block{i}" for i in range(30))
    text = shown(
        plan_table(QuantPlan("cpu-x86", (NodePlan(name, "Conv", Precision.INT8),), {})), 80
    )
    folded = text.replace(" ", "")
    assert "block0/" in folded
    assert "block29" in folded
    assert "…" not in text
