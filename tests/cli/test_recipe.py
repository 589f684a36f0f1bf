"""``onnxq recipe``, ``--preset``, and the options about precisions, forms and weights."""

from __future__ import annotations

import re
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from onnxq.graph import Model, save
from onnxq.plan import preset_text, presets

MODEL = "digits_cnn.onnx"
MODELS = sorted((Path(__file__).parents[2] / "models").glob("*.onnx"))
Cli = Callable[..., Any]


class TestRecipe:
    def test_list(self, onnxq: Cli) -> None:
        run = onnxq("recipe", "list")
        assert run.code == 0
        assert [line.split("  ", 1)[0] for line in run.out.splitlines()] == list(presets())
        assert "mobile           Convolutional nets" in run.out

    @pytest.mark.parametrize("name", presets())
    def test_what_is_shown_is_a_recipe(self, onnxq: Cli, digits: Path, name: str) -> None:
        """One that can be saved beside a model and be found there."""
        run = onnxq("recipe", "show", name)
        assert (run.code, run.out, run.err) == (0, preset_text(name), "")
        schema = onnxq("recipe", "schema").json
        jsonschema.validate(tomllib.loads(run.out), schema)

    def test_shown_recipe_is_found(self, onnxq: Cli, digits: Path) -> None:
        shown = onnxq("recipe", "show", "mobile").out
        (digits / "digits_cnn.onnxq.toml").write_text(shown)
        run = onnxq("quantize", MODEL)
        assert run.code == 2
        assert "precision int8 needs samples" in run.err

    def test_schema(self, onnxq: Cli) -> None:
        schema = onnxq("recipe", "schema").json
        jsonschema.Draft202012Validator.check_schema(schema)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"precison": "int8"}, schema)

    @pytest.mark.parametrize(
        ("args", "told"),
        [
            (("recipe", "show", "mobil"), "error: unknown preset 'mobil'; did you mean 'mobile'?"),
            (("recipe", "show"), "Missing argument 'NAME'"),
            (("recipe", "shwo"), "no such command 'shwo'; did you mean 'show'?"),
            (("quantize", MODEL, "--preset", "mobil"), "did you mean 'mobile'?"),
            (
                ("quantize", MODEL, "--preset", "mobile", "--recipe", "r.toml"),
                "error: --recipe and --preset are both recipes; give one of them",
            ),
        ],
    )
    def test_mistake_is_told(
        self, onnxq: Cli, digits: Path, args: tuple[str, ...], told: str
    ) -> None:
        run = onnxq(*args)
        assert run.code == 2
        assert run.out == ""
        assert told in run.err


class TestInit:
    @pytest.mark.parametrize("model", MODELS, ids=lambda path: path.stem)
    def test_is_found_and_changes_nothing(
        self, onnxq: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path
    ) -> None:
        """Every command reads the recipe of a shipped model, and does what it does without."""
        monkeypatch.chdir(tmp_path)
        shutil.copy(model, "net.onnx")
        plan = onnxq("quantize", "net.onnx", "--dry-run", "--json")
        run = onnxq("recipe", "init", "net.onnx")
        assert (run.code, run.out, run.err) == (0, "wrote net.onnxq.toml\n", "")
        again = onnxq("quantize", "net.onnx", "--dry-run", "--json")
        assert again.code == 0, again.err
        assert again.json == plan.json

    @pytest.mark.parametrize("model", ["digits_cnn", "mnist_transformer"])
    def test_everything_in_it_can_be_said(
        self, onnxq: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
    ) -> None:
        """With all settings uncommented and the data that they name, a model is quantized."""
        monkeypatch.chdir(tmp_path)
        shutil.copy(next(path for path in MODELS if path.stem == model), "net.onnx")
        assert onnxq("recipe", "init", "net.onnx").code == 0
        recipe = tmp_path / "net.onnxq.toml"
        text = re.sub(
            r"^(\s*)# (?=\{|[a-z_0-9]+ = )", r"\1", recipe.read_text(), flags=re.MULTILINE
        )
        assert "seconds = 5.0" in text
        recipe.write_text(text.replace("seconds = 5.0", "seconds = 0"))
        generator = np.random.default_rng(0)
        shape = (40, 8, 8, 1) if model == "digits_cnn" else (40, 28, 28)  # channels are last
        for name in ("samples.npz", "test.npz"):
            images = generator.uniform(0, 255, shape).astype(np.float32)
            np.savez(name, image=images, labels=generator.integers(0, 10, 40))
        run = onnxq("quantize", "net.onnx", "--dry-run", "--json")
        assert run.code == 0, run.err
        kept = [
            node for node in run.json["nodes"] if (node["reason"] or {}).get("code") == "kept-float"
        ]
        assert len(kept) >= 3  # the first, the last, and a family

    def test_is_not_overwritten(self, onnxq: Cli, digits: Path) -> None:
        before = (digits / "digits_cnn.onnxq.toml").read_text()
        run = onnxq("recipe", "init", MODEL)
        assert run.code == 3
        assert "'digits_cnn.onnxq.toml' exists already; overwrite it with --force" in run.err
        assert (digits / "digits_cnn.onnxq.toml").read_text() == before
        assert onnxq("recipe", "init", MODEL, "--force").code == 0
        assert (digits / "digits_cnn.onnxq.toml").read_text() != before

    def test_elsewhere(self, onnxq: Cli, digits: Path) -> None:
        assert onnxq("recipe", "init", MODEL, "-o", "other.toml").out == "wrote other.toml\n"
        written = (digits / "other.toml").read_text()
        for args in (("--stdout",), ("-o", "-")):
            run = onnxq("recipe", "init", MODEL, *args)
            assert (run.code, run.out, run.err) == (0, written, "")
        assert not (digits / "-").exists()

    def test_never_over_the_model(self, onnxq: Cli, digits: Path) -> None:
        run = onnxq("recipe", "init", MODEL, "-o", MODEL, "--force")
        assert run.code == 3
        assert "is one of the files that are read" in run.err


class TestPreset:
    def test_is_the_recipe(self, onnxq: Cli, digits: Path) -> None:
        """The recipe beside the model is not read, and options win."""
        (digits / "digits_cnn.onnxq.toml").write_text("no TOML")
        args = ("--preset", "mobile", "--data", "digits_calibration.npz", "--samples", 20)
        run = onnxq("quantize", MODEL, "--json", *args, "--calibrator", "minmax")
        assert run.code == 0, run.err
        said = run.json["recipe"]
        assert (said["precision"], said["data"]["batch_size"]) == ("int8", 8)
        assert (said["calibration"]["method"], said["calibration"]["samples"]) == ("minmax", 20)

    def test_precision_wins_over_it(self, onnxq: Cli, digits: Path) -> None:
        args = ("--preset", "llm", "--precision", "int8-weights", "--dry-run", "--json")
        run = onnxq("quantize", MODEL, *args)
        assert run.code == 0, run.err
        assert {node["precision"] for node in run.json["nodes"]} == {"float", "int8-weights"}


class TestOptions:
    def test_weights(self, recipe_of: Cli) -> None:
        args = ("--precision", "int4-weights", "--block-size", "64", "--weight-method", "hqq")
        found = recipe_of(*args, "--asymmetric-weights")
        assert found["precision"] == "int4-weights"
        assert found["weights"] == {"block_size": 64, "symmetric": False, "method": "hqq"}

    def test_without_them_the_recipe_counts(self, recipe_of: Cli, digits: Path) -> None:
        (digits / "digits_cnn.onnxq.toml").write_text(
            'precision = "int4-weights"\nfloat_type = "fp16"\nformat = "qoperator"\n'
            '[weights]\nblock_size = 16\nsymmetric = false\nmethod = "hqq"\n'
        )
        found = recipe_of()
        assert (found["float_type"], found["format"]) == ("fp16", "qoperator")
        assert found["weights"] == {"block_size": 16, "symmetric": False, "method": "hqq"}

    def test_float_type_and_format(self, recipe_of: Cli) -> None:
        found = recipe_of("--float-type", "fp16", "--format", "qoperator")
        assert (found["float_type"], found["format"]) == ("fp16", "qoperator")

    @pytest.mark.parametrize(
        "option", [("--block-size", "64"), ("--weight-method", "hqq"), ("--asymmetric-weights",)]
    )
    def test_option_without_any_effect(
        self, onnxq: Cli, digits: Path, option: tuple[str, ...]
    ) -> None:
        run = onnxq("quantize", MODEL, "--dry-run", *option)
        assert run.code == 2
        assert f"error: {option[0]} is about weights alone, and the precision is int8" in run.err
        assert "add --precision int8-weights or int4-weights" in run.err

    def test_option_about_some_layers(self, recipe_of: Cli, digits: Path) -> None:
        (digits / "digits_cnn.onnxq.toml").write_text('[[layers]]\nop = "Gemm"\nbits = 4\n')
        assert recipe_of("--block-size", "64")["weights"]["block_size"] == 64

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("--precision", "int3"),
            ("--format", "qdp"),
            ("--block-size", "48"),
            ("--weight-method", "gptq"),
            ("--float-type", "fp8"),
        ],
    )
    def test_unknown_value(self, onnxq: Cli, digits: Path, option: str, value: str) -> None:
        run = onnxq("quantize", MODEL, option, value)
        assert run.code == 2
        assert f"Invalid value for '{option}'" in run.err


class TestOutputName:
    @pytest.fixture
    def net(self, tmp_path: Path, build: Callable[[str], Model]) -> Path:
        text = "net (float[N,8] x) => (float[N,40] y) <float[8,40] w = seeded>"
        save(build(f"{text} {{ [mul] y = MatMul (x, w) }}"), tmp_path / "net.onnx")
        (tmp_path / "net.onnxq.toml").write_text("[verify]\nseconds = 0\n")
        return tmp_path / "net.onnx"

    @pytest.mark.parametrize(
        ("args", "made"),
        [
            ((), "net.int8-weights.onnx"),
            (("--precision", "int8-weights"), "net.int8-weights.onnx"),
            (("--precision", "float"), "net.float.onnx"),
            (("--keep-float", "mul"), "net.int8-weights.onnx"),
        ],
    )
    def test_follows_the_precision(
        self, onnxq: Cli, net: Path, args: tuple[str, ...], made: str
    ) -> None:
        run = onnxq("quantize", net, *args)
        assert run.code == 0, run.err
        assert (net.parent / made).is_file()
        assert (net.parent / made).with_suffix(".receipt.json").is_file()
        assert len(list(net.parent.glob("*.onnx"))) == 2

    def test_ranges_count_as_data(self, onnxq: Cli, digits: Path) -> None:
        (digits / "digits_cnn.onnxq.toml").write_text("[verify]\nseconds = 0\n")
        data = ("--data", "digits_calibration.npz", "--samples", 20)
        assert onnxq("calibrate", MODEL, *data, "-o", "r.json").code == 0
        assert onnxq("quantize", MODEL, "--ranges", "r.json").code == 0
        assert (digits / "digits_cnn.int8.onnx").is_file()


def test_layers_of_a_recipe(onnxq: Cli, digits: Path) -> None:
    recipe = digits / "digits_cnn.onnxq.toml"
    recipe.write_text(
        recipe.read_text() + '[[layers]]\nposition = "last"\nprecision = "float"\n'
        '[[layers]]\nname = "/conv?/Conv"\nper_channel = false\n'
    )
    run = onnxq("quantize", MODEL, "--json", "--calibrator", "minmax")
    assert run.code == 0, run.err
    nodes = {node["name"]: node for node in run.json["plan"]["nodes"]}
    assert nodes["/fc2/Gemm"]["reason"]["code"] == "kept-float"
    assert nodes["/fc2/Gemm"]["reason"]["sentence"] == "kept float by position 'last'"
    assert nodes["/conv1/Conv"]["precision"] == "int8"
    run = onnxq("quantize", MODEL, "--keep-float", "/conv1/Conv", "--force")
    assert run.code == 0
    recipe.write_text(recipe.read_text().replace("per_channel = false", "bits = 8"))
    run = onnxq("quantize", MODEL, "--keep-float", "/conv1/Conv", "--force")
    assert run.code == 2
    assert run.err.startswith(
        "error: keep_float '/conv1/Conv' wants precision float of node '/conv1/Conv', and name "
        "'/conv?/Conv' wants int8; "
    )
    assert len(run.err.splitlines()) == 1
