"""The front: a ladder held against all choices there are, and points that were really measured."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.data import Batch
from onnxq.graph import Model
from onnxq.ops import classify
from onnxq.plan import Recipe
from onnxq.sensitivity import Evaluator, LayerSensitivity, Loss
from onnxq.sensitivity.costs import LayerTimes
from onnxq.sensitivity.front import Stopwatch, measured_front
from onnxq.sensitivity.ladder import ladder
from onnxq.sensitivity.maker import Maker
from onnxq.sensitivity.options import CountOptions
from onnxq.sensitivity.plans import Subject
from onnxq.targets import get_target
from onnxq.types import Precision

INT8 = Precision.INT8
amounts = st.lists(st.floats(0.1, 100), min_size=4, max_size=4)


@given(amounts, amounts)
def test_no_other_choice_beats_a_rung(costs, noises) -> None:
    """Each is the optimum at a price: nothing costs less *and* makes less noise."""
    costs, noises = (dict(zip("abcd", some, strict=True)) for some in (costs, noises))
    options = CountOptions(costs, INT8)
    rungs = ladder(options, {INT8: noises})
    assert rungs[0] == dict.fromkeys("abcd", INT8)
    assert rungs[-1] == {}
    spent = [options.cost(rung) for rung in rungs]
    assert spent == sorted(spent)
    for rung in rungs:
        mine = options.cost(rung), sum(noises[name] for name in rung)
        for bits in product((0, 1), repeat=4):
            other = {n: INT8 for n, on in zip("abcd", bits, strict=True) if on}
            theirs = options.cost(other), sum(noises[name] for name in other)
            assert not (theirs[0] < mine[0] - 1e-6 and theirs[1] < mine[1] - 1e-6)


def test_silent_layers_do_not_stretch_the_ladder() -> None:
    """A layer of 200 dB beside others: the steps stay where the noise is."""
    names = [f"n{i}" for i in range(12)]
    noise = {name: 10 ** (-3 - i / 6) for i, name in enumerate(names)}
    rungs = ladder(CountOptions(dict.fromkeys(names, 1.0), INT8), {INT8: noise | {"idle": 1e-20}})
    assert len(rungs) == 13  # one layer more in float at every step


MODEL = """
agraph (float[n,16] x) => (float[n,4] y) {
    h = MatMul(x, w1)
    r = Relu(h)
    y = MatMul(r, w2)
}
"""
WEIGHTS = "<float[16,32] w1 = seeded, float[32,4] w2 = seeded>"


@pytest.fixture
def subject(build, ranges_of) -> tuple[Maker, Evaluator]:
    text = MODEL.replace("(float[n,4] y) {", f"(float[n,4] y) {WEIGHTS} {{")
    model: Model = build(text)
    target = get_target("cpu-x86")
    census = classify(model.view(), target)
    feed = {"x": np.random.RandomState(0).normal(size=(8, 16)).astype(np.float32)}
    ranges = ranges_of(model, ("x", "h", "r", "y"), feed)
    maker = Maker(model, Subject(model.view(), census, ranges, Recipe(precision="int8"), target))
    return maker, Evaluator(model, [Batch(feed, None, 8, tuple(range(8)))])


def times_of(maker: Maker, quantized: float) -> tuple[LayerTimes, list[LayerSensitivity]]:
    """Every node takes 100 microseconds in float."""
    names = maker.whole(INT8).named(INT8)
    floating = {node.name: 100.0 for node in maker.view.nodes}
    layers = [
        LayerSensitivity(name, "MatMul", INT8, Loss(30.0 + 5 * i)) for i, name in enumerate(names)
    ]
    return LayerTimes(floating, {INT8: dict.fromkeys(names, quantized)}, {}), layers


def test_points_are_what_their_plans_measure(
    subject: tuple[Maker, Evaluator], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Latency is made up here, so that which point beats which is known."""
    maker, evaluator = subject
    monkeypatch.setattr(Stopwatch, "ms", by_integers(maker, faster=True))
    told: list[tuple[int, int]] = []
    times, layers = times_of(maker, 10.0)
    found = measured_front(
        maker, evaluator, layers, times, Stopwatch({}), lambda *done: told.append(done)
    )
    assert told == [(i + 1, len(told)) for i in range(len(told))]
    assert found[0].kept_float == ()
    assert found[0].loss == evaluator.loss(maker.build(maker.whole(INT8)))
    assert set(found[-1].kept_float) == {layer.name for layer in layers}
    assert found[-1].loss == evaluator.floating
    assert found[-1].predicted_ms == pytest.approx(0.3)  # three nodes of 100 microseconds
    ratios = [point.loss.sqnr_db for point in found if point.loss is not None]
    assert ratios == sorted(ratios)
    assert [point.ms for point in found] == sorted(point.ms for point in found if point.ms)


def test_where_integers_are_slower_float_alone_is_the_front(
    subject: tuple[Maker, Evaluator], monkeypatch: pytest.MonkeyPatch
) -> None:
    maker, evaluator = subject
    monkeypatch.setattr(Stopwatch, "ms", by_integers(maker, faster=False))
    times, layers = times_of(maker, 10.0)
    (point,) = measured_front(maker, evaluator, layers, times, Stopwatch({}))
    assert set(point.kept_float) == {layer.name for layer in layers}


def test_without_integers_there_is_no_front(subject: tuple[Maker, Evaluator]) -> None:
    maker, evaluator = subject
    times = LayerTimes({}, {Precision.INT8_WEIGHTS: {"a": 1.0}}, {})
    assert measured_front(maker, evaluator, [], times, Stopwatch({})) == ()


def by_integers(maker: Maker, *, faster: bool) -> Callable[..., list[float]]:
    """Milliseconds that fall, or rise, with every node on integers."""
    most = len(maker.view.nodes)

    def ms(_watch, _maker, plans, _share) -> list[float]:
        return [10.0 + (most - n if faster else n) for n in (p.count(INT8) for p in plans)]

    return ms
