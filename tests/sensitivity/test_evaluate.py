"""What an evaluator says of outputs, against independent formulas."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import entropy

from onnxq.data import Batch
from onnxq.graph import Model
from onnxq.sensitivity import Evaluator
from onnxq.types import TensorRange
from onnxq.verify import MetricChoice


def classifier(build, scores: str = "") -> Model:
    softmax = f" [probabilities] y = Softmax ({scores})" if scores else ""
    return build(f"""g (float[N,16] x) => (float[N,5] y) <float[16,5] w = seeded> {{
      [fc] {scores or "y"} = MatMul (x, w){softmax} }}""")


@pytest.mark.parametrize("scores", ["", "s"], ids=["logits", "probabilities"])
def test_losses_are_what_independent_formulas_say(build, noise, scores) -> None:
    model = classifier(build, scores)
    batches = [replace(b, labels=np.arange(b.count) % 5) for b in noise(model, samples=6)]
    evaluator = Evaluator(model, batches)
    rng = np.random.RandomState(1)
    expected = np.concatenate([outputs["y"] for outputs in evaluator.expected]).astype(np.float64)
    made = []
    for outputs in evaluator.expected:
        shaken = outputs["y"] * rng.uniform(0.5, 1.5, outputs["y"].shape).astype(np.float32)
        made.append({"y": shaken / shaken.sum(1, keepdims=True) if scores else shaken})
    found = np.concatenate([outputs["y"] for outputs in made]).astype(np.float64)
    loss = evaluator.judge(made)

    def probabilities(values: np.ndarray) -> np.ndarray:
        return values if scores else np.exp(values) / np.exp(values).sum(1, keepdims=True)

    # float32 probabilities add up to 1 within 1e-7, which scipy divides by
    divergence = entropy(probabilities(expected), probabilities(found), axis=1).mean()
    assert loss.kl == pytest.approx(divergence, rel=1e-5)
    ratio = (expected**2).sum() / ((expected - found) ** 2).sum()
    assert loss.sqnr_db == pytest.approx(10 * math.log10(ratio), abs=1e-6)
    ratios = (expected**2).sum(1) / ((expected - found) ** 2).sum(1)
    assert loss.typical_db == pytest.approx(np.median(10 * np.log10(ratios)), abs=1e-6)
    labels = np.concatenate([batch.labels for batch in batches])
    assert loss.agreement == (expected.argmax(1) == found.argmax(1)).mean()
    assert loss.metric == (found.argmax(1) == labels).mean()
    assert evaluator.float_metric() == (expected.argmax(1) == labels).mean()
    assert evaluator.floating.kl == 0
    assert evaluator.floating.sqnr_db == 200


def test_a_few_large_samples_do_not_move_what_is_typical(build, noise) -> None:
    """Their noise is a hundredth of them, and ten times the signal of the others."""
    model = classifier(build)
    batches = noise(model, batches=4, samples=5)
    for batch in batches:
        batch.feed["x"][0] *= 1000
    evaluator = Evaluator(model, batches)
    made = [{"y": outputs["y"] * np.float32(0.9)} for outputs in evaluator.expected]
    for outputs, expected in zip(made, evaluator.expected, strict=True):
        outputs["y"][0] = expected["y"][0] * np.float32(0.99)
    loss = evaluator.judge(made)
    assert loss.typical_db == pytest.approx(20, abs=1e-3)  # float32 has seven digits of 0.1
    assert loss.sqnr_db == pytest.approx(40, abs=0.01)  # the others are a millionth of the energy


def test_silent_samples_have_no_ratio(build, noise) -> None:
    model = classifier(build)
    batches = noise(model, batches=1, samples=6)
    batches[0].feed["x"][:4] = 0
    evaluator = Evaluator(model, batches)
    made = [{"y": outputs["y"] * np.float32(0.9)} for outputs in evaluator.expected]
    assert evaluator.judge(made).typical_db == pytest.approx(20, abs=1e-3)
    batches[0].feed["x"][:] = 0
    assert Evaluator(model, batches).floating.typical_db is None


BOX = TensorRange(-1, 1, -1, 1)


def test_samples_inside_of_a_range_judge(build, noise) -> None:
    model = classifier(build)
    batches = [replace(b, labels=np.arange(b.count)) for b in noise(model, batches=3, samples=16)]
    for batch in batches:
        np.clip(batch.feed["x"], -1, 1, out=batch.feed["x"])
    batches[0].feed["x"][1, 3] = 1.5
    batches[1].feed["x"][14:, 0] = -1.5
    batches[2].feed["x"][15] = np.nan  # which no range holds
    inside = Evaluator(model, batches).inside({"x": BOX})
    rows = [[0, *range(2, 16)], [*range(14)], [*range(15)]]
    for batch, part, kept in zip(batches, inside.batches, rows, strict=True):
        assert part.count == len(kept)
        np.testing.assert_array_equal(part.feed["x"], batch.feed["x"][kept])
        assert part.labels.tolist() == part.numbers.tolist() == kept
    assert inside.samples == 44
    assert inside.floating.sqnr_db == 200


@pytest.mark.parametrize(("outside", "left"), [(1, 19), (2, 18), (3, 20)])
def test_no_more_than_a_few_samples_are_left_out(build, noise, outside, left) -> None:
    """What is a tenth of the samples and more are no accidents."""
    model = classifier(build)
    batches = noise(model, batches=4, samples=5)
    for batch in batches:
        np.clip(batch.feed["x"], -1, 1, out=batch.feed["x"])
    for batch in batches[:outside]:
        batch.feed["x"][4] = 5
    evaluator = Evaluator(model, batches)
    assert evaluator.inside({"x": BOX}).samples == left
    assert evaluator.inside({}) is evaluator


def test_batches_of_one_that_the_model_fixes_are_left_out(build, noise) -> None:
    model = build("g (float[1,4] x) => (float[1,4] y) { [relu] y = Relu (x) }")
    batches = [replace(b, count=1, numbers=np.array([i])) for i, b in enumerate(noise(model, 12))]
    for batch in batches:
        np.clip(batch.feed["x"], -1, 1, out=batch.feed["x"])
    batches[7].feed["x"][0, 2] = 5
    inside = Evaluator(model, batches).inside({"x": BOX})
    assert [int(batch.numbers[0]) for batch in inside.batches] == [*range(7), *range(8, 12)]


def test_whole_feeds_and_sequences_judge_as_they_are(build, noise) -> None:
    fixed = build("g (float[4,4] x) => (float[4,4] y) { [relu] y = Relu (x) }")
    batches = noise(fixed)
    batches[0].feed["x"][0] = 5
    batches[0].feed["x"][1:] = 0  # a part of the batch is inside
    assert Evaluator(fixed, batches[:1]).inside({"x": BOX}).samples == 4
    step = build("g (float[N,4] x, float[N,4] h) => (float[N,4] n) { [sum] n = Add (x, h) }")
    steps = [Batch({"x": b.feed["x"]}, None, b.count, b.numbers) for b in noise(step)]
    steps[0].feed["x"][0] = 5
    sequence = Evaluator(step, steps, state={"n": "h"})
    assert sequence.inside({"x": BOX}) is sequence


def test_a_metric_of_ones_own(build, noise) -> None:
    model = classifier(build)
    batches = [replace(batch, labels=np.zeros(batch.count)) for batch in noise(model)]
    choice = MetricChoice("mean", lambda outputs, labels: float(outputs["y"].mean()))
    evaluator = Evaluator(model, batches, metric=choice)
    values = np.concatenate([batch.feed["x"] for batch in batches]) @ model.view().constant("w")
    assert evaluator.float_metric() == pytest.approx(values.mean(), rel=1e-5)
    assert evaluator.metric_name == "mean"


def test_states_are_fed_back(build, noise) -> None:
    """A running sum: its state is the sum of all steps before, from zero on."""
    model = build("""g (float[1,4] x, float[1,4] h) => (float[1,4] y, float[1,4] n) {
      [sum] n = Add (x, h) [out] y = Identity (n) }""")
    batches = [
        Batch({"x": b.feed["x"]}, None, 1, b.numbers[:1])
        for b in noise(model, batches=5, samples=1)
    ]
    evaluator = Evaluator(model, batches, state={"n": "h"})
    steps = np.stack([batch.feed["x"] for batch in batches])
    for found, sums in zip(evaluator.expected, np.cumsum(steps, axis=0), strict=True):
        np.testing.assert_allclose(found["y"], sums, rtol=1e-6)
    assert evaluator.stateful
    assert evaluator.loss(model).sqnr_db == 200
