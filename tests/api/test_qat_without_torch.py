"""Without PyTorch all works but training, and training says what to install."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

MODELS = Path(__file__).parents[2] / "models"
# Finds no torch, as where it is not installed, and says so if anything imports it all the same.
WITHOUT = """
import sys
from importlib.machinery import PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] == "torch" else super().find_spec(name, path, target)

sys.meta_path = [Finder if finder is PathFinder else finder for finder in sys.meta_path]
"""
ASK = "pip install 'onnxq[qat]'"


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    for name in ("digits_cnn.onnx", "digits_test.npz"):
        shutil.copy(MODELS / name, tmp_path)
    (tmp_path / "digits_cnn.onnxq.toml").write_text("[verify]\nseconds = 0\n[qat]\nepochs = 3\n")
    return tmp_path


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )


def command(*args: str) -> str:
    return f"{WITHOUT}\nfrom onnxq.cli import main\nmain({list(args)!r})"


def test_torch_is_really_gone(tmp_path: Path) -> None:
    assert "No module named 'torch'" in python(f"{WITHOUT}\nimport torch", tmp_path).stderr


def test_training_says_what_to_install(digits: Path) -> None:
    done = python(command("qat", "digits_cnn.onnx", "--data", "digits_test.npz"), digits)
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr.strip() == (f"error: training needs PyTorch, which is not installed; {ASK}")
    assert not list(digits.glob("*.qat.*"))


def test_quantizing_works_with_a_recipe_of_training(digits: Path) -> None:
    args = ("quantize", "digits_cnn.onnx", "--data", "digits_test.npz", "--precision", "int8")
    done = python(command(*args, "--quiet"), digits)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (digits / "digits_cnn.int8.onnx").is_file()


@pytest.mark.parametrize("args", [("--help",), ("qat", "--help")])
def test_help_works(digits: Path, args: tuple[str, ...]) -> None:
    done = python(command(*args), digits)
    assert done.returncode == 0, done.stderr
    assert "qat" in done.stdout


@pytest.mark.parametrize("call", ["onnxq.QATTrainer()", "onnxq.train_model('m', onnxq.Job())"])
def test_library_says_it_too(digits: Path, call: str) -> None:
    done = python(f"{WITHOUT}\nimport onnxq\nprint(onnxq.Trained)\n{call}", digits)
    assert "onnxq.api.qat.Trained" in done.stdout
    assert done.stderr.strip().splitlines()[-1].endswith(ASK)


def test_importing_onnxq_imports_no_torch(tmp_path: Path) -> None:
    """Nor does its front door, where torch is installed."""
    code = "import sys, onnxq\nonnxq.QATTrainer, onnxq.train_model\nprint('torch' in sys.modules)"
    done = python(code, tmp_path)
    assert done.stdout.strip() == "False", done.stderr
