"""The commands at work: what they print, what they write, and what each option does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import jsonschema
import numpy as np
import onnx
import pytest

from onnxq.cli import main
from onnxq.cli.main import COMMANDS, INTERRUPTED
from onnxq.graph import Model, save
from onnxq.verify import Receipt, receipt_schema

MODEL, MADE, RECEIPT = "digits_cnn.onnx", "digits_cnn.int8.onnx", "digits_cnn.int8.receipt.json"
# The first level, which machines may rely on.
KEYS = {
    "schema", "onnxq", "source", "output", "recipe", "data", "plan", "ranges", "measured", "gates",
    "environment", "run", "training", "graph",
}  # fmt: skip
QUICK = "[verify]\nseconds = 0\n"
NO_FLOATS = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N,8] x) => (float[2] y) { [shape] s = Shape (x) [cast] y = Cast <to = 1> (s) }
"""
FEEDS = """
import numpy as np

def feeds():
    with np.load("digits_calibration.npz") as arrays:
        for image in arrays["image"][:20]:
            yield {"image": image[None]}
"""

Cli = Callable[..., Any]
FilesIn = Callable[[Path], dict[str, bytes | None]]


def precisions(receipt: dict[str, Any]) -> dict[str, str]:
    return {node["name"]: node["precision"] for node in receipt["plan"]["nodes"]}


@pytest.fixture
def receipt_of(onnxq: Cli, digits: Path) -> Callable[..., dict[str, Any]]:
    """The receipt of a run on the digits model with some options."""

    def run(*args: object) -> dict[str, Any]:
        done = onnxq("quantize", MODEL, "--json", "--force", *args)
        assert done.code == 0, done.err
        return done.json

    return run


def few_images(folder: Path) -> np.ndarray:
    with np.load(folder / "digits_calibration.npz") as arrays:
        return arrays["image"][:20]


class TestOutput:
    def test_default_run(self, onnxq: Cli, digits: Path, files_in: FilesIn) -> None:
        before = files_in(digits)
        run = onnxq("quantize", MODEL)
        assert run.code == 0
        assert run.err == ""
        assert f"wrote {MADE} and {RECEIPT}" in run.out
        assert "12 of 12 planned nodes really run as int8" in " ".join(run.out.split())
        assert "max_drop" in run.out
        after = files_in(digits)
        assert set(after) - set(before) == {MADE, RECEIPT}
        assert {name: after[name] for name in before} == before
        onnx.checker.check_model(digits / MADE, full_check=True)

    def test_output_name(self, onnxq: Cli, digits: Path, files_in: FilesIn) -> None:
        (digits / "deep").mkdir()
        before = set(files_in(digits))
        assert onnxq("quantize", MODEL, "-o", "deep/small.v2.onnx").code == 0
        made = {"deep/small.v2.onnx", "deep/small.v2.receipt.json"}
        assert set(files_in(digits)) - before == made

    def test_force(self, onnxq: Cli, digits: Path) -> None:
        (digits / MADE).write_text("old")
        (digits / RECEIPT).write_text("old")
        assert onnxq("quantize", MODEL).code == 3
        assert (digits / MADE).read_text() == "old"
        assert onnxq("quantize", MODEL, "--force").code == 0
        assert Receipt.from_json((digits / RECEIPT).read_bytes()).passed
        onnx.checker.check_model(digits / MADE)

    @pytest.mark.parametrize("args", [(), ("--json",), ("--quiet",)])
    def test_dry_run_writes_nothing(
        self, onnxq: Cli, digits: Path, files_in: FilesIn, args: tuple[str, ...]
    ) -> None:
        before = files_in(digits)
        run = onnxq("quantize", MODEL, "--dry-run", *args)
        assert run.code == 0
        assert files_in(digits) == before
        if args == ("--quiet",):
            assert run.out == ""
        else:
            assert "/conv1/Conv" in run.out
        if args == ("--json",):
            assert {node["precision"] for node in run.json["nodes"]} == {"int8"}

    def test_quiet(self, onnxq: Cli, digits: Path) -> None:
        run = onnxq("quantize", MODEL, "--quiet")
        assert (run.code, run.out, run.err) == (0, "", "")
        assert (digits / MADE).is_file()

    def test_json_is_the_receipt(self, onnxq: Cli, digits: Path) -> None:
        run = onnxq("quantize", MODEL, "--json")
        assert run.code == 0
        assert run.err == ""
        assert run.json == json.loads((digits / RECEIPT).read_bytes())
        assert set(run.json) == KEYS
        jsonschema.validate(run.json, receipt_schema())
        assert run.json["output"]["bytes"] == (digits / MADE).stat().st_size
        sizes = run.json["output"]["bytes"] / run.json["source"]["bytes"]
        # the ratio rests on the size before writing, which is the size after it
        assert run.json["measured"]["size_ratio"] == sizes

    def test_latency(self, onnxq: Cli, digits: Path) -> None:
        recipe = digits / "digits_cnn.onnxq.toml"
        recipe.write_text(recipe.read_text().replace("seconds = 0", "seconds = 0.01"))
        run = onnxq("quantize", MODEL, "--json", "--threads", "2", "--batch-size", "5")
        latency = run.json["measured"]["latency"]
        assert (latency["threads"], latency["batch"]) == (2, 5)
        assert latency["rounds"] >= 9  # the fewest, however short the time
        assert latency["source_ms"] > 0
        assert latency["output_ms"] > 0
        assert "latency, batch 5" in onnxq("quantize", MODEL, "--force", "--batch-size", "5").out

    def test_missed_budget(self, onnxq: Cli, digits: Path) -> None:
        recipe = digits / "digits_cnn.onnxq.toml"
        recipe.write_text(recipe.read_text() + "min_sqnr = 100\n")
        run = onnxq("quantize", MODEL)
        assert run.code == 1
        assert "budget min_sqnr 100" in run.out
        assert "missed" in run.out
        onnx.checker.check_model(digits / MADE)
        receipt = Receipt.from_json((digits / RECEIPT).read_bytes())
        assert {g.name: g.passed for g in receipt.gates} == {"max_drop": True, "min_sqnr": False}

    def test_budget_that_cannot_be_measured(self, onnxq: Cli, digits: Path) -> None:
        recipe = digits / "digits_cnn.onnxq.toml"
        recipe.write_text(recipe.read_text().replace('test = "digits_test.npz"', ""))
        run = onnxq("quantize", MODEL)
        assert run.code == 1
        assert "budget max_drop 0.005: not measured, missed" in run.out


class TestOptions:
    def test_weights_without_data(self, onnxq: Cli, digits: Path) -> None:
        (digits / "digits_cnn.onnxq.toml").write_text(QUICK)
        run = onnxq("quantize", MODEL, "--json")
        assert run.code == 0
        assert run.json["recipe"]["precision"] == "int8-weights"
        assert set(precisions(run.json).values()) == {"float", "int8-weights"}
        assert run.json["ranges"] == {}
        assert any("no data" in note for note in run.json["measured"]["notes"])

    def test_weights_with_data(self, receipt_of: Callable[..., dict[str, Any]]) -> None:
        receipt = receipt_of("--precision", "int8-weights")
        assert "int8" not in precisions(receipt).values()
        assert receipt["ranges"] == {}
        assert receipt["measured"]["samples"] == 597

    def test_keep_float(self, receipt_of: Callable[..., dict[str, Any]]) -> None:
        found = precisions(receipt_of("--keep-float", "/conv[12]/*", "--keep-float", "*fc2*"))
        floats = {name for name, precision in found.items() if precision == "float"}
        assert floats >= {"/conv1/Conv", "/conv2/Conv", "/fc2/Gemm"}
        assert {"/conv3/Conv", "/fc1/Gemm"} & floats == set()

    def test_keep_float_op(self, receipt_of: Callable[..., dict[str, Any]]) -> None:
        receipt = receipt_of("--keep-float-op", "Gemm")
        ops = {n["op"]: n["reason"] for n in receipt["plan"]["nodes"] if n["precision"] == "float"}
        assert ops["Gemm"]["code"] == "kept-float"
        assert precisions(receipt)["/conv1/Conv"] == "int8"

    def test_per_tensor(self, receipt_of: Callable[..., dict[str, Any]]) -> None:
        def channels(receipt: dict[str, Any]) -> int:
            return max(len(params["scale"]) for params in receipt["plan"]["tensors"].values())

        assert channels(receipt_of("--per-tensor")) == 1
        assert channels(receipt_of()) > 1

    def test_percentile(self, receipt_of: Callable[..., dict[str, Any]]) -> None:
        whole = receipt_of("--calibrator", "minmax")["ranges"]
        cut = receipt_of("--calibrator", "percentile")["ranges"]
        assert whole.keys() == cut.keys()
        assert all(cut[name]["hi"] <= whole[name]["hi"] for name in whole)
        assert any(cut[name]["hi"] < whole[name]["hi"] for name in whole)

    def test_samples(self, receipt_of: Callable[..., dict[str, Any]]) -> None:
        all_of_them, few = receipt_of(), receipt_of("--samples", "10")
        assert few["recipe"]["calibration"]["samples"] == 10
        assert few["data"]["calibration"] != all_of_them["data"]["calibration"]
        assert few["data"]["test"] == all_of_them["data"]["test"]
        assert all(few["ranges"][n]["max"] <= r["max"] for n, r in all_of_them["ranges"].items())
        assert any("10 samples" in note for note in few["measured"]["notes"])

    def test_batch_size(self, receipt_of: Callable[..., dict[str, Any]]) -> None:
        by_one, by_many = receipt_of("--batch-size", "1"), receipt_of("--batch-size", "64")
        assert by_one["measured"]["samples"] == by_many["measured"]["samples"] == 597
        # kernels may sum in another order for another batch: some float32 roundings of 6e-8
        assert [r["hi"] for r in by_one["ranges"].values()] == pytest.approx(
            [r["hi"] for r in by_many["ranges"].values()], rel=1e-5
        )

    def test_no_prepare(self, onnxq: Cli, digits: Path, build: Callable[[str], Model]) -> None:
        text = """
        net (float[N,1,8,8] image) => (float[N,4,6,6] y)
        <float[4,1,3,3] w = seeded, float[4] s = {1, 2, 3, 4}, float[4] b = {0, 1, 0, 1}>
        { [conv] c = Conv (image, w) [norm] y = BatchNormalization (c, s, b, b, s) }
        """
        save(build(text), digits / "net.onnx")
        (digits / "net.onnxq.toml").write_text(QUICK)
        data = ("--data", "digits_calibration.npz", "--json", "--force")
        prepared = onnxq("quantize", "net.onnx", *data).json
        untouched = onnxq("quantize", "net.onnx", *data, "--no-prepare").json
        assert list(precisions(prepared)) == ["conv"]
        assert list(precisions(untouched)) == ["conv", "norm"]
        assert prepared["measured"]["prepared"]["notes"]
        assert untouched["measured"]["prepared"]["notes"] == []

    def test_target(self, receipt_of: Callable[..., dict[str, Any]]) -> None:
        assert receipt_of("--target", "cpu-x86")["plan"]["target"] == "cpu-x86"
        assert receipt_of("--target", "cpu-x86-avx2")["plan"]["target"] == "cpu-x86-avx2"

    def test_metric(self, receipt_of: Callable[..., dict[str, Any]], digits: Path) -> None:
        code = "def hits(outputs, labels): return (outputs['logits'].argmax(1) == labels).sum()"
        (digits / "own_metric.py").write_text(code)
        recipe = digits / "digits_cnn.onnxq.toml"
        recipe.write_text(recipe.read_text().replace("max_drop = 0.005", ""))  # of another metric
        metric = receipt_of("--metric", "own_metric:hits")["measured"]["metric"]
        assert metric["name"] == "own_metric:hits"
        assert metric["source"] == 594  # 0.995 of 597 images
        top1 = receipt_of()["measured"]["metric"]
        assert top1["source"] == pytest.approx(594 / 597)

    def test_recipe(self, receipt_of: Callable[..., dict[str, Any]], digits: Path) -> None:
        (digits / "other.toml").write_text('precision = "int8-weights"\n' + QUICK)
        assert receipt_of("--recipe", "other.toml")["recipe"]["precision"] == "int8-weights"
        assert receipt_of()["recipe"]["precision"] == "int8"


class TestSameBytes:
    def test_seed(self, onnxq: Cli, digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def made(seed: int, clock: float) -> bytes:
            monkeypatch.setattr(time, "time", lambda: clock)
            args = ("--samples", 10, "--seed", seed, "--force", "--quiet")
            assert onnxq("quantize", MODEL, *args).code == 0
            return (digits / MADE).read_bytes()

        first = made(1, 1e9)
        assert made(1, 2e9) == first  # the clock does not matter
        assert made(2, 1e9) != first

    def test_in_other_processes(self, digits: Path) -> None:
        """The order of sets, which Python draws anew for each process, does not matter."""
        made = []
        for seed in "12":
            subprocess.run(
                [sys.executable, "-m", "onnxq", "quantize", MODEL, "--force", "--quiet"],
                env=os.environ | {"PYTHONHASHSEED": seed},
                check=True,
            )
            made.append((digits / MADE).read_bytes())
        assert made[0] == made[1]


class TestDataForms:
    @pytest.fixture
    def few(self, digits: Path) -> np.ndarray:
        (digits / "digits_cnn.onnxq.toml").write_text(QUICK)
        images = few_images(digits)
        np.savez(digits / "few.npz", image=images)
        return images

    def test_npz_folder(
        self, receipt_of: Callable[..., dict[str, Any]], digits: Path, few: np.ndarray
    ) -> None:
        (digits / "feeds").mkdir()
        for index, image in enumerate(few):
            np.savez(digits / f"feeds/{index}.npz", image=image[None])
        self.check_same(receipt_of, "feeds")

    def test_npy_folder(
        self, receipt_of: Callable[..., dict[str, Any]], digits: Path, few: np.ndarray
    ) -> None:
        (digits / "images").mkdir()
        for index, image in enumerate(few):
            np.save(digits / f"images/{index}.npy", image)
        self.check_same(receipt_of, "images")

    def test_test_data_sets(
        self, receipt_of: Callable[..., dict[str, Any]], digits: Path, few: np.ndarray
    ) -> None:
        for index, image in enumerate(few):
            folder = digits / f"sets/test_data_set_{index}"
            folder.mkdir(parents=True)
            tensor = onnx.numpy_helper.from_array(image[None], "image")
            (folder / "input_0.pb").write_bytes(tensor.SerializeToString())
        self.check_same(receipt_of, "sets")

    @pytest.mark.parametrize("spec", ["twenty_feeds:feeds", "twenty_feeds.py:feeds"])
    def test_function(
        self,
        receipt_of: Callable[..., dict[str, Any]],
        digits: Path,
        few: np.ndarray,
        spec: str,
    ) -> None:
        (digits / "twenty_feeds.py").write_text(FEEDS)
        self.check_same(receipt_of, spec)

    @staticmethod
    def check_same(receipt_of: Callable[..., dict[str, Any]], spec: str) -> None:
        """Feeds give the same ranges as the same samples in one array."""
        expected, found = receipt_of("--data", "few.npz"), receipt_of("--data", spec)
        assert found["measured"]["samples"] == expected["measured"]["samples"] == 4
        assert found["ranges"].keys() == expected["ranges"].keys()
        for end in ("lo", "hi"):
            # feeds come one by one, and kernels may sum in another order for another batch
            assert [r[end] for r in found["ranges"].values()] == pytest.approx(
                [r[end] for r in expected["ranges"].values()], rel=1e-5
            )

    def test_data_alone_leaves_the_recipes_test_data(
        self, receipt_of: Callable[..., dict[str, Any]]
    ) -> None:
        receipt = receipt_of("--data", "digits_calibration.npz")
        assert receipt["measured"]["metric"]["samples"] == 597

    def test_test_data(self, receipt_of: Callable[..., dict[str, Any]], few: np.ndarray) -> None:
        receipt = receipt_of("--data", "few.npz", "--test-data", "digits_test.npz")
        assert receipt["measured"]["samples"] == 597
        assert receipt["recipe"]["data"]["calibration"] == "few.npz"

    def test_one_sample(self, onnxq: Cli, digits: Path, few: np.ndarray) -> None:
        np.savez(digits / "one.npz", image=few[:1])
        run = onnxq("quantize", MODEL, "--data", "one.npz")
        assert run.code == 0
        assert "there is only one sample" in " ".join(run.out.split())


class TestNothingToQuantize:
    def test_copy(self, onnxq: Cli, tmp_path: Path, build: Callable[[str], Model]) -> None:
        save(build(NO_FLOATS), tmp_path / "net.onnx")
        (tmp_path / "net.onnxq.toml").write_text(QUICK)
        run = onnxq("quantize", tmp_path / "net.onnx")
        assert run.code == 0
        made = tmp_path / "net.int8-weights.onnx"
        assert made.read_bytes() == (tmp_path / "net.onnx").read_bytes()
        said = " ".join(run.out.split())
        assert "nothing to quantize" in said
        assert "the file was copied" in said
        assert "no constant float32 weight" in said
        receipt = json.loads((tmp_path / "net.int8-weights.receipt.json").read_bytes())
        assert receipt["output"]["sha256"] == receipt["source"]["sha256"]
        assert receipt["measured"]["size_ratio"] == 1


@pytest.mark.parametrize("place", ["verify", "write_bytes"])
def test_interruption_leaves_nothing(
    onnxq: Cli, digits: Path, files_in: FilesIn, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def interrupt(*_args: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"onnxq.api.pipeline.{place}", interrupt)
    before = files_in(digits)
    run = onnxq("quantize", MODEL)
    assert run.code == INTERRUPTED
    assert run.err.strip() == "interrupted"
    assert files_in(digits) == before


class TestInspect:
    def test_table(self, onnxq: Cli, digits: Path, files_in: FilesIn) -> None:
        before = files_in(digits)
        run = onnxq("inspect", MODEL, "--target", "cpu-x86")
        assert run.code == 0
        assert files_in(digits) == before
        assert "/conv1/Conv" in run.out
        assert "12 of 12 nodes can run as int8 on cpu-x86" in run.out

    def test_json(self, onnxq: Cli, digits: Path) -> None:
        census = onnxq("inspect", MODEL, "--json").json
        assert len(census["nodes"]) == 12
        conv = census["nodes"][0]
        assert (conv["name"], conv["op"], conv["role"]) == ("/conv1/Conv", "Conv", "compute")
        assert conv["reason"] is None

    def test_reasons_and_notes(
        self, onnxq: Cli, tmp_path: Path, build: Callable[[str], Model]
    ) -> None:
        text = """
        <ir_version: 4, opset_import: ["" : 11]>
        net (float[N,8] x) => (float[N,8] y) { [soft] y = Softmax (x) }
        """
        save(build(text), tmp_path / "net.onnx")
        run = onnxq("inspect", tmp_path / "net.onnx")
        assert "the int8 kernel is slower" in " ".join(run.out.split())
        assert "prepared: " in run.out
        assert "opset" in run.out
        assert "prepared: " not in onnxq("inspect", tmp_path / "net.onnx", "--no-prepare").out


def all_commands() -> list[tuple[str, ...]]:
    """Every command and subcommand, as the words that it is called by."""
    context = click.Context(main)
    found: list[tuple[str, ...]] = []
    for name in COMMANDS:
        command = main.get_command(context, name)
        found.append((name,))
        if isinstance(command, click.Group):
            found += [(name, inner) for inner in command.list_commands(context)]
    return found


class TestHelp:
    @pytest.mark.parametrize("words", all_commands(), ids=" ".join)
    def test_example(self, onnxq: Cli, words: tuple[str, ...]) -> None:
        run = onnxq(*words, "--help")
        assert run.code == 0
        assert "Examples:" in run.out
        assert re.search(rf"^    onnxq {' '.join(words)}( |$)", run.out, re.MULTILINE)
        assert onnxq(*words, "-h").out == run.out

    def test_group(self, onnxq: Cli) -> None:
        run = onnxq("--help")
        assert run.code == 0
        assert all(f"  {name} " in run.out for name in COMMANDS)
        assert "Exit codes: 0 done" in " ".join(run.out.split())
        assert onnxq("--version").out.startswith("onnxq ")

    def test_is_instant(self) -> None:
        heavy = ["onnx", "onnx_ir", "onnxruntime", "numpy", "rich", "msgspec", "torch"]
        code = (
            "import sys\n"
            "from onnxq.cli import main\n"
            "main(['--help'], standalone_mode=False)\n"
            f"sys.exit(' '.join(sorted(set({heavy}) & set(sys.modules))))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert "Commands:" in done.stdout
        assert done.stderr.strip() == ""
