"""Shared fixtures: a model with its data and its baseline, in a folder of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from onnxq.api import check_model
from onnxq.plan import DataSettings, Recipe, VerifySettings

MODELS = Path(__file__).parents[2] / "models"


@pytest.fixture(scope="session")
def quick() -> Recipe:
    """What the baseline was made by."""
    return Recipe(
        precision="int8",
        target="cpu-x86-avx2",  # no product of its weights saturates, whatever processor this is
        data=DataSettings(
            calibration="digits_calibration.npz", test="digits_test.npz", batch_size=64
        ),
        verify=VerifySettings(seconds=0),
    )


@pytest.fixture(scope="session")
def with_baseline(tmp_path_factory: pytest.TempPathFactory, quick: Recipe) -> Path:
    """A folder with the digits model and data, and its baseline."""
    folder = tmp_path_factory.mktemp("baseline")
    for name in ("digits_cnn.onnx", "digits_calibration.npz", "digits_test.npz"):
        shutil.copy(MODELS / name, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        check_model("digits_cnn.onnx", recipe=quick, update=True)
    return folder


@pytest.fixture
def digits(with_baseline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, as the working directory."""
    shutil.copytree(with_baseline, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path
