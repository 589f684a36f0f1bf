"""What shells complete: through click's classes for each of them, and in bash itself."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.shell_completion import get_completion_class

from onnxq.calibrate import OBSERVERS
from onnxq.cli import main
from onnxq.cli.completion import SHELLS, VARIABLE
from onnxq.cli.main import COMMANDS
from onnxq.plan import presets
from onnxq.targets import AUTO, PROVIDERS, TARGETS
from onnxq.types import Precision

ROOT = Path(__file__).parents[2]
BASH = shutil.which("bash")
HEAVY = ("onnx", "onnx_ir", "onnxruntime", "numpy", "rich", "msgspec", "torch")
FOUND = "plain,mobile"
Complete = Callable[..., list[tuple[str, str]]]


@pytest.fixture
def complete() -> Complete:
    """Type and value of what would complete the last of some words."""

    def run(*words: str) -> list[tuple[str, str]]:
        kind = get_completion_class("zsh")
        assert kind is not None
        found = kind(main, {}, "onnxq", VARIABLE).get_completions(list(words[:-1]), words[-1])
        return [(item.type, item.value) for item in found]

    return run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("a.onnx", "b.onnx", "two words.onnx", ".hidden.onnx", "a.npz", "a.toml", "n.txt"):
        (tmp_path / name).touch()
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "inner.onnx").touch()
    (tmp_path / "escape\x1b[31m.onnx").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plain(found: list[tuple[str, str]]) -> list[str]:
    return [value for kind, value in found if kind == "plain"]


class TestOutline:
    script = runpy.run_path(str(ROOT / "scripts/write_cli_docs.py"))

    def test_is_up_to_date(self) -> None:
        """It is the commands as they are: their options, and the words that these take."""
        found = (ROOT / "onnxq/cli/outline.json").read_text(encoding="utf-8")
        assert found == self.script["outline_text"](), "run: python scripts/write_cli_docs.py"

    def test_every_suffix_and_word_is_of_a_parameter(self) -> None:
        def names(command: click.Command) -> Iterator[str]:
            yield from (str(param.name) for param in command.params)
            if isinstance(command, click.Group):
                for inner in command.commands.values():
                    yield from names(inner)

        context = click.Context(main)
        commands = [main.get_command(context, name) for name in COMMANDS]
        there = {name for command in commands if command is not None for name in names(command)}
        said = {name for found in self.script["SUFFIXES"].values() for name in found}
        assert said | set(self.script["WORDS"]) <= there


class TestWords:
    def test_commands(self, complete: Complete) -> None:
        assert plain(complete("")) == list(COMMANDS)
        assert plain(complete("c")) == [name for name in COMMANDS if name[0] == "c"]
        assert plain(complete("recipe", "")) == ["init", "list", "schema", "show"]
        assert plain(complete("quantise", "c")) == plain(complete("c"))  # no error

    def test_options(self, complete: Complete) -> None:
        assert plain(complete("quantize", "--pre")) == ["--preset", "--precision"]
        assert "--help" in plain(complete("sensitivity", "report", "--"))
        assert "--preset" not in plain(complete("quantize", "--preset", "mobile", "--pre"))

    @pytest.mark.parametrize(
        ("words", "known"),
        [
            (("quantize", "m.onnx", "--preset"), presets()),
            (("quantize", "--target"), TARGETS),
            (("quantize", "--precision"), ["auto", *Precision]),
            (("quantize", "--calibrator"), OBSERVERS),
            (("bench", "--ep"), [*PROVIDERS, AUTO]),
            (("recipe", "show"), presets()),
            (("completion",), SHELLS),
        ],
        ids=lambda value: value[-1] if isinstance(value, tuple) else "",
    )
    def test_what_an_option_takes(
        self, complete: Complete, words: tuple[str, ...], known: Any
    ) -> None:
        assert plain(complete(*words, "")) == list(known)

    def test_default_command_of_a_group(self, complete: Complete, folder: Path) -> None:
        """``onnxq calibrate`` takes a model, or the name of a command."""
        assert plain(complete("calibrate", "")) == [
            "merge", "show", "a.onnx", "b.onnx", "two words.onnx",
        ]  # fmt: skip
        assert "--resume" in plain(complete("calibrate", "--"))
        assert plain(complete("calibrate", "a.onnx", "--calib")) == ["--calibrator"]


class TestFiles:
    def test_end_as_they_should(self, complete: Complete, folder: Path) -> None:
        models = ["a.onnx", "b.onnx", "two words.onnx"]
        assert complete("inspect", "") == [("dir", ""), *(("plain", name) for name in models)]
        assert plain(complete("inspect", "b")) == ["b.onnx"]
        assert plain(complete("quantize", "a.onnx", "--recipe", "")) == ["a.toml"]
        assert plain(complete("quantize", "--data", "a")) == ["a.npz"]
        assert "dataset:digits" in plain(complete("quantize", "--data", ""))
        assert plain(complete("bench", "a.onnx", "")) == models

    def test_of_other_folders(
        self, complete: Complete, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        inner = ("plain", "models/inner.onnx")
        assert complete("inspect", "models/") == [("dir", "models/"), inner]
        assert plain(complete("inspect", f"{folder}/models/i")) == [f"{folder}/models/inner.onnx"]
        assert plain(complete("inspect", "nowhere/")) == []
        assert plain(complete("inspect", "~no-such-user/")) == []
        monkeypatch.setenv("HOME", str(folder))
        assert plain(complete("inspect", "~/models/")) == ["~/models/inner.onnx"]

    def test_hidden_ones_when_asked_for(self, complete: Complete, folder: Path) -> None:
        assert plain(complete("inspect", ".h")) == [".hidden.onnx"]


@pytest.mark.parametrize("shell", SHELLS)
def test_script_is_printed(onnxq: Callable[..., Any], shell: str) -> None:
    run = onnxq("completion", shell)
    assert (run.code, run.err) == (0, "")
    assert f"{VARIABLE}={shell}_complete" in run.out
    assert "_onnxq_completion" in run.out


def test_unknown_shell(onnxq: Callable[..., Any]) -> None:
    run = onnxq("completion", "fsh")
    assert run.code == 2
    assert "did you mean 'fish'?" in run.err


@pytest.mark.parametrize(
    ("shell", "said", "expected"),
    [
        (
            "bash",
            {"COMP_WORDS": "onnxq\nquantize\n--preset\nmob", "COMP_CWORD": "3"},
            FOUND,
        ),
        (
            "bash",
            {"COMP_WORDS": "onnxq\nquantize\n--preset\n=\nmob", "COMP_CWORD": "4"},
            FOUND,
        ),
        (
            "zsh",
            {"COMP_WORDS": "onnxq quantize --preset mob", "COMP_CWORD": "3"},
            "plain\nmobile\n_",
        ),
        (
            "fish",
            {"COMP_WORDS": "onnxq quantize --preset mob", "COMP_CWORD": "mob"},
            FOUND,
        ),
    ],
)
def test_completing_is_light(shell: str, said: dict[str, str], expected: str) -> None:
    """A process of its own, as the scripts start it; it imports nothing heavy."""
    code = (
        "import sys\n"
        "from onnxq.cli import main\n"
        "try:\n"
        "    main(prog_name='onnxq')\n"
        "finally:\n"
        f"    sys.stderr.write(' '.join(sorted(set({HEAVY}) & set(sys.modules))))"
    )
    env = os.environ | said | {VARIABLE: f"{shell}_complete"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env
    )
    assert done.stdout == f"{expected}\n"
    assert done.stderr == ""


@pytest.mark.skipif(BASH is None, reason="there is no bash here")
class TestBash:
    @pytest.fixture
    def replies(self, folder: Path) -> Callable[..., list[str]]:
        """What bash itself would offer, from the script that is printed."""
        assert BASH is not None
        script = subprocess.run(
            [sys.executable, "-m", "onnxq", "completion", "bash"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        tools = folder / "bin"
        tools.mkdir()
        program = tools / "onnxq"
        program.write_text(
            f"#!{sys.executable}\nfrom onnxq.cli import main\nmain(prog_name='onnxq')\n"
        )
        program.chmod(0o755)

        def run(*words: str) -> list[str]:
            quoted = " ".join(f"'{word}'" for word in words)
            # outside of a real completion compopt has nothing to set
            test = (
                f'{script}\ncompopt() {{ echo option "$@"; }}\nCOMP_WORDS=({quoted})\n'
                f"COMP_CWORD={len(words) - 1}\n_onnxq_completion onnxq\n"
                "complete -p onnxq\nprintf '%s\\n' \"${COMPREPLY[@]}\"\n"
            )
            done = subprocess.run(
                [BASH, "--norc", "-c", test], capture_output=True, text=True, check=True,
                env=os.environ | {"PATH": f"{tools}:{os.environ['PATH']}"},
            )  # fmt: skip
            assert done.stderr == ""
            return [line for line in done.stdout.splitlines() if line]

        return run

    def test_words(self, replies: Callable[..., list[str]]) -> None:
        registered, *found = replies("onnxq", "recipe", "")
        assert registered == "complete -o nosort -F _onnxq_completion onnxq"
        assert found == ["init", "list", "schema", "show"]

    def test_files_and_folders(self, replies: Callable[..., list[str]]) -> None:
        """Folders are left to bash, and names with blanks stay one word."""
        options, _, *found = replies("onnxq", "inspect", "")
        assert options == "option -o plusdirs -o filenames"
        assert found == ["a.onnx", "b.onnx", "two words.onnx"]


def test_outline_lies_in_the_package() -> None:
    assert json.loads((ROOT / "onnxq/cli/outline.json").read_bytes()).keys() == COMMANDS.keys()
