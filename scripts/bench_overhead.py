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
import onnx
from onnx import TensorProto, helper, numpy_helper

MOST_SECONDS, MOST_BYTES, MOST_HELP_SECONDS = 5.0, 1_000_000_000, 0.25
# Blocks and width of each of the four levels: He et al., "Deep Residual Learning" (2015), table 1.
LEVELS = ((3, 64), (4, 128), (6, 256), (3, 512))
IMAGE, CLASSES, EXPANSION = 224, 1000, 4


class Builder:
    """Collects the nodes and weights of a network."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []
        self._rng = np.random.default_rng(0)

    def weight(self, name: str, array: np.ndarray) -> str:
        """Add an initializer."""
        self.weights.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def normal(self, name: str, shape: tuple[int, ...], fan_in: int) -> str:
        """Add a weight that keeps the variance behind a Relu (He et al., 2015, equation 10)."""
        deviation = np.float32(np.sqrt(2 / fan_in))
        return self.weight(name, self._rng.standard_normal(shape, np.float32) * deviation)

    def node(self, op: str, inputs: list[str], name: str, **attrs: object) -> str:
        """Add a node; its output has its name."""
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attrs))
        return name

    def conv(self, x: str, name: str, cin: int, cout: int, kernel: int, stride: int = 1) -> str:
        """A convolution without bias, and the BatchNorm behind it."""
        weight = self.normal(f"{name}.weight", (cout, cin, kernel, kernel), cin * kernel**2)
        x = self.node("Conv", [x, weight], name, kernel_shape=[kernel] * 2,
                      strides=[stride] * 2, pads=[kernel // 2] * 4)  # fmt: skip
        parameters = (("scale", 1.0), ("bias", 0.0), ("mean", 0.0), ("var", 1.0))
        names = [self.weight(f"{name}.{p}", np.full(cout, value)) for p, value in parameters]
        return self.node("BatchNormalization", [x, *names], f"{name}.norm")

    def bottleneck(self, x: str, name: str, cin: int, width: int, stride: int) -> str:
        """1x1, 3x3, 1x1, and the sum with the shortcut."""
        cout = width * EXPANSION
        y = self.node("Relu", [self.conv(x, f"{name}.a", cin, width, 1)], f"{name}.a.relu")
        y = self.conv(y, f"{name}.b", width, width, 3, stride)
        y = self.conv(self.node("Relu", [y], f"{name}.b.relu"), f"{name}.c", width, cout, 1)
        if cin != cout or stride != 1:
            x = self.conv(x, f"{name}.shortcut", cin, cout, 1, stride)
        return self.node("Relu", [self.node("Add", [y, x], f"{name}.sum")], f"{name}.relu")


def build(path: Path) -> int:
    """Write the network; returns how many parameters it has."""
    net = Builder()
    x = net.node("Relu", [net.conv("image", "stem", 3, 64, 7, 2)], "stem.relu")
    x = net.node("MaxPool", [x], "pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = 64
    for level, (blocks, width) in enumerate(LEVELS):
        for block in range(blocks):
            stride = 2 if level and not block else 1
            x = net.bottleneck(x, f"level{level}.{block}", channels, width, stride)
            channels = width * EXPANSION
    x = net.node("Flatten", [net.node("GlobalAveragePool", [x], "mean")], "flat")
    head = [net.normal("head.weight", (channels, CLASSES), channels),
            net.weight("head.bias", np.zeros(CLASSES))]  # fmt: skip
    net.node("Gemm", [x, *head], "scores")
    image = helper.make_tensor_value_info("image", 1, ["N", 3, IMAGE, IMAGE])
    scores = helper.make_tensor_value_info("scores", 1, ["N", CLASSES])
    graph = helper.make_graph(net.nodes, "resnet50", [image], [scores], net.weights)
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
    return sum(int(np.prod(weight.dims)) for weight in net.weights)


STAGES = ("load", "prepare", "classify", "calibrate", "make_plan", "rewrite", "verify", "save",
          "sha256", "encoded_size")  # fmt: skip


def now() -> np.ndarray:
    """Wall and processor seconds: the second do not depend on what else the machine does."""
    return np.array([time.perf_counter(), time.process_time()])


def quantize(model: Path, data: Path, batch: int) -> dict[str, object]:
    """Quantize in this process; returns the seconds of every stage and the peak of memory."""
    from onnxq import api
    from onnxq.plan import DataSettings, Recipe

    spent = {stage: np.zeros(2) for stage in STAGES}
    recipe = Recipe(data=DataSettings(calibration=str(data), batch_size=batch))
    with ExitStack() as stack:
        for stage in STAGES:
            timed = _timed(getattr(api, stage), spent[stage])
            stack.enter_context(mock.patch.object(api, stage, timed))
        started = now()
        api.quantize(model, recipe=recipe, output=model.with_name("int8.onnx"))
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
        print(f"{build(model) / 1e6:.1f} M parameters, {args.samples} samples, batch {args.batch}")
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
