"""Pretrained models: each comes out valid and as accurate as it owes, or is refused clearly.

``ONNXQ_MODELS`` names a folder of models with score modules in ``../score``. What is owed, and how
feeds are found, is the sweep's: ``scripts/sweep.py``. Latency is left out.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxq
from onnxq import errors
from onnxq.graph import load, strip
from onnxq.runtime import prepare

FOLDER = os.environ.get("ONNXQ_MODELS", "")
pytestmark = pytest.mark.skipif(not FOLDER, reason="ONNXQ_MODELS names no folder of models")
MODELS = sorted(Path(FOLDER).glob("*.onnx")) if FOLDER else []
# Enough for min-max ranges of these models to come within 1 dB of those of 32 feeds.
FEEDS = 8


def _load_sweep():
    path = Path(__file__).parents[2] / "scripts" / "sweep.py"
    spec = importlib.util.spec_from_file_location("sweep", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["sweep"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


sweep = _load_sweep()


@pytest.fixture(scope="session")
def modules():
    return sweep.score_modules(Path(FOLDER).parent.resolve() / "score")


@pytest.fixture
def recipe(model, modules, tmp_path):
    module = modules.get(model.stem)
    if module is None:
        return sweep.make_recipe(None, None, tmp_path, seconds=0)
    feeds = {
        split: sweep.spread(sweep.load_feeds(module, split), FEEDS) for split in ("calib", "test")
    }
    return sweep.make_recipe(feeds["calib"], feeds["test"], tmp_path, seconds=0)
