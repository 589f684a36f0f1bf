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
    labels = np.concatenate([batch.labels for batch in batches])
    assert loss.agreement == (expected.argmax(1) == found.argmax(1)).mean()
    assert loss.metric == (found.argmax(1) == labels).mean()
    assert evaluator.float_metric() == (expected.argmax(1) == labels).mean()
    assert evaluator.floating.kl == 0
    assert evaluator.floating.sqnr_db == 200


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
