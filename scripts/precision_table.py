"""What every precision and form makes of every model: one table, measured.

::

    python scripts/precision_table.py                        # the models of this repository
    python scripts/precision_table.py --models FOLDER --scores SCORES_FOLDER

Models of this repository are calibrated and judged as their recipes say, but for the budgets, which
would keep layers float (data sets are found in ``ONNXQ_DATA``); models of another folder by score
modules, as ``sweep.py`` describes them. Told are bytes of the output per byte of the source, the
same for the bytes of its weights alone, the least SQNR over the float outputs, the metric before
and after, and the latency of the prepared float model per latency of the output, on one thread.
``--markdown`` prints the table for the documentation.

The exit code is 1 when a model crashed, or came out larger than its precision promises.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
from msgspec.structs import replace as with_fields
from sweep import (
    TEST_FEEDS,
    calibration_feeds,
    load_feeds,
    make_recipe,
    open_session,
    score_modules,
    spread,
    worst_db,
)

import onnxq
from onnxq import Job
from onnxq.errors import OnnxqError, SelfCheckError
from onnxq.plan import Budgets, find_recipe, needed_opset
from onnxq.runtime import prepare

OWN = Path(__file__).parents[1] / "models"
# Precision, form, and what its files may weigh where nearly all bytes are weights.
Variant = tuple[str, str, float | None]
VARIANTS: tuple[Variant, ...] = (
    ("int8", "qdq", 0.30),
    ("int8", "qoperator", 0.30),
    ("int16", "qdq", None),
    ("int8-dynamic", "qdq", None),
    ("int8-weights", "qdq", 0.30),
    ("int8-weights", "qoperator", None),
    ("int4-weights", "qdq", 0.20),
    ("int4-weights", "qoperator", 0.20),
    ("fp16", "qdq", 0.52),
)
HEAD = ("model", "precision", "form", "size x", "SQNR dB", "metric", "speed x", "nodes", "stored")
WIDTHS = (28, 13, 10, 22, 8, 20, 8, 6, 6)
# A model is weight-heavy when so much of its file are weights that the precision stores, and the
# file has so many bytes: beside fewer, names and scales weigh more than a hundredth.
WEIGHT_HEAVY, MANY_BYTES = 0.95, 1_000_000


@dataclass(frozen=True)
class Row:
    """What one precision made of one model; None where nothing was measured."""

    model: str
    precision: str
    form: str
    outcome: str = "made"
    size: float | None = None
    sqnr_db: float | None = None
    score: tuple[float, float] | None = None
    speed: float | None = None
    stored: float = 0.0  # share of the source's bytes that are weights of nodes with the precision
    nodes: int = 0
    bytes: int = 0


def stored_share(result: onnxq.Result, source: Path) -> float:
    """Bytes of the float weights that are stored in the precision, per byte of the source.

    Plans are about the prepared model, in which weights are folded, and lifted out of bodies.
    """
    planned = {n.name for n in result.plan.nodes if n.precision != "float"}
    view = prepare(onnxq.load(source), opset=needed_opset(result.receipt.recipe)).view()
    names = {*result.plan.tensors, *result.plan.blocks}
    if any(n.precision == "fp16" for n in result.plan.nodes):
        names |= {t for node in view.nodes if node.name in planned for t in node.inputs}
    found = [view.constant(name) for name in names if view.is_constant(name)]
    return sum(w.nbytes for w in found if w is not None) / source.stat().st_size


# What a score module makes of a model.
Score = Callable[[Path], float]


def score_of(module: ModuleType) -> Score:
    """Scores models on the feeds of a module, which are read once; the same model once."""
    feeds, labels = module.load()

    @cache
    def score(digest: str, model: Path) -> float:
        session = open_session(model)
        return module.score([session.run(None, feed) for feed in feeds], labels)

    return lambda model: score(hashlib.sha256(model.read_bytes()).hexdigest(), model)


def measure(model: Path, job: Job, score: Score | None, folder: Path) -> dict[str, Any]:
    """Quantize, check and score."""
    output = folder / model.name
    result = onnxq.run(model, job, output=output, force=True)
    if result.plan.empty:
        return {"outcome": "nothing to quantize"}
    onnx.checker.check_model(str(output))
    measured = result.receipt.measured
    scores = (measured.metric.source, measured.metric.output) if measured.metric else None
    if score is not None:
        scores = score(model), score(output)
    return {
        "size": measured.size_ratio,
        "sqnr_db": worst_db(measured),
        "score": scores,
        "speed": measured.latency.ratio_prepared if measured.latency else None,
        "stored": stored_share(result, model),
        "bytes": model.stat().st_size,
        "nodes": sum(n.precision != "float" for n in result.plan.nodes),
    }


def rows_of(
    model: Path, module: ModuleType | None, variants: Sequence[Variant], seconds: float
) -> Iterator[Row]:
    """Variants of a model."""
    with tempfile.TemporaryDirectory() as name:
        folder, score = Path(name), None
        if module is not None:
            score = score_of(module)
            test = spread(load_feeds(module, "test"), TEST_FEEDS)
            job = onnxq.make_job(
                None, make_recipe(calibration_feeds(module), test, folder, seconds)
            )
        else:
            job = onnxq.make_job(model, find_recipe(model))
        for precision, form, _ in variants:
            verify = with_fields(job.recipe.verify, seconds=seconds)
            asked = with_fields(
                job.recipe, precision=precision, format=form, verify=verify, budgets=Budgets()
            )
            one = replace(job, recipe=asked)
            try:
                yield Row(model.stem, precision, form, **measure(model, one, score, folder))
            except SelfCheckError as error:
                yield Row(model.stem, precision, form, f"CRASHED: {error}")
            except OnnxqError as error:
                yield Row(model.stem, precision, form, f"refused: {str(error)[:60]}")
            except Exception as error:  # noqa: BLE001 - one model's failure never stops the table
                yield Row(model.stem, precision, form, f"CRASHED: {type(error).__name__}: {error}")


def too_large(row: Row) -> bool:
    """Whether a weight-heavy model came out larger than its precision promises."""
    limit = next(most for p, form, most in VARIANTS if (p, form) == (row.precision, row.form))
    if limit is None or row.size is None or row.stored < WEIGHT_HEAVY or row.bytes < MANY_BYTES:
        return False
    return row.size > limit


def cells(row: Row) -> list[str]:
    """A row as text."""
    if row.size is None:
        return [row.model, row.precision, row.form, row.outcome, "", "", "", "", ""]
    score = f"{row.score[0]:.4g} -> {row.score[1]:.4g}" if row.score else ""
    return [
        row.model, row.precision, row.form,
        f"{row.size:.3f}" + ("  TOO LARGE" if too_large(row) else ""),
        "" if row.sqnr_db is None else f"{row.sqnr_db:.1f}", score,
        "" if row.speed is None else f"{row.speed:.2f}", str(row.nodes), f"{row.stored:.2f}",
    ]  # fmt: skip


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", type=Path, default=OWN, help="folder of models")
    parser.add_argument("--scores", type=Path, help="folder of score modules")
    parser.add_argument("--only", nargs="+", default=["*"], help="globs of model names")
    parser.add_argument("--precision", nargs="+", help="only these")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long to measure latency")
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args()
    variants = [v for v in VARIANTS if not args.precision or v[0] in args.precision]
    modules = score_modules(args.scores) if args.scores else {}
    line = "| {} |".format if args.markdown else "{}".format
    join = " | " if args.markdown else " "
    print(line(join.join(f"{h:{w}}" for h, w in zip(HEAD, WIDTHS, strict=True))))
    if args.markdown:
        print("|" + "---|" * len(HEAD))
    failed = False
    for model in sorted({m for glob in args.only for m in args.models.glob(f"{glob}.onnx")}):
        if args.scores and model.stem not in modules:
            continue
        if ".int8" in model.name:
            continue
        for row in rows_of(model, modules.get(model.stem), variants, args.seconds):
            failed |= row.outcome.startswith("CRASHED") or too_large(row)
            text = (f"{c:{w}}" for c, w in zip(cells(row), WIDTHS, strict=True))
            print(line(join.join(text)), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
