"""What sensitivity analysis costs with a rolling frontier and without, and how well a screen ranks.

::

    python scripts/bench_sensitivity.py --samples 16 --parts only weights activations

ResNet-50 with random weights is prepared once, and ranges are those of two images of normal noise.
Every variant of every layer is then run twice, on one thread: as a whole model (naive), and from
the cut before the layer on (frontier), each way in a process of its own whose peak of memory the
parent watches. Processor time counts: what else the machine does slows it less. Then every shipped
model is analysed exactly and screened, and the two rankings compared; their data are read from the
folder that ONNXQ_DATA names. Linux only.

The exit code is 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from bench_calibration import in_a_child, now
from networks import IMAGE, NETWORKS

MODELS = Path(__file__).resolve().parents[1] / "models"
SHIPPED = ("cifar10_resnet", "cifar10_mobilenet", "mnist_cnn", "digits_cnn", "mnist_transformer")
# The frontier's share of the naive time at most; how far the same loss may be off, in dB (where a
# rounding falls the other way in one of them); the least rank correlation of a screen.
MOST_TIME, MOST_DB, LEAST_SPEARMAN = 0.65, 0.1, 0.8
FRONTIER, NAIVE = "frontier", "naive"


def measure(path: Path, way: str, samples: int, batch: int, parts: list[str]) -> dict:
    """Run all variants of one network in one way."""
    from onnxq.data import Batch
    from onnxq.graph import load
    from onnxq.ops import classify
    from onnxq.plan import Recipe, tensors_to_observe
    from onnxq.runtime import TappedSession, default_target
    from onnxq.sensitivity import Evaluator
    from onnxq.sensitivity.analyze import KEPT_BYTES
    from onnxq.sensitivity.facts import look
    from onnxq.sensitivity.plans import Subject
    from onnxq.sensitivity.spread import losses, naive
    from onnxq.sensitivity.work import Work, finding
    from onnxq.targets import get_target
    from onnxq.types import Precision, TensorRange

    model = load(path)
    view, target, recipe = model.view(), get_target(default_target()), Recipe()
    census = classify(view, target)
    images = np.random.default_rng(0).standard_normal((samples, 3, IMAGE, IMAGE), np.float32)
    taps = tensors_to_observe(view, census, recipe)
    seen = TappedSession(model, taps).read({"image": images[:2]})
    ends = {tensor: (float(a.min()), float(a.max())) for tensor, a in seen.items()}
    ranges = {tensor: TensorRange(lo, hi, lo, hi) for tensor, (lo, hi) in ends.items()}
    del seen
    batches = [
        Batch({"image": images[i : i + batch]}, None, batch, np.arange(i, i + batch))
        for i in range(0, samples, batch)
    ]
    evaluator = Evaluator(model, batches)
    outputs = evaluator.expected[0]
    started, found = now(), {}
    subject = Subject(view, census, ranges, recipe, target)
    work = Work(subject, [Precision.INT8], screen=False, rest="rest" in parts)
    sight = look(model, evaluator)
    left_out = [name for name in work.findings() if name.split()[1] not in parts]
    budget = KEPT_BYTES * sight.samples // samples
    for roll in work.rolls(model, outputs, sight, left_out, budget):
        run = losses(model, roll, evaluator) if way == FRONTIER else (
            (variant, naive(model, variant, evaluator)) for variant in roll.variants
        )  # fmt: skip
        for variant, loss in run:
            found[finding(variant.precision, variant.part, variant.layer)] = loss.sqnr_db
    wall, processor = now() - started
    return {"wall": wall, "seconds": processor, "losses": found}


def compare(args: argparse.Namespace) -> Iterator[tuple[bool, str]]:
    """Time, memory and findings of both ways."""
    from onnxq.graph import load, save
    from onnxq.runtime import prepare

    with tempfile.TemporaryDirectory() as folder:
        raw, path = Path(folder) / "raw.onnx", Path(folder) / "resnet50.onnx"
        parameters = NETWORKS["resnet50"](raw)
        save(prepare(load(raw)), path)
        sizes = ["--samples", str(args.samples), "--batch", str(args.batch)]
        command = [sys.executable, __file__, *sizes, "--parts", *args.parts, "--child", str(path)]
        ways = {way: in_a_child([*command, way], 32e9, args.timeout) for way in (FRONTIER, NAIVE)}
    for way, run in ways.items():
        if "why" in run:
            yield False, f"{way} did not finish: {run['why']}"
            return
    frontier, naive = ways[FRONTIER], ways[NAIVE]
    print(f"\nresnet50, {parameters / 1e6:.1f} M parameters, {args.samples} samples, "
          f"{len(naive['losses'])} variants ({', '.join(args.parts)})")  # fmt: skip
    for way, run in ways.items():
        print(
            f"{way:10}{run['seconds']:8.1f} s (wall {run['wall']:.1f} s){run['peak'] / 1e6:8.0f} MB"
        )
    ratio = frontier["seconds"] / naive["seconds"]
    yield ratio <= MOST_TIME, f"{ratio:.2f} of the naive time (limit {MOST_TIME})"
    off = max(abs(frontier["losses"][name] - db) for name, db in naive["losses"].items())
    yield off <= MOST_DB, f"losses are {off:.3g} dB off at most (limit {MOST_DB})"


def ranks(name: str, samples: int) -> tuple[bool, str]:
    """How a screen ranks the layers of a shipped model, beside the exact analysis."""
    from dataclasses import replace

    from msgspec.structs import replace as with_fields

    from onnxq.api.job import make_job
    from onnxq.api.stages import draft
    from onnxq.sensitivity import Evaluator, analyze
    from onnxq.targets import get_target
    from onnxq.types import Precision

    job = make_job(MODELS / f"{name}.onnx", None)
    recipe = with_fields(job.recipe, precision="int8", layers=(), keep_float=())
    made = draft(MODELS / f"{name}.onnx", replace(job, recipe=recipe))
    evaluator = Evaluator(made.prepared, list(made.test.sample(samples, 0).batches(32)))
    target, sides = get_target(made.recipe.target), {}
    for method in ("exact", "screen"):
        report = analyze(made.prepared, made.census, made.ranges.tensors, made.recipe, target,
                         evaluator, [Precision.INT8], method=method, rest=False)  # fmt: skip
        sides[method] = {layer.name: layer.only.sqnr_db for layer in report.layers}
    found = spearman([[side[layer] for layer in sides["exact"]] for side in sides.values()])
    text = f"{name}: the screen ranks {len(sides['exact'])} layers with a Spearman correlation of"
    return found >= LEAST_SPEARMAN, f"{text} {found:.3f} (limit {LEAST_SPEARMAN})"


def spearman(sides: list[list[float]]) -> float:
    """Correlation of the ranks of two lists; equal values in the order they come."""
    first, second = (np.argsort(np.argsort(side, kind="stable")) for side in sides)
    return float(np.corrcoef(first, second)[0, 1])


def main() -> int:
    """Measure, and print verdicts."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    every = ["only", "weights", "activations", "rest"]
    parser.add_argument("--parts", nargs="+", choices=every, default=every[:3])
    parser.add_argument("--models", nargs="*", choices=SHIPPED, default=list(SHIPPED))
    parser.add_argument("--rank-samples", type=int, default=256)
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds per measurement")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        path, way = args.child
        print(json.dumps(measure(Path(path), way, args.samples, args.batch, args.parts)))
        return 0
    if args.samples % args.batch:
        parser.error("--samples: give a multiple of --batch")
    kept = True
    for met, text in (*compare(args), *(ranks(name, args.rank_samples) for name in args.models)):
        kept &= met
        print(f"{'PASS' if met else 'FAIL'}  {text}", flush=True)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
