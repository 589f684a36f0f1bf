"""Shared fixtures: all that it takes to analyse a model, in one call."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from onnxq.data import Batch
from onnxq.graph import Editor, Model
from onnxq.ops import Census, classify
from onnxq.plan import Recipe, tensors_to_observe
from onnxq.runtime import Session, TappedSession
from onnxq.sensitivity import Evaluator, SensitivityReport, analyze
from onnxq.sensitivity.analyze import KEPT_BYTES
from onnxq.sensitivity.facts import look
from onnxq.sensitivity.journal import Journal
from onnxq.sensitivity.limits import Limits
from onnxq.sensitivity.maker import Maker
from onnxq.sensitivity.options import Assignment
from onnxq.sensitivity.plans import Subject
from onnxq.sensitivity.search import Trials
from onnxq.sensitivity.spread import Roll
from onnxq.sensitivity.work import Work
from onnxq.targets import get_target
from onnxq.types import Feed, Precision, TensorRange, TensorSpec


@dataclass(frozen=True)
class Study:
    """A model, samples, and what a plan is made of."""

    model: Model
    census: Census
    ranges: dict[str, TensorRange]
    recipe: Recipe
    evaluator: Evaluator

    @property
    def subject(self) -> Subject:
        target = get_target(self.census.target)
        return Subject(self.model.view(), self.census, self.ranges, self.recipe, target)

    def work(self, *precisions: Precision, screen: bool = False, rest: bool = True) -> Work:
        return Work(self.subject, precisions, screen=screen, rest=rest)

    def rolls(self, work: Work, *, kept_bytes: int = KEPT_BYTES) -> list[Roll]:
        sight = look(self.model, self.evaluator)
        budget = kept_bytes * sight.samples // self.evaluator.samples
        return work.rolls(self.model, self.evaluator.expected[0], sight, (), budget)

    def trials(self, limits: Limits, journal: Path | None = None) -> Trials:
        return Trials(Maker(self.model, self.subject), self.evaluator, limits, Journal(journal, ""))

    def noise(self, precision: Precision, names: Collection[str]) -> dict[str, float]:
        """The noise of single layers, as the screen measures it."""
        report = self.analyze(precision, method="screen", rest=False, layers=names)
        return {layer.name: 10 ** (-layer.only.sqnr_db / 10) for layer in report.layers}

    def decibels(self, trials: Trials, assignment: Assignment) -> float:
        """SQNR of an assignment, computed from nothing but outputs."""
        model = trials.maker.build(trials.plan(assignment))
        signal = error = 0.0
        for batch, expected in zip(self.evaluator.batches, self.evaluator.expected, strict=True):
            made = Session(model).run(batch.feed)
            for name, values in expected.items():
                signal += float((values.astype(np.float64) ** 2).sum())
                error += float(((values.astype(np.float64) - made[name]) ** 2).sum())
        return 10 * math.log10(signal / error)

    def analyze(self, *precisions: Precision, **options) -> SensitivityReport:
        return analyze(
            self.model, self.census, self.ranges, self.recipe,
            get_target(self.census.target), self.evaluator, precisions, **options,
        )  # fmt: skip


def _array(spec: TensorSpec, samples: int, rng: np.random.RandomState) -> np.ndarray:
    shape = [axis if isinstance(axis, int) else samples for axis in spec.shape or ()]
    if spec.dtype == "bool":
        return np.ones(shape, bool)
    if spec.dtype == "int64":
        return rng.randint(0, 4, shape)
    return rng.standard_normal(shape).astype(np.float32)


def make_noise(model: Model, batches: int = 2, samples: int = 4) -> list[Batch]:
    """Batches of normal noise."""
    rng, view = np.random.RandomState(0), model.view()
    feeds: list[Feed] = [
        {spec.name: _array(spec, samples, rng) for spec in view.inputs} for _ in range(batches)
    ]
    return [Batch(feed, None, samples, np.arange(samples)) for feed in feeds]


@pytest.fixture(scope="session")
def noise() -> Callable[..., list[Batch]]:
    return make_noise


@pytest.fixture(scope="session")
def study() -> Callable[..., Study]:
    """Calibrate on the evaluation samples themselves."""

    def run(
        model: Model,
        batches: Sequence[Batch] | None = None,
        recipe: Recipe | None = None,
        target: str = "cpu-x86",
        **rest,
    ) -> Study:
        batches, recipe = batches or make_noise(model), recipe or Recipe()
        view = model.view()
        census = classify(view, get_target(target))
        taps = tensors_to_observe(view, census, recipe)
        ends: dict[str, list[float]] = {tensor: [np.inf, -np.inf] for tensor in taps}
        session = TappedSession(model, taps, state=rest.get("state")) if taps else None
        for batch in batches if session is not None else ():
            for tensor, values in session.read(batch.feed).items():
                lo, hi = ends[tensor]
                ends[tensor] = [min(lo, float(values.min())), max(hi, float(values.max()))]
        ranges = {t: TensorRange(lo, hi, lo, hi) for t, (lo, hi) in ends.items()}
        return Study(model, census, ranges, recipe, Evaluator(model, batches, **rest))

    return run


def plant_channel(model: Model, first: str, second: str, channel: int, factor: float) -> Model:
    """Make a channel between two convolutions larger; the second undoes it."""
    view, editor = model.view(), Editor(model)
    w, b = (view.constant(t).copy() for t in view.by_name[first].inputs[1:3])
    v = view.constant(view.by_name[second].inputs[1]).copy()
    w[channel] *= factor
    b[channel] *= factor
    v[:, channel] /= factor
    for node, port, values in ((first, 1, w), (first, 2, b), (second, 1, v)):
        editor.redirect(
            node, port, editor.add_constant(f"{node}/{port}/planted {factor:g}", values)
        )
    return editor.finish()


@pytest.fixture(scope="session")
def plant() -> Callable[..., Model]:
    """Make both layers at a tensor fragile: all other channels share the scale of the large one."""
    return plant_channel


@pytest.fixture
def no_sessions(monkeypatch) -> Callable[[], None]:
    """From the call on, a session that is opened is an error."""

    def refuse(*_args, **_options):
        raise AssertionError("a session was opened")

    return lambda: monkeypatch.setattr(ort, "InferenceSession", refuse)


@pytest.fixture(scope="session")
def remembered() -> Callable:
    """A function of noises that measures once."""

    def wrap(noise_of):
        known = {}

        def of(precision, names):
            if precision not in known:
                known[precision] = noise_of(precision, names)
            return known[precision]

        return of

    return wrap
