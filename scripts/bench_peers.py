"""What onnxq makes of every model beside what other tools make of it: one table, measured.

::

    python scripts/bench_peers.py --seconds 10 --markdown peers.md            # the shipped models
    python scripts/bench_peers.py --models FOLDER --scores SCORES_FOLDER      # and others

Shipped models are fed and scored as the recipes beside them say (top-1 on the test set; data sets
are found in ``ONNXQ_DATA``), those of another folder by score modules, as ``sweep.py`` describes
them. onnxq gets about 200 unlabelled calibration samples and a recipe that says nothing else, and
once more ``int8-everywhere``. The other tools get the model that onnxq prepared, which is more than
a user would have, and 32 calibration feeds (see ``peers.py``); one that is not installed here runs
in an environment of its own with ``--python nncf=/path/to/python``.

All forms of a model are timed interleaved in one run, on one thread, in the batch that it is fed
in; speed is the latency of the prepared float model per latency of the form. Every score is
measured here, that of the float model too. ``owes`` says what is missing from this: as fast as the
prepared float model, a score near float, and as fast as the best output of ONNX Runtime's own
quantizer whose score is as near. Speed is owed where a ratio is too low with 95 % confidence. A
pair that is too near to call is measured again by itself (see ``speeds.py``); where that does not
tell either, the table says ``too noisy to tell``. The exit code is 1 when something is owed.

With ``--reuse FOLDER`` models that lie there from an earlier run are not made again: delete them
when the code that made them changes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

from peers import NOT_INSTALLED, TOOLS
from speeds import Speeds
from sweep import Feeds, open_session, score_modules, write_feeds
from tasks import Task, module_task, shipped_task

import onnxq
from onnxq.graph import Model, forget_inferred, write_bytes
from onnxq.plan import DataSettings, Recipe, VerifySettings
from onnxq.runtime import Session, environment, prepare
from onnxq.verify import Comparison

OWN = Path(__file__).resolve().parents[1] / "models"
# Seconds that a tool may take.
TIMEOUT = 3600.0
FLOAT, PREPARED, DEFAULT, EVERYWHERE = "float", "prepared float", "onnxq", "onnxq int8-everywhere"
ORT = ("ort-static", "ort-dynamic")
# A ratio of latencies from here on is no difference.
SAME_SPEED = 0.98
# These must be so fast wherever ONNX Runtime's dynamic form is.
TRANSFORMERS, TRANSFORMER_SPEED = ("kwt1", "magika_v3_3", "mnist_transformer"), 1.5
# What single models owe beside: speed, SQNR in dB, score, speed per that of quantizing everything
# as ONNX Runtime's static quantizer does.
MORE = {
    "ultraface_rfb320": {"speed": 1.25, "sqnr_db": 30.0},
    "yolox_nano": {"score": 0.50},
    "cifar10_mobilenet": {"per_static": 1.10},
}


@dataclass(frozen=True)
class Form:
    """What one tool made; None where nothing was measured.

    Attributes:
        name: The tool.
        why: Why there is none; empty where there is.
        made_in: Seconds that it took to make; None when it lay there.
        score: On the test feeds.
        closed_loop: The same with states fed back.
        sqnr_db: The worst over the float outputs.
        size_ratio: Bytes per byte of the source.
        ms: Median latency.
        speed: Latency of the prepared float model per latency of this one.
        noise: How far that may be off by chance, relative to it, with 95 % confidence.
    """

    name: str
    why: str = ""
    made_in: float | None = None
    score: float | None = None
    closed_loop: float | None = None
    sqnr_db: float | None = None
    size_ratio: float | None = None
    ms: float | None = None
    speed: float | None = None
    noise: float | None = None


@dataclass(frozen=True)
class Result:
    """All forms of one model.

    Attributes:
        model: Its name.
        batch: Rows of a feed.
        forms: What the tools made.
        owes: What is missing from what onnxq promises.
        notes: What else there is to know.
    """

    model: str
    batch: int
    forms: list[Form]
    owes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


# --- How forms are made ----------------------------------------------------------------------


class Workshop:
    """Makes the forms of one model in a folder, and leaves alone what lies there.

    Args:
        task: The model.
        folder: Where forms are kept.
        pythons: Interpreters of tools that live in environments of their own.
    """

    def __init__(self, task: Task, folder: Path, pythons: dict[str, str]) -> None:
        self._task, self._folder, self._pythons = task, folder, pythons
        folder.mkdir(parents=True, exist_ok=True)

    def make_all(self) -> Iterator[Form]:
        """All forms that are not float: made, or why not."""
        yield self._made(DEFAULT, partial(self._quantize, None))
        yield self._made(EVERYWHERE, partial(self._quantize, "int8-everywhere"))
        for tool in TOOLS:
            yield self._made(tool, partial(self._run_tool, tool))

    def path(self, name: str) -> Path:
        """Where a form lies."""
        if name == FLOAT:
            return self._task.model
        return self._folder / f"{name.replace(' ', '-')}.onnx"

    def prepare(self) -> None:
        """Write the prepared float model.

        Without inferred shapes: ONNX Runtime's tools find their own, and fail on those of weights
        that they transpose.
        """
        if not self.path(PREPARED).exists():
            source = onnxq.load(self._task.model)
            prepared = prepare(source, self._task.test[0])
            onnxq.save(forget_inferred(prepared, source), self.path(PREPARED))

    def _made(self, name: str, make: Callable[[Path], str]) -> Form:
        output = self.path(name)
        if output.exists():
            return Form(name)
        say(f"{self._task.model.stem}: {name}")
        started = time.perf_counter()
        why = make(output)
        return Form(name, why, time.perf_counter() - started)

    def _quantize(self, objective: str | None, output: Path) -> str:
        recipe = Recipe(objective=objective, data=DataSettings(batch_size=self._task.batch))
        if objective is not None:
            verify = VerifySettings(seconds=0)
            recipe = Recipe(precision="int8", objective=objective, data=recipe.data, verify=verify)
        try:
            result = onnxq.quantize(
                self._task.model, data=self._task.data, recipe=recipe, output=output
            )
        except Exception as error:  # noqa: BLE001 - one model's failure never stops the table
            return f"{type(error).__name__}: {error}"
        missed = [gate.name for gate in result.receipt.gates if not gate.passed]
        if missed:
            say(f"{self._task.model.stem}: {output.stem} missed {', '.join(missed)}")
        return ""

    def _run_tool(self, tool: str, output: Path) -> str:
        """Run a tool in a process of its own."""
        script = Path(__file__).with_name("peers.py")
        with tempfile.TemporaryDirectory(dir=self._folder) as name:
            folder, made = (
                write_feeds(self._task.peer_feeds, Path(name) / "feeds"),
                Path(name) / "made.onnx",
            )
            python = self._pythons.get(tool, sys.executable)
            command = [python, str(script), tool, str(self.path(PREPARED)), folder, str(made)]
            try:
                run = subprocess.run(
                    command, capture_output=True, text=True, timeout=TIMEOUT, cwd=name, check=False
                )
            except subprocess.TimeoutExpired:
                return f"fails: took more than {TIMEOUT:.0f} s"
            if run.returncode == NOT_INSTALLED:
                return run.stderr.splitlines()[-1]
            if run.returncode or not made.exists():
                said = [line.strip() for line in run.stderr.splitlines() if line.strip()]
                return f"fails: {said[-1][:200] if said else f'exit code {run.returncode}'}"
            made.replace(output)
        return ""


# --- How they are measured -------------------------------------------------------------------


def bench(task: Task, folder: Path, pythons: dict[str, str], seconds: float) -> Result:
    """Make, score and time all forms of a model."""
    shop = Workshop(task, folder, pythons)
    shop.prepare()
    forms = {form.name: form for form in (Form(FLOAT), Form(PREPARED), *shop.make_all())}
    models: dict[str, Model] = {}
    expected = None
    for name, form in forms.items():
        if form.why:
            continue
        say(f"{task.model.stem}: score of {name}")
        try:
            models[name] = onnxq.load(shop.path(name))
            session = Session(models[name])
            outputs = [session.run(feed) for feed in task.test]
            del session
            expected = expected or outputs
            forms[name] = replace(
                form,
                score=float(task.score([list(found.values()) for found in outputs])),
                closed_loop=task.rollout(open_session(shop.path(name))) if task.rollout else None,
                sqnr_db=worst_db(task.test, expected, outputs),
                size_ratio=shop.path(name).stat().st_size / task.model.stat().st_size,
            )
        except Exception as error:
            if name in (FLOAT, PREPARED):
                raise
            models.pop(name, None)
            forms[name] = Form(name, f"fails: {type(error).__name__}: {error}"[:200], form.made_in)
    say(f"{task.model.stem}: latency of {len(models)} forms")
    speeds = Speeds(models, task.test[0], seconds)
    for name in models:
        found = speeds.ratio(PREPARED, name)
        forms[name] = replace(forms[name], ms=speeds.ms[name], speed=found.value, noise=found.noise)
    owes, notes = judge(task, forms, speeds)
    return Result(task.model.stem, task.batch, list(forms.values()), owes, notes)


def worst_db(feeds: Feeds, expected: list[dict], found: list[dict]) -> float | None:
    """The worst SQNR over the float outputs."""
    sums = Comparison()
    for feed, wanted, given in zip(feeds, expected, found, strict=True):
        sums.add(feed, wanted, given)
    told = [facts.sqnr_db for facts in sums.facts().values() if facts.sqnr_db is not None]
    return min(told, default=None)


# --- What is owed ----------------------------------------------------------------------------


def judge(task: Task, forms: dict[str, Form], speeds: Speeds) -> tuple[list[str], list[str]]:
    """What onnxq's default owes, and what else there is to know.

    Args:
        task: The model.
        forms: All of them, measured.
        speeds: Compares the latency of two of them.
    """
    name, own, floating = task.model.stem, forms[DEFAULT], forms[FLOAT]
    if own.why:
        return [f"a result: {own.why}"], []
    owes = []
    for what in ("score", "closed_loop"):
        wanted, found = getattr(floating, what), getattr(own, what)
        if wanted is not None and not task.within(found, wanted):
            owes.append(f"{what.replace('_', ' ')} {wanted:.4g} ({found:.4g})")
    owes += more(name, own)
    near = {tool: forms[tool] for tool in ORT if good(task, forms[tool], floating)}
    unclear = []
    for slow, least in asked(name, forms, near):
        ratio = speeds.settled(slow, DEFAULT, least)
        told = f"{least:g}x the speed of {slow} ({ratio.value:.3f}, ±{ratio.noise:.1%})"
        if ratio.below(least):
            owes.append(told)
        elif ratio.value < least:
            unclear.append(f"too noisy to tell: {told}")
    return owes, unclear + remarks(forms, near)


def asked(name: str, forms: dict[str, Form], near: dict[str, Form]) -> Iterator[tuple[str, float]]:
    """What onnxq's default must be faster than, and how many times as fast it must be.

    Args:
        name: The model.
        forms: All of them, measured.
        near: Those of ONNX Runtime's whose score is as near to float's as is owed.
    """
    special = MORE.get(name, {})
    dynamic = forms["ort-dynamic"].speed or 0.0
    transformer = name in TRANSFORMERS and dynamic >= TRANSFORMER_SPEED
    yield PREPARED, special.get("speed", TRANSFORMER_SPEED if transformer else SAME_SPEED)
    if near:
        yield max(near, key=lambda tool: near[tool].speed), SAME_SPEED
    if "per_static" in special and not forms[ORT[0]].why:
        yield ORT[0], special["per_static"]


def good(task: Task, form: Form, floating: Form) -> bool:
    """Whether a form is there, with scores as near to float's as is owed."""
    if form.why:
        return False
    near = task.within(form.score, floating.score)
    looped = form.closed_loop is None or task.within(form.closed_loop, floating.closed_loop)
    return near and looped


def more(name: str, own: Form) -> list[str]:
    """What is missing of what this model owes beside speed."""
    reached = {"sqnr_db": own.sqnr_db, "score": own.score}
    missing = []
    for what, least in MORE.get(name, {}).items():
        value = reached.get(what, least)
        if value is None or value < least:
            missing.append(f"{what} {least:g} ({'none' if value is None else f'{value:.3g}'})")
    return missing


def remarks(forms: dict[str, Form], near: dict[str, Form]) -> list[str]:
    """Outputs of ONNX Runtime's that are faster and off."""
    own, notes = forms[DEFAULT], []
    for form in (forms[tool] for tool in ORT):
        if not form.why and form.name not in near and form.speed > own.speed:
            loop = "" if form.closed_loop is None else f", closed loop {form.closed_loop:.4g}"
            notes.append(f"{form.name} is faster, out of margin: {form.score:.4g}{loop}")
    return notes


# --- How it is told --------------------------------------------------------------------------

HEAD = ("model", "form", "score", "loop", "SQNR", "size", "ms", "speed", "±", "made in", "verdict")
WIDTHS = (28, 21, 8, 8, 6, 5, 8, 6, 5, 8, 0)


def lines(result: Result) -> Iterator[list[str]]:
    """A line of cells for each form; onnxq's has the verdict."""
    for form in result.forms:
        verdict = form.why
        if form.name == DEFAULT:
            judged = f"OWES {'; '.join(result.owes)}" if result.owes else "owes nothing"
            verdict = "; ".join([judged, *result.notes])
        yield [
            result.model, form.name, _cell(form.score, ".4g"), _cell(form.closed_loop, ".4g"),
            _cell(form.sqnr_db, ".1f"), _cell(form.size_ratio, ".2f"), _cell(form.ms, ".3f"),
            _cell(form.speed, ".2f"), _cell(form.noise, ".1%"), _cell(form.made_in, ".1f"), verdict,
        ]  # fmt: skip


def _cell(value: float | None, form: str) -> str:
    return format(value, form) if value is not None else "-"


def text(cells: list[str]) -> str:
    """A line for a terminal."""
    pairs = zip(cells, WIDTHS, strict=True)
    return " ".join(f"{cell:{width or len(cell) or 1}}" for cell, width in pairs).rstrip()


def markdown(results: list[Result]) -> str:
    """The table as Markdown."""
    rows = [list(HEAD), ["---"] * len(HEAD), *(row for r in results for row in lines(r))]
    return "".join(f"| {' | '.join(c.replace('|', '/') for c in row)} |\n" for row in rows)


def keep(results: list[Result], args: argparse.Namespace) -> None:
    """Write what there is so far."""
    if args.json:
        told = {
            "environment": environment(),
            "seconds": args.seconds,
            "models": [asdict(result) for result in results],
        }
        write_bytes(json.dumps(told, indent=2).encode(), args.json)
    if args.markdown:
        write_bytes(markdown(results).encode(), args.markdown)


def tasks(args: argparse.Namespace) -> Iterator[tuple[Path, Callable[[], Task]]]:
    """Models, and how their tasks are made."""
    wanted = [model for glob in args.only for model in OWN.glob(f"{glob}.onnx")]
    for model in sorted({m for m in wanted if m.with_suffix(".onnxq.toml").exists()}):
        yield model, partial(shipped_task, model)
    if args.models is None:
        return
    modules = score_modules((args.scores or args.models.parent / "score").resolve())
    for model in sorted({m for glob in args.only for m in args.models.glob(f"{glob}.onnx")}):
        if model.stem in modules:
            yield model, partial(module_task, model, modules[model.stem])


def main() -> int:
    """Measure, and tell."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", type=Path, help="further models, which score modules know")
    parser.add_argument("--scores", type=Path, help="score modules; default: MODELS/../score")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="GLOB", help="model names")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each model's latency")
    parser.add_argument("--json", type=Path, metavar="FILE", help="written after every model")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="written after every model")
    parser.add_argument("--reuse", type=Path, metavar="FOLDER", help="keep what is made there")
    parser.add_argument("--python", nargs="+", default=[], metavar="TOOL=PATH", help="for a tool")
    args = parser.parse_args()
    pairs = (pair.partition("=") for pair in args.python)
    pythons = {tool: str(Path(path).absolute()) for tool, _, path in pairs}
    if unknown := set(pythons) - set(TOOLS):
        parser.error(f"--python: no tool {', '.join(unknown)}; known: {', '.join(TOOLS)}")
    results: list[Result] = []
    print(text(list(HEAD)), flush=True)
    with (
        nullcontext(args.reuse.resolve()) if args.reuse else tempfile.TemporaryDirectory() as folder
    ):
        for model, make in tasks(args):
            try:
                place = Path(folder) / model.stem
                results.append(bench(make(), place, pythons, args.seconds))
            except Exception as error:  # noqa: BLE001 - one model's failure never stops the table
                why = f"{type(error).__name__}: {error}"
                results.append(Result(model.stem, 0, [Form(DEFAULT, why)], [f"a result: {why}"]))
            for cells in lines(results[-1]):
                print(text(cells), flush=True)
            keep(results, args)
    owing = [result.model for result in results if result.owes]
    print(f"{len(results)} models, {len(owing)} owe something: {', '.join(owing) or 'none'}")
    return 1 if owing else 0


if __name__ == "__main__":
    sys.exit(main())
