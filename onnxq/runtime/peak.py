"""The most memory that a model takes, seen from a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
import numpy as np

from onnxq.errors import RuntimeFailure
from onnxq.graph import Model, save
from onnxq.runtime.session import open_file
from onnxq.targets import CPU, Provider
from onnxq.types import Feed

RUNS = 3
_MODEL, _FEED, _ASKED = "model.onnx", "feed.npz", "asked.json"
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class _Asked(msgspec.Struct):
    provider: Provider
    threads: int
    outputs: list[str]


def peak_memory(
    model: Model, feed: Feed, *, provider: Provider = CPU, threads: int = 1
) -> int | None:
    """Open a model in a process of its own, and run it a few times.

    Counted is what the process takes beyond what it held before it opened the model: Python, NumPy
    and ONNX Runtime themselves do not count. Memory of a GPU is not seen.

    Args:
        model: The model.
        feed: What it is fed.
        provider: Where it runs.
        threads: Threads inside an operator.

    Returns:
        Bytes, or None on systems that do not tell (all but Linux).

    Raises:
        RuntimeFailure: The process fails.
    """
    if not _STATUS.is_file():
        return None
    with tempfile.TemporaryDirectory(prefix="onnxq-") as name:
        folder = Path(name)
        save(model, folder / _MODEL, external=not model.fits_one_file)
        np.savez(folder / _FEED, **feed)  # type: ignore[arg-type]
        asked = _Asked(provider, threads, list(model.view().output_names))
        (folder / _ASKED).write_bytes(msgspec.json.encode(asked))
        command = [sys.executable, "-P", "-m", "onnxq.runtime.peak", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise RuntimeFailure(f"a process that was to run '{model.path}' failed: {last}")
    return int(done.stdout.split()[-1])


def _measured(folder: Path) -> int:
    asked = msgspec.json.decode((folder / _ASKED).read_bytes(), type=_Asked)
    feed = dict(np.load(folder / _FEED))
    before = _status("VmRSS")
    _RESET.write_text("5")  # the peak starts anew from what is held now
    session = open_file(folder / _MODEL, asked.provider, asked.threads)
    for _ in range(RUNS):
        session.run(asked.outputs, feed)
    return max(0, _status("VmHWM") - before)


def _status(key: str) -> int:
    """Bytes that the kernel tells of this process."""
    found = re.search(rf"^{key}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    assert found is not None
    return int(found.group(1)) * 1024


if __name__ == "__main__":
    sys.stdout.write(f"{_measured(Path(sys.argv[1]))}\n")
