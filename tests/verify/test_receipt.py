"""Receipts: valid JSON whatever was measured, and read back as they were."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import jsonschema
import msgspec
import numpy as np
import pytest

from onnxq.graph import Model
from onnxq.plan import NodePlan, QuantPlan, Recipe
from onnxq.runtime import Session
from onnxq.types import Precision, TensorRange
from onnxq.verify import (
    FileFacts,
    Gate,
    Measured,
    Receipt,
    RunFacts,
    Subjects,
    receipt_schema,
    verify,
)
from onnxq.verify.receipt import MOST_DB, finite_db

IDENTITY = "net (float[N,4] x) => (float[N,4] y, float[N,3] z) <float[4,3] w = seeded>"
IDENTITY += "{ [id] y = Identity (x) [mul] z = MatMul (x, w) }"


class OneBatch:
    """Stands in for a reader of one batch of float data without labels."""

    has_labels = False
    size = 2

    def __init__(self, x: np.ndarray) -> None:
        self._x = x

    def batches(self, _size: int) -> list[object]:
        batch = type("Batch", (), {"feed": {"x": self._x}, "labels": None, "count": 2})
        return [batch]


def receipt(measured: Measured, *gates: Gate) -> Receipt:
    node = NodePlan("conv", "Conv", Precision.INT8)
    return Receipt(
        schema=1,
        onnxq="0",
        source=FileFacts("a.onnx", "0" * 64, 1000),
        output=FileFacts("b.onnx", "1" * 64, 250),
        recipe=Recipe(),
        run=RunFacts(0, prepare=True),
        data={},
        plan=QuantPlan("cpu-x86", (node,), {}),
        ranges={"x": TensorRange(-1, 1, -2, 2)},
        measured=measured,
        gates=gates,
        environment={},
    )


@pytest.mark.parametrize(
    ("value", "told"),
    [(math.inf, MOST_DB), (-math.inf, -MOST_DB), (math.nan, -MOST_DB), (42.5, 42.5), (300, 200)],
)
def test_finite_db(value: float, told: float) -> None:
    assert finite_db(value) == told


@pytest.mark.parametrize("x", [np.ones((2, 4)), np.zeros((2, 4))], ids=["ones", "zeros"])
def test_identical_outputs(build: Callable[[str], Model], x: np.ndarray) -> None:
    """Two equal signals have an infinite ratio, which JSON cannot hold."""
    model = build(IDENTITY)
    subjects = Subjects(model, model, model, 100, 100, 100)
    reader = OneBatch(x.astype(np.float32))
    found = verify(subjects, QuantPlan("cpu-x86", (), {}), reader, seconds=0)
    assert {name: facts.sqnr_db for name, facts in found.outputs.items()} == {"y": 200, "z": 200}
    text = receipt(found).to_json()
    # no NaN, no Infinity, and no null in the place of one
    strict = json.loads(text, parse_constant=pytest.fail)
    jsonschema.validate(strict, receipt_schema())
    assert Receipt.from_json(text).measured == found


def test_outputs_with_infinities(build: Callable[[str], Model]) -> None:
    """An output that holds infinities where the source's does not is as wrong as can be."""
    source = build("net (float[N,4] x) => (float[N,4] y) { [id] y = Identity (x) }")
    broken = build("net (float[N,4] x) => (float[N,4] y) { [log] z = Sub (x, x) y = Log (z) }")
    subjects = Subjects(source, source, broken, 100, 100, 100)
    reader = OneBatch(np.ones((2, 4), np.float32))
    found = verify(subjects, QuantPlan("cpu-x86", (), {}), reader, seconds=0)
    assert found.outputs["y"].sqnr_db == -MOST_DB
    text = receipt(found).to_json()
    jsonschema.validate(json.loads(text), receipt_schema())
    assert Receipt.from_json(text).measured == found


def test_noise_is_measured(build: Callable[[str], Model]) -> None:
    text = "net (float[N,4] x) => (float[N,4] y) <float c = {{{}}}> {{ [add] y = Add (x, c) }}"
    source, output = build(text.format("0.0")), build(text.format("0.1"))
    subjects = Subjects(source, source, output, 400, 300, 100)
    x = np.ones((2, 4), np.float32)
    found = verify(subjects, QuantPlan("cpu-x86", (), {}), OneBatch(x), seconds=0)
    # a tenth of the signal is 20 dB; 0.1 is not exact in float32
    assert found.outputs["y"].sqnr_db == pytest.approx(20, abs=1e-3)
    assert found.size_ratio == 0.25
    assert found.samples == 2
    assert [candidate.bytes for candidate in found.candidates] == [400, 300, 100]


def test_without_data_latency_is_measured_on_made_up_input(build: Callable[[str], Model]) -> None:
    model = build(IDENTITY)
    subjects = Subjects(model, model, model, 100, 100, 100)
    found = verify(subjects, QuantPlan("cpu-x86", (), {}), None, seconds=0.001)
    assert found.outputs == {}
    assert found.metric is None
    assert found.latency is not None
    assert found.latency.batch == 1
    assert found.prepared.ms is not None
    assert Session(model).inputs[0].shape[0] == "N"


def test_made_up_input_that_does_not_do_is_told(build: Callable[[str], Model]) -> None:
    """Without data, a model that takes no made-up feed has no latency, and the run goes on."""
    text = "net (float[N] x) => (float[2,3] y) <int64[2] to = {2, 3}> { y = Reshape (x, to) }"
    model = build(text)
    subjects = Subjects(model, model, model, 100, 100, 100)
    found = verify(subjects, QuantPlan("cpu-x86", (), {}), None, seconds=0.001)
    assert found.latency is None
    assert any("made-up feed" in note for note in found.notes)


def test_passed(measured: Callable[..., Measured]) -> None:
    kept, missed = Gate("min_sqnr", 10, 20.0, True), Gate("min_int8", 0.9, None, False)
    assert receipt(measured()).passed
    assert receipt(measured(), kept).passed
    assert not receipt(measured(), kept, missed).passed


def test_full_receipt(measured: Callable[..., Measured]) -> None:
    made = receipt(measured(), Gate("min_int8", 0.9, None, False))
    jsonschema.validate(json.loads(made.to_json()), receipt_schema())
    assert Receipt.from_json(made.to_json()) == made
    with pytest.raises(msgspec.ValidationError, match="missing required field `plan`"):
        broken = json.loads(made.to_json())
        del broken["plan"]
        Receipt.from_json(json.dumps(broken).encode())
