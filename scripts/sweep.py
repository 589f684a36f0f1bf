"""Quantize every model of a folder with its own data, score it, and print one table.

::

    python scripts/sweep.py MODELS_FOLDER --models 'tiny_*' --seconds 1

A score module is a Python file with ``MODELS`` (names of models), ``load(n, split)``, which gives
feeds and labels, and ``score(outputs, labels)``. Streaming models also have ``rollout(session)``:
closed loop, with the states fed back from the model under test. ``owed.json`` beside this script
holds what is expected: the least SQNR by model, and the models that must be refused or hold nothing
to quantize. The exit code is 1 when a model crashed, came out invalid or owes something.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime as ort

import onnxq
from onnxq.errors import OnnxqError, SelfCheckError
from onnxq.plan import DataSettings, Recipe, VerifySettings
from onnxq.verify import Measured

OWED = json.loads(Path(__file__).with_name("owed.json").read_text(encoding="utf-8"))
# The figures of owed.json are another quantizer's, on feeds of its own choice.
MARGIN_DB = 1.0
CALIBRATION_SAMPLES, TEST_FEEDS = 32, 64
QUANTIZED, NOTHING, REFUSED, CRASHED = "quantized", "nothing to quantize", "refused", "crashed"
Feeds = list[dict[str, np.ndarray]]


@dataclass(frozen=True)
class Row:
    """What became of one model; None where nothing was measured.

    Attributes:
        model: Its name.
        outcome: How the run ended.
        detail: Why it was refused, or how it failed.
        score: The metric of the float and of the quantized model.
        closed_loop: The same with states fed back.
        sqnr_db: The worst over the float outputs.
        size_ratio: Bytes of the output per byte of the source.
        speed: Latency of the given float model per latency of the output.
        speed_prepared: The same against the prepared float model.
        int8: Nodes that run as int8, of those that should.
        owes: What was expected and is missing; empty when all is well.
    """

    model: str
    outcome: str
    detail: str = ""
    score: tuple[float, float] | None = None
    closed_loop: tuple[float, float] | None = None
    sqnr_db: float | None = None
    size_ratio: float | None = None
    speed: float | None = None
    speed_prepared: float | None = None
    int8: tuple[int, int] | None = None
    owes: str = ""


def score_modules(folder: Path) -> dict[str, ModuleType]:
    """The score module of every model that one names."""
    sys.path.insert(0, str(folder))
    found: dict[str, ModuleType] = {}
    for file in sorted(folder.glob("*.py")):
        if re.search(r"^MODELS\s*=", file.read_text(encoding="utf-8"), re.MULTILINE):
            module = importlib.import_module(file.stem)
            found.update(dict.fromkeys(module.MODELS, module))
    return found


def load_feeds(module: ModuleType, split: str) -> Feeds:
    """All feeds of a split; a module without a calibration split calibrates on its test feeds."""
    try:
        return module.load(split=split)[0]
    except KeyError:
        return module.load()[0]


def spread(feeds: Feeds, count: int) -> Feeds:
    """So many feeds, evenly from the first to the last: neighbours in a stream are alike."""
    chosen = np.unique(np.linspace(0, len(feeds) - 1, count).round().astype(int))
    return [feeds[index] for index in chosen]


def calibration_feeds(module: ModuleType) -> Feeds:
    """Feeds that hold about ``CALIBRATION_SAMPLES`` samples together, two feeds at least."""
    feeds = load_feeds(module, "calib")
    rows = next(iter(feeds[0].values())).shape[0]
    return spread(feeds, max(2, CALIBRATION_SAMPLES // max(rows, 1)))


def write_feeds(feeds: Feeds, folder: Path) -> str:
    """Write a folder of .npz files, one per feed."""
    folder.mkdir(parents=True)
    for index, feed in enumerate(feeds):
        np.savez(folder / f"{index}.npz", **feed)
    return str(folder)


def make_recipe(
    calibration: Feeds | None, test: Feeds | None, folder: Path, seconds: float
) -> Recipe:
    """A recipe on these feeds, which are written into a folder; without feeds, for weights."""
    verify = VerifySettings(seconds=seconds)
    if not calibration or not test:
        return Recipe(verify=verify)
    data = DataSettings(
        calibration=write_feeds(calibration, folder / "calibration"),
        test=write_feeds(test, folder / "test"),
    )
    return Recipe(precision="int8", data=data, verify=verify)


def open_session(model: Path) -> ort.InferenceSession:
    """A session that runs as a user's would, on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def judge(row: Row) -> Row:
    """The row with what it owes."""
    refusal, least = OWED["refused"].get(row.model), OWED["sqnr_db"].get(row.model)
    if row.outcome == CRASHED:
        owes = "a result"
    elif refusal is not None:
        missing = [part for part in refusal if part not in row.detail]
        owes = f"a refusal that says {missing}" if row.outcome != REFUSED or missing else ""
    elif row.outcome == NOTHING:
        owes = "" if row.model in OWED["nothing"] else "some quantized node"
    elif least is None:
        owes = ""
    elif row.outcome != QUANTIZED:
        owes = f"{least - MARGIN_DB:.1f} dB"
    else:
        short = row.sqnr_db is None or row.sqnr_db < least - MARGIN_DB
        owes = f"{least - MARGIN_DB:.1f} dB" if short else ""
    return replace(row, owes=owes)


def sweep_model(model: Path, module: ModuleType | None, seconds: float) -> Row:
    """Quantize and score one model; whatever happens becomes its row."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            return judge(_measure(model, module, Path(folder), seconds))
    except SelfCheckError as error:
        return judge(Row(model.stem, CRASHED, str(error)))
    except OnnxqError as error:
        return judge(Row(model.stem, REFUSED, f"{type(error).__name__}: {error}"))
    except Exception as error:  # noqa: BLE001 - one model's failure never stops the sweep
        return judge(Row(model.stem, CRASHED, f"{type(error).__name__}: {error}"))


def _measure(model: Path, module: ModuleType | None, folder: Path, seconds: float) -> Row:
    calibration = calibration_feeds(module) if module else None
    test = spread(load_feeds(module, "test"), TEST_FEEDS) if module else None
    recipe = make_recipe(calibration, test, folder, seconds)
    output = folder / model.name
    result = onnxq.quantize(model, recipe=recipe, output=output)
    onnx.checker.check_model(str(output))
    sessions = open_session(model), open_session(output)
    measured = result.receipt.measured
    latency, coverage = measured.latency, measured.int8_coverage
    return Row(
        model.stem,
        NOTHING if result.plan.empty else QUANTIZED,
        score=_scores(module, sessions) if module else None,
        closed_loop=_rollouts(module, sessions) if hasattr(module, "rollout") else None,
        sqnr_db=worst_db(measured),
        size_ratio=measured.size_ratio,
        speed=latency.ratio if latency else None,
        speed_prepared=latency.ratio_prepared if latency else None,
        int8=(coverage.int8, coverage.wanted) if coverage else None,
    )


def worst_db(measured: Measured) -> float | None:
    """The worst SQNR over the float outputs; None when there is none."""
    told = [facts.sqnr_db for facts in measured.outputs.values() if facts.sqnr_db is not None]
    return min(told, default=None)


def _scores(module: ModuleType, sessions: tuple[ort.InferenceSession, ...]) -> tuple[float, float]:
    feeds, labels = module.load()
    before, after = (
        module.score([session.run(None, feed) for feed in feeds], labels) for session in sessions
    )
    return before, after


def _rollouts(
    module: ModuleType, sessions: tuple[ort.InferenceSession, ...]
) -> tuple[float, float]:
    before, after = (module.score(*module.rollout(session)) for session in sessions)
    return before, after


def print_row(row: Row) -> None:
    """One line of the table."""

    def pair(values: tuple[float, float] | None) -> str:
        return f"{values[0]:.4g} -> {values[1]:.4g}" if values else "-"

    def number(value: float | None, form: str) -> str:
        return format(value, form) if value is not None else "-"

    cells = (
        f"{row.model:28}", f"{row.outcome:19}", f"{pair(row.score):18}",
        f"{pair(row.closed_loop):18}", f"{number(row.sqnr_db, '.1f'):>6}",
        f"{number(row.size_ratio, '.2f'):>5}", f"{number(row.speed, '.2f'):>6}",
        f"{number(row.speed_prepared, '.2f'):>6}",
        f"{'/'.join(map(str, row.int8)) if row.int8 else '-':>8}",
        f"OWES {row.owes}" if row.owes else "", row.detail,
    )  # fmt: skip
    print(" ".join(cell for cell in cells if cell), flush=True)


def main() -> int:
    """Sweep the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="holds the .onnx files")
    parser.add_argument("--models", default="*", help="glob of the models' names")
    parser.add_argument("--scores", type=Path, help="score modules; default: FOLDER/../score")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each model's latency")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()
    modules = score_modules((args.scores or args.folder.parent / "score").resolve())
    rows = []
    if not args.json:
        print(f"{'model':28} {'outcome':19} {'float -> int8':18} {'closed loop':18} "
              f"{'SQNR':>6} {'size':>5} {'speed':>6} {'/prep.':>6} {'int8':>8}")  # fmt: skip
    for model in sorted(args.folder.glob(f"{args.models}.onnx")):
        rows.append(sweep_model(model, modules.get(model.stem), args.seconds))
        if not args.json:
            print_row(rows[-1])
    failed = [row.model for row in rows if row.owes]
    if args.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        counts = ", ".join(
            f"{n} {outcome}" for outcome, n in Counter(r.outcome for r in rows).items()
        )
        print(f"{len(rows)} models: {counts}; {len(failed)} owe something {failed or ''}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
