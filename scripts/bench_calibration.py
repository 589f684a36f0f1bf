"""What calibration costs beside plain float inference, here and in ``onnxruntime.quantization``.

::

    python scripts/bench_calibration.py --models mobilenet_v2 resnet50 --samples 32 128 512

Networks with random weights are prepared once, and calibrated on normal noise by every method, each
in a process of its own. There the float model runs over the first half of the samples before the
calibration and over the second half behind it, in the same batches, on ``--threads`` and with all
optimisations: what else the machine does slows both. Its time for a sample counts; halves that take
long are cut off, short ones repeated. A method's cost is a multiple of that, in wall and in
processor time, and includes all that follows on a model in memory: opening a session, reading and
running samples, choosing ranges (``compute_data`` of ONNX Runtime).

ONNX Runtime's calibrators get the prepared model, the operator types that ``quantize_static``
takes by default, and their own default options. Their session has as many threads as the machine
has cores, and takes no option; here it is opened again as they open it (without optimisations), but
with ``--threads``, of which one is the default. onnxq looks at one batch while its session runs
others, two at a time where there are cores for them: its wall time profits from a second core, its
processor time does not.

Memory is the peak of a process's own pages, which the parent reads every few milliseconds; pages of
the mapped samples, which the system may drop at any time, are not among them (``--json`` tells
``ru_maxrss``, where they are). ``float`` is a process that runs the float model alone. What grows
beyond ``--limit-gb`` or takes longer than ``--timeout`` is killed. Linux only.

The exit code is 1 when a target is missed, or something of onnxq's did not finish.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime as ort
from networks import IMAGE, NETWORKS

OWN = {name: (name, False) for name in (
    "minmax", "moving-average", "percentile", "entropy", "mse", "sigma",
)} | {"mse-exact": ("mse", True)}  # fmt: skip
THEIRS = {"ort-minmax": "MinMax", "ort-percentile": "Percentile", "ort-entropy": "Entropy"}
FLOAT = "float"
# Slowest that a method of ours may be; fastest that ONNX Runtime's may be, as a multiple of ours;
# how much more memory the largest number of samples may take than the smallest.
MOST_TIMES_FLOAT, LEAST_TIMES_FASTER, MOST_GROWTH = 3.0, 4.0, 1.1
# A run of the float model lasts at least so long, so that it can be measured, and at most so long.
LEAST_FLOAT_SECONDS, MOST_FLOAT_SECONDS = 1.0, 8.0
# Between two looks at a process's memory: less than a batch takes.
LOOK_SECONDS = 0.005


def now() -> np.ndarray:
    """Wall and processor seconds."""
    return np.array([time.perf_counter(), time.process_time()])


def batches(images: np.ndarray, batch: int) -> Iterator[dict[str, np.ndarray]]:
    """Feeds that are copied from a mapped file."""
    for start in range(0, len(images), batch):
        yield {"image": np.array(images[start : start + batch])}


def float_seconds(model: Path, images: np.ndarray, batch: int, threads: int) -> np.ndarray:
    """What the float model takes for a sample, without opening the session."""
    from onnxq.graph import load
    from onnxq.runtime import Session

    session = Session(load(model), threads=threads)
    session.run(next(batches(images, batch)))  # memory is reserved in the first run
    seen, started, seconds = 0, now(), np.zeros(2)
    while seconds[0] < LEAST_FLOAT_SECONDS:
        for feed in batches(images, batch):
            session.run(feed)
            seen += batch
            seconds = now() - started
            if seconds[0] > MOST_FLOAT_SECONDS:
                break
    return seconds / seen


def own(model: Path, data: Path, args: argparse.Namespace, method: str) -> Callable[[], object]:
    """What onnxq does to calibrate, from a prepared model in memory to ranges."""
    from onnxq.calibrate import Calibration, ObserverSpec, Setup, calibrate
    from onnxq.data import open_data
    from onnxq.graph import load
    from onnxq.ops import classify
    from onnxq.plan import Recipe, tensors_to_observe
    from onnxq.runtime import default_target
    from onnxq.targets import get_target

    name, exact = OWN[method]
    target, spec = get_target(default_target()), ObserverSpec(name)
    prepared = load(model)
    view = prepared.view()
    taps = tensors_to_observe(view, classify(view, target), Recipe())
    setup = Setup.of(view, taps, spec, exact=exact, threads=args.threads)

    def work() -> object:
        reader = open_data(data, view.inputs)
        empty = Calibration.empty("", spec, taps, exact=exact)
        found = calibrate(prepared, reader, setup, empty, batch_size=args.batch)
        return found.ranges(target.activation_grid)

    return work


def theirs(model: Path, data: Path, args: argparse.Namespace, method: str) -> Callable[[], object]:
    """What ONNX Runtime does to calibrate."""
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    class Feeds:
        def __init__(self) -> None:
            self._batches = batches(np.load(data, mmap_mode="r"), args.batch)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._batches, None)

    calibrator = create_calibrator(
        model,
        sorted({*QLinearOpsRegistry, *QDQRegistry}),
        augmented_model_path=str(data.with_suffix(".onnx")),
        calibrate_method=CalibrationMethod[THEIRS[method]],
    )
    calibrator.infer_session = None

    def work() -> object:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = args.threads
        calibrator.infer_session = ort.InferenceSession(
            calibrator.augmented_model_path, options, providers=["CPUExecutionProvider"]
        )
        calibrator.collect_data(Feeds())
        return calibrator.compute_data()

    return work


def measure(model: Path, data: Path, args: argparse.Namespace, method: str) -> dict[str, Any]:
    """Measure one method in this process."""
    from onnxq.runtime.memory import give_back

    images = np.load(data, mmap_mode="r")
    half = len(images) // 2
    before = float_seconds(model, images[:half], args.batch, args.threads)
    spent = np.zeros(2)
    if method != FLOAT:
        work = (own if method in OWN else theirs)(model, data, args, method)
        gc.collect()
        give_back()  # what the float session freed
        started = now()
        ranges = work()
        spent = now() - started
        del work, ranges
        gc.collect()
    after = float_seconds(model, images[half:], args.batch, args.threads)
    base = (before + after) / 2 * len(images)
    return {
        "seconds": list(spent if method != FLOAT else base),
        "float": list(base),
        "maxrss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def own_pages(pid: int) -> int:
    """Bytes of a process that no file stands behind; 0 when it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0


def in_a_child(command: list[str], most_bytes: float, most_seconds: float) -> dict[str, Any]:
    """Measure in a process of its own, and watch it; returns why there is no result, if so."""
    started, peak, why = time.perf_counter(), 0, ""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as log:
        child = subprocess.Popen(command, stdout=out, stderr=log)
        try:
            while child.poll() is None and not why:
                peak = max(peak, own_pages(child.pid))
                if peak > most_bytes:
                    why = f"over {most_bytes / 1e9:.0f} GB"
                elif time.perf_counter() - started > most_seconds:
                    why = f"over {most_seconds:.0f} s"
                time.sleep(LOOK_SECONDS)
        finally:
            child.kill()
            child.wait()
        if not why and child.returncode == 0:
            out.seek(0)
            return {**json.load(out), "peak": peak}
        if not why:
            log.seek(0)
            last = (log.read().strip().splitlines() or ["no message"])[-1]
            why = f"failed ({child.returncode}): {last[:60]}"
    return {"why": why, "peak": peak}


def of_repeats(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of repeated measurements, or why one of them has no result."""
    for run in runs:
        if "why" in run:
            return run
    ratios = [np.divide(run["seconds"], run["float"]) for run in runs]
    return {
        "seconds": median(run["seconds"][0] for run in runs),
        "wall": float(median(ratio[0] for ratio in ratios)),
        "cpu": float(median(ratio[1] for ratio in ratios)),
        "peak": max(run["peak"] for run in runs),
        "maxrss": max(run["maxrss"] for run in runs),
    }


Cells = dict[str, dict[int, dict[str, Any]]]


def measure_all(network: str, folder: Path, args: argparse.Namespace) -> Cells:
    """Measure every method on every number of samples."""
    from onnxq.graph import load, save
    from onnxq.runtime import prepare

    raw, model = folder / "raw.onnx", folder / f"{network}.onnx"
    parameters = NETWORKS[network](raw)
    save(prepare(load(raw)), model)
    print(f"\n{network}: {parameters / 1e6:.1f} M parameters, batch {args.batch}", flush=True)
    cells: Cells = {method: {} for method in [FLOAT, *args.methods]}
    for samples in args.samples:
        data = write_images(folder, samples)
        for method, row in cells.items():
            earlier = [cell["why"] for cell in row.values() if "why" in cell]
            if earlier:  # more samples take no less
                row[samples] = {"why": earlier[0], "peak": 0}
                continue
            child = [str(model), str(data), method]
            same = ["--batch", str(args.batch), "--threads", str(args.threads)]
            command = [sys.executable, __file__, *same, "--child", *child]
            runs = [in_a_child(command, args.limit_gb * 1e9, args.timeout)
                    for _ in range(args.repeats)]  # fmt: skip
            row[samples] = of_repeats(runs)
            print(f"{network} {samples} {method}: {row[samples]}", file=sys.stderr)
        data.unlink()
    return cells


def write_images(folder: Path, samples: int) -> Path:
    """Normal noise in a file, one image at a time."""
    path, rng = folder / f"images{samples}.npy", np.random.default_rng(1)
    shape = (samples, 3, IMAGE, IMAGE)
    images = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    for image in images:
        image[:] = rng.standard_normal(shape[1:], np.float32)
    images.flush()
    return path


def table(cells: Cells) -> Iterator[str]:
    """Lines of text: a method by line, and four figures for each number of samples."""
    counts = list(next(iter(cells.values())))
    yield " " * 15 + "".join(f" |{f'{count} samples':^29}" for count in counts)
    yield f"{'method':15}" + f" |{'s':>7}{'x float':>8}{'x CPU':>7}{'MB':>7}" * len(counts)
    for method, row in cells.items():
        yield f"{method:15}" + "".join(
            f" |{cell['why'][:29]:>29}" if "why" in cell else
            f" |{cell['seconds']:7.1f}{cell['wall']:8.2f}{cell['cpu']:7.2f}"
            f"{cell['peak'] / 1e6:7.0f}"
            for cell in row.values()
        )  # fmt: skip


def targets(cells: Cells) -> Iterator[tuple[bool, str]]:
    """Whether each target was met, and a line about it."""
    for method in [m for m in cells if m in OWN]:
        row = cells[method]
        if gone := [f"{count}: {cell['why']}" for count, cell in row.items() if "why" in cell]:
            yield False, f"{method} did not finish ({gone[0]})"
            continue
        worst = max(cell["wall"] for cell in row.values())
        if not OWN[method][1]:
            text = f"{method}: {worst:.2f} x float at most (limit {MOST_TIMES_FLOAT:g})"
            yield worst <= MOST_TIMES_FLOAT, text
        least, most = min(row), max(row)
        if least < most:
            growth = row[most]["peak"] / row[least]["peak"]
            text = f"{method}: memory at {most} samples is {growth:.2f} of that at {least}"
            yield growth <= MOST_GROWTH, f"{text} (limit {MOST_GROWTH:g})"
    for rival in ("percentile", "entropy"):
        ours, row = cells.get(rival, {}), cells.get(f"ort-{rival}", {})
        both = [n for n, cell in row.items() if "wall" in cell and "wall" in ours.get(n, {})]
        if both:
            n = max(both)
            faster = row[n]["wall"] / ours[n]["wall"]
            cpu = row[n]["cpu"] / ours[n]["cpu"]
            text = f"{rival}: {faster:.1f} times as fast as ONNX Runtime's at {n} samples"
            text += f" ({cpu:.1f} in processor time; limit {LEAST_TIMES_FASTER:g})"
            yield faster >= LEAST_TIMES_FASTER, text


def main() -> int:
    """Measure, print tables and verdicts."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    every = [*OWN, *THEIRS]
    parser.add_argument("--models", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--samples", nargs="+", type=int, default=[32, 128, 512])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--methods", nargs="+", choices=every, default=every)
    parser.add_argument("--threads", type=int, default=1, help="threads of every session")
    parser.add_argument("--repeats", type=int, default=1, help="measure so often, tell the median")
    parser.add_argument("--limit-gb", type=float, default=8.0)
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds per measurement")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        model, data, method = args.child
        with contextlib.redirect_stdout(sys.stderr):  # ONNX Runtime's calibrators print
            found = measure(Path(model), Path(data), args, method)
        print(json.dumps(found))
        return 0
    args.samples = sorted(set(args.samples))
    if any(n % (2 * args.batch) for n in args.samples):  # ONNX Runtime wants batches of one size
        parser.error("--samples: give multiples of two batches")
    print(f"onnxruntime {ort.__version__}, {os.cpu_count()} cores")
    kept, figures = True, {}
    for network in args.models:
        with tempfile.TemporaryDirectory() as folder:
            cells = figures[network] = measure_all(network, Path(folder), args)
        print("\n".join(table(cells)))
        for met, text in targets(cells):
            kept &= met
            print(f"{'PASS' if met else 'FAIL'}  {text}", flush=True)
        if args.json:
            args.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
