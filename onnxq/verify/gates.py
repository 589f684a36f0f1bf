"""Budgets of the recipe, held against what was measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxq.plan import Budgets
from onnxq.verify.bootstrap import needed_samples
from onnxq.verify.receipt import Gate, Int8Share, Measured

# 0.995 - 0.99 is a little more than 0.005 in floating point; no budget is as fine as this.
ROUNDING = 1e-9
MOST_REASONS = 5


@dataclass(frozen=True)
class _Figure:
    """What a budget is held against.

    Attributes:
        value: What was measured; None when it could not be.
        bound: The worst that it may be by chance; None where there is none.
        samples: What it rests on; 0 for what is no question of samples.
        note: What is to be said when the budget is missed.
    """

    value: float | None
    bound: float | None = None
    samples: int = 0
    note: str = ""


def check_gates(budgets: Budgets, measured: Measured) -> tuple[Gate, ...]:
    """One gate per budget. What could not be measured is a missed gate, not a passed one.

    Where samples tell how far chance may go, a figure must keep the limit with its bound too.
    """
    latency, share = measured.latency, measured.int8_share
    most = {"max_drop": _drop(measured), "max_size_ratio": _Figure(measured.size_ratio)}
    least = {
        "min_sqnr": _least(measured, "sqnr_db", "sqnr_bound_db"),
        "min_agreement": _agreement(measured),
        "min_speedup": _Figure(latency.ratio_prepared if latency is not None else None),
        "min_int8": _int8(share) if share is not None else _Figure(None),
    }
    gates = [_gate(budgets, name, found, measured, 1) for name, found in most.items()]
    gates += [_gate(budgets, name, found, measured, -1) for name, found in least.items()]
    return tuple(gate for gate in gates if gate is not None)


def _drop(measured: Measured) -> _Figure:
    metric = measured.metric
    if metric is None:
        return _Figure(None)
    return _Figure(metric.source - metric.output, metric.drop_bound, metric.samples)


def _least(measured: Measured, field: str, bound: str) -> _Figure:
    """The worst output; the least of the bounds is a bound of the least figure."""
    outputs = measured.outputs.values()
    found = [getattr(facts, field) for facts in outputs if getattr(facts, field) is not None]
    bounds = [getattr(facts, bound) for facts in outputs if getattr(facts, bound) is not None]
    return _Figure(min(found, default=None), min(bounds, default=None), measured.samples)


def _agreement(measured: Measured) -> _Figure:
    """Of outputs of integers, which are answers themselves, the share of equal entries."""
    found = _least(measured, "top1_agreement", "agreement_bound")
    equal = [facts.equal for facts in measured.outputs.values() if facts.equal is not None]
    if not equal:
        return found
    known = [] if found.value is None else [found.value]
    return _Figure(min(known + equal), found.bound, measured.samples)


def _int8(share: Int8Share) -> _Figure:
    told = [f"{reason.node}: {reason.sentence}" for reason in share.float_nodes[:MOST_REASONS]]
    if (more := len(share.float_nodes) - MOST_REASONS) > 0:
        told.append(f"and {more} more")
    note = f"{share.int8} of {share.able} layers that can run as int8 do"
    return _Figure(share.int8 / max(share.able, 1), note="; ".join([note, *told]))


def _gate(
    budgets: Budgets, name: str, found: _Figure, measured: Measured, sign: int
) -> Gate | None:
    limit: float | None = getattr(budgets, name)
    if limit is None:
        return None
    kept = found.value is not None and sign * (found.value - limit) <= ROUNDING
    proven = found.bound is None or sign * (found.bound - limit) <= ROUNDING
    note = ""
    if found.value is not None and not kept:
        note = found.note
    elif found.value is not None and found.samples and found.bound is None:
        note = f"by the value alone: {measured.unproven or 'its bound could not be computed'}"
    elif found.value is not None and found.bound is not None and not proven:
        note = _wanting(found.samples, found.value, found.bound, limit)
    return Gate(name, limit, found.value, kept and proven, found.bound, note)


def _wanting(samples: int, value: float, bound: float, limit: float) -> str:
    """What a figure lacks that keeps its limit, though its bound does not."""
    text = f"{samples} samples do not prove it"
    needed = needed_samples(samples, value, bound, limit)
    if not np.isfinite(needed) or needed > 1e3 * samples:
        return f"{text}, and it is too near to the limit for more samples to help"
    return f"{text}; about {_two_digits(needed):,} may"


def _two_digits(number: float) -> int:
    """Rounded up to two digits that tell something."""
    unit = 10 ** max(int(np.log10(number)) - 1, 0)
    return int(np.ceil(number / unit) * unit)
