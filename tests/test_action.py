"""The GitHub Action and the other files of CI: their steps are run as a runner runs them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import click
import onnx
import pytest
import yaml
from onnx import numpy_helper

from onnxq.api import check_model
from onnxq.cli import main
from onnxq.plan import DataSettings, Recipe, VerifySettings

ROOT = Path(__file__).parents[1]
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
DEFAULTS = {name: told.get("default", "") for name, told in ACTION["inputs"].items()}
# It is installed here already, so that pip has nothing to fetch.
HERE = {"python": sys.executable, "requirement": "onnxq"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository in a folder with a space in its name, with a model and its baseline."""
    made = tmp_path / "a repository"
    made.mkdir()
    for name in ("digits_cnn.onnx", "digits_calibration.npz", "digits_test.npz"):
        shutil.copy(ROOT / "models" / name, made)
    data = DataSettings(
        calibration=str(made / "digits_calibration.npz"), test=str(made / "digits_test.npz")
    )
    recipe = Recipe(
        precision="int8", target="cpu-x86-avx2", data=data, verify=VerifySettings(seconds=0)
    )
    check_model(made / "digits_cnn.onnx", recipe=recipe, update=True)
    return made


class Runner:
    """Runs the steps of a composite action one after the other, until one fails."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.summary, self.outputs = folder / "summary.md", folder / "outputs"
        self.log = ""

    def run(self, **inputs: str) -> int:
        given = DEFAULTS | HERE | {name.replace("_", "-"): text for name, text in inputs.items()}
        for step in ACTION["runs"]["steps"]:
            assert step["shell"] == "bash"
            environment = {
                name: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda m: given[m[1]], value)
                for name, value in step["env"].items()
            }
            known = {
                "GITHUB_ACTION_PATH": "/an action",
                "RUNNER_TEMP": str(self._folder),
                "GITHUB_STEP_SUMMARY": str(self.summary),
                "GITHUB_OUTPUT": str(self.outputs),
                "PIP_NO_INDEX": "1",
                "PIP_ROOT_USER_ACTION": "ignore",
            }
            assert "${{" not in step["run"] + "".join(environment.values())
            script = self._folder / "step.sh"
            script.write_text(step["run"], encoding="utf-8")
            # as GitHub's documentation says that `shell: bash` is run
            done = subprocess.run(
                ["bash", "--noprofile", "--norc", "-eo", "pipefail", script],
                cwd=self._folder, env=os.environ | known | environment, check=False,
                capture_output=True, text=True,
            )  # fmt: skip
            self.log += done.stdout + done.stderr
            if done.returncode:
                return done.returncode
        return 0


def test_action_passes(folder: Path) -> None:
    runner = Runner(folder)
    assert runner.run(model="digits_cnn.onnx", junit="check.xml") == 0, runner.log
    assert "### ✅ onnxq check: `digits_cnn.onnx`" in runner.summary.read_text(encoding="utf-8")
    assert "passed=true" in runner.outputs.read_text().splitlines()
    assert "::notice file=digits_cnn.onnx" in runner.log
    (suite,) = Xml.parse(folder / "check.xml").getroot()
    assert suite.get("failures") == "0"


def test_action_fails_and_says_why(folder: Path) -> None:
    proto = onnx.load(folder / "digits_cnn.onnx")
    tensor = next(t for t in proto.graph.initializer if t.name == "conv3.weight")
    values = numpy_helper.to_array(tensor).copy()
    values[:4] *= 100
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(proto, folder / "digits_cnn.onnx")
    runner = Runner(folder)
    code = runner.run(
        model="digits_cnn.onnx", baseline="digits_cnn.baseline.json",
        args="--skip ranges --skip sqnr",
    )  # fmt: skip
    assert code == 1
    assert "::error file=digits_cnn.onnx,title=onnxq check%3A metric::" in runner.log
    assert "check%3A ranges" not in runner.log  # the options arrived
    summary = runner.summary.read_text(encoding="utf-8")
    assert "### ❌ onnxq check: `digits_cnn.onnx`" in summary
    assert "passed=false" in runner.outputs.read_text().splitlines()


def test_inputs_are_no_code(folder: Path) -> None:
    runner = Runner(folder)
    assert runner.run(model="$(touch pwned).onnx", args="; touch pwned") not in (0, 1)
    assert not (folder / "pwned").exists()


@pytest.fixture
def recording(tmp_path: Path) -> tuple[str, Path]:
    """A Python that writes down what it is called with, one argument a line, and does nothing."""
    python, calls = tmp_path / "python", tmp_path / "calls"
    python.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >>"{calls}"\n')
    python.chmod(0o755)
    return str(python), calls


def test_own_version_is_installed_by_default(folder: Path, recording: tuple[str, Path]) -> None:
    python, calls = recording
    runner = Runner(folder)
    assert runner.run(model="m.onnx", python=python, requirement=DEFAULTS["requirement"]) == 0
    assert "/an action[cpu]" in calls.read_text().splitlines()
    calls.unlink()
    assert runner.run(model="m.onnx", python=python, requirement="onnxq[cpu]==1") == 0
    assert "onnxq[cpu]==1" in calls.read_text().splitlines()
    assert "/an action" not in calls.read_text()


def test_args_of_several_lines(folder: Path, recording: tuple[str, Path]) -> None:
    python, calls = recording
    runner = Runner(folder)
    lines = "--skip latency\n--skip  sqnr\n\n  --seed 3\n"
    assert runner.run(model="m.onnx", python=python, args=lines) == 0
    given = calls.read_text().splitlines()
    assert given[-6:] == ["--skip", "latency", "--skip", "sqnr", "--seed", "3"]


def test_modules_of_the_checkout_are_not_run(folder: Path) -> None:
    for name in ("pip", "numpy", "onnxq"):
        (folder / f"{name}.py").write_text("open('pwned', 'w')\nraise SystemExit(0)\n")
    runner = Runner(folder)
    assert runner.run(model="digits_cnn.onnx") == 0, runner.log
    assert not (folder / "pwned").exists()
    assert "onnxq check" in runner.summary.read_text(encoding="utf-8")


def test_data_and_recipe_arrive(folder: Path) -> None:
    (folder / "own.toml").write_text('precision = "int8"\n[verify]\nseconds = 0\n')
    runner = Runner(folder)
    code = runner.run(
        model="digits_cnn.onnx", data="digits_calibration.npz", test_data="digits_test.npz",
        recipe="own.toml",
    )  # fmt: skip
    assert code == 0, runner.log
    assert runner.run(model="digits_cnn.onnx", data="nowhere.npz") == 3


def test_every_input_is_described_and_used() -> None:
    text = "".join(v for step in ACTION["runs"]["steps"] for v in step["env"].values())
    for name, told in ACTION["inputs"].items():
        assert told["description"].endswith("."), name
        assert f"${{{{ inputs.{name} }}}}" in text, name
        # expressions of a default are evaluated outside of the action, which they know nothing of
        assert "${{" not in told.get("default", ""), name


def test_workflow_checks_a_shipped_model() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/check.yml").read_text(encoding="utf-8"))
    steps = workflow["jobs"]["models"]["steps"]
    (step,) = (step for step in steps if step.get("uses") == "./")
    assert set(step["with"]) <= set(ACTION["inputs"])
    for name in ("model", "baseline"):
        assert (ROOT / step["with"][name]).is_file()


def test_hook_calls_a_command() -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    program, command = hook["entry"].split()
    assert program == "onnxq"
    assert main.get_command(click.Context(main), command) is not None
    assert not hook["pass_filenames"]


def test_documented_snippets_name_options_that_exist() -> None:
    """Every block of the page on CI is what it says it is."""
    page = (ROOT / "docs/ci.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(\w+)\n(.*?)```", page, re.DOTALL)
    command = main.get_command(click.Context(main), "check")
    assert command is not None
    options = {flag for option in command.params for flag in option.opts}
    kinds = {kind for kind, _ in blocks}
    assert {"yaml", "sh", "python", "toml"} <= kinds
    for kind, text in blocks:
        if kind == "yaml":
            assert yaml.safe_load(text)
        if kind == "python":
            compile(text, "docs/ci.md", "exec")
        for line in re.findall(r"onnxq check .+", text):
            assert set(re.findall(r"(?<!\S)--[a-z-]+", line)) <= options, line
    used = [step for _, text in blocks if "uses:" in text for step in yaml.safe_load(text)]
    (action,) = (step for step in used if "onnxq" in step.get("uses", ""))
    assert set(action["with"]) <= set(ACTION["inputs"])
