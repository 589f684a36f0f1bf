"""Four bits that miss a budget: fragile layers get eight, and are float where those do not do."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from msgspec.structs import replace
from rich.console import Console

import onnxq
from onnxq.plan import Budgets, VerifySettings, load_recipe
from onnxq.report import receipt_view
from onnxq.types import Precision
from onnxq.verify import Receipt

MODELS = Path(__file__).parents[2] / "models"
MODEL = MODELS / "digits_cnn.onnx"
DATA = {"data": MODELS / "digits_calibration.npz", "test_data": MODELS / "digits_test.npz"}
FOUR, EIGHT, FLOAT = Precision.INT4_WEIGHTS, Precision.INT8_WEIGHTS, Precision.FLOAT
LAYERS = 5
MIN_SQNR = 26.0  # 4 bits leave some 21.5 dB here, 8 bits some 44.5 dB


def quantize(min_sqnr: float, **changes: object) -> Receipt:
    recipe = replace(
        load_recipe(MODEL.with_suffix(".onnxq.toml")), precision="int4-weights",
        budgets=Budgets(min_sqnr=min_sqnr), verify=VerifySettings(seconds=0), **changes,
    )  # fmt: skip
    return onnxq.quantize(MODEL, recipe=recipe, **DATA).receipt


def sqnr_of(receipt: Receipt) -> float:
    found = receipt.measured.outputs["logits"].sqnr_db
    assert found is not None
    return found


@pytest.fixture(scope="module")
def missed() -> Receipt:
    return quantize(MIN_SQNR)


def test_a_budget_that_is_kept_changes_nothing() -> None:
    made = quantize(15.0)
    assert made.plan.count(FOUR) == LAYERS
    assert made.plan.count(EIGHT) == 0
    assert [n for n in made.plan.nodes if n.precision is FOUR and n.reason is not None] == []


def test_fragile_layers_get_eight_bits(missed: Receipt) -> None:
    assert sqnr_of(missed) >= MIN_SQNR
    assert 0 < missed.plan.count(EIGHT) < LAYERS
    assert missed.plan.count(FOUR) + missed.plan.count(EIGHT) == LAYERS


def test_the_file_is_smaller_than_with_float_layers(missed: Receipt) -> None:
    """The same layers in float make a file of three times the size, by their weights alone."""
    back = quantize(MIN_SQNR, keep_float=missed.plan.named(EIGHT))
    assert set(back.plan.named(FOUR)) == set(missed.plan.named(FOUR))
    assert sqnr_of(back) >= MIN_SQNR
    assert missed.output.bytes < 0.75 * back.output.bytes


def test_what_eight_bits_do_not_do_goes_to_float() -> None:
    """No layer of 8 bits is as near as this; what they leave is float."""
    made = quantize(52.0)
    floats = set(made.plan.named(FLOAT))
    layers = [n for n in made.plan.nodes if n.op in ("Conv", "Gemm")]
    assert sqnr_of(made) >= 52.0
    assert made.plan.count(FOUR) == 0
    assert 0 < sum(n.name in floats for n in layers) < LAYERS


def test_receipt_and_table_say_which_and_why(missed: Receipt) -> None:
    told = {n.name: n.reason for n in missed.plan.nodes if n.precision is EIGHT}
    for name, reason in told.items():
        assert reason is not None
        assert (reason.code, reason.node) == ("measured", name)
        assert "has int8-weights: int4-weights of this layer alone leaves" in reason.sentence
    console = Console(file=StringIO(), width=200)
    console.print(receipt_view(missed))
    shown = console.file.getvalue()
    assert all(f"{name}: has int8-weights: int4-weights of" in shown for name in told)
    assert f"{len(told)} with int8 weights" in shown
