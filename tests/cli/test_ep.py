"""``--ep`` of every command that runs a model: it reaches every session that is opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import onnxruntime
import pytest
from msgspec.structs import replace

from onnxq.cli import main
from onnxq.cli.main import COMMANDS
from onnxq.runtime.providers import append
from onnxq.targets import PROVIDERS, Provider
from onnxq.verify import Receipt

Cli = Callable[..., Any]
OPTIONS = {"ep", "ep_option", "ep_library", "strict_ep"}
# Commands that run a model on a provider, as ``--help`` has them.
RUNNING = {"quantize", "qat", "check", "calibrate run", "sensitivity report", "compare", "bench"}
# Those that run none; or prepare one, which the CPU provider alone does; or take all there are.
OTHERS = {
    "calibrate merge", "calibrate show", "diff", "inspect", "recipe list", "recipe show",
    "recipe init", "recipe schema", "backends", "completion",
}  # fmt: skip
AZURE = "AzureExecutionProvider"
needs_azure = pytest.mark.skipif(
    AZURE not in onnxruntime.get_available_providers(), reason="this build has no such provider"
)
COMPARE = (
    "compare", "digits_cnn.onnx", "digits_cnn.onnx", "--data", "digits_test.npz", "--samples", "8",
)  # fmt: skip
QUANTIZE = (
    "quantize", "digits_cnn.onnx", "--data", "digits_calibration.npz", "--precision", "int8",
    "--objective", "int8-everywhere", "--allow-slower", "-o", "int8.onnx",
)  # fmt: skip


def commands() -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    for name in COMMANDS:
        command = main.get_command(click.Context(main), name)
        inner = command.commands if isinstance(command, click.Group) else {"": command}
        found |= {f"{name} {part}".strip(): one for part, one in inner.items()}
    return found


def test_every_command_that_runs_a_model_says_where() -> None:
    found = {
        name: {option.name for option in command.params} >= OPTIONS
        for name, command in commands().items()
    }
    assert {name for name, has in found.items() if has} == RUNNING
    assert set(found) <= RUNNING | OTHERS


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Provider]:
    """The providers that sessions ask for; all of them are opened on the CPU provider."""
    found: list[Provider] = []
    here = (*onnxruntime.get_available_providers(), PROVIDERS["openvino"].runtime_name)

    def record(options: Any, provider: Provider, threads: int) -> Any:
        found.append(provider)
        return append(options, Provider(), threads)

    class Everywhere(onnxruntime.InferenceSession):
        def get_providers(self) -> list[str]:
            return list(here)

    monkeypatch.setattr("onnxq.runtime.providers.installed_providers", lambda: here)
    monkeypatch.setattr("onnxq.runtime.session.append", record)
    monkeypatch.setattr("onnxq.runtime.session.fallen_back", lambda _: ())
    monkeypatch.setattr(onnxruntime, "InferenceSession", Everywhere)
    return found


def test_compare_runs_all_of_it_there(onnxq: Cli, digits: Path, asked: list[Provider]) -> None:
    """Outputs, latency, layers: no session is opened anywhere else."""
    there = ("--ep", "openvino", "--ep-option", "device_type=GPU")
    run = onnxq(*COMPARE, *there, "--seconds", "0.01", "--json")
    assert run.code == 0, run.err
    assert all(one == Provider("openvino", {"device_type": "GPU"}) for one in asked)
    assert (
        len(asked) > 8
    )  # two of the outputs, of the latency, of the shapes, of the tensors; layers
    assert run.json["growth"]["layers"]
    assert run.json["environment"]["provider"] == "OpenVINOExecutionProvider device_type=GPU"
    assert "both models ran on openvino" in run.json["notes"]


def test_replay_is_measured_there_and_has_the_same_bytes(
    onnxq: Cli, digits: Path, asked: list[Provider]
) -> None:
    made = onnxq(*QUANTIZE, "--json")
    assert made.code == 0, made.err
    asked.clear()
    run = onnxq(
        "quantize", "digits_cnn.onnx", "--from", "int8.receipt.json", "-o", "again.onnx",
        "--ep", "openvino", "--test-data", "digits_test.npz", "--json",
    )  # fmt: skip
    assert run.code == 0, run.err
    assert "openvino" in {provider.name for provider in asked}
    assert Path("again.onnx").read_bytes() == Path("int8.onnx").read_bytes()
    found, before = run.json, made.json
    assert found["environment"]["provider"] == "OpenVINOExecutionProvider"
    assert found["recipe"] == before["recipe"]
    assert any("run on the openvino provider" in note for note in found["measured"]["notes"])


def test_a_receipt_alone_brings_no_code(onnxq: Cli, digits: Path) -> None:
    """Nor does an option that names its plugin without saying where that is."""
    assert onnxq(*QUANTIZE, "--quiet").code == 0
    path = Path("int8.receipt.json")
    receipt = Receipt.from_json(path.read_bytes())
    evil = replace(receipt.recipe, provider=Provider("my_ep", library="/evil.so"))
    path.write_bytes(replace(receipt, recipe=evil).to_json())
    again = ("quantize", "digits_cnn.onnx", "--from", path, "-o", "again.onnx")
    assert "may load code" in onnxq(*again).err
    for said in (("--strict-ep",), ("--ep", "my_ep"), ("--ep-option", "a=b")):
        run = onnxq(*again, *said)
        assert run.code == 2
        assert "unknown execution provider 'my_ep'" in run.err
    named = onnxq(*again, "--ep-library", "my_ep=/mine.so")
    assert (named.code, "cannot load plugin '/mine.so'" in named.err) == (3, True)
    assert onnxq(*again, "--ep", "cpu").code == 0


@needs_azure
@pytest.mark.parametrize("command", ["compare", "replay"])
def test_what_falls_back(onnxq: Cli, digits: Path, command: str) -> None:
    """A provider that takes no node: a note, or an error where that is asked for."""
    args = (*COMPARE, "--seconds", "0")
    if command == "replay":
        assert onnxq(*QUANTIZE, "--quiet").code == 0
        args = ("quantize", "digits_cnn.onnx", "--from", "int8.receipt.json", "-o", "again.onnx")
    force = ("--force",) if command == "replay" else ()
    run = onnxq(*args, "--ep", AZURE, "--json", *force)
    assert run.code == 0, run.err
    notes = run.json["notes"] if command == "compare" else run.json["measured"]["notes"]
    assert any("12 nodes" in note and "on the CPU provider" in note for note in notes)
    strict = onnxq(*args, "--ep", AZURE, "--strict-ep", *force)
    assert strict.code == 3
    assert "--strict-ep" in strict.err
    assert strict.err.count("\n") == 1
