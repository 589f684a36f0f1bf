"""Pretrained models: each comes out valid and as accurate as it owes, or is refused clearly.

``ONNXQ_MODELS`` names a folder of models with score modules in ``../score``. What is owed, and how
feeds are found, is the sweep's: ``scripts/sweep.py``. Latency is left out.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxq
from onnxq import errors
from onnxq.calibrate import ObserverSpec
from onnxq.graph import load, strip
from onnxq.plan import CalibrationSettings, Recipe
from onnxq.runtime import prepare
from onnxq.types import Grid

FOLDER = os.environ.get("ONNXQ_MODELS", "")
pytestmark = pytest.mark.skipif(not FOLDER, reason="ONNXQ_MODELS names no folder of models")
MODELS = sorted(Path(FOLDER).glob("*.onnx")) if FOLDER else []


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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the score modules leave files open
        return sweep.score_modules(Path(FOLDER).parent.resolve() / "score")


@pytest.fixture
def recipe(model, modules, tmp_path):
    module = modules.get(model.stem)
    if module is None:
        return sweep.make_recipe(None, None, tmp_path, seconds=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        calibration = sweep.calibration_feeds(module)
        test = sweep.spread(sweep.load_feeds(module, "test"), sweep.TEST_FEEDS)
    return sweep.make_recipe(calibration, test, tmp_path, seconds=0)


@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.stem)
def test_model_is_valid_and_owes_nothing(model, recipe, tmp_path, capfd):
    output = tmp_path / "made.onnx"
    try:
        result = onnxq.quantize(model, recipe=recipe, output=output)
    except errors.OnnxqError as error:
        refuse_as_owed(model, error)
        assert not output.exists()
        return
    finally:
        said = capfd.readouterr()
        assert said.out + said.err == ""
    worst = sweep.worst_db(result.receipt.measured)
    outcome = sweep.NOTHING if result.plan.empty else sweep.QUANTIZED
    row = sweep.judge(sweep.Row(model.stem, outcome, sqnr_db=worst))
    assert not row.owes, row
    onnx.checker.check_model(str(output))
    sweep.open_session(output)
    if not result.plan.empty:
        check_same_graph(load(model), load(output))


def refuse_as_owed(model, error):
    """The error has exactly the type that is expected of this model, and says what it must."""
    assert model.stem in sweep.OWED["refused"], error
    kind, *words = sweep.OWED["refused"][model.stem]
    assert type(error) is getattr(errors, kind)
    assert all(word in str(error) for word in words), error


def check_same_graph(source, made):
    """Inputs, outputs and nodes are the prepared model's once the quantization is stripped."""
    assert made.view().inputs == source.view().inputs
    assert made.view().outputs == source.view().outputs
    prepared = prepare(source)
    found, nodes = strip(made).view().by_name, prepared.view().by_name
    # axes of 1, and what is sliced and joined again
    regroup = {"Flatten", "Reshape", "Squeeze", "Unsqueeze"}
    assert {nodes[name].op for name in nodes.keys() - found} <= regroup | {
        "Concat",
        "Slice",
        "Split",
    }
    changed = {
        (nodes[n].op, found[n].op) for n in nodes.keys() & found if nodes[n].op != found[n].op
    }
    assert changed <= {("Softmax", "Sigmoid")} | {(op, "Reshape") for op in regroup}
    # other layouts of images and of what is made of them, with a pair, and products of scales
    layouts = {"Pad", "Reshape", "Transpose", "Mul", "QuantizeLinear", "DequantizeLinear"}
    differences = {"MatMul"} if ("Softmax", "Sigmoid") in changed else set()
    assert {found[name].op for name in found.keys() - nodes.keys()} <= layouts | differences
    assert inner_operators(made) == inner_operators(prepared)


def inner_operators(model):
    """What the bodies of If, Loop and Scan compute: it must stay as it is."""
    outer = Counter((node.domain, node.op) for node in model.view().nodes)
    return Counter((domain, op) for _, domain, op in model.operators()) - outer


@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.stem)
def test_weights_alone_need_no_data(model, tmp_path, capfd):
    if model.stem in sweep.OWED["refused"]:
        pytest.skip("refused whatever the data")
    output = tmp_path / "made.onnx"
    recipe = sweep.make_recipe(None, None, tmp_path, seconds=0)
    result = onnxq.quantize(model, recipe=recipe, output=output)
    said = capfd.readouterr()
    assert said.out + said.err == ""
    onnx.checker.check_model(str(output))
    sweep.open_session(output)
    assert result.plan.empty == (result.receipt.measured.size_ratio == 1)


# Not quantized, or refused: nothing is calibrated.
LEFT_OUT = {"g2p_gru_loop", "silero_vad_op18_ifless"}
NEAR = 0.01


@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.stem)
def test_sampled_ranges_are_those_of_all_values(model: Path, modules) -> None:
    """Percentile, entropy and mean squared error, on real activations."""
    module = modules.get(model.stem)
    if module is None or model.stem in LEFT_OUT:
        pytest.skip("nothing to calibrate, or no data for it")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the score modules leave files open
        feeds = [
            {name: np.asarray(value) for name, value in feed.items()}
            for feed in sweep.calibration_feeds(module)
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
            assert off <= NEAR * width, (method, tensor)
