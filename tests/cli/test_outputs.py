"""What is written never takes the place of what is read, nor becomes data of the next run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxq.graph import load, save

MODEL, DATA, RECIPE = "digits_cnn.onnx", "digits_calibration.npz", "digits_cnn.onnxq.toml"
Cli = Callable[..., Any]
WRITERS = {
    "quantize": ("quantize", MODEL, "-o"),
    "calibrate": ("calibrate", MODEL, "-o"),
    "sensitivity": ("sensitivity", "report", MODEL, "--csv"),
    "compare": ("compare", MODEL, MODEL, "--markdown"),
    "check": ("check", MODEL, "--update", "--markdown"),
}
# Reports beside the main output, which ``--force`` is about too.
PAGES = {
    "quantize": ("quantize", MODEL, "--html"),
    "sensitivity": ("sensitivity", "report", MODEL, "--html"),
    "compare": ("compare", MODEL, MODEL, "--html"),
    "bench": ("bench", MODEL, MODEL, "--html"),
    "check": ("check", MODEL, "--update", "--html"),
}


@pytest.fixture
def refused(
    onnxq: Cli, digits: Path, files_in: Callable[[Path], dict[str, bytes | None]]
) -> Callable[..., str]:
    """Call onnxq, check that it refuses and that nothing changed, and return what it said."""

    def run(*args: object) -> str:
        before = files_in(digits)
        done = onnxq(*args)
        assert done.code == 3, done.err
        assert done.out == ""
        assert files_in(digits) == before
        (line,) = done.err.splitlines()
        return str(line)

    return run


@pytest.fixture
def folder(digits: Path) -> Path:
    """A folder of feeds, that a recipe names."""
    (digits / "feeds").mkdir()
    for index in range(4):
        np.savez(digits / f"feeds/{index}.npz", image=np.zeros((1, 1, 8, 8), np.float32))
    (digits / RECIPE).write_text('[data]\ncalibration = "feeds"\n[verify]\nseconds = 0\n')
    return digits / "feeds"


@pytest.mark.parametrize("command", WRITERS.values(), ids=WRITERS)
class TestEveryWriter:
    @pytest.mark.parametrize("read", [MODEL, DATA, "digits_test.npz", RECIPE])
    def test_never_over_what_is_read(
        self, refused: Callable[..., str], command: tuple[str, ...], read: str
    ) -> None:
        """Model, data and recipe, which was merely found, and whose data no option names."""
        force = () if command[0] == "check" else ("--force",)
        told = refused(*command, read, *force)
        assert f"output '{read}' is one of the files that are read" in told

    @pytest.mark.parametrize("name", ["feeds/more.npz", "feeds/0.npy", "feeds/sub/x.PNG"])
    def test_never_among_the_data(
        self, refused: Callable[..., str], folder: Path, command: tuple[str, ...], name: str
    ) -> None:
        (folder / "sub").mkdir()
        told = refused(*command, name)
        assert f"output '{name}' would be one of the data in 'feeds', which are read" in told


@pytest.mark.parametrize("command", [*WRITERS.values(), *PAGES.values()])
@pytest.mark.parametrize("read", [MODEL, f"{MODEL}.data"])
def test_external_data_belong_to_the_model(
    refused: Callable[..., str], digits: Path, command: tuple[str, ...], read: str
) -> None:
    save(load(digits / MODEL, in_memory=True), digits / MODEL, external=True)
    assert (digits / f"{MODEL}.data").stat().st_size > 100_000
    force = () if command[0] == "check" else ("--force",)
    told = refused(*command, f"./{read}", *force)
    assert f"output '{read}' is one of the files that are read" in told


def test_training_leaves_no_checkpoint_among_the_data(
    refused: Callable[..., str], folder: Path
) -> None:
    """It is an .npz, which the next run would take for a feed."""
    pytest.importorskip("torch")
    told = refused("qat", MODEL, "--distill", "-o", "feeds/made.onnx")
    assert "output 'feeds/made.checkpoint.npz' would be one of the data" in told


def test_other_files_may_lie_beside_the_data(onnxq: Cli, folder: Path) -> None:
    """Models often lie in the folder of their test data, and are no data."""
    for name in ("made.onnx", "made.json"):
        args = ("calibrate", MODEL) if name.endswith("json") else ("quantize", MODEL)
        assert onnxq(*args, "-o", folder / name).code == 0
    assert onnxq("quantize", MODEL, "-o", folder / "again.onnx").code == 0


def test_two_reports_are_two_files(onnxq: Cli, digits: Path) -> None:
    run = onnxq("sensitivity", "report", MODEL, "--csv", "a.txt", "--markdown", "./a.txt")
    assert run.code == 2
    assert "two outputs have the same name" in run.err


@pytest.mark.parametrize("page", ["made.onnx", "made.onnx.data", "made.receipt.json"])
def test_a_page_is_no_other_output(onnxq: Cli, digits: Path, page: str) -> None:
    run = onnxq("quantize", MODEL, "-o", "made.onnx", "--html", page)
    assert run.code == 2
    assert "two outputs have the same name" in run.err
    assert not (digits / page).exists()
