"""``quantize --from``, and budgets as options."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

MODEL, MADE, RECEIPT = "digits_cnn.onnx", "digits_cnn.int8.onnx", "digits_cnn.int8.receipt.json"
Cli = Callable[..., Any]


class TestFrom:
    @pytest.fixture
    def made(self, onnxq: Cli, digits: Path) -> Path:
        """The folder with a quantized model and its receipt."""
        (digits / "digits_cnn.onnxq.toml").write_text("[verify]\nseconds = 0\n")
        args = ("--precision", "int8", "--data", "digits_calibration.npz", "--samples", 50)
        run = onnxq("quantize", MODEL, *args, "--max-size", "50%", "--quiet")
        assert run.code == 0, run.err
        return digits

    def test_same_bytes(self, onnxq: Cli, made: Path) -> None:
        run = onnxq("quantize", MODEL, "--from", RECEIPT, "-o", "again.onnx")
        assert run.code == 0, run.err
        assert (made / "again.onnx").read_bytes() == (made / MADE).read_bytes()
        text = " ".join(run.out.split())
        assert "wrote again.onnx and again.receipt.json; the model has the same bytes as" in text
        assert "applied again without data" in text
        assert "budget max_size_ratio 0.5" in text

    def test_plan_that_was_edited(self, onnxq: Cli, made: Path) -> None:
        text = (made / RECEIPT).read_text()
        receipt = msgspec.json.decode(text)
        (node,) = [n for n in receipt["plan"]["nodes"] if n["name"] == "/fc2/Gemm"]
        assert node["precision"] == "int8"
        node["precision"] = "float"
        (made / "edited.json").write_bytes(msgspec.json.encode(receipt))
        run = onnxq("quantize", MODEL, "--from", "edited.json", "-o", "again.onnx", "--json")
        assert run.code == 0, run.err
        assert len((made / "again.onnx").read_bytes()) > len((made / MADE).read_bytes())
        run = onnxq("quantize", MODEL, "--from", "edited.json", "-o", "again.onnx", "--force")
        assert "the model has other bytes than the receipt's" in " ".join(run.out.split())

    def test_test_data(self, onnxq: Cli, made: Path) -> None:
        args = ("--from", RECEIPT, "-o", "again.onnx", "--json", "--metric", "top1")
        run = onnxq("quantize", MODEL, *args, "--test-data", "digits_test.npz")
        assert run.code == 0, run.err
        assert run.json["measured"]["metric"]["samples"] == 597

    @pytest.mark.parametrize(
        ("args", "code", "told"),
        [
            (("--from", MODEL), 3, "'digits_cnn.onnx' is no receipt: "),
            (("--from", "nothing.json"), 3, "cannot read receipt 'nothing.json': No such file"),
            (("--from", RECEIPT), 3, "is one of the files that are read; choose another with -o"),
            (
                ("--from", RECEIPT, "--samples", "50"),
                2,
                "--samples decides about a plan, and with --from the receipt's is applied as it is",
            ),
            (("--from", RECEIPT, "--data", "digits_test.npz"), 2, "--data decides about a plan"),
            (("--from", RECEIPT, "--max-drop", "1%"), 2, "--max-drop decides about a plan"),
            (("--from", RECEIPT, "--metric", "top1"), 2, "give --test-data"),
        ],
    )
    def test_mistake_is_told_in_a_line(
        self, onnxq: Cli, made: Path, args: tuple[str, ...], code: int, told: str
    ) -> None:
        run = onnxq("quantize", MODEL, *args, "--force")
        assert run.code == code
        assert run.out == ""
        assert run.err.startswith("error: ")
        assert told in run.err
        assert len(run.err.splitlines()) == 1

    def test_another_model(self, onnxq: Cli, made: Path) -> None:
        (made / "other.onnx").write_bytes((made / MADE).read_bytes())
        run = onnxq("quantize", "other.onnx", "--from", RECEIPT, "-o", "again.onnx")
        assert run.code == 2
        assert run.err.startswith("error: the receipt is of 'digits_cnn.onnx' (")
        assert "and 'other.onnx' is another model (" in run.err


class TestBudgets:
    @pytest.mark.parametrize(
        ("option", "said", "name", "limit"),
        [
            ("--max-drop", "0.5%", "max_drop", 0.005),
            ("--max-drop", "0.005", "max_drop", 0.005),
            ("--max-drop", "0", "max_drop", 0.0),
            ("--max-drop", "50%", "max_drop", 0.5),
            ("--min-agreement", "99%", "min_agreement", 0.99),
            ("--min-agreement", "1", "min_agreement", 1.0),
            ("--min-sqnr", "25", "min_sqnr", 25.0),
            ("--min-sqnr", "-3", "min_sqnr", -3.0),
            ("--min-int8", "90%", "min_int8", 0.9),
            ("--max-size", "0.3", "max_size_ratio", 0.3),
            ("--max-size", "30 %", "max_size_ratio", 0.3),
            ("--max-size", "1.1", "max_size_ratio", 1.1),
            ("--min-speedup", "1.2", "min_speedup", 1.2),
        ],
    )
    def test_is_one_of_the_recipe(
        self, recipe_of: Cli, option: str, said: str, name: str, limit: float
    ) -> None:
        expected = {
            "max_drop": 0.005, "min_sqnr": None, "min_agreement": None, "max_size_ratio": None,
            "min_speedup": None, "min_int8": None,
        }  # fmt: skip
        assert recipe_of(option, said)["budgets"] == expected | {name: limit}

    @pytest.mark.parametrize(
        ("option", "said", "told"),
        [
            ("--max-drop", "5", "5 is too large for a share; for 5 percent, say 5%."),
            ("--max-drop", "0.5", "0.5 is 50%; say 0.5% or 50%."),
            ("--max-drop", "101%", "101% is too large for a share."),
            ("--max-drop", "half", "'half' is no share; say 1% or 0.01."),
            ("--max-drop", "-1%", "'-1%' is no share"),
            ("--max-drop", "nan", "'nan' is no share"),
            ("--max-drop", "%", "'%' is no share"),
            ("--min-agreement", "99", "for 99 percent, say 99%."),
            ("--min-int8", "90", "for 90 percent, say 90%."),
            ("--max-size", "30", "for 30 percent, say 30%."),
            ("--min-sqnr", "inf", "'inf' is no number."),
            ("--min-sqnr", "high", "'high' is no number."),
            ("--min-speedup", "0", "0 is not above 0."),
            ("--objective", "speed", "'speed' is not one of 'latency', 'size', 'int8-everywhere'"),
        ],
    )
    def test_nonsense_is_refused(self, onnxq: Cli, option: str, said: str, told: str) -> None:
        run = onnxq("quantize", MODEL, option, said)
        assert run.code == 2
        assert f"Invalid value for '{option}'" in run.err
        assert told in run.err

    def test_objective(self, recipe_of: Cli, digits: Path) -> None:
        found = recipe_of()
        assert (found["objective"], found["allow_slower"]) == (None, False)
        found = recipe_of("--objective", "size", "--allow-slower")
        assert (found["objective"], found["allow_slower"]) == ("size", True)
        recipe = digits / "digits_cnn.onnxq.toml"
        recipe.write_text('objective = "int8-everywhere"\nallow_slower = true\n')
        found = recipe_of()
        assert (found["objective"], found["allow_slower"]) == ("int8-everywhere", True)
        assert recipe_of("--objective", "latency")["objective"] == "latency"

    def test_auto_undoes_the_recipes_precision(self, recipe_of: Cli, digits: Path) -> None:
        path = digits / "digits_cnn.onnxq.toml"
        path.write_text('precision = "int8"\n' + path.read_text())
        assert recipe_of()["precision"] == "int8"
        assert recipe_of("--precision", "auto")["precision"] is None
        path.write_text('precision = "auto"\n')
        assert recipe_of()["precision"] is None
