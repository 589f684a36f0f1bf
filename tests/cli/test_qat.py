"""``onnxq qat``: what it prints and writes, what each option does, and what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import numpy as np
import onnx
import pytest

from onnxq.cli.main import INTERRUPTED
from onnxq.cli.training import TrainingLog
from onnxq.qat.run import Progress
from onnxq.verify import Receipt, receipt_schema

ROOT = Path(__file__).parents[2]
MODEL, MADE = "digits_cnn.onnx", "digits_cnn.qat.int8.onnx"
RECEIPT, CHECKPOINT = "digits_cnn.qat.int8.receipt.json", "digits_cnn.qat.int8.checkpoint.npz"
# Training images are test images here: nothing is claimed about what comes out.
LABELLED = ("--data", "digits_test.npz")
QUICK = "[verify]\nseconds = 0\n[qat]\nepochs = 1\nthreads = 1\n"

Cli = Callable[..., Any]
FilesIn = Callable[[Path], dict[str, bytes | None]]


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture
def digits(digits: Path) -> Path:
    """The folder, with a recipe of one epoch on one thread."""
    (digits / "digits_cnn.onnxq.toml").write_text(QUICK)
    return digits


@pytest.fixture
def settings_of(monkeypatch: pytest.MonkeyPatch, onnxq: Cli, digits: Path) -> Cli:
    """The recipe that a run would go by."""
    seen: list[dict[str, Any]] = []

    def stop(_model: Path, job: Any, **_options: Any) -> None:
        seen.append(json.loads(msgspec.json.encode(job.recipe)) | {"seed": job.seed})
        raise SystemExit(0)

    monkeypatch.setattr("onnxq.cli.qat.train_model", stop)

    def run(*args: object) -> dict[str, Any]:
        done = onnxq("qat", MODEL, *args)
        assert done.code == 0, done.err
        return seen.pop()

    return run


class TestOutput:
    def test_default_run(self, onnxq: Cli, digits: Path, files_in: FilesIn) -> None:
        before = files_in(digits)
        run = onnxq("qat", MODEL, *LABELLED)
        assert run.code == 0, run.err
        text = words(run.out)
        assert "float prepared PTQ QAT" in text
        assert "top1 (119 samples) " in text  # the last fifth
        assert "12 of 12 planned nodes really run as int8" in text
        assert "of 1 was the best" in text or "no epoch was better" in text
        assert text.endswith(f"wrote {MADE} and {RECEIPT}")
        after = files_in(digits)
        assert set(after) - set(before) == {MADE, RECEIPT}
        assert {name: after[name] for name in before} == before
        onnx.checker.check_model(digits / MADE, full_check=True)

    def test_tells_scales_and_epochs_while_it_trains(self, onnxq: Cli, digits: Path) -> None:
        run = onnxq("qat", MODEL, *LABELLED, "--epochs", 2)
        assert "\x1b" not in run.err  # no terminal: no bar, no colour
        plan = Receipt.from_json((digits / RECEIPT).read_bytes())
        lines = run.err.splitlines()
        (head,) = (at for at, line in enumerate(lines) if line.split()[:2] == ["epoch", "loss"])
        epochs = [line.split() for line in lines[head + 1 :]]
        assert [line[0] for line in epochs] == ["0", "1", "2"]
        best = [line[0] for line in epochs if line[-1] == "best"][-1]
        assert plan.training is not None
        assert int(best) == plan.training.history.best
        shown = [line.split()[0] for line in lines[:head] if " uint8 " in line]
        assert set(shown) == set(plan.ranges) & set(plan.plan.tensors)

    def test_json_is_the_receipt(self, onnxq: Cli, digits: Path) -> None:
        run = onnxq("qat", MODEL, *LABELLED, "--json")
        assert (run.code, run.err) == (0, "")
        assert run.json == json.loads((digits / RECEIPT).read_bytes())
        jsonschema.validate(run.json, receipt_schema())
        training = run.json["training"]
        assert training["history"]["loss"] == "cross-entropy"
        assert [facts["epoch"] for facts in training["history"]["epochs"]] == [0, 1]
        assert training["history"]["samples"] + training["history"]["validation"] == 478
        assert training["untrained"]["samples"] == run.json["measured"]["samples"] == 119

    def test_quiet(self, onnxq: Cli, digits: Path) -> None:
        run = onnxq("qat", MODEL, *LABELLED, "--quiet")
        assert (run.code, run.out, run.err) == (0, "", "")
        assert (digits / MADE).is_file()

    def test_missed_budget(self, onnxq: Cli, digits: Path) -> None:
        run = onnxq("qat", MODEL, *LABELLED, "--min-sqnr", 100)
        assert run.code == 1
        assert "budget min_sqnr 100: " in run.out
        onnx.checker.check_model(digits / MADE)

    def test_existing_output(self, onnxq: Cli, digits: Path) -> None:
        (digits / MADE).write_text("old")
        assert onnxq("qat", MODEL, *LABELLED).code == 3
        assert (digits / MADE).read_text() == "old"
        assert onnxq("qat", MODEL, *LABELLED, "--force", "--quiet").code == 0

    def test_same_bytes_by_the_same_seed(self, onnxq: Cli, digits: Path) -> None:
        def made(seed: int) -> bytes:
            args = ("--seed", seed, "--force", "--quiet", "--learning-rate", 1e-2)
            assert onnxq("qat", MODEL, *LABELLED, *args).code == 0
            return (digits / MADE).read_bytes()

        first = made(1)
        assert made(1) == first
        assert made(2) != first


class TestWays:
    def test_distillation_needs_no_labels(self, onnxq: Cli, digits: Path) -> None:
        run = onnxq("qat", MODEL, "--data", "digits_calibration.npz", "--json")
        assert run.code == 0, run.err
        history = run.json["training"]["history"]
        assert history["loss"] == "distill"
        assert [facts["metric"] for facts in history["epochs"]] == [None, None]

    def test_distillation_though_there_are_labels(self, onnxq: Cli, digits: Path) -> None:
        run = onnxq("qat", MODEL, *LABELLED, "--distill", "--json")
        assert run.json["training"]["history"]["loss"] == "distill"

    def test_layerwise_with_four_bits(self, onnxq: Cli, digits: Path) -> None:
        args = ("--distill", "--layerwise", "--precision", "int4-weights", "--epochs", 2)
        data = ("--data", "digits_calibration.npz", "--batch-size", 8)
        run = onnxq("qat", MODEL, *args, *data)
        assert run.code == 0, run.err
        assert "uint8" not in run.err  # activations stay float: there are no scales of them
        name = "digits_cnn.qat.int4-weights"
        assert f"wrote {name}.onnx and {name}.receipt.json" in words(run.out)
        receipt = Receipt.from_json((digits / f"{name}.receipt.json").read_bytes())
        assert receipt.training is not None
        before, after = receipt.training.untrained.outputs, receipt.measured.outputs
        # it gains about 2 dB, and nothing where nothing is trained
        assert after["logits"].sqnr_db > before["logits"].sqnr_db + 0.5
        assert "training recovered " in run.out


class TestOptions:
    def test_keys_of_the_recipe(self, settings_of: Cli) -> None:
        found = settings_of(
            *LABELLED, "--labels", "--teacher", "25%", "--temperature", 4, "--layerwise",
            "--match", "/conv1/*", "--match", "*Relu*", "--epochs", 7, "--batch-size", 16,
            "--samples", 99, "--learning-rate", "3e-4", "--optimizer", "sgd", "--schedule",
            "constant", "--patience", 3, "--observer", "minmax", "--warmup", 4, "--fixed-scales",
            "--weight-bits", 4, "--simulate", "weights", "--keep-zeros", "--augment", "flip",
            "--threads", 2, "--seed", 5,
        )  # fmt: skip
        assert found["qat"] == {
            "epochs": 7, "batch_size": 16, "samples": 99, "optimizer": "sgd",
            "learning_rate": 3e-4, "scale_rate": 1.0, "weight_decay": 1e-4,
            "schedule": "constant", "clip_norm": 1.0, "patience": 3, "loss": "cross-entropy",
            "teacher": 0.25, "temperature": 4.0, "match": ["/conv1/*", "*Relu*"],
            "layerwise": True, "quantize_weights": True, "quantize_activations": False,
            "weight_bits": 4, "learn_scales": False, "observer": "minmax", "warmup": 4,
            "keep_zeros": True, "augment": "flip", "validation": 0.1, "threads": 2,
        }  # fmt: skip
        assert found["verify"]["threads"] == 2
        assert found["seed"] == 5
        assert found["data"]["batch_size"] == 8  # of calibrating and verifying
        assert found["calibration"]["samples"] == 200

    def test_the_recipe_counts_where_nothing_is_said(self, settings_of: Cli, digits: Path) -> None:
        (digits / "other.toml").write_text(
            'precision = "int16"\n[qat]\nepochs = 9\nmatch = ["a"]\nlearn_scales = false\n'
            'loss = "mse"\nlayerwise = true\n'
        )
        found = settings_of(*LABELLED, "--recipe", "other.toml", "--match", "b")
        assert found["precision"] == "int16"
        kept = {key: found["qat"][key] for key in ("epochs", "match", "learn_scales", "loss")}
        assert kept == {"epochs": 9, "match": ["a", "b"], "learn_scales": False, "loss": "mse"}
        assert found["qat"]["layerwise"] is True
        assert settings_of("--distill", "--recipe", "other.toml")["qat"]["loss"] == "distill"

    @pytest.mark.parametrize(
        ("simulate", "weights", "activations"),
        [("all", True, True), ("weights", True, False), ("activations", False, True)],
    )
    def test_simulate(
        self, settings_of: Cli, simulate: str, weights: bool, activations: bool
    ) -> None:
        found = settings_of("--simulate", simulate)["qat"]
        assert (found["quantize_weights"], found["quantize_activations"]) == (weights, activations)

    def test_options_of_quantize(self, settings_of: Cli) -> None:
        found = settings_of(
            "--keep-float", "/fc2/*", "--keep-float-op", "Add", "--per-tensor", "--target",
            "cpu-arm", "--format", "qoperator", "--calibrator", "minmax", "--max-drop", "1%",
            "--metric", "top1", "--test-data", "t.npz",
        )  # fmt: skip
        assert found["precision"] == "int8"
        assert (found["keep_float"], found["keep_float_op"]) == (["/fc2/*"], ["Add"])
        assert (found["per_channel"], found["target"]) == (False, "cpu-arm")
        assert (found["format"], found["calibration"]["method"]) == ("qoperator", "minmax")
        assert found["budgets"]["max_drop"] == 0.01
        assert found["data"]["test"] == "t.npz"


class TestGoesOn:
    @pytest.fixture
    def killed(self, onnxq: Cli, digits: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, ...]:
        """Options of a run that was interrupted in the second of three epochs."""
        step = TrainingLog.step

        def interrupt(log: TrainingLog, progress: Progress) -> None:
            if progress.epoch == 2:
                raise KeyboardInterrupt
            step(log, progress)

        options = (*LABELLED, "--epochs", 3, "--learning-rate", 1e-3)
        with monkeypatch.context() as patch:
            patch.setattr(TrainingLog, "step", interrupt)
            run = onnxq("qat", MODEL, *options)
        assert run.code == INTERRUPTED
        assert f"the same command goes on from {CHECKPOINT}" in words(run.err)
        assert (digits / CHECKPOINT).is_file()
        assert not (digits / MADE).exists()
        return options

    def test_where_it_was(self, onnxq: Cli, digits: Path, killed: tuple[Any, ...]) -> None:
        run = onnxq("qat", MODEL, *killed)
        assert run.code == 0, run.err
        lines = run.err.splitlines()
        assert lines[0] == f"goes on in epoch 2: {CHECKPOINT}"
        assert [line.split()[0] for line in lines[1:]] == ["epoch", "0", "1", "2", "3"]
        assert not (digits / CHECKPOINT).exists()
        made = (digits / MADE).read_bytes()
        again = onnxq("qat", MODEL, *killed, "--force")
        assert "goes on" not in again.err
        assert (digits / MADE).read_bytes() == made

    def test_behind_the_last_epoch(
        self, onnxq: Cli, digits: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(*_args: object, **_options: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("onnxq.api.qat.write_result", interrupt)
            assert onnxq("qat", MODEL, *LABELLED).code == INTERRUPTED
        run = onnxq("qat", MODEL, *LABELLED)
        assert run.code == 0, run.err
        lines = run.err.splitlines()
        assert lines[0] == f"all epochs were trained before: {CHECKPOINT}"
        assert [line.split()[0] for line in lines[1:]] == ["epoch", "0", "1"]

    def test_fresh(self, onnxq: Cli, killed: tuple[Any, ...]) -> None:
        run = onnxq("qat", MODEL, *killed, "--fresh")
        assert run.code == 0, run.err
        assert "goes on" not in run.err

    def test_not_with_other_settings(
        self, onnxq: Cli, digits: Path, killed: tuple[Any, ...]
    ) -> None:
        run = onnxq("qat", MODEL, *killed, "--batch-size", 16)
        assert run.code == 2
        assert "is a checkpoint of another run" in run.err
        assert "goes on" not in run.err
        assert (digits / CHECKPOINT).is_file()

    def test_damaged(self, onnxq: Cli, digits: Path) -> None:
        (digits / CHECKPOINT).write_bytes(b"no archive")
        run = onnxq("qat", MODEL, *LABELLED)
        assert run.code == 3
        assert "is no checkpoint that can be gone on from" in run.err


class TestMistakes:
    @pytest.mark.parametrize(
        ("args", "code", "told"),
        [
            ((), 2, "there are no samples to train with; give --data"),
            (("--data", "nothing.npz"), 3, "nothing.npz"),
            (
                ("--data", "digits_calibration.npz", "--labels"),
                3,
                "loss 'cross-entropy' needs labels, and the data have none",
            ),
            ((*LABELLED, "--match", "/Relu_1_output"), 2, "did you mean '/Relu_1_output_0'"),
            (("--data", "two.npz"), 2, "too few to train with"),
            ((*LABELLED, "--labels", "--distill"), 2, "--labels and --distill: learn from one"),
            ((*LABELLED, "--distill", "--teacher", "50%"), 2, "--teacher shares with labels"),
            ((*LABELLED, "--warmup", 4), 2, "add --observer minmax or moving-average"),
            ((*LABELLED, "--block-size", "64"), 2, "--block-size is about weights alone"),
            (
                (*LABELLED, "--precision", "int4-weights", "--weight-bits", 3),
                2,
                "--weight-bits does not reach weights in blocks",
            ),
            ((*LABELLED, "--recipe", "half.toml"), 2, "the precision is fp16, which rounds to no"),
            ((*LABELLED, "--keep-float", "*"), 2, "the plan quantizes nothing"),
        ],
    )
    def test_is_told_in_a_line(
        self, onnxq: Cli, digits: Path, args: tuple[Any, ...], code: int, told: str
    ) -> None:
        np.savez(digits / "two.npz", image=np.zeros((2, 1, 8, 8), np.float32))
        (digits / "half.toml").write_text(f'precision = "fp16"\n{QUICK}')
        run = onnxq("qat", MODEL, *args)
        assert run.code == code, run.err
        assert run.out == ""
        assert told in run.err
        (line,) = [line for line in run.err.splitlines() if line.startswith("error: ")]
        assert line == run.err.splitlines()[-1]
        assert not list(digits.glob("*.qat.*"))

    def test_no_gpu(self, onnxq: Cli, digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        run = onnxq("qat", MODEL, *LABELLED, "--device", "cuda")
        assert run.code == 3
        assert "PyTorch finds no GPU to train on" in run.err

    def test_own_loss_of_a_recipe_that_was_merely_found(self, onnxq: Cli, digits: Path) -> None:
        (digits / "digits_cnn.onnxq.toml").write_text(f'{QUICK}loss = "own:loss"\n')
        run = onnxq("qat", MODEL, *LABELLED)
        assert run.code == 2
        assert "pass the recipe with --recipe" in run.err


class TestPage:
    page = (ROOT / "docs/qat.md").read_text(encoding="utf-8")

    def test_options_exist(self, onnxq: Cli) -> None:
        known = onnxq("qat", "--help").out + onnxq("quantize", "--help").out
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", self.page)) <= set(
            re.findall(r"--[a-z][a-z-]+", known)
        )

    def test_own_functions_are_called(self, onnxq: Cli, digits: Path) -> None:
        (code, _) = re.findall(r"```python\n(.+?)```", self.page, re.DOTALL)
        (table,) = re.findall(r"```toml\n(.+?)```", self.page, re.DOTALL)
        (digits / "my_training.py").write_text(code)
        (digits / "own.toml").write_text(f"{table}epochs = 1\n[verify]\nseconds = 0\n")
        run = onnxq("qat", MODEL, *LABELLED, "--recipe", "own.toml", "--json")
        assert run.code == 0, run.err
        assert run.json["training"]["history"]["loss"] == "my_training.py:focal"


class TestQuantize:
    def test_does_not_apply_a_receipt_of_trained_weights(self, onnxq: Cli, digits: Path) -> None:
        assert onnxq("qat", MODEL, *LABELLED, "--seed", 3, "--quiet").code == 0
        run = onnxq("quantize", MODEL, "--from", RECEIPT, "-o", "again.onnx")
        assert run.code == 2
        assert "the receipt is of trained weights, which it does not hold" in run.err
        assert "train again with its recipe and seed 3: `onnxq qat`" in run.err
        assert not (digits / "again.onnx").exists()

    def test_does_not_mind_how_a_recipe_trains(self, onnxq: Cli, digits: Path) -> None:
        def made(recipe: str) -> bytes:
            (digits / "digits_cnn.onnxq.toml").write_text(recipe)
            done = onnxq("quantize", MODEL, *LABELLED, "--precision", "int8", "--force", "--json")
            assert done.code == 0, done.err
            return json.dumps(done.json["plan"])

        assert made(QUICK) == made("[verify]\nseconds = 0\n")
