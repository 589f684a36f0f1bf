"""Metrics: top-1, functions of the user's, and which output holds scores."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from onnxq.errors import DataError, UsageError
from onnxq.verify import load_metric
from onnxq.verify.compare import Comparison, scores_outputs
from onnxq.verify.judge import Judging
from onnxq.verify.metric import MetricChoice

SCORES = np.array([[0.1, 0.9], [0.8, 0.2], [0.6, 0.4]], np.float32)
LABELS = np.array([1, 0, 1])


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of the user's in the working directory."""
    (tmp_path / "metrics_of_mine.py").write_text(
        "def count(outputs, labels): return len(labels)\n"
        "def kind(outputs, labels): return isinstance(outputs['y'], list)\n"
        "def boom(outputs, labels): raise LookupError('no such class')\n"
        "def text(outputs, labels): return 'good'\n"
        "def infinite(outputs, labels): return float('inf')\n"
    )
    (tmp_path / "metrics_broken.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setattr(sys, "dont_write_bytecode", True)


X = np.zeros((3, 8), np.float32)


def judged(outputs: dict[str, np.ndarray], labels: np.ndarray, judge: str | None = None) -> Judging:
    judging = Judging(MetricChoice(), judge)
    judging.update({"x": X}, labels, outputs, outputs)
    return judging


class TestTop1:
    def test_share_of_hits(self) -> None:
        metric = load_metric("top1", allow_code=False).make("y")
        metric.update({"y": SCORES}, LABELS)
        assert metric.result() == 2 / 3
        metric.update({"y": SCORES[:1]}, LABELS[:1])
        assert metric.result() == 3 / 4

    def test_makes_a_new_one_each_time(self) -> None:
        choice = load_metric("top1", allow_code=False)
        choice.make("y").update({"y": SCORES}, LABELS)
        assert choice.make("y").result() == 0

    def test_skips_what_is_no_score(self) -> None:
        features = np.ones((3, 4, 4), np.float32)
        facts = judged({"features": features, "y": SCORES}, LABELS).facts(3)
        assert (facts.source, facts.output, facts.judged) == (2 / 3, 2 / 3, "y")

    def test_several_outputs_that_look_like_scores(self) -> None:
        outputs = {"embedding": SCORES[:, ::-1], "logits": SCORES}
        first = judged(outputs, LABELS)
        assert first.facts(3).judged == "embedding"
        assert "taken of 'embedding', the first of 2" in first.notes[0]
        named = judged(outputs, LABELS, "logits")
        assert (named.facts(3).judged, named.facts(3).source, named.notes) == ("logits", 2 / 3, ())

    def test_output_that_is_not_there(self) -> None:
        with pytest.raises(UsageError, match=r"no output 'logit' to judge; did you mean 'logits'"):
            judged({"logits": SCORES}, LABELS, "logit")

    @pytest.mark.parametrize(
        ("outputs", "labels"),
        [
            ({"y": SCORES[:, 0]}, LABELS),
            ({"y": SCORES}, LABELS[:, None]),
            ({"y": SCORES}, LABELS[:2]),
            ({}, LABELS),
        ],
        ids=["no row of scores", "labels of rank 2", "too few labels", "no output"],
    )
    def test_unusable_labels_are_told_and_the_run_goes_on(
        self, outputs: dict[str, np.ndarray], labels: np.ndarray
    ) -> None:
        judging = judged(outputs, labels)
        assert judging.facts(3) is None
        assert "'top1' needs" in judging.notes[0]
        assert "--metric module:function" in judging.notes[0]


@pytest.mark.usefixtures("code")
class TestFunction:
    def test_gets_all_batches_at_once(self) -> None:
        metric = load_metric("metrics_of_mine:count", allow_code=True).make(None)
        metric.update({"y": SCORES}, LABELS)
        metric.update({"y": SCORES[:2]}, LABELS[:2])
        assert metric.result() == 5

    @pytest.mark.parametrize(("width", "as_list"), [(2, 0), (3, 1)])
    def test_shapes_that_differ_stay_a_list(self, width: int, as_list: int) -> None:
        metric = load_metric("metrics_of_mine:kind", allow_code=True).make(None)
        metric.update({"y": SCORES}, LABELS)
        metric.update({"y": np.ones((3, width), np.float32)}, LABELS)
        assert metric.result() == as_list

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("boom", "failed: LookupError: no such class"),
            ("text", "failed: ValueError"),
            ("infinite", "returned inf; return a finite number"),
        ],
    )
    def test_failure(self, name: str, words: str) -> None:
        metric = load_metric(f"metrics_of_mine:{name}", allow_code=True).make(None)
        metric.update({"y": SCORES}, LABELS)
        with pytest.raises(DataError, match=f"'metrics_of_mine:{name}' {words}"):
            metric.result()

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("top5", "unknown metric 'top5'; use 'top1', 'module:function'"),
            (":count", "unknown metric ':count'"),
        ],
    )
    def test_unknown(self, name: str, words: str) -> None:
        with pytest.raises(UsageError, match=words):
            load_metric(name, allow_code=True)

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("metrics_of_mine:cuont", "'cuont'; did you mean 'count'?"),
            ("metrics_of_nobody:f", "metrics_of_nobody cannot be imported: ModuleNotFoundError"),
            ("metrics_broken:f", r"ZeroDivisionError.*\(metrics_broken.py:1\)"),
            ("missing.py:f", "missing.py: no such Python file"),
        ],
    )
    def test_cannot_be_loaded(self, name: str, words: str) -> None:
        with pytest.raises(DataError, match=words):
            load_metric(name, allow_code=True)

    def test_file_beside_the_recipe(self, tmp_path: Path) -> None:
        (tmp_path / "beside").mkdir()
        (tmp_path / "beside/seven.py").write_text("def seven(outputs, labels): return 7\n")
        choice = load_metric("seven.py:seven", allow_code=True, base=tmp_path / "beside")
        metric = choice.make(None)
        metric.update({"y": SCORES}, LABELS)
        assert metric.result() == 7

    def test_code_must_be_allowed(self) -> None:
        with pytest.raises(UsageError, match=r"merely found .* --recipe, .* --metric"):
            load_metric("metrics_broken:f", allow_code=False)  # would fail when it is imported


@pytest.mark.parametrize(
    ("outputs", "found"),
    [
        ({"y": SCORES}, ["y"]),
        ({"embedding": np.ones((3, 2, 2), np.float32), "y": SCORES}, ["y"]),
        ({"first": SCORES, "second": SCORES}, ["first", "second"]),
        ({"ids": np.ones((3, 2), np.int64), "y": SCORES}, ["y"]),
        ({"y": SCORES.astype(np.float16)}, ["y"]),
        ({"y": np.ones((3, 1), np.float32)}, []),
        ({"y": np.ones(3, np.float32)}, []),
        ({"y": np.ones((3, 8), np.float32)}, []),
        ({}, []),
    ],
    ids=[
        "rows", "not of rank 3", "several", "not integers", "float16", "one column", "rank 1",
        "a reconstruction", "none",
    ],
)  # fmt: skip
def test_scores_outputs(outputs: dict[str, np.ndarray], found: list[str]) -> None:
    assert scores_outputs(outputs, {"x": X}) == found


class TestComparison:
    def compared(self, expected: np.ndarray, found: np.ndarray) -> Comparison:
        comparison = Comparison()
        comparison.add({"x": X}, {"y": expected}, {"y": found})
        return comparison

    def test_integers_are_compared_entry_by_entry(self) -> None:
        facts = self.compared(np.arange(4), np.array([0, 1, 2, 9])).facts()["y"]
        assert (facts.equal, facts.sqnr_db) == (0.75, None)

    def test_empty_output_is_not_called_identical(self) -> None:
        none = np.zeros((0, 5), np.float32)
        comparison = self.compared(none, none)
        assert comparison.facts()["y"].sqnr_db is None
        assert "was empty for every sample" in comparison.notes()[0]

    def test_sizes_that_depend_on_the_values(self) -> None:
        comparison = self.compared(np.ones((7, 2), np.float32), np.ones((9, 2), np.float32))
        assert comparison.facts()["y"].sqnr_db == -200
        assert "another shape than in float" in comparison.notes()[0]

    def test_nan_of_the_float_model_is_told(self) -> None:
        comparison = self.compared(np.full(3, np.nan, np.float32), np.zeros(3, np.float32))
        assert comparison.notes() == ("the float model itself gives NaN in output 'y'",)

    @pytest.mark.parametrize(("large", "told"), [(24.0, True), (16.0, False)])
    def test_what_a_few_large_samples_hide_is_told(self, large: float, *, told: bool) -> None:
        """One of five is a hundred times as large as the others, which are at 10 dB: it decides."""
        expected = np.ones((5, 8), np.float32)
        expected[0] = 100
        found = expected * np.float32(1 - 10**-0.5)
        found[0] = expected[0] * np.float32(1 - 10 ** (-large / 20))
        comparison = Comparison()
        comparison.add({"x": X}, {"y": expected}, {"y": found}, 5)
        assert comparison.typical_db() == pytest.approx(10, abs=1e-4)  # float32
        notes = [n for n in comparison.notes() if "the sample in the middle" in n]
        assert len(notes) == told
        assert all("is at 10.0 dB" in note for note in notes)

    def test_a_model_that_gives_nan_is_typically_ruined(self) -> None:
        comparison = self.compared(np.ones((3, 2), np.float32), np.full((3, 2), np.nan, np.float32))
        assert comparison.typical_db() == comparison.facts()["y"].sqnr_db == -200

    def test_exact_and_ruined_samples_have_a_middle(self) -> None:
        """Without a warning, which would be an error here."""
        expected = np.ones((2, 4))
        found = np.array([[1.0] * 4, [np.nan] * 4])
        comparison = Comparison()
        comparison.add({"x": X}, {"y": expected}, {"y": found}, 2)
        assert comparison.typical_db() == 0  # between 200 dB and -200 dB
        huge = np.full((3, 2), 1e160)  # whose square is infinite
        assert self.compared(huge, huge / 2).typical_db() is not None

    def test_batches_are_no_samples(self) -> None:
        """An output without a row for each sample has no sample in the middle to tell of."""
        comparison = Comparison()
        for size in (1000.0, 1.0, 1.0):
            value = np.full(8, size, np.float32)
            noise = np.float32(0.9999 if size > 1 else 0.5)
            comparison.add({"x": X}, {"y": value}, {"y": value * noise}, 3)
        assert comparison.notes() == ()
