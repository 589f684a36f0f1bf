"""Run the command line in a folder, and look at what it left there."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from onnxq.cli import main

MODELS = Path(__file__).parents[2] / "models"


@dataclass(frozen=True)
class Run:
    """What one call of the command line said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.out)


def listing(folder: Path) -> dict[str, bytes | None]:
    """Every file with its content, every folder with None."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def run_cli(*args: object) -> Run:
    result = CliRunner().invoke(main, [str(arg) for arg in args], prog_name="onnxq")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return Run(result.exit_code, result.stdout, result.stderr)


@pytest.fixture
def onnxq() -> Callable[..., Run]:
    """Call the command line in this process; anything but an orderly exit fails the test."""
    return run_cli


@pytest.fixture
def files_in() -> Callable[[Path], dict[str, bytes | None]]:
    return listing


@pytest.fixture(autouse=True)
def import_nothing_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's modules leave no compiled files, and their folder leaves the search path."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(sys, "path", sys.path.copy())


@pytest.fixture
def digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the digits model, its data, and its recipe without timing."""
    for name in ("digits_cnn.onnx", "digits_calibration.npz", "digits_test.npz"):
        shutil.copy(MODELS / name, tmp_path)
    recipe = (MODELS / "digits_cnn.onnxq.toml").read_text()
    assert "[verify]\n" in recipe
    quick = recipe.replace("[verify]\n", "[verify]\nseconds = 0\n")
    (tmp_path / "digits_cnn.onnxq.toml").write_text(quick)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def recipe_of(
    digits: Path, monkeypatch: pytest.MonkeyPatch, onnxq: Callable[..., Run]
) -> Callable[..., dict[str, Any]]:
    """The recipe that a run of ``onnxq quantize`` would go by."""
    seen: list[dict[str, Any]] = []

    def stop(_model: Path, job: Any) -> None:
        seen.append(msgspec.to_builtins(job.recipe))
        raise SystemExit(0)

    monkeypatch.setattr("onnxq.cli.quantize.planned", stop)

    def run(*args: object) -> dict[str, Any]:
        done = onnxq("quantize", "digits_cnn.onnx", "--dry-run", *args)
        assert done.code == 0, done.err
        return seen.pop()

    return run
