"""``onnxq check``: options, exit codes, and all forms of its report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import msgspec
import onnx
import pytest
from msgspec.structs import replace
from onnx import numpy_helper

from onnxq.qat import History
from onnxq.verify import Check, Receipt, Training

Cli = Callable[..., Any]
MODEL, BASELINE = "digits_cnn.onnx", "digits_cnn.baseline.json"
# What disturbed weights move beside the metric.
OTHERS = ["--skip", "ranges", "--skip", "sqnr", "--skip", "agreement"]


@pytest.fixture
def baseline(onnxq: Cli, digits: Path) -> Path:
    """The digits folder with a baseline."""
    recipe = digits / "digits_cnn.onnxq.toml"
    recipe.write_text(f'precision = "int8"\n{recipe.read_text()}')
    run = onnxq("check", MODEL, "--update", "--quiet", "--target", "cpu-x86-avx2")
    assert (run.code, run.out, run.err) == (0, "", "")
    return digits / BASELINE


@pytest.fixture
def disturbed(baseline: Path) -> Path:
    """The same with the weights of a layer disturbed."""
    path = baseline.parent / MODEL
    proto = onnx.load(path)
    tensor = next(t for t in proto.graph.initializer if t.name == "conv3.weight")
    values = numpy_helper.to_array(tensor).copy()
    values[:4] *= 100
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(proto, path)
    return baseline


def test_unchanged_model(onnxq: Cli, baseline: Path) -> None:
    run = onnxq("check", MODEL)
    assert run.code == 0
    assert "nothing changed since the baseline" in run.out
    assert "no worse than the baseline in all 6 figures" in run.out


def test_worse_model(onnxq: Cli, disturbed: Path) -> None:
    run = onnxq("check", MODEL, "--baseline", BASELINE)
    assert run.code == 1
    assert len(run.out.splitlines()) <= 50  # one screen
    assert "weights: of /conv3/Conv" in run.out
    assert "worse than the baseline in" in run.out


def test_all_reports_at_once(onnxq: Cli, disturbed: Path) -> None:
    """JSON stays alone on standard output."""
    run = onnxq("check", MODEL, "--json", "--junit", "c.xml", "--markdown", "c.md", "--github")
    assert run.code == 1
    found = msgspec.json.decode(run.out.encode(), type=Check)
    failed = {gate.name for gate in found.gates if gate.status == "failed"}
    assert failed >= {"metric", "ranges"}
    suites = Xml.parse("c.xml").getroot()
    cases = {case.get("name"): case for case in suites.iter("testcase")}
    assert {name for name, case in cases.items() if case.find("failure") is not None} == failed
    assert suites.get("tests") == str(len(found.gates)) == str(len(cases))
    assert Path("c.md").read_text(encoding="utf-8").count("* ❌") == len(failed)
    annotations = [line for line in run.err.splitlines() if line.startswith("::error")]
    assert len(annotations) == len(failed)


def test_annotations_beside_text(onnxq: Cli, baseline: Path) -> None:
    run = onnxq("check", MODEL, "--github", "--quiet")
    (line,) = run.out.splitlines()
    assert line.startswith(f"::notice file={MODEL},title=onnxq check::no worse")


def test_github_obeys_no_line_of_the_view(onnxq: Cli, baseline: Path) -> None:
    tokens = set()
    for _ in range(2):
        first, *view, last, annotation = onnxq("check", MODEL, "--github").out.splitlines()
        assert first.startswith("::stop-commands::")
        token = first.removeprefix("::stop-commands::")
        assert len(token) == 32  # hexadecimal digits: nobody guesses it
        assert last == f"::{token}::"
        assert any("no worse than the baseline" in line for line in view)
        assert annotation.startswith("::notice ")
        tokens.add(token)
    assert len(tokens) == 2
    assert "::stop" not in onnxq("check", MODEL).out


def test_hostile_names_stay_in_their_lines(
    onnxq: Cli, baseline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A terminal of 20 columns: wrapped, the name would start a line."""
    monkeypatch.setenv("COLUMNS", "20")
    proto = onnx.load(MODEL)
    for number, node in enumerate(proto.graph.node):
        node.name = f"{number} ::stop-commands::tok\n::stop-commands::tok\x1b[31m##[error]"
    onnx.save(proto, MODEL)
    lines = onnxq("check", MODEL).out.splitlines()
    assert any("::stop-commands::tok ::stop-commands::tok?[31m# #[error]" in x for x in lines)
    assert not any(line.lstrip().startswith("::") for line in lines)


@pytest.mark.parametrize("option", ["--junit", "--markdown"])
@pytest.mark.parametrize(
    "file",
    [
        MODEL, BASELINE, "weights.bin", "digits_cnn.onnxq.toml", "own.toml",
        "digits_calibration.npz", "digits_test.npz", "../digits/digits_test.npz",
    ],
)  # fmt: skip
def test_reports_replace_nothing_that_is_read(
    onnxq: Cli, baseline: Path, option: str, file: str
) -> None:
    file = file.replace("digits/", f"{baseline.parent.name}/")
    onnx.save(onnx.load(MODEL), MODEL, save_as_external_data=True, location="weights.bin",
              size_threshold=0)  # fmt: skip
    Path("own.toml").write_text('precision = "int8"\n')
    before = Path(file).read_bytes()
    options = ["--recipe", "own.toml"] if file == "own.toml" else []
    run = onnxq("check", MODEL, option, file, *options)
    assert run.code == 3
    assert "is one of the files that are read" in run.err
    assert Path(file).read_bytes() == before


def test_two_reports_in_one_file(onnxq: Cli, baseline: Path) -> None:
    run = onnxq("check", MODEL, "--junit", "out", "--markdown", "./out")
    assert run.code == 2
    assert "two outputs have the same name" in run.err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--max-metric-drop", "100%", *OTHERS], 0),
        (OTHERS, 1),
        (["--skip", "speed"], 2),
        (["--max-metric-drop", "5"], 2),
        (["--baseline", "nothing.json"], 3),
        (["--data", "nothing.npz"], 3),
        (["--junit", "no/such/folder.xml"], 3),
        (["--markdown", MODEL], 3),
    ],
)  # fmt: skip
def test_exit_codes(onnxq: Cli, disturbed: Path, options: list[str], code: int) -> None:
    assert onnxq("check", MODEL, *options).code == code


def test_every_tolerance_is_an_option(onnxq: Cli, disturbed: Path) -> None:
    loose = {
        "--max-metric-drop": "100%", "--max-agreement-drop": "100%", "--max-sqnr-loss": "200",
        "--max-size-growth": "10", "--max-slowdown": "10", "--max-coverage-drop": "1",
        "--max-range-change": "100",
    }  # fmt: skip
    said = [text for pair in loose.items() for text in pair]
    run = onnxq("check", MODEL, "--json", *said)
    assert run.code == 0
    limits = {gate["name"]: gate["limit"] for gate in run.json["gates"]}
    assert limits == {
        "metric": 1, "agreement": 1, "sqnr": 200, "size": 10, "latency": 10, "coverage": 1,
        "ranges": 100,
    }  # fmt: skip


def test_update_takes_a_change_over(onnxq: Cli, disturbed: Path) -> None:
    run = onnxq("check", MODEL, "--update")
    assert run.code == 0
    assert f"wrote {BASELINE}" in run.out
    assert onnxq("check", MODEL).code == 0


def test_search_plans_anew(onnxq: Cli, baseline: Path) -> None:
    found = onnxq("check", MODEL, "--search", "--json").json
    assert found["plan"] == "planned anew: --search"
    assert onnxq("check", MODEL, "--json").json["plan"] == "the baseline's, on 12 of 12 nodes"


def test_recipe_target_seed_and_data(onnxq: Cli, baseline: Path) -> None:
    Path("own.toml").write_text('precision = "int8"\n[verify]\nseconds = 0\n')
    options = ["--recipe", "own.toml", "--data", "digits_calibration.npz", "--seed", "3"]
    options += ["--target", "cpu-x86-avx2"]
    found = onnxq("check", MODEL, "--update", "--json", *options)
    assert found.code == 0
    receipt = Receipt.from_json(baseline.read_bytes())
    assert receipt.run.seed == 3
    assert receipt.plan.target == "cpu-x86-avx2"
    assert receipt.recipe.data.calibration == "digits_calibration.npz"


def test_metric_of_ones_own_is_not_the_baselines(onnxq: Cli, baseline: Path) -> None:
    Path("mine.py").write_text("def worst(outputs, labels):\n    return 1.0\n")
    found = onnxq("check", MODEL, "--metric", "mine.py:worst", "--json").json
    (gate,) = (gate for gate in found["gates"] if gate["name"] == "metric")
    assert gate["status"] == "failed"
    assert "mine.py:worst" in gate["note"]


def test_receipt_of_trained_weights_is_refused(onnxq: Cli, baseline: Path) -> None:
    receipt = Receipt.from_json(baseline.read_bytes())
    history = History("mse", 1, 1, 1, 1, 1, 1, (), 0, "", 1.0, "cpu")
    trained = replace(receipt, training=Training(history, receipt.measured))
    baseline.write_bytes(trained.to_json())
    run = onnxq("check", MODEL)
    assert run.code == 2
    assert "trained weights" in run.err


def test_found_recipe_may_name_no_code(onnxq: Cli, baseline: Path) -> None:
    """A baseline that someone else commits runs no code of theirs."""
    receipt = json.loads(baseline.read_bytes())
    receipt["recipe"]["verify"]["metric"] = "mine.py:worst"
    baseline.write_text(json.dumps(receipt))
    Path("mine.py").write_text("open('pwned', 'w')\ndef worst(outputs, labels):\n    return 1\n")
    Path("digits_cnn.onnxq.toml").unlink()
    run = onnxq("check", MODEL)
    assert run.code == 2
    assert "Python code" in run.err
    assert not Path("pwned").exists()
