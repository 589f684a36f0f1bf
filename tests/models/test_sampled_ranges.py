"""Real activations: ranges from a sample of large tensors are those of all values.

``ONNXQ_MODELS`` names a folder of models with score modules in ``../score``; feeds are the sweep's.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import test_real_models as real

import onnxq
from onnxq.calibrate import ObserverSpec
from onnxq.plan import CalibrationSettings, Recipe
from onnxq.types import Grid

pytestmark = real.pytestmark
# Not quantized, or refused: nothing is calibrated.
LEFT_OUT = {"g2p_gru_loop", "silero_vad_op18_ifless"}
NEAR = 0.01
# Between 0.28 of the extent of an early layer of the detector lie all of 22 million values but
# some hundreds, so that the least divergence is that of a threshold among a few outliers: two
# samples of it are 1.4 % apart.
FLAT = {("yolox_nano", "entropy", "687"): 0.02}


@pytest.mark.parametrize("model", real.MODELS, ids=lambda path: path.stem)
def test_sampled_ranges_are_those_of_all_values(model: Path, modules) -> None:
    module = modules.get(model.stem)
    if module is None or model.stem in LEFT_OUT:
        pytest.skip("nothing to calibrate, or no data for it")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the score modules leave files open
        feeds = [
            {name: np.asarray(value) for name, value in feed.items()}
            for feed in real.sweep.calibration_feeds(module)
        ]
    sampled, exact = (
        onnxq.calibrate_model(
            model, feeds, recipe=Recipe(calibration=CalibrationSettings("mse", exact=exact))
        )
        for exact in (False, True)
    )
    for method in ("percentile", "entropy", "mse"):
        spec = ObserverSpec(method)
        found, expected = (
            seen.with_observer(spec).ranges(Grid()).tensors for seen in (sampled, exact)
        )
        assert found.keys() == expected.keys()
        for tensor, whole in expected.items():
            part = found[tensor]
            assert (part.min, part.max) == (whole.min, whole.max)
            width = max(whole.hi, 0.0) - min(whole.lo, 0.0)
            off = max(abs(part.lo - whole.lo), abs(part.hi - whole.hi))
            assert off <= FLAT.get((model.stem, method, tensor), NEAR) * width, (method, tensor)
