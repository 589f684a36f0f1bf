"""``bench_models``: latency of models, interleaved, and of their nodes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from msgspec.structs import replace as with_fields

from onnxq.api.job import Progress
from onnxq.data import Data, open_data
from onnxq.errors import RuntimeFailure, UsageError
from onnxq.graph import Model, load, name_nodes
from onnxq.runtime import (
    Latency,
    Session,
    environment,
    measure_models,
    profile_models,
    synthetic_feed,
)
from onnxq.runtime.bench import BenchReport, ModelTime, NodeTime
from onnxq.types import Feed, TensorSpec

# A model, and another form of it.
MOST_PROFILED = 2


def bench_models(
    models: Sequence[str | Path | Model],
    data: Data | None = None,
    *,
    batch_size: int | None = None,
    threads: int = 1,
    seconds: float = 5.0,
    per_layer: bool = False,
    progress: Progress | None = None,
) -> BenchReport:
    """Measure models that read the same inputs, interleaved, on one feed.

    Args:
        models: Paths, or models that were loaded; the first one is what speeds are told against.
        data: Samples, in any form that ``onnxq.data.open_data`` takes, of which the first batch is
            fed; noise if None.
        batch_size: Samples in the feed, 1 if None; a model whose first axis is fixed has its own.
        threads: Threads inside an operator.
        seconds: About how long to measure; for nodes about as long again.
        per_layer: Whether to measure nodes: of one model, or of two forms of it, whose nodes are
            matched by name.
        progress: Called with (stage, done, total).

    Raises:
        OnnxqError: See ``onnxq.errors`` for the tree.

    Example:
        >>> found = onnxq.bench_models(["m.onnx", "m.int8.onnx"])  # doctest: +SKIP
        >>> found.models[1].speed  # doctest: +SKIP
        2.31
    """
    if not models:
        raise UsageError("there is no model to measure")
    if per_layer and len(models) > MOST_PROFILED:
        raise UsageError(
            f"nodes of {len(models)} models cannot be told side by side",
            "give one model, or two forms of it",
        )
    loaded = [model if isinstance(model, Model) else load(model) for model in models]
    sessions = [Session(model, threads=threads) for model in loaded]
    _check_inputs(sessions, loaded)
    feed, batch = _feed(sessions[0].inputs, data, batch_size)
    del sessions  # their memory, before others are opened
    shown = partial(progress, "latency") if progress is not None else None
    try:
        latency = measure_models(loaded, feed, threads=threads, seconds=seconds, progress=shown)
    except RuntimeFailure as error:
        if data is not None:
            raise
        raise RuntimeFailure(f"made-up samples do not do here: {error}", "give --data") from error
    nodes: tuple[NodeTime, ...] = ()
    conversions: tuple[float, ...] = ()
    if per_layer:
        nodes, conversions = _nodes(loaded, feed, threads, seconds)
    return BenchReport(
        tuple(_time(latency, i, _name(model)) for i, model in enumerate(loaded)),
        latency.rounds,
        batch,
        threads,
        data is None,
        nodes,
        conversions,
        environment(),
    )


def _check_inputs(sessions: Sequence[Session], models: Sequence[Model]) -> None:
    first = {spec.name for spec in sessions[0].inputs}
    for session, model in zip(sessions, models, strict=True):
        found = {spec.name for spec in session.inputs}
        if found != first:
            raise UsageError(
                f"'{_name(model)}' reads {', '.join(sorted(found))}, and '{_name(models[0])}' "
                f"reads {', '.join(sorted(first))}",
                "compare forms of one model",
            )


def _feed(
    inputs: tuple[TensorSpec, ...], data: Data | None, batch_size: int | None
) -> tuple[Feed, int]:
    """What is fed, and how many samples that is."""
    if data is not None:
        batch = next(open_data(data, inputs).batches(batch_size or 1))
        return batch.feed, batch.count
    specs = tuple(with_fields(spec, shape=_sized(spec.shape, batch_size or 1)) for spec in inputs)
    feed = synthetic_feed(specs)
    first = next(iter(feed.values()), np.zeros(0))
    return feed, first.shape[0] if first.ndim else 1


def _sized(
    shape: tuple[int | str | None, ...] | None, batch_size: int
) -> tuple[int | str | None, ...] | None:
    """The shape with a batch on its first axis, if that is free."""
    if not shape or isinstance(shape[0], int):
        return shape
    return (batch_size, *shape[1:])


def _nodes(
    models: Sequence[Model], feed: Feed, threads: int, seconds: float
) -> tuple[tuple[NodeTime, ...], tuple[float, ...]]:
    named = [name_nodes(model) for model in models]
    source = named[0].view()
    profiles = profile_models(named, source, feed, threads=threads, seconds=seconds)
    return tuple(
        NodeTime(
            node.name,
            node.full_op,
            tuple(profile.nodes.get(node.name) for profile in profiles),
            tuple(profile.kernels.get(node.name, "") for profile in profiles),
        )
        for node in source.nodes
        if any(node.name in profile.nodes for profile in profiles)
    ), tuple(profile.conversions for profile in profiles)


def _time(latency: Latency, index: int, name: str) -> ModelTime:
    samples = latency.samples[index]
    low, high = np.percentile(samples, (25, 75))
    return ModelTime(
        name,
        latency.ms[index],
        float(low),
        float(high),
        latency.ratio(0, index),
        latency.noise(0, index) if index else _steady(latency).noise(0, 1),
    )


def _steady(latency: Latency) -> Latency:
    """The first model beside one that always takes a millisecond."""
    ones = (1.0,) * latency.rounds
    return Latency((latency.ms[0], 1.0), latency.rounds, (latency.samples[0], ones))


def _name(model: Model) -> str:
    return str(model.path or "the model")
