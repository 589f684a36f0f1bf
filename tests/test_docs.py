"""What the documentation says can be done can be done."""

import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from msgspec.structs import replace

import onnxq
from onnxq.cli.main import COMMANDS, main
from onnxq.plan import CalibrationSettings, VerifySettings
from onnxq.plan.recipe import parse_recipe

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples/README.md"]
EXAMPLES = ["quantize_from_python.py", "stages.py", "measured_plan.py", "mixed_precision.py"]


@pytest.mark.parametrize("script", EXAMPLES)
def test_example_runs(script: str, tmp_path: Path) -> None:
    (tmp_path / "models").symlink_to(ROOT / "models")
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / script)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


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
    observer = f"{ROOT / 'examples/my_observer.py'}:PowerOfTwo"
    data = ["--data", "models/digits_calibration.npz"]
    done = CliRunner().invoke(
        main, ["calibrate", "models/digits_cnn.onnx", *data, "--calibrator", observer, "-o", "r",
               "--json"]
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["tensors"]["logits"]["hi"] == 8


def test_commands_of_the_calibration_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those on shipped files, one after the other."""
    for folder in ("models", "examples"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs/calibration.md").read_text(encoding="utf-8")
    lines = re.findall(r"^onnxq (.+(?:models/|digits\.).+)$", text, re.MULTILINE)
    assert len(lines) >= 4
    for line in lines:
        force = ["--force"] if line.startswith("quantize") else []
        done = CliRunner().invoke(main, [*shlex.split(line), *force])
        assert done.exit_code == 0, (line, done.output)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    missing = [link for link in local if not (page.parent / link).exists()]
    assert not missing


def test_options_in_the_readme_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    known = "".join(CliRunner().invoke(main, [name, "--help"]).output for name in COMMANDS)
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
    assert named, "the README names no option"
    assert {option for option in named if option not in known} == set()


def test_the_page_on_precisions_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands, on a copy of the model without its recipe, and its recipe is one."""
    (tmp_path / "models").mkdir()
    model = "models/digits_cnn.onnx"
    (tmp_path / model).write_bytes((ROOT / model).read_bytes())
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs/precisions.md").read_text(encoding="utf-8")
    lines = re.findall(r"^onnxq (.+models/.+)$", text, re.MULTILINE)
    assert len(lines) == 3
    for line in lines:
        done = CliRunner().invoke(main, shlex.split(line))
        assert done.exit_code == 0, f"{line}: {done.output}"
    assert sorted(file.name for file in tmp_path.rglob("*.int*.onnx")) == [
        "digits_cnn.int4-weights.onnx", "digits_cnn.int8-dynamic.onnx",
    ]  # fmt: skip
    (table,) = re.findall(r"```toml\n(.+?)```", text, re.DOTALL)
    recipe = parse_recipe(table, "docs/precisions.md")
    assert [rule.precision for rule in recipe.layers] == ["float", "int8-dynamic", None]
