"""``verify``: compare the output model with its source on samples that calibration never saw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from onnxq.data import Reader
from onnxq.errors import RuntimeFailure, SelfCheckError
from onnxq.graph import Model
from onnxq.ops import Census
from onnxq.plan import Budgets, QuantPlan
from onnxq.runtime import (
    Latency,
    Session,
    StateLoop,
    int8_coverage,
    measure_models,
    synthetic_feed,
    told_fallback,
)
from onnxq.targets import CPU, Provider, get_target
from onnxq.types import Feed, Precision
from onnxq.verify.compare import Comparison
from onnxq.verify.int8 import int8_share
from onnxq.verify.judge import Judging
from onnxq.verify.metric import MetricChoice
from onnxq.verify.receipt import (
    Candidate,
    LatencyFacts,
    Measured,
    MetricFacts,
    OutputFacts,
    PreparedFacts,
)

# Below this, the noise is more than a third of the signal's amplitude.
RUINED_DB = 10.0
# A metric that falls by less is as good as it was.
NO_DROP = 0.01
# stage, done, total
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Subjects:
    """The three models of a run and their sizes in bytes."""

    source: Model
    prepared: Model
    output: Model
    source_bytes: int
    prepared_bytes: int
    output_bytes: int


@dataclass(frozen=True)
class Demands:
    """What is to be proven, which decides what is measured for it.

    Attributes:
        budgets: Those of accuracy ask for bounds, and ``min_int8`` for the share of layers.
        census: What each node of the prepared model is; ``min_int8`` cannot be measured without.
        seed: Draws samples anew for the bounds.
    """

    budgets: Budgets = field(default_factory=Budgets)
    census: Census | None = None
    seed: int = 0


def verify(
    subjects: Subjects,
    plan: QuantPlan,
    reader: Reader | None,
    *,
    metric: MetricChoice | None = None,
    judge: str | None = None,
    batch_size: int = 8,
    provider: Provider = CPU,
    threads: int = 1,
    seconds: float = 5.0,
    state: Mapping[str, str] | None = None,
    demands: Demands | None = None,
    notes: tuple[str, ...] = (),
    progress: Progress | None = None,
) -> Measured:
    """Measure accuracy, size, latency and int8 coverage.

    Args:
        subjects: The source, the prepared float model and the output.
        plan: What the output was made by.
        reader: Test samples; without them only size, latency on made-up input and coverage are
            measured.
        metric: The metric for labelled samples; ``top1`` when None.
        judge: The output that ``top1`` is taken of; the first that looks like class scores when
            None.
        batch_size: Samples per run.
        provider: Where the models run.
        threads: Threads inside an operator.
        seconds: About how long to measure latency; 0 leaves it out.
        state: Input by output that is fed back, in every model from its own output; samples are
            then the steps of one sequence.
        demands: What is to be proven; nothing when None.
        notes: What a reader must know already.
        progress: Called with (stage, done, total): ``verify`` counts samples, ``latency`` percent.

    Raises:
        RuntimeFailure: A model fails on a feed, or the provider refuses one.
        SelfCheckError: ONNX Runtime's CPU provider refuses the output model.
    """
    if reader is None and not subjects.source.fits_one_file:
        return _unmeasured(subjects, notes)
    demands = demands or Demands()
    sessions = _open(subjects, provider, threads)
    names = ("the source", "the prepared float model", "the output")
    notes += placement_notes(dict(zip(names, sessions, strict=True)), provider)
    comparison, judging, feed = Comparison(), Judging(metric or MetricChoice(), judge), None
    if reader is not None:
        loops = [_loop(subjects.source, state), _loop(subjects.source, state)]
        steps = 1 if state else batch_size
        feed = _compare(sessions, loops, reader, steps, comparison, judging, progress)
        notes += judging.notes + comparison.notes()
    for session in sessions:  # their memory, before others are opened
        session.close()
    try:
        latency, times = measure_speed(
            (subjects.source, subjects.prepared, subjects.output),
            feed,
            threads,
            seconds,
            progress,
            provider=provider,
        )
    except RuntimeFailure as error:
        if feed is not None:
            raise
        latency, times = None, (None, None, None)
        notes += (f"no data, and a made-up feed does not do to measure latency with: {error}",)
    wanted = [n.name for n in plan.nodes if n.precision is Precision.INT8]
    target = get_target(plan.target)
    elsewhere = target.provider != provider.runtime_name
    if elsewhere:
        notes += (
            f"planned for {target.name}, and run on the {_said(provider)} provider: accuracy is "
            "what it will be, speed and what runs as int8 are not",
        )
    elif not provider.is_cpu and wanted:
        notes += (f"{provider.name} does not tell which nodes it computes as int8",)
    told = provider.is_cpu and not elsewhere
    coverage = int8_coverage(subjects.output, wanted) if wanted and told else None
    share, census = None, demands.census
    if census is not None and demands.budgets.min_int8 is not None and told:
        share = int8_share(subjects.output, plan, census)
    unproven = _unproven(plan, comparison.samples, state)
    seed = demands.seed if demands.budgets.of_accuracy and not unproven else None
    outputs = comparison.facts(seed)
    bounded = seed if demands.budgets.max_drop is not None else None
    judged = judging.facts(comparison.samples, bounded)
    return Measured(
        size_ratio=subjects.output_bytes / subjects.source_bytes,
        prepared=PreparedFacts(subjects.prepared_bytes, times[1], subjects.prepared.notes),
        outputs=outputs,
        samples=comparison.samples,
        metric=judged,
        latency=latency,
        int8_coverage=coverage,
        candidates=(
            Candidate("source", subjects.source_bytes, times[0]),
            Candidate("prepared float", subjects.prepared_bytes, times[1]),
            Candidate("output", subjects.output_bytes, times[2]),
        ),
        notes=notes + _warnings(outputs, judged, None if elsewhere else latency),
        int8_share=share,
        unproven=unproven,
    )


def _unproven(plan: QuantPlan, samples: int, state: Mapping[str, str] | None) -> str:
    """Why the samples do not tell how far chance may go; empty where they may."""
    if plan.empty:
        return "nothing was quantized: the output is the source"
    if state:
        return "the steps of one sequence are no independent samples"
    return "one sample tells nothing of others" if samples == 1 else ""


def _unmeasured(subjects: Subjects, notes: tuple[str, ...]) -> Measured:
    """What is told of a model whose run takes several times its size in memory."""
    note = "too large to run without need: accuracy and speed were not measured; give --test-data"
    return Measured(
        size_ratio=subjects.output_bytes / subjects.source_bytes,
        prepared=PreparedFacts(subjects.prepared_bytes, None, subjects.prepared.notes),
        outputs={},
        samples=0,
        metric=None,
        latency=None,
        int8_coverage=None,
        candidates=(
            Candidate("source", subjects.source_bytes, None),
            Candidate("output", subjects.output_bytes, None),
        ),
        notes=(*notes, note),
    )


def _warnings(
    outputs: dict[str, OutputFacts], metric: MetricFacts | None, latency: LatencyFacts | None
) -> tuple[str, ...]:
    """What nobody may overlook, and what to do about it."""
    # labels know better than the distance to float, which may have been trained away from
    as_good = metric is not None and metric.output >= metric.source - NO_DROP
    found = [
        f"output '{name}' is ruined: SQNR {facts.sqnr_db:.1f} dB; keep the layers before it float "
        "(--keep-float), or use --precision int8-weights"
        for name, facts in outputs.items()
        if facts.sqnr_db is not None and facts.sqnr_db < RUINED_DB and not as_good
    ]
    if latency is not None and latency.ratio_prepared < 1 - latency.noise:
        found.append(
            "slower than the prepared float model: the precision does not pay in every layer here; "
            "keep some float (--keep-float), or ship the smaller file for its size alone"
        )
    return tuple(found)


def _open(subjects: Subjects, provider: Provider, threads: int) -> list[Session]:
    source, prepared = (
        Session(m, provider=provider, threads=threads) for m in (subjects.source, subjects.prepared)
    )
    try:
        output = Session(subjects.output, provider=provider, threads=threads)
    except RuntimeFailure as error:
        if not provider.is_cpu:  # what it takes is not onnxq's to say
            raise
        raise SelfCheckError(str(error)) from error
    return [source, prepared, output]


def placement_notes(sessions: Mapping[str, Session], provider: Provider) -> tuple[str, ...]:
    """What of which model ran on the CPU provider, although another one was asked for."""
    notes = []
    for name, session in sessions.items():
        if session.fallback is None:
            return (
                "this ONNX Runtime does not tell which nodes ran on the CPU provider instead of "
                f"{provider.name}; 1.24 and later do",
            )
        if session.fallback:
            notes.append(f"of {name}, {told_fallback(session.fallback, provider)}")
    return tuple(notes)


def _said(provider: Provider) -> str:
    return "CPU" if provider.is_cpu else provider.name


def _loop(model: Model, state: Mapping[str, str] | None) -> StateLoop:
    view = model.view()
    return StateLoop(state or {}, view.inputs, view.output_names)


def _compare(
    sessions: list[Session],
    loops: list[StateLoop],
    reader: Reader,
    batch_size: int,
    comparison: Comparison,
    judging: Judging,
    progress: Progress | None,
) -> Feed | None:
    """Run source and output on every sample; returns the first feed, complete."""
    first: Feed | None = None
    for batch in reader.batches(batch_size):
        feeds = [loop.complete(batch.feed) for loop in loops]
        first = feeds[0] if first is None else first
        expected, found = sessions[0].run(feeds[0]), sessions[2].run(feeds[1])
        for loop, outputs in zip(loops, (expected, found), strict=True):
            loop.keep(outputs)
        comparison.add(batch.feed, expected, found, batch.count)
        if batch.labels is not None:
            judging.update(batch.feed, batch.labels, expected, found)
        if progress is not None:
            progress("verify", comparison.samples, reader.size)
    return first


def measure_speed(
    models: tuple[Model, Model, Model],
    feed: Feed | None,
    threads: int,
    seconds: float,
    progress: Progress | None,
    *,
    provider: Provider = CPU,
) -> tuple[LatencyFacts | None, tuple[float | None, float | None, float | None]]:
    """Latency of the source, the prepared and the output model; nothing in no seconds.

    Args:
        models: The three of them.
        feed: What they are fed; made up when None.
        threads: Threads inside an operator.
        seconds: About how long to measure.
        progress: Called with ("latency", percent, 100).
        provider: Where they run.

    Returns:
        The facts, and the milliseconds of each model.

    Raises:
        RuntimeFailure: A model cannot be loaded, or fails on the feed.
    """
    if seconds <= 0:
        return None, (None, None, None)
    feed = feed if feed is not None else synthetic_feed(models[0].view().inputs)
    first = next(iter(feed.values()), np.zeros(1))
    report = partial(progress, "latency") if progress is not None else None
    found = measure_models(
        models, feed, provider=provider, threads=threads, seconds=seconds, progress=report
    )
    undisturbed, undisturbed_noise = _undisturbed(found)
    facts = LatencyFacts(
        source_ms=found.ms[0],
        output_ms=found.ms[2],
        ratio=found.ratio(0, 2),
        ratio_prepared=found.ratio(1, 2),
        spread=found.spread(1, 2),
        noise=found.noise(1, 2),
        rounds=found.rounds,
        batch=int(first.shape[0]) if first.ndim else 1,
        threads=threads,
        provider=provider.runtime_name,
        undisturbed=undisturbed,
        undisturbed_noise=undisturbed_noise,
    )
    return facts, (found.ms[0], found.ms[1], found.ms[2])


def _undisturbed(found: Latency) -> tuple[float, float]:
    """The ratio of the fastest rounds of the prepared and the output model, and its noise."""
    prepared, output = (_fastest(times, found.openings) for times in found.samples[1:3])
    noise = sum(fastest[1] / fastest[0] - 1 for fastest in (prepared, output) if len(fastest) > 1)
    return prepared[0] / output[0], noise


def _fastest(times: Sequence[float], openings: Sequence[int]) -> list[float]:
    """The fastest round of every opening, the fastest of all first."""
    found, start = [], 0
    for rounds in openings or (len(times),):
        found.append(min(times[start : start + rounds]))
        start += rounds
    return sorted(found)
