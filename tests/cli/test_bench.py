"""``onnxq bench``: what it tells of models and of their nodes, and what it refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import onnxq as library
from onnxq.errors import UsageError
from onnxq.graph import save
from onnxq.plan import Recipe, VerifySettings

Cli = Callable[..., Any]
MODELS = Path(__file__).parents[2] / "models"
FLOAT = str(MODELS / "digits_cnn.onnx")
QUICK = ("--seconds", 0.05)
AZURE = "AzureExecutionProvider"
needs_azure = pytest.mark.skipif(
    AZURE not in onnxruntime.get_available_providers(), reason="this build has no such provider"
)


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digits' model with every layer on integers."""
    path = tmp_path_factory.mktemp("made") / "digits_cnn.int8.onnx"
    recipe = Recipe(precision="int8", verify=VerifySettings(seconds=0))
    data = str(MODELS / "digits_calibration.npz")
    library.quantize(FLOAT, data=data, recipe=recipe, output=path)
    return str(path)


@pytest.fixture
def chain(build: Callable[[str], Any], tmp_path: Path) -> Callable[[int], Path]:
    """A model of so many products of 256x256 matrices."""

    def make(length: int) -> Path:
        body = "".join(f"[p{i}] t{i + 1} = MatMul (t{i}, w)\n" for i in range(length))
        text = f"g (float[B,256] t0) => (float[B,256] t{length}) <float[256,256] w = seeded> "
        path = tmp_path / f"chain{length}.onnx"
        save(build(f"{text}{{ {body} }}"), path)
        return path

    return make


def test_figures_of_every_model(chain: Callable[[int], Path]) -> None:
    report = library.bench_models([chain(8), chain(16), chain(8)], batch_size=64, seconds=0.2)
    (run,) = report.runs
    assert (run.batch, run.threads) == (64, 1)
    assert run.models[0].speed == 1
    for model in run.models:
        assert 0 < model.low <= model.ms <= model.high
        assert model.noise > 0
        assert model.provider == "cpu"
        assert model.per_second == pytest.approx(64_000 / model.ms)
        assert model.peak_bytes is None


def test_table(
    int8: str, onnxq: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files_in: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    run = onnxq("bench", FLOAT, int8, *QUICK)
    assert run.code == 0, run.err
    assert not files_in(tmp_path)
    assert "digits_cnn.int8.onnx" in run.out
    assert "batch 1 (made-up samples), 1 thread, " in run.out
    assert "conversions" not in run.out


def test_json_with_data(int8: str, onnxq: Cli, tmp_path: Path) -> None:
    data = MODELS / "digits_test.npz"
    found = onnxq("bench", FLOAT, int8, *QUICK, "--data", data, "--batch-size", 16, "--json").json
    (one,) = found["runs"]
    assert (one["batch"], found["made_up"], one["threads"]) == (16, False, 1)
    assert [model["model"] for model in one["models"]] == [FLOAT, int8]
    assert one["models"][0]["speed"] == 1
    assert found["nodes"] == []
    assert one["rounds"] >= 9
    assert "onnxruntime" in json.dumps(found["environment"])


def test_a_fixed_batch_stays(onnxq: Cli, build: Callable[[str], Any], tmp_path: Path) -> None:
    save(build("g (float[3,8] x) => (float[3,8] y) { y = Relu (x) }"), tmp_path / "m.onnx")
    run = onnxq("bench", tmp_path / "m.onnx", *QUICK, "--batch-size", 16, "--json")
    assert run.json["runs"][0]["batch"] == 3


def test_several_batches_and_threads(int8: str, onnxq: Cli) -> None:
    args = ("--batch-size", "1,4", "--threads", "1,2", "--json")
    found = onnxq("bench", FLOAT, int8, *QUICK, *args).json
    asked = [(run["batch"], run["threads"]) for run in found["runs"]]
    assert asked == [(1, 1), (1, 2), (4, 1), (4, 2)]
    assert all(len(run["models"]) == 2 for run in found["runs"])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_memory(onnxq: Cli) -> None:
    (run,) = onnxq("bench", FLOAT, *QUICK, "--memory", "--json").json["runs"]
    assert run["models"][0]["peak_bytes"] > Path(FLOAT).stat().st_size


@needs_azure
def test_every_model_on_every_provider(int8: str, onnxq: Cli) -> None:
    """A provider of the usual build that takes no node: all of them fall back, and that is told."""
    args = ("bench", FLOAT, int8, *QUICK, "--ep", f"cpu,{AZURE}")
    (run,) = onnxq(*args, "--json").json["runs"]
    ran = [(model["model"], model["provider"], bool(model["fallback"])) for model in run["models"]]
    assert ran == [
        (FLOAT, "cpu", False), (FLOAT, AZURE, True), (int8, "cpu", False), (int8, AZURE, True),
    ]  # fmt: skip
    told = onnxq(*args).out
    assert "run on the CPU provider, and not on" in " ".join(told.split())
    strict = onnxq(*args, "--strict-ep")
    assert strict.code == 3
    assert strict.err.count("\n") == 1


class TestPerLayer:
    def test_two_forms(self, int8: str, onnxq: Cli) -> None:
        found = onnxq("bench", FLOAT, int8, *QUICK, "--per-layer", "--json").json
        nodes = {node["name"]: node for node in found["nodes"]}
        assert nodes["/conv2/Conv"]["kernels"] == ["Conv", "QLinearConv"]
        assert nodes["/conv2/Conv"]["op"] == "Conv"
        assert all(us > 0 for us in nodes["/conv2/Conv"]["us"])
        assert nodes["/fc1/Gemm"]["kernels"][1] == "QGemm"
        assert not any("Relu" in name for name in nodes)
        assert len(found["conversions"]) == 2
        assert found["conversions"][1] > 0

    def test_nodes_without_names_match_too(
        self, onnxq: Cli, build: Callable[[str], Any], tmp_path: Path
    ) -> None:
        model = onnx.load(FLOAT)
        for node in model.graph.node:
            node.name = ""
        onnx.save(model, tmp_path / "m.onnx")
        made = library.quantize(
            tmp_path / "m.onnx",
            data=MODELS / "digits_calibration.npz",
            recipe=Recipe(precision="int8", verify=VerifySettings(seconds=0)),
            output=tmp_path / "q.onnx",
        )
        assert made.path is not None
        found = onnxq("bench", tmp_path / "m.onnx", made.path, *QUICK, "--per-layer", "--json").json
        kernels = [node["kernels"] for node in found["nodes"]]
        assert ["Conv", "QLinearConv"] in kernels

    def test_table(self, int8: str, onnxq: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "120")
        run = onnxq("bench", int8, *QUICK, "--per-layer", "--top", 2)
        assert run.code == 0, run.err
        assert "/conv2/Conv" in run.out
        assert "QLinearConv" in run.out
        assert "more" in run.out
        assert "conversions" in run.out
        assert "gain" not in run.out


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ((), 2, "Missing argument"),
        (("nothing.onnx",), 3, "nothing.onnx"),
        ((FLOAT, FLOAT, FLOAT, "--per-layer"), 2, "give one model, or two forms of it"),
        ((FLOAT, "--data", "nothing.npz"), 3, "nothing.npz"),
        ((FLOAT, "--seconds", "0"), 2, "--seconds"),
        ((FLOAT, "--batch-size", "0"), 2, "--batch-size"),
        ((FLOAT, "--threads", "1,x"), 2, "'x' is no whole number"),
        ((FLOAT, "--batch-size", "1,2", "--per-layer"), 2, "one batch size"),
        ((FLOAT, "--ep", "cuda"), 3, "pip install 'onnxq[cuda]'"),
        ((FLOAT, "--ep", "cpu,cudda"), 2, "did you mean 'cuda'?"),
        ((FLOAT, "--ep", "openvino", "--per-layer"), 2, "only the CPU provider"),
        ((FLOAT, "--ep", "cuda", "--ep-option", "x"), 2, "KEY=VALUE"),
        ((FLOAT, "--ep-library", "x"), 2, "NAME=PATH"),
        ((FLOAT, "--ep-library", "my_ep=/nothing.so"), 3, "cannot load plugin '/nothing.so'"),
    ],
)
def test_refuses(onnxq: Cli, args: tuple[str, ...], code: int, message: str) -> None:
    run = onnxq("bench", *args)
    assert run.code == code
    assert message in run.err
    assert not run.out


def test_refuses_models_with_other_inputs(onnxq: Cli, chain: Callable[[int], Path]) -> None:
    run = onnxq("bench", FLOAT, chain(1))
    assert run.code == 2
    assert "reads t0, and " in run.err
    assert "reads image; compare forms of one model" in run.err


def test_data_help_where_noise_does_not_do(
    onnxq: Cli, build: Callable[[str], Any], tmp_path: Path
) -> None:
    text = "g (float[N,M] x) => (float[2,4] y) <int64[2] s = {2, 4}> { y = Reshape (x, s) }"
    save(build(text), tmp_path / "m.onnx")
    run = onnxq("bench", tmp_path / "m.onnx", *QUICK)
    assert run.code == 3
    assert run.err.startswith("error: made-up samples do not do here: ")
    assert run.err.endswith("; give --data\n")
    np.savez(tmp_path / "d.npz", x=np.zeros((8, 4), np.float32))
    args = ("--data", tmp_path / "d.npz", "--batch-size", 2, "--json")
    assert onnxq("bench", tmp_path / "m.onnx", *QUICK, *args).json["runs"][0]["batch"] == 2


def test_the_library_wants_a_model() -> None:
    with pytest.raises(UsageError, match="no model"):
        library.bench_models([])


def test_the_library_tells_progress() -> None:
    told: list[tuple[str, int, int]] = []
    library.bench_models([FLOAT], seconds=0.05, progress=lambda *at: told.append(at))
    assert {stage for stage, *_ in told} == {"latency"}
    assert all(0 <= done <= total == 100 for _, done, total in told)
