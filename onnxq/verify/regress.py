"""Gates of ``onnxq check``: what a run measured, held against what its baseline measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import msgspec

from onnxq.plan import CheckSettings
from onnxq.plan.checking import CheckName
from onnxq.types import Precision
from onnxq.verify.bitmap import from_bitmap
from onnxq.verify.changes import MACHINE, Changes, range_moves
from onnxq.verify.gates import ROUNDING
from onnxq.verify.paired import paired_fall, unpaired_fall
from onnxq.verify.receipt import LatencyFacts, MetricFacts, OutputFacts, Receipt


class CheckGate(msgspec.Struct, frozen=True):
    """One figure beside the baseline's.

    Attributes:
        name: What it is about.
        status: ``skipped`` where there is nothing to compare with, or it is not to count.
        limit: The most that it may be worse.
        before: The baseline's figure; of ``ranges`` there is none.
        after: The figure now.
        worse: How much worse it is, in the limit's unit; negative for better, None when it was
            not measured.
        bound: How much worse it is at least, whatever chance does; None where ``worse`` itself
            counts.
        note: What the verdict rests on, or what is missing.
    """

    name: CheckName
    status: Literal["passed", "failed", "skipped"]
    limit: float
    before: float | None = None
    after: float | None = None
    worse: float | None = None
    bound: float | None = None
    note: str = ""


class Check(msgspec.Struct, frozen=True):
    """What ``onnxq check`` found. ``--json`` prints it.

    Attributes:
        model: Path of the model.
        baseline: Path of the baseline.
        passed: Whether no gate failed.
        gates: One per figure.
        changes: What is not as it was.
        plan: How the plan was made.
        notes: What a reader must know to judge the figures.
        updated: Whether this run is the baseline from now on.
        schema: Version of this structure.
    """

    model: str
    baseline: str
    passed: bool
    gates: tuple[CheckGate, ...]
    changes: Changes
    plan: str
    notes: tuple[str, ...] = ()
    updated: bool = False
    schema: int = 1


class _Found(msgspec.Struct, frozen=True):
    """What a gate is decided by; ``lacks`` says what was not measured now that was before."""

    before: float | None = None
    after: float | None = None
    worse: float | None = None
    bound: float | None = None
    note: str = ""
    skip: str = ""
    lacks: str = ""


def regressions(before: Receipt, after: Receipt, settings: CheckSettings) -> tuple[CheckGate, ...]:
    """Hold a run against its baseline.

    A gate fails where a figure is worse by more than its tolerance; of the metric and of the
    agreement, where the samples prove that with 95 % confidence; of latency, where what either
    measurement may be off by chance does not explain it. A figure that the baseline has and the
    run has not is a failed gate, too.
    """
    rules: dict[CheckName, tuple[float, Callable[[Receipt, Receipt], _Found]]] = {
        "metric": (settings.max_metric_drop, _metric),
        "agreement": (settings.max_agreement_drop, _agreement),
        "sqnr": (settings.max_sqnr_loss, _sqnr),
        "size": (settings.max_size_growth, _size),
        "latency": (settings.max_slowdown, _latency),
        "coverage": (settings.max_coverage_drop, _coverage),
        "ranges": (settings.max_range_change, _ranges),
    }
    return tuple(
        CheckGate(name, "skipped", limit, note="not to be looked at ([check] skip)")
        if name in settings.skip
        else _gate(name, limit, found_by(before, after))
        for name, (limit, found_by) in rules.items()
    )


def _gate(name: CheckName, limit: float, found: _Found) -> CheckGate:
    if found.skip:
        return CheckGate(name, "skipped", limit, found.before, found.after, note=found.skip)
    if found.worse is None:
        return CheckGate(name, "failed", limit, found.before, found.after, note=found.lacks)
    counts = found.worse if found.bound is None else found.bound
    failed, note = counts - limit > ROUNDING, found.note
    if not failed and found.worse - limit > ROUNDING:
        note = "; ".join(filter(None, ["may be chance: more samples or rounds would tell", note]))
    return CheckGate(
        name, "failed" if failed else "passed", limit,
        found.before, found.after, found.worse, found.bound, note,
    )  # fmt: skip


def _metric(before: Receipt, after: Receipt) -> _Found:
    old, new = before.measured.metric, after.measured.metric
    if old is None:
        return _Found(skip="the baseline has no metric")
    if new is None:
        return _Found(old.output, lacks="the baseline has a metric; give --test-data with labels")
    if old.name != new.name:
        return _Found(
            old.output, lacks=f"the baseline's metric is {old.name}, and this run's {new.name}"
        )
    if old.judged != new.judged:
        return _Found(
            old.output,
            lacks=f"the baseline's metric is of output '{old.judged}', and this run's of "
            f"'{new.judged}'",
        )
    notes, bound = [], None
    if new.name == "top1":
        bound, how = _fall(
            (old.output, old.samples, old.hits),
            (new.output, new.samples, new.hits),
            same=_same_samples(before, after),
        )
        notes.append(how)
    if notes and (fault := _fault(old, new)):
        notes.append(fault)
    return _Found(old.output, new.output, old.output - new.output, bound, "; ".join(notes))


def _fault(old: MetricFacts, new: MetricFacts) -> str:
    """Which model lost the metric, the float one or what was made of it."""
    fall = old.source - new.source
    if old.output - new.output <= 0 or fall <= 0:
        return ""
    part = "most" if fall >= (old.output - new.output) / 2 else "a part"
    return f"the float model lost {part} of it: {old.source:.4f} to {new.source:.4f}"


def _fall(
    old: tuple[float, int, str], new: tuple[float, int, str], *, same: bool
) -> tuple[float | None, str]:
    """Lower bound of the fall of a share, and what it rests on."""
    (before, samples, answers), (after, samples_now, answers_now) = old, new
    basis = f"{samples_now} samples, others than the baseline's {samples}"
    if same and samples == samples_now:
        flags, flags_now = from_bitmap(answers, samples), from_bitmap(answers_now, samples)
        if flags is not None and flags_now is not None:
            lost, won = int((flags & ~flags_now).sum()), int((flags_now & ~flags).sum())
            text = f"{lost} lost and {won} won of the same {samples} samples"
            return paired_fall(flags, flags_now), text
        who = "the baseline" if flags is None else "this run"
        basis = f"{samples} samples, of which {who} holds no answers"
    if not (samples and samples_now):
        return None, "by the value alone"
    return unpaired_fall(before, samples, after, samples_now), basis


def _same_samples(before: Receipt, after: Receipt) -> bool:
    return before.data.get("test", "") == after.data.get("test", "-")


def _agreement(before: Receipt, after: Receipt) -> _Found:
    def found(name: str, old: OutputFacts, new: OutputFacts) -> _Found:
        first, second = _answers(old), _answers(new)
        if first is None or second is None:
            return _Found(first, lacks=f"output '{name}' has no answers any more")
        if old.top1_agreement is None:
            return _Found(first, second, first - second, note=f"output '{name}': equal entries")
        bound, how = _fall(
            (first, before.measured.samples, old.agreeing),
            (second, after.measured.samples, new.agreeing),
            same=_same_samples(before, after),
        )
        return _Found(first, second, first - second, bound, f"output '{name}': {how}")

    return _worst_output(before, after, _answers, found, "answers to compare")


def _answers(facts: OutputFacts) -> float | None:
    """Of an output of integers, which are answers themselves, the share of equal entries."""
    return facts.top1_agreement if facts.top1_agreement is not None else facts.equal


def _sqnr(before: Receipt, after: Receipt) -> _Found:
    def found(name: str, old: OutputFacts, new: OutputFacts) -> _Found:
        if old.sqnr_db is None or new.sqnr_db is None:
            return _Found(old.sqnr_db, lacks=f"output '{name}' has no SQNR any more")
        return _Found(old.sqnr_db, new.sqnr_db, old.sqnr_db - new.sqnr_db, note=f"output '{name}'")

    return _worst_output(before, after, lambda facts: facts.sqnr_db, found, "float outputs")


def _worst_output(
    before: Receipt,
    after: Receipt,
    figure: Callable[[OutputFacts], float | None],
    found: Callable[[str, OutputFacts, OutputFacts], _Found],
    what: str,
) -> _Found:
    """The output that is worse by most; one that is gone is worse than any."""
    old, new = before.measured.outputs, after.measured.outputs
    known = [name for name, facts in old.items() if figure(facts) is not None]
    if not known:
        return _Found(skip=f"the baseline has no {what}")
    if not new:
        return _Found(lacks=f"the baseline has {what}; give --test-data")
    if gone := [name for name in known if name not in new]:
        return _Found(lacks=f"there is no output '{gone[0]}' any more")
    all_found = [found(name, old[name], new[name]) for name in known]
    return max(all_found, key=_badness)


def _badness(found: _Found) -> float:
    if found.worse is None:
        return float("inf")
    return found.worse if found.bound is None else found.bound


def _size(before: Receipt, after: Receipt) -> _Found:
    old, new = before.output.bytes, after.output.bytes
    return _Found(old, new, new / old - 1)


def _latency(before: Receipt, after: Receipt) -> _Found:
    old, new = before.measured.latency, after.measured.latency
    if old is None or old.undisturbed is None:
        return _Found(skip="the baseline has no latency")
    if why := other_machine(before, after.environment):
        return _Found(1 / old.undisturbed, skip=why)
    if new is None or new.undisturbed is None:
        return _Found(1 / old.undisturbed, lacks="the baseline has a latency, and this run none")
    times = 1 / old.undisturbed, 1 / new.undisturbed
    if why := _other_way(old, new):
        return _Found(*times, skip=why)
    growth = old.undisturbed / new.undisturbed
    # the least that it grew, if chance made the baseline too fast and this run too slow
    noise, noise_now = old.undisturbed_noise, new.undisturbed_noise
    bound = growth * (1 - min(noise_now, 1.0)) / (1 + noise) - 1
    note = f"time per run of prepared float, ±{noise:.0%} then and ±{noise_now:.0%} now"
    return _Found(*times, growth - 1, bound, note)


def other_machine(baseline: Receipt, environment: Mapping[str, str]) -> str:
    """Why a latency from here says nothing beside the baseline's; empty where it does."""
    for name in MACHINE:
        here, there = environment.get(name), baseline.environment.get(name)
        if here != there:
            return f"another machine than the baseline's: {name} {here}, not {there}"
    return ""


def _other_way(old: LatencyFacts, new: LatencyFacts) -> str:
    """What two latencies were measured with that is not the same."""
    for name in ("threads", "batch", "provider"):
        if getattr(old, name) != getattr(new, name):
            return f"with {name} {getattr(new, name)}, not {getattr(old, name)}"
    return ""


def _coverage(before: Receipt, after: Receipt) -> _Found:
    old, new = _share(before), _share(after)
    coverage = after.measured.int8_coverage
    missed = coverage.float_nodes if coverage is not None else ()
    told = [f"{reason.node}: {reason.sentence}" for reason in missed[:1]]
    note = "; ".join([f"{_running(after)} of {len(after.plan.nodes)} nodes", *told])
    return _Found(old, new, old - new, note=note)


def _share(receipt: Receipt) -> float:
    return _running(receipt) / max(len(receipt.plan.nodes), 1)


def _running(receipt: Receipt) -> int:
    """How many nodes are quantized, less those that run as float all the same.

    Unlike ``int8_share`` it counts every node: a Relu that an export writes as Max is no layer
    that multiplies, and breaks the integer path all the same.
    """
    coverage = receipt.measured.int8_coverage
    floats = len(coverage.float_nodes) if coverage is not None else 0
    return len(receipt.plan.nodes) - receipt.plan.count(Precision.FLOAT) - floats


def _ranges(before: Receipt, after: Receipt) -> _Found:
    if not before.ranges:
        return _Found(skip="the baseline has no calibrated ranges")
    common = [tensor for tensor in after.ranges if tensor in before.ranges]
    if not common:
        return _Found(lacks="no tensor of the baseline's was calibrated")
    moves = range_moves(before.ranges, after.ranges)
    if not moves:
        return _Found(worse=0.0, note=f"{len(common)} tensors")
    far = moves[0]
    ends = (f"{lo:.4g}..{hi:.4g}" for lo, hi in (far.before, far.after))
    return _Found(worse=far.change, note=f"'{far.tensor}': {' to '.join(ends)}")
