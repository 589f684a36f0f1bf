"""What the examples make. That every block of the docs runs is tested in tests/docs."""

import json
import re
import runpy
from pathlib import Path

import pytest
from click.testing import CliRunner
from msgspec.structs import replace

import onnxq
from onnxq.cli.main import main
from onnxq.plan import CalibrationSettings, VerifySettings

ROOT = Path(__file__).parent.parent


def test_stages_by_hand_plan_what_quantize_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Methods of single layers too: the last one's ranges are others than those of all layers."""
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    by_hand = runpy.run_path(str(ROOT / "examples/stages.py"))
    recipe = replace(by_hand["recipe"], target="cpu-x86", verify=VerifySettings(seconds=0))
    recipe = replace(recipe, calibration=CalibrationSettings(method="mse"))
    data = {"data": "models/digits_calibration.npz", "test_data": "models/digits_test.npz"}
    plans = [
        onnxq.quantize("models/digits_cnn.onnx", **data, recipe=one).plan
        for one in (recipe, replace(recipe, layers=()))
    ]
    assert by_hand["plan"] == plans[0] != plans[1]


def test_example_data_function_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    data = f"{ROOT / 'examples/my_data.py'}:samples"
    done = CliRunner().invoke(
        main, ["quantize", "models/digits_cnn.onnx", "--data", data, "--dry-run"]
    )
    assert done.exit_code == 0, done.output


def test_example_observer_chooses_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    observer = f"{ROOT / 'examples/custom_calibration.py'}:PowerOfTwo"
    data = ["--data", "models/digits_calibration.npz"]
    done = CliRunner().invoke(
        main, ["calibrate", "models/digits_cnn.onnx", *data, "--calibrator", observer, "-o", "r",
               "--json"]
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["tensors"]["logits"]["hi"] == 8


def test_tables_of_results_are_of_their_figures() -> None:
    made = runpy.run_path(str(ROOT / "scripts/write_results.py"))
    told = json.loads((ROOT / "docs/results.json").read_text("utf-8"))
    text = (ROOT / "README.md").read_text("utf-8")
    assert made["page"](told) == (ROOT / "docs/results.md").read_text("utf-8")
    assert made["readme"](told, text) == text
    assert all(f"`{name}`" in text for name in made["SHOWN"])


def test_pictures_of_terminals_load_nothing() -> None:
    pictures = sorted((ROOT / "docs/terminal").glob("*.svg"))
    assert len(pictures) == 4
    for picture in pictures:
        text = picture.read_text("utf-8")
        addresses = set(re.findall(r"https?://[^\s\"')]+", text))
        assert addresses == {"http://www.w3.org/2000/svg"}
        assert not re.search(r"<script|@import|@font-face|url\((?!#)", text)
