"""Every block of code in the docs does what it says; docs/writing.md tells the rules."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import re
import shlex
import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from onnxq.cli import main
from onnxq.graph import Model
from onnxq.plan.recipe import parse_recipe
from onnxq.runtime import Session

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "models/README.md",
    ROOT / "examples/README.md",
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page.name != "cli.md"),
]
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>[\w-]*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
COMMENT = re.compile(r"<!-- ((?:(?!-->).)+) -->\s*\Z", re.DOTALL)
LANGUAGES = {"python", "sh", "console", "toml", "json", "yaml", "text"}
RUN = {"python", "sh", "console"}
# Programs that stand in blocks of commands beside onnxq itself.
OTHERS = {"git", "mkdocs", "mypy", "pip", "pre-commit", "pytest", "python", "python3", "ruff"}
# Files of the reader's in the folder where a page is run, by the shipped file that they are.
READERS = {
    "model.onnx": "digits_cnn.onnx",
    "samples.npz": "digits_calibration.npz",
}
# Its labelled samples, cut into these.
LABELLED = {"train.npz": slice(300), "test.npz": slice(300, None)}
SHIPPED = sorted(path.name for path in (ROOT / "models").glob("digits*"))
SHORT = {"--seconds": "0.05", "--epochs": "1"}
# Files by their ends, and options whose value is one that the command writes.
FILE = re.compile(r"\.(onnx|npz|npy|json|toml|py|so)$")
DATA = {"--data", "--test-data"}
ELSEWHERE = {"--cluster", "--ep-library"}
WRITES = {"-o", "--output", "--html", "--csv", "--markdown", "--junit"}
# Pages whose text blocks carry no comment: what the blocks are, in their order.
KNOWN = {"docs/architecture.md": ["drawing"] * 2}


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str
    comment: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text, name = page.read_text(encoding="utf-8"), page.relative_to(ROOT).as_posix()
    known = itertools.chain(KNOWN.get(name, ()), itertools.repeat(""))
    found = []
    for fence in FENCE.finditer(text):
        before, language = text[: fence.start()], fence["language"] or "text"
        comment = COMMENT.search(before)
        said = comment[1] if comment else ""
        if language == "text" and not said:
            follows = found and found[-1].language in RUN and before.rstrip().endswith("```")
            said = "output" if follows else next(known)
        body = textwrap.dedent(fence["text"])
        found.append(Block(name, before.count("\n") + 1, language, body, said))
    return found


ALL = {page.relative_to(ROOT).as_posix(): blocks(page) for page in PAGES}
EVERY = list(itertools.chain.from_iterable(ALL.values()))


def commands(block: Block) -> Iterator[list[str]]:
    """The words of each command, line by line, without prompts, comments and prefixes."""
    text = block.text.replace("\\\n", " ")
    if block.language == "console":
        text = "\n".join(line[2:] for line in text.splitlines() if line.startswith("$ "))
    for line in text.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, "&&"]:
            if word in {"&&", "|", ";"}:
                while words and re.match(r"[A-Z_]+=", words[0]):
                    words = words[1:]
                if words:
                    yield words
                words = []
            else:
                words.append(word)


def of_onnxq(block: Block) -> Iterator[list[str]]:
    return (words[1:] for words in commands(block) if words[0] == "onnxq")


def redirected(words: list[str]) -> tuple[list[str], str]:
    """Arguments, and the file that the output goes to."""
    if ">" in words:
        return words[: words.index(">")], words[words.index(">") + 1]
    return words, ""


SHELL = [block for block in EVERY if block.language in {"sh", "console"}]


@pytest.mark.parametrize("block", EVERY, ids=str)
def test_is_of_a_known_kind(block: Block) -> None:
    assert block.language in LANGUAGES
    if block.language == "text":
        assert re.match(r"output$|output: onnxq |from: |elsewhere: |drawing$", block.comment), (
            "say above it what the block is: docs/writing.md"
        )
    if block.comment.startswith("from: "):
        assert (ROOT / block.comment.removeprefix("from: ")).is_file()


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_commands_are_parsed(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    """By click itself, up to the point where the command would begin."""
    monkeypatch.setattr(click.Command, "invoke", lambda _self, _context: None)
    for words in commands(block):
        assert words[0] in {"onnxq", ".", "cd", "mkdir", "docker", *OTHERS}, words
    for words in of_onnxq(block):
        done = CliRunner().invoke(main, redirected(words)[0])
        assert done.exit_code == 0, (words, done.output)


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_scripts_exist(block: Block) -> None:
    for words in commands(block):
        for word in words[1:]:
            if re.match(r"(scripts|examples)/[\w/]+\.py", word):
                assert (ROOT / word.split(":")[0]).is_file(), word


@pytest.mark.parametrize(
    "block", [b for b in EVERY if b.language in {"toml", "json", "yaml"}], ids=str
)
def test_data_can_be_read(block: Block) -> None:
    if block.language == "toml":
        parse_recipe(block.text, str(block))
    elif block.language == "json":
        json.loads(block.text)
    else:
        yaml.safe_load(block.text)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader stands: the shipped models with their data, the examples, a model of hers."""
    (tmp_path / "models").mkdir()
    for name in SHIPPED:
        shutil.copy(ROOT / "models" / name, tmp_path / "models" / name)
    recipe = tmp_path / "models/digits_cnn.onnxq.toml"
    shortened = recipe.read_text().replace("[verify]", f"[verify]\nseconds = {SHORT['--seconds']}")
    recipe.write_text(shortened)
    for name, shipped in READERS.items():
        shutil.copy(ROOT / "models" / shipped, tmp_path / name)
    with np.load(ROOT / "models/digits_test.npz") as arrays:
        for name, part in LABELLED.items():
            np.savez(tmp_path / name, **{key: array[part] for key, array in arrays.items()})
    (tmp_path / "model.onnxq.toml").write_text(f"[verify]\nseconds = {SHORT['--seconds']}\n")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("ONNXQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


@pytest.fixture
def made_up_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Integers take half the time of floats: what a search chooses is the same on all machines."""
    opened = Session.__init__

    def open_session(session: Any, model: Model, **options: Any) -> None:
        opened(session, model, **options)
        integers = any(node.op == "QuantizeLinear" for node in model.view().nodes)
        session.seconds = 1e-3 if integers else 2e-3

    monkeypatch.setattr(Session, "__init__", open_session)
    monkeypatch.setattr("onnxq.runtime.latency._time", lambda session, *_: session.seconds)


def runs_here(words: list[str]) -> bool:
    """Whether all that a command reads is there."""
    for before, word in itertools.pairwise(["", *words]):
        place = Path(word.split(":")[0])
        reads = before not in WRITES and (before in DATA or FILE.search(place.name))
        elsewhere = word in ELSEWHERE or (before == "--ep" and word not in {"cpu", "auto"})
        if elsewhere or (reads and not place.exists()):
            return False
    return True


def command_of(words: list[str]) -> click.Command:
    command: click.Command = main
    for word in words:
        if isinstance(command, click.Group):
            inner = command.get_command(click.Context(command), word)
            command = inner or command.commands.get("run", command)  # its usual command
    return command


def run(words: list[str], *, refused: bool = False) -> str:
    """Run a command of a page, but quickly; what it printed."""
    arguments, target = redirected(words)
    options = {name for option in command_of(arguments).params for name in option.opts}
    extra = [word for name in SHORT if name in options for word in (name, SHORT[name])]
    force = ["--force"] if "--force" in options else []
    done = CliRunner().invoke(main, [*arguments, *extra, *force])
    # a reader's model, or one that was trained for a single epoch, may miss a budget
    codes = {0} if shipped(arguments) and arguments[0] != "qat" else {0, 1}
    assert done.exit_code in ({2, 3} if refused else codes), (words, done.output)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    if target:
        Path(target).write_text(done.stdout, encoding="utf-8")
    return done.output


def shipped(words: list[str]) -> bool:
    return any(word.startswith("models/digits") for word in words)


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]{2,}", text))


def printed(block: Block, last: str, known: dict[str, str]) -> str:
    """What a text block has to be an output of."""
    line = block.comment.removeprefix("output").removeprefix(": ").strip()
    if not line:
        return last
    words = shlex.split(line)[1:]
    return known.get(shlex.join(words)) or run(words, refused=block.text.startswith("error:"))


def runnable(page: str) -> bool:
    return any(b.language in RUN or "output:" in b.comment for b in ALL[page])


@pytest.mark.usefixtures("made_up_times")
@pytest.mark.parametrize("page", [page for page in ALL if runnable(page)])
def test_page_runs(page: str, folder: Path) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    last, known = "", {}
    for block in ALL[page]:
        if block.comment.startswith("not run: "):
            continue
        if block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as shown:
                exec(compile(block.text, str(block), "exec"), names)
            last = shown.getvalue()
        elif block in SHELL:
            for words in of_onnxq(block):
                assert runs_here(words) or not shipped(words), words
                if runs_here(words):
                    last = known[shlex.join(words)] = run(words)
            if block.language == "console":
                shown_here = "\n".join(x for x in block.text.splitlines() if x[:1] != "$")
                assert words_of(shown_here) <= words_of(last), f"{block}: another output"
        elif block.comment.startswith("output"):
            missing = words_of(block.text) - words_of(printed(block, last, known))
            assert not missing, f"{block} shows what is not printed: {sorted(missing)}"


def test_paths_in_backticks_exist() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"`(?:python )?((?:scripts|examples|onnxq|tests|docs)/[\w./-]+)", text))
    assert len(named) > 20
    assert {path for path in named if not (ROOT / path.rstrip(".")).exists()} == set()


def test_a_wrong_option_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    for line in ("quantize a.onnx --no-such", "quantize a.onnx --format qd", "quantise a.onnx"):
        block = Block("page.md", 1, "sh", f"onnxq {line}\n", "")
        with pytest.raises(AssertionError, match=r"no-such|qd|quantise"):
            test_commands_are_parsed(block, monkeypatch)
