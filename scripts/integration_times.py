"""Run the integration tests, and record how long each of their files takes.

::

    export ONNXQ_DATA=... ONNXQ_MODELS=...   # else the tests that want them are skipped
    python scripts/integration_times.py

Writes ``tests/integration/README.md``: what each file specifies, from its docstring, and the
seconds of its tests with their fixtures, from pytest's JUnit XML. Nothing is asserted about times.
The exit code is pytest's; after a failure nothing is written.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import onnxruntime

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tests" / "integration"
PAGE = FOLDER / "README.md"
HEAD = """# Integration tests

What a user of onnxq may rely on, in the order in which to read it: real models and data in, files,
exit codes and answers out. Plain `onnx` and ONNX Runtime judge them.

```sh
pytest tests/integration
```

`ONNXQ_DATA` names the folder with `mnist.npz` and `cifar10.npz`, `ONNXQ_MODELS` one with models of
others; what needs them is skipped otherwise.

| file | what it specifies | tests | skipped | seconds |
|---|---|--:|--:|--:|
"""


@dataclass(frozen=True)
class Case:
    """One test as pytest's report tells it; ``seconds`` are of setup, call and teardown."""

    file: str
    seconds: float
    skipped: bool


def read_cases(report: str) -> list[Case]:
    """The tests in a JUnit XML text."""
    return [
        Case(
            case.attrib["classname"].split(".")[2],
            float(case.attrib["time"]),
            case.find("skipped") is not None,
        )
        for case in ET.fromstring(report).iter("testcase")
    ]


def purpose(file: Path) -> str:
    """The first paragraph of a file's docstring, in one line."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n", 1)[0].split()).replace("``", "`").replace("|", "\\|")


def page(files: Iterable[Path], cases: list[Case]) -> str:
    """The page in Markdown."""
    rows = [
        (f"[{f.name}]({f.name})", purpose(f), [c for c in cases if c.file == f.stem]) for f in files
    ]
    rows.append(("all", "", cases))
    table = [
        f"| {name} | {what} | {len(found)} | {sum(c.skipped for c in found)} "
        f"| {sum(c.seconds for c in found):.0f} |\n"
        for name, what, found in rows
    ]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = (
        f"\nSeconds of one run, cores to run on: {cores}, tests one after the other, with Python "
        f"{sys.version_info.major}.{sys.version_info.minor} and ONNX Runtime "
        f"{onnxruntime.__version__}; written by `python scripts/integration_times.py`.\n"
    )
    return HEAD + "".join(table) + machine


def main() -> int:
    """Command line."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", str(FOLDER), "-q", f"--junitxml={report}"]
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        if code == 0:
            cases = read_cases(report.read_text(encoding="utf-8"))
            PAGE.write_text(page(sorted(FOLDER.glob("test_*.py")), cases), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
