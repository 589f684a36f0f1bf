"""Pictures of the command line for README.md and the documentation: what commands really print.

::

    python scripts/record_terminal.py

Every command below runs in a copy of ``models/``; what it prints in colour becomes
``docs/terminal/NAME.svg``. Progress goes to stderr and is not shown. The pictures load no font and
no style from elsewhere, and look alike on light and dark pages.
"""

from __future__ import annotations

import argparse
import io
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs/terminal"
WIDTH = 100
COMMANDS = {
    "quantize": "onnxq quantize models/digits_cnn.onnx --force",
    "sensitivity": "onnxq sensitivity report models/digits_cnn.onnx --precision int8",
    "compare": "onnxq compare models/digits_cnn.onnx models/digits_cnn.int8.onnx "
    "--data models/digits_test.npz",
    "check": "onnxq check models/digits_cnn.onnx --skip latency",
}
# A window with its title; sizes come from rich, the font is whatever the reader's machine has.
WINDOW = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"
 aria-label="onnxq in a terminal">

<style>
.{unique_id}-title {{ font-family: system-ui, sans-serif; }}
.{unique_id}-matrix {{
  font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
  font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width;
}}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g></g></svg>
"""


def printed(command: str, folder: Path) -> str:
    """What a command prints, with its colours."""
    name, *rest = shlex.split(command)
    done = subprocess.run(
        [sys.executable, "-m", name, *rest],
        cwd=folder,
        env={**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(WIDTH), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{command}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout.strip("\n")


def picture(name: str, command: str, output: str) -> str:
    """The SVG of a window that shows a command and what it prints."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text.assemble(("$ ", "bold green"), (command, "bold")), end="\n\n")
    lines = (line.rstrip() for line in output.splitlines())
    console.print(Text.from_ansi("\n".join(lines)), soft_wrap=True)
    console.print()  # else the picture cuts what hangs below the last line
    return console.export_svg(
        title=f"onnxq {name}", theme=MONOKAI, code_format=WINDOW, unique_id=f"onnxq-{name}"
    )


def main() -> int:
    """Run the commands one after another, and write their pictures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    args = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(ROOT / "models", folder / "models")
        for stem, command in COMMANDS.items():
            output = printed(command, folder)
            if stem in args.only:
                (FOLDER / f"{stem}.svg").write_text(picture(stem, command, output), "utf-8")
                print(FOLDER / f"{stem}.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
