"""``analyze_sensitivity`` from Python: what goes in, what comes out, and what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import onnxq
import onnxq.api.sensitivity as module
from onnxq.errors import UsageError
from onnxq.plan import Recipe, VerifySettings
from onnxq.sensitivity import SensitivityReport
from onnxq.types import Precision

MODELS = Path(__file__).parents[2] / "models"
MODEL = MODELS / "digits_cnn.onnx"
DATA, TEST = str(MODELS / "digits_calibration.npz"), str(MODELS / "digits_test.npz")
QUICK = Recipe(verify=VerifySettings(seconds=0))  # no timing


def analyze(**changes: Any) -> SensitivityReport:
    settings = {"data": DATA, "test_data": TEST, "recipe": QUICK, "samples": 32} | changes
    return onnxq.analyze_sensitivity(MODEL, **settings)


def hits(outputs: dict[str, np.ndarray], labels: np.ndarray) -> float:
    """Like top1, by hand."""
    (scores,) = outputs.values()
    return float((scores.argmax(1) == labels).mean())


def test_everything_is_what_quantize_makes() -> None:
    """The same samples and plan, judged by ``verify``: the same figures."""
    found = analyze(samples=10_000)
    recipe = msgspec.structs.replace(QUICK, precision="int8")
    measured = onnxq.quantize(MODEL, data=DATA, test_data=TEST, recipe=recipe).receipt.measured
    (facts,) = measured.outputs.values()
    everything = found.everything["int8"]
    assert found.samples == measured.samples
    # sums of squares in another order
    assert everything.sqnr_db == pytest.approx(facts.sqnr_db, abs=1e-3)
    assert everything.agreement == pytest.approx(facts.top1_agreement)
    assert measured.metric is not None
    assert everything.metric == measured.metric.output
    assert found.float_metric == measured.metric.source


def test_a_function_is_a_metric() -> None:
    by_name, by_hand = analyze(), analyze(metric=hits)
    assert by_hand.metric == "hits"
    assert by_hand.float_metric == by_name.float_metric
    assert [row.only.metric for row in by_hand.layers] == [
        row.only.metric for row in by_name.layers
    ]


def test_precisions_that_need_another_opset() -> None:
    found = analyze(precisions=["int8", "int4-weights"], method="screen")
    assert set(found.everything) == {"int8", "int4-weights"}
    assert {row.precision for row in found.layers} == {Precision.INT8, Precision.INT4_WEIGHTS}
    assert found.model == str(MODEL)
    assert found.sha256 == analyze(method="screen").sha256


def test_times_are_there_when_wanted() -> None:
    quick = analyze(method="screen")
    assert all(row.float_ms is None for row in quick.layers)
    timed = Recipe(verify=VerifySettings(seconds=0.2))
    found = analyze(method="screen", recipe=timed)
    conv = [row for row in found.layers if row.op == "Conv"]
    assert conv
    assert all(row.float_ms and row.quantized_ms for row in conv)
    assert any("profiled on this machine" in note for note in found.notes)
    built = [point for point in found.front if point.loss is not None]
    assert {row.name for row in found.layers} == set(built[-1].kept_float)
    assert built[-1].loss.sqnr_db == 200.0
    assert all(point.ms for point in built)
    assert quick.front == ()
    elsewhere = msgspec.structs.replace(timed, target="tensorrt")
    found = analyze(method="screen", recipe=elsewhere)
    assert all(row.float_ms is None for row in found.layers)
    assert any("times are not known" in note for note in found.notes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"precisions": ["int9"]},
            "in precision 'int9'; did you mean 'int8'",
        ),
        ({"precisions": ["float"]}, "layers cannot be tried in precision 'float'"),
        ({"precisions": ["int8", "int16"]}, "try one at a time"),
        ({"precisions": ["int8-weights"], "data": None, "test_data": None}, "give --data"),
        ({"recipe": Recipe(target="cuda"), "precisions": ["int8"]}, "is a loss on target cuda"),
    ],
)
def test_what_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        analyze(**changes)


class TestCache:
    @pytest.fixture
    def runs(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """One entry per analysis that is not answered from the cache."""
        seen: list[str] = []
        whole = module.analyze

        def counted(*args: Any, **settings: Any) -> SensitivityReport:
            seen.append(settings["method"])
            return whole(*args, **settings)

        monkeypatch.setattr(module, "analyze", counted)
        return seen

    def test_the_same_again_is_answered_at_once(self, tmp_path: Path, runs: list[str]) -> None:
        first = analyze(method="screen", cache=tmp_path)
        assert analyze(method="screen", cache=tmp_path) == first
        assert len(runs) == 1
        assert analyze(method="screen", cache=tmp_path, fresh=True) == first
        assert len(runs) == 2
        assert [file.suffix for file in (tmp_path / "sensitivity").iterdir()] == [".json"]

    @pytest.mark.parametrize(
        "changes", [{"samples": 31}, {"seed": 1}, {"test_data": DATA}, {"metric": hits}]
    )
    def test_another_question_is_another_run(
        self, changes: dict[str, Any], tmp_path: Path, runs: list[str]
    ) -> None:
        analyze(method="screen", cache=tmp_path)
        analyze(**{"method": "screen", "cache": tmp_path} | changes)
        assert len(runs) == 2

    def test_python_objects_are_judged_anew(self, tmp_path: Path, runs: list[str]) -> None:
        with np.load(TEST) as arrays:
            samples = dict(arrays)
        for _ in range(2):
            analyze(method="screen", test_data=samples, cache=tmp_path)
        assert len(runs) == 2

    def test_a_report_of_another_version_is_none(self, tmp_path: Path, runs: list[str]) -> None:
        first = analyze(method="screen", cache=tmp_path)
        (file,) = (tmp_path / "sensitivity").iterdir()
        file.write_text('{"layers": 1}')
        assert analyze(method="screen", cache=tmp_path) == first
        assert len(runs) == 2

    def test_a_cache_is_no_must(self, tmp_path: Path, runs: list[str]) -> None:
        blocked = tmp_path / "file"
        blocked.write_text("")
        assert analyze(method="screen", cache=blocked).layers

    def test_a_killed_run_goes_on(self, tmp_path: Path) -> None:
        def interrupt(stage: str, done: int, total: int) -> None:
            if stage == "sensitivity" and done >= 9:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            analyze(cache=tmp_path, progress=interrupt)
        seen: list[int] = []
        found = analyze(
            cache=tmp_path,
            progress=lambda stage, done, _: seen.append(done) if stage == "sensitivity" else None,
        )
        assert seen[0] >= 9
        assert found == analyze()
