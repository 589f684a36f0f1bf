"""Budgets: kept, missed, and missed because nothing was measured."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from onnxq.plan import Budgets
from onnxq.verify import Gate, Int8Share, Measured, OutputFacts, check_gates

# budget, a limit that the made-up figures keep, one that they miss, and what was measured
CASES = [
    ("max_drop", 0.02, 0.005, 0.01),
    ("max_size_ratio", 0.3, 0.2, 0.25),
    ("min_sqnr", 15, 25, 20.0),  # of the worst output
    ("min_agreement", 0.95, 0.99, 0.98),
    ("min_speedup", 1.5, 2.5, 2.0),  # against the prepared float model, not the source
    ("min_int8", 0.8, 0.95, 0.9),  # of all layers that could, not of those planned
]


def only_gate(name: str, limit: float, measured: Measured) -> Gate:
    (gate,) = check_gates(Budgets(**{name: limit}), measured)
    assert (gate.name, gate.limit) == (name, limit)
    return gate


def test_cases_cover_all_budgets() -> None:
    assert {case[0] for case in CASES} == {f.name for f in msgspec.structs.fields(Budgets)}


@pytest.mark.parametrize(("name", "kept", "missed", "value"), CASES, ids=[c[0] for c in CASES])
def test_kept_or_missed(
    measured: Callable[..., Measured], name: str, kept: float, missed: float, value: float
) -> None:
    gate = only_gate(name, kept, measured())
    assert gate.passed
    assert gate.value == pytest.approx(value, rel=1e-12)  # 0.90 - 0.89 is not exactly 0.01
    assert not only_gate(name, missed, measured()).passed


@pytest.mark.parametrize("name", [c[0] for c in CASES if c[0] != "max_size_ratio"])
def test_not_measured_is_missed(nothing_measured: Measured, name: str) -> None:
    # limits that any figure would keep
    gate = only_gate(name, 1e9 if name.startswith("max") else -1e9, nothing_measured)
    assert gate.value is None
    assert not gate.passed


@pytest.mark.parametrize(
    # 0.90 - 0.89 is a little more than 0.01 in floating point
    ("name", "limit"),
    [("max_size_ratio", 0.25), ("min_speedup", 2.0), ("max_drop", 0.01)],
)
def test_the_limit_itself_is_kept(
    measured: Callable[..., Measured], name: str, limit: float
) -> None:
    assert only_gate(name, limit, measured()).passed


def test_no_budget_no_gate(measured: Callable[..., Measured]) -> None:
    assert check_gates(Budgets(), measured()) == ()


def test_all_budgets(measured: Callable[..., Measured]) -> None:
    gates = check_gates(Budgets(**{name: kept for name, kept, _, _ in CASES}), measured())
    assert {gate.name for gate in gates} == {case[0] for case in CASES}
    assert all(gate.passed for gate in gates)


def test_better_metric_keeps_any_drop(measured: Callable[..., Measured]) -> None:
    better = msgspec.structs.replace(measured().metric, output=0.95)
    gate = only_gate("max_drop", 0.0, measured(metric=better))
    assert gate.passed
    assert gate.value == pytest.approx(-0.05, rel=1e-12)


def test_agreement_needs_scores(measured: Callable[..., Measured]) -> None:
    only_boxes = measured(outputs={"boxes": OutputFacts(20.0, 0.99)})
    assert only_gate("min_agreement", 0.1, only_boxes).value is None


def test_no_layer_that_could_run_as_int8(measured: Callable[..., Measured]) -> None:
    gate = only_gate("min_int8", 0.5, measured(int8_share=Int8Share(0, 0, ())))
    assert not gate.passed
