"""What reaches a terminal: no name obeys itself there, and colours only where they are wanted."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from onnxq.cli.terminal import Terminal, echo_json
from onnxq.errors import OnnxqError
from onnxq.graph import Model, save

Cli = Callable[..., Any]
# Clears the screen, sets the title, turns the writing direction, and does so once more with C1.
ORDER = "\x1b[2J\x1b]0;owned\x07\u202e\x9b31m"
OBEYED = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e]")
EVIL = f"conv{ORDER}"


@pytest.fixture
def evil(tmp_path: Path, build: Callable[[str], Model], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model whose names, and whose file's name, are orders to a terminal."""
    text = """
    net (float[N,8] x) => (float[N,40] y) <float[8,40] w = seeded>
    { [soft] s = Softmax (x) [mul] y = MatMul (s, w) }
    """
    model = build(text)
    for node in model.ir.graph:
        node.name = f"{node.name}{ORDER}"
    for value in (*model.ir.graph.inputs, *model.ir.graph.outputs):
        value.name = f"{value.name}{ORDER}"
    save(model, tmp_path / f"{EVIL}.onnx")
    (tmp_path / f"{EVIL}.onnxq.toml").write_text("[verify]\nseconds = 0\n")
    np.savez(tmp_path / "data.npz", other=np.zeros((20, 8), np.float32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("--keep-float", "mul[2J]0;owned31"), 2),  # suggests a node's name
        (("--data", "data.npz"), 3),  # lists the names of inputs
        (("--from", "missing.json"), 3),
        (("--precision", ORDER), 2),  # click's own errors too
        ((f"--{ORDER}",), 2),
    ],
    ids=lambda value: str(value[0])[:9] if isinstance(value, tuple) else "",
)
def test_errors(onnxq: Cli, evil: Path, args: tuple[str, ...], code: int) -> None:
    run = onnxq("quantize", f"{EVIL}.onnx", *args)
    assert run.code == code, run.err
    assert not OBEYED.search(run.err), repr(run.err)
    assert run.out == ""


def test_name_of_a_node_is_told(onnxq: Cli, evil: Path) -> None:
    run = onnxq("quantize", f"{EVIL}.onnx", "--keep-float", "mul[2J]0;owned31")
    assert "did you mean 'mul?[2J?]0;owned???31m'?" in run.err


@pytest.mark.parametrize(
    "args",
    [
        ("inspect", f"{EVIL}.onnx"),
        ("inspect", f"{EVIL}.onnx", "--json"),
        ("quantize", f"{EVIL}.onnx"),
        ("quantize", f"{EVIL}.onnx", "--json"),
        ("quantize", f"{EVIL}.onnx", "--dry-run"),
        ("recipe", "init", f"{EVIL}.onnx", "--stdout"),
        ("recipe", "init", f"{EVIL}.onnx", "--force"),
        ("backends", f"{EVIL}.onnx", "--seconds", "0.01"),
        ("bench", f"{EVIL}.onnx", "--seconds", "0.01", "--per-layer"),
    ],
    ids=" ".join,
)
def test_output(onnxq: Cli, evil: Path, args: tuple[str, ...]) -> None:
    run = onnxq(*args)
    assert run.code == 0, run.err
    assert not OBEYED.search(run.out + run.err), repr(run.out)
    if "--json" in args:  # what is escaped there is still the same
        assert f"mul{ORDER}" in json.dumps(json.loads(run.out), ensure_ascii=False).replace(
            "\\u001b", "\x1b"
        ).replace("\\u0007", "\x07")


class TestTerminal:
    def shown(self, view: Any, **kind: Any) -> str:
        stream = io.StringIO()
        Terminal(file=stream, width=60, **kind).print(view)
        return stream.getvalue()

    def test_texts_and_tables(self) -> None:
        table = Table(f"head{ORDER}")
        table.add_row(f"cell{ORDER}\nnext")
        for view in (f"text{ORDER}", table):
            assert not OBEYED.search(self.shown(view))

    def test_styles_are_its_own(self) -> None:
        kind = {"force_terminal": True, "color_system": "standard", "_environ": {}}
        assert self.shown("[red]bad[/] good", **kind) == "\x1b[31mbad\x1b[0m good\n"

    def test_changes_nothing_else(self) -> None:
        plain = io.StringIO()
        table = Table("ünï", "漢字")
        table.add_row("##[x]", "two\nlines")
        Console(file=plain, width=60).print(table)
        assert self.shown(table) == plain.getvalue()


def test_json_gives_no_runner_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["##[add-mask]x", "a###[b]", "#", "# #"]
    echo_json(names)
    shown = capsys.readouterr().out
    assert "##" not in shown
    assert json.loads(shown) == names


@pytest.mark.parametrize("command", ["inspect", "bench", "quantize"])
def test_names_that_are_not_utf_8(onnxq: Cli, tmp_path: Path, command: str) -> None:
    """Neither JSON nor a page could hold one, and that would be found out after the work."""
    run = onnxq(command, str(tmp_path / "m\udcff.onnx"))
    assert (run.code, run.out) == (2, "")
    assert "m?.onnx' is not UTF-8; rename the file" in run.err


def test_error_of_the_library_is_printable() -> None:
    assert str(OnnxqError(f"node '{EVIL}'\n  is bad", "leave\tit out")) == (
        "node 'conv?[2J?]0;owned???31m' is bad; leave it out"
    )


def on_a_terminal(*args: str, **env: str) -> str:
    """What onnxq writes where standard output and standard error are a terminal."""
    master, slave = pty.openpty()
    kept = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "TERM")}
    subprocess.run(
        [sys.executable, "-m", "onnxq", *args],
        stdin=slave, stdout=slave, stderr=slave, check=False,
        env=kept | {"TERM": "xterm", "COLUMNS": "80"} | env,
    )  # fmt: skip
    os.close(slave)
    found = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # Linux says so at the end
            break
        if not part:
            break
        found += part
    os.close(master)
    return found.decode()


class TestColours:
    ERROR = ("inspect", "missing.onnx")
    TABLE = ("inspect", "digits_cnn.onnx")

    @pytest.mark.parametrize("args", [ERROR, TABLE], ids=["error", "table"])
    def test_on_a_terminal(self, digits: Path, args: tuple[str, ...]) -> None:
        assert "\x1b[" in on_a_terminal(*args)

    @pytest.mark.parametrize("args", [ERROR, TABLE], ids=["error", "table"])
    def test_not_with_no_color(self, digits: Path, args: tuple[str, ...]) -> None:
        """https://no-color.org: any value but an empty one counts. Bold is no colour."""
        found = on_a_terminal(*args, NO_COLOR="1")
        assert not re.search(r"\x1b\[[0-9;]*(3[0-8]|9[0-7])", found)
        assert "\x1b[" in on_a_terminal(*args, NO_COLOR="")

    @pytest.mark.parametrize("args", [ERROR, TABLE], ids=["error", "table"])
    def test_not_in_a_file(self, digits: Path, args: tuple[str, ...]) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "onnxq", *args], capture_output=True, text=True, check=False
        )
        assert "\x1b" not in done.stdout + done.stderr
        assert done.stdout or done.stderr


def test_help_keeps_its_lines(onnxq: Cli) -> None:
    """A group that is called without a command shows its help, which no filter joins."""
    run = onnxq("recipe")
    assert "\n  onnxq recipe init" in (run.out + run.err).replace("    ", "  ")
