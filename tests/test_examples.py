"""The examples print what their docstrings say, up to the tolerances that stand there.

A docstring shows commands and what they print. ``0.95~0.01`` is a figure that may be off by 0.01,
``12.3~any`` one that depends on the machine, and ``...`` any text; all the rest is printed as
it stands. The first command of each docstring is short and runs on the shipped digits; the others
run where ``ONNXQ_FULL_EXAMPLES`` is set, with the data sets that ``ONNXQ_DATA`` holds.
"""

import ast
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "examples"
# They hold what scripts or commands import, and do nothing by themselves.
MODULES = {"my_data.py", "shipped_models.py", "torch_models.py"}

NUMBER = r"-?\d+(?:\.\d+)?"
STATED = re.compile(rf"({NUMBER})~(\d+(?:\.\d+)?|any)")


@dataclass(frozen=True)
class Session:
    """A command of a docstring, and the lines that it prints."""

    command: str
    lines: tuple[str, ...]


def sessions(script: Path) -> list[Session]:
    """The commands of a script's docstring."""
    text = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
    found = re.findall(r"^    \$ (python .+)\n((?:    .+\n?)+)", text, re.MULTILINE)
    return [
        Session(command, tuple(line.strip() for line in printed.splitlines()))
        for command, printed in found
    ]


def differs(stated: str, printed: str) -> bool:
    """Whether a line that was printed is not the one that a docstring states."""
    parts = STATED.split(" ".join(stated.split()))  # text, figure, tolerance, text, ...
    texts = [re.escape(text).replace(r"\.\.\.", ".*") for text in parts[::3]]
    found = re.fullmatch(f"({NUMBER})".join(texts), " ".join(printed.split()))
    if found is None:
        return True
    return any(
        tolerance != "any" and abs(float(got) - float(figure)) > float(tolerance) + 1e-9
        for got, figure, tolerance in zip(found.groups(), parts[1::3], parts[2::3], strict=True)
    )


def run(session: Session, folder: Path) -> None:
    """Run a command in a folder that holds ``models`` and ``examples``, and compare."""
    for name in ("models", "examples"):
        (folder / name).symlink_to(ROOT / name)
    _, *arguments = shlex.split(session.command)
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    assert len(printed) == len(session.lines), done.stdout
    pairs = zip(session.lines, printed, strict=True)
    assert [pair for pair in pairs if differs(*pair)] == [], done.stdout


SCRIPTS = sorted(path for path in FOLDER.glob("*.py") if path.name not in MODULES)
FIRST = {script.stem: sessions(script)[:1] for script in SCRIPTS}
FURTHER = {
    f"{script.stem}-{i}": s for script in SCRIPTS for i, s in enumerate(sessions(script)) if i
}


@pytest.mark.parametrize("script", FIRST)
def test_example_prints_what_it_says(script: str, tmp_path: Path) -> None:
    (session,) = FIRST[script]
    run(session, tmp_path)


@pytest.mark.skipif("ONNXQ_FULL_EXAMPLES" not in os.environ, reason="takes long")
@pytest.mark.parametrize("script", FURTHER)
def test_full_example_prints_what_it_says(script: str, tmp_path: Path) -> None:
    run(FURTHER[script], tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_commands_are_of_the_script(script: Path) -> None:
    for session in sessions(script):
        assert session.command.split()[1] == f"examples/{script.name}"


def test_page_lists_every_file() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"\]\((\w+\.py)\)", page)
    assert sorted(listed) == sorted(path.name for path in FOLDER.glob("*.py"))


@pytest.mark.parametrize(
    ("stated", "printed", "expected"),
    [
        ("top1 0.95~0.01, 3 of 4", "top1 0.955, 3 of 4", False),
        ("top1 0.95~0.01, 3 of 4", "top1 0.965, 3 of 4", True),
        ("top1 0.95~0.01, 3 of 4", "top1 0.95, 2 of 4", True),
        ("top1 0.95~0.01", "top1 0.95 and more", True),
        ("speed 2.1~anyx", "speed   0.7x", False),
        ("speed 2.1~anyx", "speed fast", True),
        ("low -2.5~0.1 (a.b)", "low -2.45 (a.b)", False),
        ("low -2.5~0.1 (a.b)", "low -2.45 (acb)", True),
        ("it writes: ...", "it writes: of the", False),
        ("it writes: ...", "they write: of the", True),
    ],
)
def test_figures_may_differ_by_their_tolerance_alone(
    stated: str, printed: str, expected: bool
) -> None:
    assert differs(stated, printed) is expected
