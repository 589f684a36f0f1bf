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

import onnx
import pytest

import onnxq
from onnxq import errors
from onnxq.graph import load, strip
from onnxq.runtime import prepare

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
    assert set(strip(made).view().by_name) == set(prepared.view().by_name)
    assert inner_operators(made) == inner_operators(prepared)


def inner_operators(model):
    """What the bodies of If, Loop and Scan hold: they must stay as they are."""
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
