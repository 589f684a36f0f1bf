"""How much less a search is told to lose when a proof fails."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from msgspec.structs import replace

import onnxq
from onnxq.api.pipeline import metric_of
from onnxq.api.search import _missed_db, searched, searched_nearer
from onnxq.api.stages import draft
from onnxq.plan import Budgets, CalibrationSettings, Recipe, VerifySettings, load_recipe
from onnxq.verify import Gate

ROOT = Path(__file__).parents[2]
PARTS = {"data": "calibration", "test_data": "test"}


def missed_db(*gates: Gate) -> float:
    return _missed_db(SimpleNamespace(gates=gates))


@pytest.mark.parametrize(
    ("gate", "db"),
    [
        # twice the answers that may be lost: half the amplitude, 20 log10 2
        (Gate("max_drop", 0.01, 0.009, False, bound=0.02), 6.0206),
        (Gate("min_agreement", 0.98, 0.97, False, bound=0.96), 6.0206),
        (Gate("max_drop", 0.01, 0.02, False), 6.0206),  # without a bound, by the figure
        (Gate("min_sqnr", 20.0, 19.5, False, bound=19.0), 2.0),  # all of 1 dB, twice
        (Gate("max_drop", 0.01, 0.009, True, bound=0.0095), 0.0),
        (Gate("max_size_ratio", 0.2, 0.4, False), 0.0),  # no question of accuracy
        (Gate("max_drop", 0.0, 0.001, False), math.inf),
        (Gate("max_drop", 0.01, None, False), math.inf),
    ],
)
def test_noise_falls_by_what_is_missed(gate: Gate, db: float) -> None:
    assert missed_db(gate) == pytest.approx(db, abs=1e-4)  # the figures above have four digits


def test_the_worst_miss_counts() -> None:
    near = Gate("max_drop", 0.01, 0.011, False)
    far = Gate("min_sqnr", 20.0, 17.0, False)
    assert missed_db(near, far) == missed_db(far, near) == 6.0


@pytest.mark.parametrize(("drop", "again"), [(0.0005, True), (0.2, False)])
def test_who_was_searched_for_again_is_told_by_what(drop: float, *, again: bool) -> None:
    """So few samples never prove so small a drop, and always one so large."""
    model = ROOT / "models" / "digits_cnn.onnx"
    recipe = replace(
        load_recipe(model.with_suffix(".onnxq.toml")), precision="int4-weights",
        budgets=Budgets(max_drop=drop), verify=VerifySettings(seconds=0),
    )  # fmt: skip
    data = {part: ROOT / "models" / f"digits_{name}.npz" for part, name in PARTS.items()}
    found = onnxq.quantize(model, recipe=recipe, **data).receipt
    told = [note for note in found.measured.notes if "missed a limit on those of the proof" in note]
    assert len(told) == again
    assert all("so plans are judged by" in note for note in told)


def missed(db: float) -> SimpleNamespace:
    """A proof that misses 30 dB by so much."""
    return SimpleNamespace(gates=(Gate("min_sqnr", 30.0, 30.0 - db, False),))


def test_ranges_without_outliers_may_miss_once_and_by_little() -> None:
    """Then what was left out was no accident, and ranges are those that were observed."""
    model = ROOT / "models" / "digits_cnn.onnx"
    with np.load(ROOT / "models" / "digits_calibration.npz") as arrays:
        images = arrays["image"].copy()
    images[::50] *= 100
    recipe = Recipe(
        precision="int8", budgets=Budgets(min_sqnr=30.0), verify=VerifySettings(seconds=0),
        calibration=CalibrationSettings(method="minmax"), target="cpu-x86-avx2",
    )  # fmt: skip
    job = onnxq.Job(recipe, data=images, test_data=ROOT / "models" / "digits_test.npz")
    found = searched(draft(model, job), job, metric_of(job))
    assert (found.draft.leaves_out, found.nearer, found.within) == (True, False, True)
    far = searched_nearer(found, job, missed(4))
    assert (far.draft.leaves_out, far.nearer) == (False, False)
    near = searched_nearer(found, job, missed(2))
    assert (near.draft.leaves_out, near.nearer) == (True, True)
    assert near.trials.limits.min_sqnr > 30
    again = searched_nearer(near, job, missed(2))
    assert (again.draft.leaves_out, again.nearer) == (False, False)
    assert again.draft.ranges == far.draft.ranges
    assert again.draft.ranges.tensors["image"].hi == 100
    assert again.draft.plan == far.draft.plan
