"""``onnxq sensitivity report``: what it prints and writes, and what it refuses before the work."""

from __future__ import annotations

import csv
import io
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from onnxq.sensitivity import SensitivityReport

ROOT = Path(__file__).parents[2]
MODEL = "digits_cnn.onnx"
REPORT = ("sensitivity", "report", MODEL, "--samples", 32, "--method", "screen")

Cli = Callable[..., Any]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("ONNXQ_CACHE", str(folder))
    return folder


def test_shows_the_layers_and_writes_nothing_else(
    onnxq: Cli, digits: Path, files_in: Any, cache: Path
) -> None:
    before = files_in(digits)
    run = onnxq("sensitivity", "report", MODEL, "--samples", 32, "--top", 3)
    assert run.code == 0, run.err
    assert files_in(digits) == before
    assert "all but" in run.out
    assert "int8 everywhere: SQNR" in run.out
    assert "and 5 more" in run.out
    assert [file.suffix for file in (cache / "sensitivity").iterdir()] == [".json"]


def test_json_follows_its_schema(onnxq: Cli, digits: Path) -> None:
    run = onnxq(*REPORT, "--json", "--precision", "int8, int4-weights")
    schema = json.loads((ROOT / "docs/sensitivity.schema.json").read_bytes())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(run.json, schema)
    assert set(run.json["everything"]) == {"int8", "int4-weights"}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**run.json, "samples": "many"}, schema)


def test_schema_is_up_to_date() -> None:
    text = runpy.run_path(str(ROOT / "scripts/write_schema.py"))["text"]
    found = (ROOT / "docs/sensitivity.schema.json").read_text(encoding="utf-8")
    assert found == text("sensitivity.schema.json"), "run: python scripts/write_schema.py"
    assert SensitivityReport.__name__ in found


def test_writes_files(onnxq: Cli, digits: Path) -> None:
    pytest.importorskip("plotly")
    files = ["--csv", "a.csv", "--markdown", "b.md", "--html", "c.html"]
    run = onnxq(*REPORT, *files, "--top", 2)
    assert run.code == 0, run.err
    rows = list(csv.DictReader(io.StringIO(Path("a.csv").read_text())))
    layers = {row["layer"] for row in rows}
    assert {"/conv1/Conv", "/fc1/Gemm"} <= layers
    assert "| and 6 more |" in Path("b.md").read_text()
    page = Path("c.html").read_text()
    assert page.startswith("<!doctype html>")
    assert all(layer in page for layer in layers)
    for name in ("a.csv", "b.md", "c.html"):
        assert f"wrote {name}" in run.out


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--csv", "kept.csv"], 3, "'kept.csv' exists already; overwrite it with --force"),
        (["--csv", MODEL, "--force"], 3, "is one of the files that are read"),
        (["--csv", "x", "--html", "./x"], 2, "two outputs have the same name"),
        (["--html", "nowhere/x.html"], 3, "cannot write 'nowhere/x.html'"),
        (["--precision", "int7"], 2, "in precision 'int7'; did you mean 'int8'?"),
        (["--data", "nothing.npz"], 3, "nothing.npz"),
        (["--jobs", "2", "--cluster", "tcp://x:1"], 2, "give one"),
    ],
)
def test_refuses_before_the_work(
    onnxq: Cli,
    digits: Path,
    files_in: Any,
    cache: Path,
    options: list[str],
    code: int,
    message: str,
) -> None:
    Path("kept.csv").write_text("mine")
    before = files_in(digits)
    run = onnxq(*REPORT, *options)
    assert run.code == code, run.err
    assert message in run.err
    assert len(run.err.splitlines()) == 1
    assert files_in(digits) == before
    assert not list(cache.rglob("*.*"))


def test_overwrites_when_told_to(onnxq: Cli, digits: Path) -> None:
    Path("kept.csv").write_text("mine")
    assert onnxq(*REPORT, "--csv", "kept.csv", "--force", "--quiet").code == 0
    assert Path("kept.csv").read_text().startswith("layer,op,")


def test_without_the_extra_it_says_so_at_once(
    onnxq: Cli, digits: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    run = onnxq(*REPORT, "--html", "x.html")
    assert run.code == 3
    assert "pip install 'onnxq[report]'" in run.err
    assert not list(cache.iterdir())


def test_quiet(onnxq: Cli, digits: Path) -> None:
    run = onnxq(*REPORT, "--quiet")
    assert (run.code, run.out, run.err) == (0, "", "")


def test_a_metric_of_ones_own(onnxq: Cli, digits: Path) -> None:
    Path("mine.py").write_text("def zero(outputs, labels):\n    return 0.25\n")
    run = onnxq(*REPORT, "--metric", "mine.py:zero", "--json")
    assert (run.json["metric"], run.json["float_metric"]) == ("mine.py:zero", 0.25)


def test_the_page_explains_every_column() -> None:
    from onnxq.report.sensitivity import COLUMNS

    text = (ROOT / "docs/sensitivity.md").read_text(encoding="utf-8")
    table = [line for line in text.splitlines() if line.startswith("| ")]
    told = {tuple(cell.strip(" `") for cell in line.split("|")[1:4]) for line in table}
    assert {(column.title, column.key, column.meaning) for column in COLUMNS} <= told
