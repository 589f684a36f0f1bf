"""The pytest plugin, in runs of pytest of their own."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

ROOT = Path(__file__).parents[1]
pytest_plugins = ["pytester"]

QUANTIZES = """
def test_model(onnxq):
    receipt = onnxq.assert_quantizes("digits_cnn.onnx", {arguments})
    assert receipt.measured.latency is None  # nobody asked for it
"""
UNCHANGED = """
def test_model(onnxq):
    onnxq.assert_unchanged("digits_cnn.onnx", {arguments})
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A folder with the digits model; installed plugins are not loaded, but ours by its name."""
    for name in ("digits_cnn.onnx", "digits_calibration.npz", "digits_test.npz"):
        shutil.copy(ROOT / "models" / name, pytester.path)
    recipe = (ROOT / "models/digits_cnn.onnxq.toml").read_text()
    assert "[verify]\n" in recipe
    (pytester.path / "digits_cnn.onnxq.toml").write_text(
        'precision = "int8"\ntarget = "cpu-x86-avx2"\n'
        + recipe.replace("[verify]\n", "[verify]\nseconds = 0\n")
    )
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    return pytester


def run(project: pytest.Pytester, source: str, *args: str) -> pytest.RunResult:
    project.makepyfile(source)
    return project.runpytest_subprocess("-p", "onnxq.pytest_plugin", *args)


def disturb(model: Path) -> None:
    proto = onnx.load(model)
    tensor = next(t for t in proto.graph.initializer if t.name == "conv3.weight")
    values = numpy_helper.to_array(tensor).copy()
    values[:4] *= 100
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(proto, model)


def test_budgets_that_are_kept(project: pytest.Pytester) -> None:
    found = run(project, QUANTIZES.format(arguments="max_drop=0.05, min_sqnr=20"))
    found.assert_outcomes(passed=1)


def test_budget_that_is_missed(project: pytest.Pytester) -> None:
    found = run(project, QUANTIZES.format(arguments="max_drop=0.05, max_size_ratio=0.1"))
    found.assert_outcomes(failed=1)
    found.stdout.fnmatch_lines(["*digits_cnn.onnx misses 1 of 2 budgets*", "*max_size_ratio 0.1:*"])
    found.stdout.no_fnmatch_line("*pytest_plugin.py:*")  # the traceback is of the test alone


def test_unknown_budget_is_an_error(project: pytest.Pytester) -> None:
    found = run(project, QUANTIZES.format(arguments="max_dorp=0.05"))
    found.assert_outcomes(failed=1)
    found.stdout.fnmatch_lines(["*max_dorp*"])


def test_baseline_is_made_and_holds(project: pytest.Pytester) -> None:
    source = UNCHANGED.format(arguments="")
    run(project, source).assert_outcomes(failed=1)  # there is none yet
    run(project, source, "--onnxq-update").assert_outcomes(passed=1)
    assert (project.path / "digits_cnn.baseline.json").is_file()
    run(project, source).assert_outcomes(passed=1)


def test_regression_fails_until_it_is_taken_over(project: pytest.Pytester) -> None:
    source = UNCHANGED.format(arguments="'kept.json'")
    run(project, source, "--onnxq-update").assert_outcomes(passed=1)
    disturb(project.path / "digits_cnn.onnx")
    found = run(project, source)
    found.assert_outcomes(failed=1)
    found.stdout.fnmatch_lines(["*digits_cnn.onnx: worse than the baseline in*metric*"])
    run(project, source, "--onnxq-update").assert_outcomes(passed=1)
    run(project, source).assert_outcomes(passed=1)


def test_tolerances_and_gates_to_skip(project: pytest.Pytester) -> None:
    run(project, UNCHANGED.format(arguments=""), "--onnxq-update").assert_outcomes(passed=1)
    disturb(project.path / "digits_cnn.onnx")
    loose = "skip=('ranges', 'sqnr', 'agreement'), max_metric_drop=1.0"
    run(project, UNCHANGED.format(arguments=loose)).assert_outcomes(passed=1)
    wrong = UNCHANGED.format(arguments="max_metric_drop=2.0")
    found = run(project, wrong)
    found.assert_outcomes(failed=1)
    found.stdout.fnmatch_lines(["*max_metric_drop*"])


def test_is_an_entry_point() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["pytest11"] == {"onnxq": "onnxq.pytest_plugin"}


def test_loading_it_loads_no_library() -> None:
    """It is imported in every run of pytest where onnxq is installed."""
    code = (
        "import sys, onnxq.pytest_plugin; "
        "print([name for name in ('onnx', 'onnxruntime', 'numpy', 'onnxq.api') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
