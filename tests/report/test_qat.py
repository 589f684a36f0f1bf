"""Training, told: figures made by hand, at any width, whatever the tensors are called."""

from __future__ import annotations

from io import StringIO

import pytest
from msgspec.structs import replace
from rich.console import Console, RenderableType

from onnxq.plan import NodePlan, QuantPlan, Recipe
from onnxq.qat import EpochFacts, History
from onnxq.report import activations_table, better, epoch_line, epochs_head, training_view
from onnxq.types import Precision, QParams, QType
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
    Training,
)

ODD = "block[bold]/conv[/]"  # would be markup, and an error for the closing tag
START = EpochFacts(0, None, 0.5, 0.80, 0.0, 0.25)
FIRST = EpochFacts(1, 0.123456, 0.4, 0.85, 0.025, 12.0)
HISTORY = History(
    loss="cross-entropy", samples=900, validation=100, weights=6, values=12_345, scales=9,
    steps=30, epochs=(START, FIRST, replace(FIRST, epoch=2, metric=0.84)), best=1, stopped="",
    seconds=150.0, device="cpu",
)  # fmt: skip


def measured(top1: float | None, db: float, agreement: float, ms: float, size: float) -> Measured:
    """A float model with a top1 of 0.9 that takes 3 ms, 2 ms when prepared."""
    latency = LatencyFacts(
        source_ms=3.0, output_ms=ms, ratio=3 / ms, ratio_prepared=2 / ms, spread=0.05, noise=0.01,
        rounds=9, batch=8, threads=1, provider="CPUExecutionProvider",
    )  # fmt: skip
    return Measured(
        size_ratio=size,
        prepared=PreparedFacts(1_900_000, 2.0, ()),
        outputs={"scores": OutputFacts(db, 0.99, agreement), "boxes": OutputFacts(db + 9, 0.99)},
        samples=100,
        metric=MetricFacts("top1", 0.9, top1, 100) if top1 is not None else None,
        latency=latency,
        int8_coverage=None,
        candidates=(),
        notes=("calibrated with [8] samples",),
    )


def receipt(untrained: Measured, trained: Measured, history: History = HISTORY) -> Receipt:
    node = NodePlan(ODD, "Conv", Precision.INT8)
    return Receipt(
        schema=1,
        onnxq="0",
        source=FileFacts("a.onnx", "0" * 64, 2_000_000),
        output=FileFacts("b.onnx", "1" * 64, 520_000),
        recipe=Recipe(),
        run=RunFacts(0, prepare=True),
        data={},
        plan=QuantPlan("cpu-x86", (node,), {}),
        ranges={},
        measured=trained,
        gates=(Gate("max_drop", 0.01, 0.02, False),),
        environment={},
        training=Training(history, untrained),
    )


PTQ, QAT = measured(0.80, 10.0, 0.75, 1.25, 0.25), measured(0.88, 20.0, 0.9, 2.5, 0.26)
WIDTHS = pytest.mark.parametrize("width", [80, 120])


def lines(view: RenderableType, width: int = 120) -> list[str]:
    console = Console(file=StringIO(), width=width)
    console.print(view)
    found = console.file.getvalue().splitlines()
    assert max(map(len, found)) <= width
    return [" ".join(line.split()) for line in found]


def told(view: RenderableType, width: int = 120) -> str:
    return " ".join(" ".join(lines(view, width)).split())


class TestView:
    @WIDTHS
    def test_compares_float_ptq_and_qat(self, width: int) -> None:
        found = lines(training_view(receipt(PTQ, QAT)), width)
        for row in (
            "float prepared PTQ QAT",
            "top1 (100 samples) 0.9000 0.8000 0.8800",
            "same top class 75.00% 90.00%",
            "SQNR 10.0 dB 20.0 dB",  # of the worst output
            "size 2.0 MB 1.9 MB 500.0 kB (0.25x) 520.0 kB (0.26x)",
            "latency, batch 8 3 ms 2 ms 1.25 ms 2.5 ms",
            "speed, 1 thread 1x 1.60x (±5%) 0.80x (±5%)",
        ):
            assert row in found, (row, found)

    @WIDTHS
    def test_tells_what_is_behind_it(self, width: int) -> None:
        text = told(training_view(receipt(PTQ, QAT)), width)
        for words in (
            "training recovered 80% of what PTQ lost of the metric",  # 8 points of 10
            "epoch 1 of 2 was the best on 100 samples that were held back",
            "12,345 values of 6 constants, 9 scales; loss cross-entropy; 30 steps on 900 samples, "
            "2.5 min on cpu",
            "SQNR and same class compare with float; labels do not",
            "of 1 nodes 1 as int8 (cpu-x86)",
            "note: calibrated with [8] samples",
            "budget max_drop 0.01: 0.02, missed",
        ):
            assert words in text, (words, text)

    @pytest.mark.parametrize(
        ("ptq", "qat", "words"),
        [
            (0.80, 0.90, "training recovered all of what PTQ lost of the metric"),
            (0.80, 0.95, "training recovered all of"),  # and more
            (0.80, 0.80, "training recovered nothing of"),
            (0.80, 0.70, "training recovered nothing of"),
            (0.90, 0.80, None),  # nothing to recover
        ],
    )
    def test_what_labels_were_worth(self, ptq: float, qat: float, words: str | None) -> None:
        both = [measured(top1, 10.0, 0.75, 1.0, 0.25) for top1 in (ptq, qat)]
        text = told(training_view(receipt(*both)))
        assert words in text if words else "training recovered" not in text

    @pytest.mark.parametrize(
        ("ptq", "qat", "words"),
        [
            ((0.80, 10.0, 0.75), (0.85, 20.0, 0.9), "50% of what PTQ lost of the metric"),
            ((0.90, 10.0, 0.75), (0.90, 20.0, 0.9), "60% of what PTQ lost of float's answers"),
            ((None, 10.0, 0.75), (None, 20.0, 0.9), "60% of what PTQ lost of float's answers"),
            # 20 dB have a tenth of the noise of 10 dB
            ((None, 10.0, 1.0), (None, 20.0, 1.0), "90% of what PTQ lost as noise at the outputs"),
        ],
    )
    def test_what_a_teacher_was_worth(
        self, ptq: tuple[float, ...], qat: tuple[float, ...], words: str
    ) -> None:
        both = [measured(*figures, 1.0, 0.25) for figures in (ptq, qat)]
        text = told(training_view(receipt(*both, replace(HISTORY, loss="distill"))))
        assert f"training recovered {words}" in text
        assert "labels do not" not in text

    def test_no_epoch_was_better(self) -> None:
        text = told(training_view(receipt(PTQ, PTQ, replace(HISTORY, best=0))))
        assert (
            "no epoch was better on 100 samples that were held back than PTQ, whose weights" in text
        )

    def test_stopped_early(self) -> None:
        history = replace(HISTORY, stopped="no better result in 1 epoch")
        text = told(training_view(receipt(PTQ, QAT, history)))
        assert "held back; stopped early: no better result in 1 epoch" in text

    def test_what_was_not_measured_is_left_out(self) -> None:
        bare = [
            replace(found, metric=None, latency=None, outputs={}, notes=()) for found in (PTQ, QAT)
        ]
        text = told(training_view(receipt(*bare)))
        for word in (
            "top1",
            "latency",
            "speed",
            "SQNR 1",
            "top class",
            "recovered",
            "None",
            "note",
        ):
            assert word not in text

    def test_a_model_that_was_not_trained_has_no_such_view(self) -> None:
        with pytest.raises(ValueError, match="was not trained"):
            training_view(replace(receipt(PTQ, QAT), training=None))


class TestEpochs:
    def test_lines_stand_below_their_titles(self) -> None:
        head, start, first = (
            epochs_head(metric=True).plain,
            epoch_line(START, best=True).plain,
            epoch_line(FIRST, best=False).plain,
        )
        assert head.split() == ["epoch", "loss", "validation", "top1", "drift", "time"]
        assert start.split() == ["0", "0.5", "0.8000", "0.0%", "0.2", "s", "best"]
        assert first.split() == ["1", "0.1235", "0.4", "0.8500", "2.5%", "12.0", "s"]
        ends = [head.index(title) + len(title) for title in ("epoch", "validation", "top1", "time")]
        for line in (start, first):
            assert [line[end - 1] == " " for end in ends] == [False] * 4
            assert [line[end : end + 1] in ("", " ") for end in ends] == [True] * 4

    def test_without_a_metric(self) -> None:
        facts = replace(FIRST, metric=None)
        assert "top1" not in epochs_head(metric=False).plain
        assert len(epochs_head(metric=False).plain) == len(epoch_line(facts, best=False).plain)

    @pytest.mark.parametrize(
        ("changes", "is_better"),
        [
            ({"metric": 0.86}, True),
            ({"metric": 0.84, "validation_loss": 0.1}, False),  # the metric first
            ({"validation_loss": 0.3}, True),
            ({"validation_loss": 0.4}, False),  # the earlier of two alike
        ],
    )
    def test_better(self, changes: dict[str, float], is_better: bool) -> None:
        assert better(replace(FIRST, epoch=2, **changes), FIRST) is is_better
        assert better(FIRST, None)


class TestActivations:
    @WIDTHS
    def test_range_of_the_integers(self, width: int) -> None:
        params = {
            ODD: QParams(QType.UINT8, (0.5,), (10,)),
            "y": QParams(QType.INT16, (0.001,), (0,)),
        }
        found = lines(activations_table(params), width)
        assert f"{ODD} uint8 0.5 10 -5 .. 122.5" in found
        assert "y int16 0.001 0 -32.77 .. 32.77" in found

    def test_long_list_is_cut(self) -> None:
        params = {f"t{i}": QParams(QType.UINT8, (0.5,), (0,)) for i in range(15)}
        text = told(activations_table(params))
        assert "t11 " in text
        assert "t12 " not in text
        assert text.endswith("… and 3 more")
        assert "more" not in told(
            activations_table({name: params[name] for name in list(params)[:12]})
        )
