"""What options choose, held against all choices there are."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.plan import Budgets
from onnxq.sensitivity import Loss
from onnxq.sensitivity.limits import Limits, limits_of
from onnxq.sensitivity.maker import Maker
from onnxq.sensitivity.options import CountOptions, SizeOptions, untimed
from onnxq.types import Precision

EIGHT, FOUR = Precision.INT8_WEIGHTS, Precision.INT4_WEIGHTS
NAMES = ("a", "b", "c", "d")
amounts = st.lists(st.floats(0.1, 100), min_size=4, max_size=4)


@given(amounts, amounts, st.floats(0.01, 100))
def test_layers_stay_float_whose_noise_costs_more(costs, noises, worth) -> None:
    costs, noises = (dict(zip(NAMES, some, strict=True)) for some in (costs, noises))
    options, noise = CountOptions(costs, Precision.INT8), {Precision.INT8: noises}

    def total(chosen: dict[str, Precision]) -> float:
        return options.cost(chosen) + worth * sum(noises[name] for name in chosen)

    best = min(
        total({n: Precision.INT8 for n, on in zip(NAMES, bits, strict=True) if on})
        for bits in product((0, 1), repeat=4)
    )
    assert total(options.assign(worth, noise)) == pytest.approx(best)


@given(st.lists(st.integers(1, 9999), min_size=4, max_size=4), amounts, amounts, st.floats(0, 1e3))
def test_the_smallest_storage_is_chosen(sizes, coarse, fine, worth) -> None:
    weights = dict(zip(NAMES, sizes, strict=True))
    noise = {
        EIGHT: dict(zip(NAMES, fine, strict=True)),
        FOUR: dict(zip(NAMES, coarse, strict=True)),
    }
    options = SizeOptions({EIGHT: weights, FOUR: weights})
    bytes_of = {Precision.FLOAT: 4.0, EIGHT: 1.0, FOUR: 4.5 / 8}

    def price(name: str, precision: Precision) -> float:
        lost = 0.0 if precision is Precision.FLOAT else noise[precision][name]
        return weights[name] * bytes_of[precision] + worth * lost

    found = options.assign(worth, noise)
    for name in NAMES:
        chosen = found.get(name, Precision.FLOAT)
        assert price(name, chosen) == pytest.approx(min(price(name, p) for p in bytes_of))
    assert options.cost({}) == 4 * sum(sizes)


def test_a_layer_of_unknown_noise_stays_float_once_noise_has_a_price() -> None:
    options = CountOptions({"a": 1.0, "b": 1.0}, Precision.INT8)
    assert set(options.assign(0.0, {})) == {"a", "b"}
    assert set(options.assign(1.0, {Precision.INT8: {"a": 0.5}})) == {"a"}


class TestLimits:
    def test_budgets_of_the_user_win(self) -> None:
        found = limits_of(Budgets(min_sqnr=25), Loss(sqnr_db=200, agreement=1.0, metric=0.9))
        assert found == Limits(min_sqnr=25)

    def test_without_budgets_labels_decide(self) -> None:
        found = limits_of(Budgets(), Loss(sqnr_db=200, agreement=1.0, metric=0.9))
        assert found.usual
        assert found.max_drop == 0.01

    def test_without_labels_answers_do(self) -> None:
        found = limits_of(Budgets(), Loss(sqnr_db=200, agreement=1.0))
        assert (found.min_agreement, found.max_drop) == (0.97, None)

    def test_other_outputs_keep_30_db(self) -> None:
        assert limits_of(Budgets(), Loss(sqnr_db=200)).min_sqnr == 30

    def test_a_drop_without_labels_is_a_limit_on_changed_answers(self) -> None:
        found = limits_of(Budgets(max_drop=0.01), Loss(sqnr_db=200, agreement=1.0))
        assert found.min_agreement == pytest.approx(0.96)  # four changes for a mistake
        assert found.max_drop is None

    @pytest.mark.parametrize(
        ("loss", "kept"),
        [
            (Loss(sqnr_db=20, agreement=0.99, metric=0.895), True),
            (Loss(sqnr_db=19.9, agreement=0.99, metric=0.9), False),
            (Loss(sqnr_db=40, agreement=0.98, metric=0.9), False),
            (Loss(sqnr_db=40, agreement=0.99, metric=0.89), False),
            (Loss(sqnr_db=40, agreement=0.99), False),
            (Loss(agreement=0.99, metric=0.9), False),
        ],
    )
    def test_all_of_them_are_kept_or_none(self, loss: Loss, kept: bool) -> None:
        assert Limits(max_drop=0.005, min_sqnr=20, min_agreement=0.99).kept(loss, 0.9) is kept

    def test_tightened_by_half(self) -> None:
        found = Limits(max_drop=0.01, min_sqnr=20, min_agreement=0.98).tightened(0.5)
        assert found.max_drop == pytest.approx(0.005)
        assert found.min_agreement == pytest.approx(0.99)
        assert found.min_sqnr == pytest.approx(23.0103)  # half the noise energy: 10 log10 2

    def test_usual_limits_are_read_in_whole_answers(self) -> None:
        """Never stricter than the share itself, and looser by less than one answer."""
        usual = limits_of(Budgets(), Loss(sqnr_db=200, agreement=1.0))
        for samples in range(1, 1001):
            read = usual.in_answers(samples)
            most = -(-3 * samples // 100)  # three of a hundred, rounded up, in integers
            # 1e-12: fractions of so few answers are that exact in floating point
            assert read.min_agreement == pytest.approx(1 - most / samples, rel=1e-12)
            assert read.min_agreement <= 0.97 + 1e-12
            assert read.min_agreement > 0.97 - 1 / samples
            assert read.kept(Loss(sqnr_db=20, agreement=(samples - most) / samples), None)
            assert not read.kept(Loss(sqnr_db=20, agreement=(samples - most - 1) / samples), None)
            assert (read.min_sqnr, read.usual) == (20, True)

    def test_a_drop_without_labels_is_read_in_whole_answers(self) -> None:
        """Which answers are lost is not known: the limit is a guess, and the proof decides."""
        found = limits_of(Budgets(max_drop=0.003), Loss(sqnr_db=200, agreement=1.0))
        assert found.in_answers(200).min_agreement == pytest.approx(1 - 3 / 200)  # of 2.4

    def test_budgets_of_the_user_are_shares(self) -> None:
        own = Limits(min_agreement=0.97)
        assert own.in_answers(40) == own
        without = Limits(max_drop=0.01, usual=True)
        assert without.in_answers(40) == without


class TestUntimed:
    TEXT = """<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
    g (float[N,4,16] x) => (float[N,4,32] y)
    <float[16,48] a = seeded, float[48] b = seeded, float[16,32] w = seeded> {
      [attention] h = com.microsoft.Attention <num_heads = 2> (x, a, b)
      [linear] y = MatMul (h, w) }"""

    @pytest.fixture
    def maker(self, build, study) -> Maker:
        found = study(build(self.TEXT))
        return Maker(found.model, found.subject)

    def test_four_bits_give_way_to_eight(self, maker: Maker) -> None:
        """In 4 bits nothing has 8 but what can have 4: the others stay as they are."""
        options = untimed(maker, FOUR)
        assert options.assign(0.0, {}) == {"linear": FOUR}
        assert options.assign(1.0, {FOUR: {"linear": 1e6}, EIGHT: {"linear": 1.0}}) == {
            "linear": EIGHT
        }
        assert options.assign(1.0, {FOUR: {"linear": 1e6}, EIGHT: {"linear": 1e6}}) == {}
        assert options.weights == {FOUR: {"linear": 512}, EIGHT: {"linear": 512}}

    def test_the_fewest_bytes_are_whatever_each_can_have(self, maker: Maker) -> None:
        assert untimed(maker, None).assign(0.0, {}) == {"attention": EIGHT, "linear": FOUR}

    def test_others_go_to_float(self, maker: Maker) -> None:
        options = untimed(maker, EIGHT)
        assert options.precisions == (EIGHT,)
        assert list(options.nodes) == ["attention", "linear"]  # in the graph's order
        assert options.nodes["attention"] > options.nodes["linear"] > 1.0
