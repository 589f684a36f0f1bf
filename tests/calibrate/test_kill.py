"""A run that is killed again and again ends with the file of a run that was left alone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from onnxq.graph import save

KILLS = 20
# Calibrates slowly, in small portions, and writes the journal after each of them.
SCRIPT = """
import sys, time
from pathlib import Path
import numpy as np
from onnxq.calibrate import Calibration, ObserverSpec, Setup, calibrate, encode
from onnxq.calibrate import run
from onnxq.data import open_data
from onnxq.graph import load, write_bytes

run.PORTION, run._JOURNAL_SHARE = 4, 1e9
folder, pause = Path(sys.argv[1]), float(sys.argv[2])
x = np.random.RandomState(0).standard_normal((160, 300)).astype(np.float32)

model = load(folder.parent / "model.onnx")
view, taps, spec = model.view(), ("x", "t", "y"), ObserverSpec("mse")
setup = Setup.of(view, taps, spec)
start = Calibration.empty("the model", spec, taps, exact=False)

def progress(done, total):
    print(done, flush=True)
    time.sleep(pause)

found = calibrate(model, open_data({"x": x}, view.inputs), setup, start, batch_size=2,
                  journal=folder / "ranges.json.journal", progress=progress)
write_bytes(encode(found), folder / "ranges.json")
"""


def start(folder: Path, pause: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(folder), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> list[int]:
    told = [int(line) for line in process.communicate(timeout=300)[0].split()]
    assert process.returncode == 0
    return told


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_killed_runs_end_with_the_same_bytes(build, tmp_path) -> None:
    save(build("g (float[N,300] x) => (float[N,300] y) { t = Relu (x) y = Neg (t) }"),
         tmp_path / "model.onnx")  # fmt: skip
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    alone.mkdir()
    killed.mkdir()
    assert finish(start(alone, 0))[-1] == 160
    journal = killed / "ranges.json.journal"
    draw = random.Random(0)
    begun: list[int] = []
    cut_short = 0
    for _ in range(KILLS):
        there = journal.is_file()
        with start(killed, 0.025) as process:
            assert process.stdout is not None
            first = process.stdout.readline()  # it runs: now it is killed at any moment
            # 80 runs take 2 s in all, and some of the time goes into portions that are lost
            time.sleep(draw.uniform(0, 0.2))
            process.send_signal(signal.SIGKILL)
            last = [first, *process.stdout.readlines()][-1]
        cut_short += process.returncode == -signal.SIGKILL
        begun.append(int(first) if there else 0)
        assert last.strip().isdecimal()
        # a kill amid a write leaves a hidden part beside what was whole
        names = {path.name for path in killed.iterdir() if not path.name.startswith(".")}
        assert names <= {journal.name, "ranges.json"}
    told = finish(start(killed, 0))
    assert cut_short >= KILLS / 2
    # Each went on where the one before was killed, at many places.
    assert begun == sorted(begun)
    assert len({*begun, told[0]}) >= 5
    assert (killed / "ranges.json").read_bytes() == (alone / "ranges.json").read_bytes()
    left = [path.name for path in killed.iterdir() if path.name.startswith(".")]
    assert all(name.endswith(".part") for name in left)
    # writing takes some hundredths of the time
    assert len(left) <= 5
    assert os.access(journal, os.R_OK)
