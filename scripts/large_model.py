"""Quantize a synthetic model of several gigabytes, and watch the memory that it takes.

::

    python scripts/large_model.py --gb 3 --limit-gb 1.5

A chain of MatMuls with external data is written to a temporary folder and quantized by the command
line, in a process of its own. Told are the peak of its resident memory (``ru_maxrss``, mapped files
included), the time and the sizes. The output is then checked by ``onnx.checker``, loaded and run by
ONNX Runtime. With ``--kill`` a second run is killed while it works, and what is left is listed:
nothing may look like a whole model.

The exit code is 1 when the limit is passed, or a check fails. Linux only.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

WIDTH = 8192


def write_model(path: Path, gigabytes: float) -> int:
    """A chain of square MatMuls, whose weights lie in a file beside it; returns how many."""
    layers = round(gigabytes * 1e9 / (4 * WIDTH * WIDTH))
    rng = np.random.default_rng(0)
    weights, nodes = [], []
    with path.with_suffix(".bin").open("wb") as file:
        for layer in range(layers):
            weight = TensorProto(
                name=f"w{layer}",
                data_type=TensorProto.FLOAT,
                dims=(WIDTH, WIDTH),
                data_location=TensorProto.EXTERNAL,
            )
            place = {"location": file.name.rpartition("/")[2], "offset": str(file.tell())}
            place["length"] = str(4 * WIDTH * WIDTH)
            for key, value in place.items():
                weight.external_data.add(key=key, value=value)
            weights.append(weight)
            for _ in range(8):
                block = rng.standard_normal((WIDTH // 8, WIDTH), np.float32)
                file.write((block * WIDTH**-0.5).tobytes())
            made = f"x{layer + 1}" if layer < layers - 1 else "y"
            nodes.append(helper.make_node("MatMul", [f"x{layer}", f"w{layer}"], [made]))
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", WIDTH]) for n in ("x0", "y")]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return layers


def command(model: Path, output: Path, precision: str) -> list[str]:
    """The command line that quantizes."""
    options = ["--precision", precision, "-o", str(output), "--json"]
    return [sys.executable, "-m", "onnxq", "quantize", str(model), *options]


def killed(model: Path, folder: Path, seconds: float, precision: str) -> list[str]:
    """Kill a run after some time; returns the files that it left."""
    child = subprocess.Popen(
        command(model, folder / "killed.onnx", precision), stdout=subprocess.DEVNULL
    )
    time.sleep(seconds)
    child.send_signal(signal.SIGKILL)
    child.wait()
    return sorted(file.name for file in folder.iterdir() if not file.name.startswith("."))


def main() -> int:
    """Write, quantize, check."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gb", type=float, default=3.0, help="size of the model")
    parser.add_argument("--limit-gb", type=float, default=1.5, help="the most memory")
    parser.add_argument("--precision", default="int8-weights")
    parser.add_argument("--kill", action="store_true", help="kill a second run half-way")
    args = parser.parse_args()
    kept = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, out = folder / "source", folder / "out"
        source.mkdir()
        out.mkdir()
        model, output = source / "large.onnx", out / "large.int8.onnx"
        layers = write_model(model, args.gb)
        started = time.perf_counter()
        done = subprocess.run(
            command(model, output, args.precision), check=False, capture_output=True, text=True
        )
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        if done.returncode:
            print(done.stderr)
            return 1
        receipt = json.loads(done.stdout)
        kept &= peak <= args.limit_gb * 1e9
        print(
            f"{layers} layers, {receipt['source']['bytes'] / 1e9:.2f} GB -> "
            f"{receipt['output']['bytes'] / 1e9:.2f} GB in {seconds:.0f} s; "
            f"peak memory {peak / 1e9:.2f} GB (limit {args.limit_gb:g})"
        )
        onnx.checker.check_model(str(output))
        (made,) = ort.InferenceSession(str(output), providers=["CPUExecutionProvider"]).run(
            None, {"x0": np.ones((1, WIDTH), np.float32)}
        )
        kept &= bool(np.isfinite(made).all())
        print("the output is valid, loads and runs")
        if args.kill:
            rest = folder / "killed"
            rest.mkdir()
            for part in (0.3, 0.6, 0.9):
                left = killed(model, rest, seconds * part, args.precision)
                kept &= not left
                print(f"killed at {part:.0%} of its time: left {left or 'nothing'}")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
