"""``search_plan`` from Python: a budget on a metric of the user's own, held against plain runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxq
from onnxq.errors import RecipeError, UsageError
from onnxq.plan import Budgets, QuantPlan, Recipe, VerifySettings
from onnxq.rewrite import rewrite
from onnxq.runtime import Session
from onnxq.types import Precision

MODELS = Path(__file__).parents[2] / "models"
MODEL = MODELS / "digits_cnn.onnx"
DATA = str(MODELS / "digits_calibration.npz")
# no timing: what stays float costs by its weights
QUICK = Recipe(verify=VerifySettings(seconds=0))
SAMPLES = 16  # the fewest that plans are judged by, so that all of them are drawn

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def samples() -> Arrays:
    """A few images; their labels are what the float model answers."""
    with np.load(MODELS / "digits_test.npz") as arrays:
        image = arrays["image"][:SAMPLES]
    (logits,) = Session(onnxq.load(MODEL)).run({"image": image}).values()
    return {"image": image, "labels": logits}


def nearness(outputs: Arrays, labels: np.ndarray) -> float:
    """1 for the float model, less by the mean distance of the logits."""
    (logits,) = outputs.values()
    return 1.0 - float(np.abs(logits - labels).mean())


def search(samples: Arrays, **changes: Any) -> onnxq.PlanSearch:
    settings = {"metric": nearness, "test_data": samples, "recipe": QUICK} | changes
    return onnxq.search_plan(MODEL, DATA, **settings)


def drop_of(found: onnxq.PlanSearch, plan: QuantPlan, samples: Arrays) -> float:
    """By a run that knows nothing of the search."""
    made = Session(rewrite(found.prepared, plan))
    return 1.0 - nearness(made.run({"image": samples["image"]}), samples["labels"])


def test_the_budget_is_kept_by_the_metric_that_was_given(samples: Arrays) -> None:
    whole = search(samples, budgets=Budgets(max_drop=1.0))
    assert whole.within
    assert whole.front == ()  # the cheapest plan did
    assert whole.plan.count(Precision.FLOAT) == 0
    lost = drop_of(whole, whole.plan, samples)
    assert whole.candidates[0].metric == pytest.approx(1.0 - lost)

    limit = 0.6 * lost
    found = search(samples, budgets=Budgets(max_drop=limit))
    assert found.within
    assert found.limits == f"a drop of at most {limit:.4g}"
    assert drop_of(found, found.plan, samples) <= limit
    kept = {n.name: n.reason for n in found.plan.nodes if n.precision is Precision.FLOAT}
    assert 0 < len(kept) < len(found.plan.nodes)
    assert any(reason is not None and "leaves" in reason.sentence for reason in kept.values())
    assert [one.chosen for one in found.candidates].count(True) == 1
    costs = [point.predicted_ms for point in found.front]
    assert len(costs) > 2
    assert costs == sorted(costs)


def test_where_no_plan_will_do_the_nearest_is_told(samples: Arrays) -> None:
    found = search(samples, budgets=Budgets(max_drop=-1.0))  # better than float by far
    assert not found.within
    assert not found.plan.empty
    assert not any(candidate.within for candidate in found.candidates)


def test_by_latency_candidates_are_timed_and_pins_stay(samples: Arrays) -> None:
    recipe = Recipe(keep_float=("/fc2/*",), verify=VerifySettings(seconds=0.2))
    found = search(samples, recipe=recipe, budgets=Budgets(max_drop=1.0), objective="latency")
    assert found.within
    assert any(candidate.ratio for candidate in found.candidates)
    precision = found.plan.precision()
    assert {precision[name] for name in precision if name.startswith("/fc2/")} == {Precision.FLOAT}


def test_nothing_is_written(
    samples: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONNXQ_CACHE", str(tmp_path))
    before = {file: file.stat().st_mtime_ns for file in MODELS.iterdir()}
    search(samples, budgets=Budgets(max_drop=1.0))
    assert {file: file.stat().st_mtime_ns for file in MODELS.iterdir()} == before
    assert list(tmp_path.iterdir()) == []


def test_a_metric_by_name_and_the_tail_of_the_data() -> None:
    with np.load(MODELS / "digits_test.npz") as arrays:
        data = {name: arrays[name][:100] for name in ("image", "labels")}
    found = onnxq.search_plan(MODEL, data, "top1", recipe=QUICK)
    assert found.within
    assert found.limits.startswith("a drop of at most 0.01 and")  # what is asked of every model
    assert all(candidate.metric is not None for candidate in found.candidates)


def test_what_cannot_be(samples: Arrays, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no samples to judge plans with; give data or test_data"):
        onnxq.search_plan(MODEL, recipe=QUICK)
    with pytest.raises(RecipeError, match="objective"):
        search(samples, objective="speed")
