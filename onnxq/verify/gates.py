"""Budgets of the recipe, held against what was measured."""

from __future__ import annotations

from onnxq.plan import Budgets
from onnxq.verify.receipt import Gate, Measured

# 0.995 - 0.99 is a little more than 0.005 in floating point; no budget is as fine as this.
ROUNDING = 1e-9


def check_gates(budgets: Budgets, measured: Measured) -> tuple[Gate, ...]:
    """One gate per budget. What could not be measured is a missed gate, not a passed one."""
    outputs = measured.outputs.values()
    agreements = [o.top1_agreement for o in outputs if o.top1_agreement is not None]
    metric, latency, coverage = measured.metric, measured.latency, measured.int8_coverage
    drop = metric.source - metric.output if metric is not None else None
    most = [("max_drop", drop), ("max_size_ratio", measured.size_ratio)]
    least = [
        ("min_sqnr", min((o.sqnr_db for o in outputs if o.sqnr_db is not None), default=None)),
        ("min_agreement", min(agreements, default=None)),
        ("min_speedup", latency.ratio_prepared if latency is not None else None),
        ("min_int8", coverage.int8 / max(coverage.wanted, 1) if coverage is not None else None),
    ]
    gates = [_gate(budgets, name, value, upper=True) for name, value in most]
    gates += [_gate(budgets, name, value, upper=False) for name, value in least]
    return tuple(gate for gate in gates if gate is not None)


def _gate(budgets: Budgets, name: str, value: float | None, *, upper: bool) -> Gate | None:
    limit: float | None = getattr(budgets, name)
    if limit is None:
        return None
    beyond = None if value is None else (value - limit if upper else limit - value)
    passed = beyond is not None and beyond <= ROUNDING
    return Gate(name, limit, value, passed)
