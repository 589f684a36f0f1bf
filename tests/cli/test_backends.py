"""``onnxq backends``, and ``--ep`` of the commands that run models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from onnxq.targets import PROVIDERS

Cli = Callable[..., Any]
MODELS = Path(__file__).parents[2] / "models"
FLOAT, DATA = MODELS / "digits_cnn.onnx", MODELS / "digits_calibration.npz"
AZURE = "AzureExecutionProvider"
needs_azure = pytest.mark.skipif(
    AZURE not in onnxruntime.get_available_providers(), reason="this build has no such provider"
)
MISSING = [name for name in ("cuda", "directml") if PROVIDERS[name].runtime_name
           not in onnxruntime.get_available_providers()]  # fmt: skip


def test_all_providers(onnxq: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    run = onnxq("backends")
    assert run.code == 0, run.err
    assert "onnxruntime" in run.out
    told = {one["name"]: one for one in onnxq("backends", "--json").json}
    assert set(PROVIDERS) <= set(told)
    assert told["cpu"]["runs"]
    for name in MISSING:
        assert not told[name]["runs"]
        assert told[name]["install"] in run.out


def test_one_model(onnxq: Cli) -> None:
    found = onnxq("backends", FLOAT, "--data", DATA, "--seconds", 0.05, "--json").json
    assert found["best"] in [one["name"] for one in found["backends"]]
    assert not found["made_up"]
    (cpu,) = (one for one in found["backends"] if one["name"] == "cpu")
    assert cpu["speed"] == 1
    assert cpu["ms"] > 0
    run = onnxq("backends", FLOAT, "--seconds", 0.05)
    assert f"best: {found['best']}" in run.out or "best: " in run.out
    assert "batch 1 (made-up samples), 1 thread" in run.out


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("--data", "x.npz"), 2, "none is given"),
        (("nothing.onnx",), 3, "nothing.onnx"),
        (("--ep-library", "my_ep"), 2, "NAME=PATH"),
    ],
)
def test_refuses(onnxq: Cli, args: tuple[str, ...], code: int, message: str) -> None:
    run = onnxq("backends", *args)
    assert run.code == code
    assert message in run.err
    assert not run.out


def test_a_plugin_that_cannot_be_loaded_is_told(onnxq: Cli) -> None:
    told = onnxq("backends", "--ep-library", "my_ep=/nothing.so", "--json").json
    (mine,) = (one for one in told if one["name"] == "my_ep")
    assert not mine["runs"]
    assert "cannot load plugin '/nothing.so'" in mine["why_not"]


COMMANDS = {
    "quantize": ("quantize", "digits_cnn.onnx"),
    "calibrate": ("calibrate", "digits_cnn.onnx"),
    "sensitivity": ("sensitivity", "report", "digits_cnn.onnx"),
    "bench": ("bench", "digits_cnn.onnx"),
    "dry-run": ("quantize", "digits_cnn.onnx", "--dry-run"),
}


@pytest.mark.parametrize("provider", MISSING)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_provider_is_one_line(
    onnxq: Cli, digits: Path, files_in: Any, command: str, provider: str
) -> None:
    before = files_in(digits)
    run = onnxq(*COMMANDS[command], "--ep", provider)
    assert run.code == 3
    assert run.err.startswith(f"error: execution provider '{provider}' is not in this ONNX Runtime")
    assert PROVIDERS[provider].install in run.err
    assert run.err.count("\n") == 1
    assert files_in(digits) == before


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_provider_is_wrong_usage(onnxq: Cli, digits: Path, command: str) -> None:
    run = onnxq(*COMMANDS[command], "--ep", "openvinno")
    assert run.code == 2
    assert "did you mean 'openvino'?" in run.err


def test_options_win_over_the_recipe(recipe_of: Callable[..., dict[str, Any]]) -> None:
    text = Path("digits_cnn.onnxq.toml").read_text()
    table = '[provider]\nname = "openvino"\noptions = { device_id = "1", precision = "2" }\n'
    Path("digits_cnn.onnxq.toml").write_text(f"{text}\n{table}")
    assert recipe_of()["provider"] == {
        "name": "openvino", "options": {"device_id": "1", "precision": "2"},
        "library": None, "strict": False,
    }  # fmt: skip
    same = recipe_of("--ep-option", "precision=3", "--strict-ep")["provider"]
    assert (same["options"], same["strict"]) == ({"device_id": "1", "precision": "3"}, True)
    other = recipe_of("--ep", "cuda", "--ep-option", "device_id=1")["provider"]
    assert (other["name"], other["options"]) == ("cuda", {"device_id": "1"})
    plugin = recipe_of("--ep-library", "my_ep=/a=b.so")["provider"]
    assert (plugin["name"], plugin["library"]) == ("my_ep", "/a=b.so")


def test_a_plugin_and_another_provider_contradict(onnxq: Cli) -> None:
    run = onnxq("quantize", FLOAT, "--ep", "cuda", "--ep-library", "my_ep=/x.so")
    assert run.code == 2
    assert "--ep is 'cuda', and the plugin's name is 'my_ep'" in run.err


@needs_azure
class TestFallback:
    """A provider that takes no node: every one falls back."""

    def test_a_note(self, onnxq: Cli, digits: Path) -> None:
        run = onnxq("quantize", "digits_cnn.onnx", "--ep", AZURE, "--json")
        assert run.code == 0, run.err
        notes = run.json["measured"]["notes"]
        assert any("12 nodes" in note and "on the CPU provider" in note for note in notes)
        shown = onnxq("quantize", "digits_cnn.onnx", "--ep", AZURE, "--force").out
        assert "12 nodes" in shown

    @pytest.mark.parametrize("command", COMMANDS)
    def test_an_error_where_that_is_asked_for(self, onnxq: Cli, digits: Path, command: str) -> None:
        run = onnxq(*COMMANDS[command], "--ep", AZURE, "--strict-ep")
        assert run.code == 3
        assert "--strict-ep" in run.err
        assert run.err.count("\n") == 1
