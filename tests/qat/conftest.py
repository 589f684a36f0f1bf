"""Shared fixtures: what is trained with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

MODELS = Path(__file__).parents[2] / "models"


@pytest.fixture(scope="session")
def digits() -> dict[str, np.ndarray]:
    """Handwritten digits with labels; which of them a model has seen does not matter here."""
    with np.load(MODELS / "digits_test.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}
