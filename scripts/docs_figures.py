"""Draw the figures of the documentation, from real runs.

::

    python scripts/docs_figures.py            # all of them, into docs/figures
    python scripts/docs_figures.py ranges cut # some
    python scripts/docs_figures.py --measure  # time the models anew first (docs/figures/times.json)

Everything but times comes out the same on every run, so that a figure that changed means that
something else did. Times are measured by hand, kept in ``docs/figures/times.json``, and drawn from
there. It takes the extra ``qat`` (for gradients) and CIFAR-10 in the folder that ONNXQ_DATA names.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import figures_of_models as of_models
import figures_of_numbers as of_numbers
from charts import Card

import onnxq
from onnxq.plan import Recipe, VerifySettings

ROOT, MODELS, TIMES = of_numbers.ROOT, of_numbers.MODELS, of_models.TIMES
FIGURES = ROOT / "docs/figures"
FIGURES_BY_NAME: dict[str, Callable[[], Card]] = {
    "affine": of_numbers.affine,
    "symmetric": of_numbers.symmetric,
    "per-channel": of_numbers.per_channel,
    "bits": of_numbers.bits,
    "straight-through": of_numbers.straight_through,
    "ranges": of_numbers.ranges,
    "samples": of_models.samples,
    "growth": of_models.growth,
    "precisions": of_models.precisions,
    "speeds": of_models.speeds,
    "front": of_models.front,
    "qat": of_models.qat,
    "epochs": of_models.epochs,
    "cut": of_models.cut,
    "bins": of_numbers.bins,
    "frontier": of_models.frontier,
}


def measure() -> None:
    """Time what is drawn: the front of one model, and the layers of another."""
    model = MODELS / "cifar10_mobilenet.onnx"
    report = onnxq.analyze_sensitivity(model, precisions=["int8"], fresh=True)
    points = [
        {
            "kept": len(p.kept_float),
            "predicted_ms": round(p.predicted_ms, 3),
            "ms": round(p.ms, 3),
            "sqnr_db": round(p.loss.sqnr_db, 2),
        }
        for p in report.front
        if p.loss is not None and p.ms is not None
    ]
    recipe = Recipe(precision="int8", verify=VerifySettings(seconds=0))
    data = MODELS / "digits_calibration.npz"
    made = onnxq.quantize(MODELS / "digits_cnn.onnx", data=data, recipe=recipe).model
    bench = onnxq.bench_models(
        [MODELS / "digits_cnn.onnx", made], batch_size=32, seconds=10, per_layer=True
    )
    nodes = {node.name: [round(us or 0, 1) for us in node.us] for node in bench.nodes}
    times = {
        "front": {"model": model.stem, "batch": 50, "points": points},
        "nodes": nodes,
        "environment": bench.environment,
    }
    TIMES.write_text(json.dumps(times, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="the figures to draw; else all")
    parser.add_argument("--measure", action="store_true", help="time the models anew first")
    args = parser.parse_args()
    FIGURES.mkdir(exist_ok=True)
    if args.measure:
        measure()
    for name in args.names or FIGURES_BY_NAME:
        (FIGURES / f"{name}.svg").write_text(FIGURES_BY_NAME[name]().svg(), encoding="utf-8")
        print(f"docs/figures/{name}.svg")


if __name__ == "__main__":
    main()
