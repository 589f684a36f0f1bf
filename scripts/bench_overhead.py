"""What quantizing costs beside the inference that it cannot avoid: time, memory, start-up.

::

    python scripts/bench_overhead.py --samples 8 --batch 1

A network of the size of ResNet-50 (25 M parameters, BatchNorm not folded, random weights) is built
and quantized in a process of its own. Prints the seconds of every stage, the seconds outside
calibration and verification, the peak of resident memory, and the time of ``onnxq --help``. The
exit code is 1 when a limit is missed.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from networks import IMAGE, resnet50

MOST_SECONDS, MOST_BYTES, MOST_HELP_SECONDS = 5.0, 1_000_000_000, 0.25
STAGES = ("load", "prepare", "classify", "calibrate", "make_plan", "rewrite", "verify", "save",
          "sha256", "encoded_size")  # fmt: skip


def now() -> np.ndarray:
    """Wall and processor seconds: the second do not depend on what else the machine does."""
    return np.array([time.perf_counter(), time.process_time()])


def quantize(model: Path, data: Path, batch: int) -> dict[str, object]:
    """Quantize in this process; returns the seconds of every stage and the peak of memory."""
    from onnxq.api import pipeline, stages
    from onnxq.plan import DataSettings, Recipe

    spent = {stage: np.zeros(2) for stage in STAGES}
    recipe = Recipe(precision="int8", data=DataSettings(calibration=str(data), batch_size=batch))
    with ExitStack() as stack:
        for stage in STAGES:
            for module in (pipeline, stages):
                if hasattr(module, stage):
                    timed = _timed(getattr(module, stage), spent[stage])
                    stack.enter_context(mock.patch.object(module, stage, timed))
        started = now()
        pipeline.quantize(model, recipe=recipe, output=model.with_name("int8.onnx"))
        whole = now() - started
    outside = whole - spent["calibrate"] - spent["verify"]
    return {
        "stages": {stage: list(seconds) for stage, seconds in spent.items()},
        "outside": list(outside),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _timed(function: Callable[..., object], spent: np.ndarray) -> Callable[..., object]:
    def timed(*args: object, **kwargs: object) -> object:
        started = now()
        try:
            return function(*args, **kwargs)
        finally:
            spent[:] += now() - started

    return timed


def in_a_child(model: Path, data: Path, batch: int) -> dict[str, Any]:
    """Quantize in a process of its own, whose memory is that of nothing else."""
    command = [sys.executable, __file__, "--child", str(model), str(data), "--batch", str(batch)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def help_seconds(runs: int = 10) -> float:
    """Median wall time of ``onnxq --help``."""

    def once() -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "onnxq", "--help"], check=True, capture_output=True)
        return time.perf_counter() - started

    return statistics.median(once() for _ in range(runs))


def verdict(what: str, value: float, limit: float, unit: str, scale: float = 1.0) -> bool:
    """Print a figure beside its limit; returns whether it was kept."""
    kept = value <= limit
    print(f"{what}: {value / scale:.2f} {unit} (limit {limit / scale:g}) "
          f"{'kept' if kept else 'MISSED'}")  # fmt: skip
    return kept


def main() -> int:
    """Build, quantize in a child, and print what it cost."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(quantize(*args.child, args.batch)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        model, data = Path(folder, "resnet50.onnx"), Path(folder, "data.npz")
        size = resnet50(model) / 1e6
        print(f"{size:.1f} M parameters, {args.samples} samples, batch {args.batch}")
        shape = (args.samples, 3, IMAGE, IMAGE)
        np.savez(data, image=np.random.default_rng(1).standard_normal(shape, np.float32))
        spent = in_a_child(model, data, args.batch)
    print("stage          wall    CPU")
    for stage, (wall, cpu) in spent["stages"].items():
        print(f"{stage:12} {wall:6.2f} {cpu:6.2f}")
    print(f"outside calibration and verification: {spent['outside'][0]:.2f} s of wall time")
    kept = [
        verdict("the same in CPU time", spent["outside"][1], MOST_SECONDS, "s"),
        verdict("peak of memory", spent["peak"], MOST_BYTES, "GB", 1e9),
        verdict("onnxq --help", help_seconds(), MOST_HELP_SECONDS, "s"),
    ]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
