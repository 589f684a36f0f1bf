"""Models that are planned for every target, with ranges of the same samples."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest

from onnxq.data import open_data
from onnxq.graph import Model, load
from onnxq.numerics import sqnr_db
from onnxq.ops import classify
from onnxq.plan import QuantPlan, Recipe, load_recipe, make_plan, tensors_to_observe
from onnxq.rewrite import rewrite
from onnxq.runtime import Session, TappedSession, prepare, synthetic_feed
from onnxq.targets import get_target
from onnxq.types import Feed, TensorRange

MODELS = Path(__file__).parents[2] / "models"
SAMPLES = 64
# A stem, a residual block with a layer on its shortcut, one without, a pool, a join, a head.
BLOCKS = """g (float[1,4,8,8] x) => (float[1,6] y)
<float[8,4,3,3] w0 = seeded, float[8] b0 = seeded, float[8,8,3,3] w1 = seeded,
 float[8] b1 = seeded, float[8,8,1,1] w2 = seeded, float[8,8,3,3] w3 = seeded, float[8] b3 = seeded,
 float[8,8,1,1] w4 = seeded, float[8,8,1,1] w5 = seeded, float[8] b5 = seeded,
 float[16,8] w6 = seeded, float[8] b6 = seeded, float[8,6] w7 = seeded>
{ [stem] s = Conv <pads = [1, 1, 1, 1]> (x, w0, b0) [stem_relu] r = Relu (s)
  [main] m = Conv <pads = [1, 1, 1, 1]> (r, w1, b1) [main_relu] n = Relu (m)
  [main2] m2 = Conv <pads = [1, 1, 1, 1]> (n, w3, b3) [shortcut] c = Conv (r, w2)
  [sum] a = Add (m2, c) [sum_relu] ar = Relu (a)
  [body] d = Conv (ar, w4) [sum2] a2 = Add (ar, d) [sum2_relu] a3 = Relu (a2)
  [pool] p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (a3) [tail] t = Conv (p, w5, b5)
  [join] j = Concat <axis = 1> (p, t) [mean] g = GlobalAveragePool (j) [flat] f = Flatten (g)
  [head] h = Gemm (f, w6, b6) [last] y = MatMul (h, w7) }"""


@dataclass(frozen=True)
class Subject:
    """A prepared model, samples that give it ranges, and others that judge it."""

    name: str
    model: Model
    calibration: Feed
    test: Feed

    @cached_property
    def expected(self) -> np.ndarray:
        return first(Session(self.model).run(self.test))

    def sqnr(self, quantized: Model) -> float:
        return sqnr_db(self.expected, first(Session(quantized).run(self.test)))


@dataclass(frozen=True)
class Made:
    """What became of a model for one target."""

    plan: QuantPlan
    model: Model

    def reasons(self) -> dict[str, str]:
        return {n.name: n.reason.sentence for n in self.plan.nodes if n.reason}


def first(outputs: Feed) -> np.ndarray:
    return np.asarray(next(iter(outputs.values())))


def make(model: Model, calibration: Feed, target_name: str, recipe: Recipe | None = None) -> Made:
    """Plan and rewrite a model with the ranges of one feed."""
    target, recipe, view = get_target(target_name), recipe or Recipe(), model.view()
    census = classify(view, target)
    taps = tensors_to_observe(view, census, recipe)
    found = TappedSession(model, taps).read(calibration) if taps else {}
    ends = {t: (float(v.min()), float(v.max())) for t, v in found.items()}
    ranges = {t: TensorRange(lo, hi, lo, hi) for t, (lo, hi) in ends.items()}
    plan = make_plan(view, census, ranges, recipe, target)
    return Made(plan, rewrite(model, plan))


def _shipped(name: str) -> Subject:
    recipe = load_recipe(MODELS / f"{name}.onnxq.toml")
    model = prepare(load(MODELS / f"{name}.onnx"))

    def feed(data: object) -> Feed:
        reader = open_data(
            data, model.view().inputs, preprocess=recipe.data.preprocess, base=MODELS
        )
        return next(iter(reader.sample(SAMPLES, 0).batches(SAMPLES))).feed

    return Subject(name, model, feed(recipe.data.calibration), feed(recipe.data.test))


@pytest.fixture(scope="session")
def plan_and_rewrite() -> Callable[..., Made]:
    """Quantize a model for a target with the ranges of a made-up feed."""

    def start(model: Model, target: str, recipe: Recipe | None = None) -> Made:
        return make(model, synthetic_feed(model.view().inputs), target, recipe)

    return start


@pytest.fixture(scope="session")
def subject(build: Callable[[str], Model]) -> Callable[[str], Subject]:
    """A model by name; ``blocks`` is a small made-up one."""
    known: dict[str, Subject] = {}

    def get(name: str) -> Subject:
        folder = os.environ.get("ONNXQ_DATA")
        if name.startswith("cifar10") and not (folder and (Path(folder) / "cifar10.npz").is_file()):
            pytest.skip("ONNXQ_DATA names no folder that holds cifar10.npz")
        if name not in known and name == "blocks":
            model = build(BLOCKS)
            feed = synthetic_feed(model.view().inputs)
            known[name] = Subject(name, model, feed, feed)
        return known.setdefault(name, known.get(name) or _shipped(name))

    return get


@pytest.fixture(scope="session")
def made(subject: Callable[[str], Subject]) -> Callable[[str, str], Made]:
    """What becomes of a model (by name) for a target (by name)."""
    known: dict[tuple[str, str], Made] = {}

    def get(name: str, target: str) -> Made:
        if (name, target) not in known:
            one = subject(name)
            known[name, target] = make(one.model, one.calibration, target)
        return known[name, target]

    return get
