"""``bench_models``: latency of models, interleaved, and of their nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from msgspec.structs import replace as with_fields

from onnxq.api.backends import select_backend
from onnxq.api.feeds import one_feed
from onnxq.api.job import Progress
from onnxq.data import Data
from onnxq.errors import RuntimeFailure, UsageError
from onnxq.graph import Model, load, name_nodes
from onnxq.runtime import (
    Latency,
    Session,
    environment,
    measure_models,
    profile_models,
)
from onnxq.runtime.bench import BenchReport, BenchRun, ModelTime, NodeTime
from onnxq.runtime.peak import peak_memory
from onnxq.targets import AUTO, CPU, Provider
from onnxq.types import Feed

# A model, and another form of it.
MOST_PROFILED = 2


@dataclass(frozen=True)
class _Entrant:
    """A model on a provider."""

    model: Model
    provider: Provider
    fallback: tuple[str, ...] | None


def bench_models(
    models: Sequence[str | Path | Model],
    data: Data | None = None,
    *,
    providers: Sequence[Provider] = (CPU,),
    batch_size: int | Sequence[int] | None = None,
    threads: int | Sequence[int] = 1,
    seconds: float = 5.0,
    per_layer: bool = False,
    memory: bool = False,
    progress: Progress | None = None,
) -> BenchReport:
    """Measure models that read the same inputs, interleaved, on one feed.

    Args:
        models: Paths, or models that were loaded; the first one, on the first provider, is what
            speeds are told against.
        data: Samples, in any form that ``onnxq.data.open_data`` takes, of which the first batch is
            fed; noise if None.
        providers: Where the models run: every model on every provider.
        batch_size: Samples in the feed, 1 if None; a model whose first axis is fixed has its own.
            Several are measured one after the other.
        threads: Threads inside an operator; several are measured one after the other.
        seconds: About how long to measure for each batch size and number of threads; for nodes
            about as long again.
        per_layer: Whether to measure nodes on the CPU provider: of one model, or of two forms of
            it, whose nodes are matched by name.
        memory: Whether to open every model in a process of its own, and see what it takes.
        progress: Called with (stage, done, total).

    Raises:
        OnnxqError: See ``onnxq.errors`` for the tree.

    Examples:
        >>> found = onnxq.bench_models(["m.onnx", "m.int8.onnx"])  # doctest: +SKIP
        >>> found.runs[0].models[1].speed  # doctest: +SKIP
        2.31
    """
    if not models or not providers:
        raise UsageError("there is no model to measure")
    batches, counts = _several(batch_size), _several(threads)
    settings = [(batch, count or 1) for batch in batches for count in counts]
    if per_layer:
        _check_profiled(models, providers, settings)
    loaded = [model if isinstance(model, Model) else load(model) for model in models]
    here = [_chosen(p, loaded[0], data) for p in providers]
    entrants = [_entrant(model, provider) for model in loaded for provider in here]
    _check_inputs(loaded)
    feeds = [one_feed(loaded[0].view().inputs, data, batch) for batch, _ in settings]
    runs = []
    for number, ((feed, size), (_, count)) in enumerate(zip(feeds, settings, strict=True)):
        told = _share(progress, number, len(settings))
        latency = _measure(entrants, feed, count, seconds, told, made_up=data is None)
        peaks = [_peak(entrant, feed, count) if memory else None for entrant in entrants]
        times = (_time(latency, i, e, size, peaks[i]) for i, e in enumerate(entrants))
        runs.append(BenchRun(size, count, latency.rounds, tuple(times)))
    nodes: tuple[NodeTime, ...] = ()
    conversions: tuple[float, ...] = ()
    if per_layer:
        nodes, conversions = node_times(loaded, feeds[0][0], settings[0][1], seconds)
    used = here[0] if len(here) == 1 else CPU
    return BenchReport(tuple(runs), data is None, nodes, conversions, environment(used))


def _chosen(provider: Provider, model: Model, data: Data | None) -> Provider:
    """The provider; for ``auto`` the one that runs a model fastest, as strict as was said."""
    if provider.name != AUTO:
        return provider
    return with_fields(provider, name=select_backend(model, data).name)


def _several(value: int | Sequence[int] | None) -> list[int | None]:
    if value is None or isinstance(value, int):
        return [value]
    return list(dict.fromkeys(value)) or [None]


def _check_profiled(
    models: Sequence[object], providers: Sequence[Provider], settings: Sequence[object]
) -> None:
    if len(models) > MOST_PROFILED:
        raise UsageError(
            f"nodes of {len(models)} models cannot be told side by side",
            "give one model, or two forms of it",
        )
    if len(settings) > 1:
        raise UsageError("nodes are told for one batch size and one number of threads", "give one")
    if any(not provider.is_cpu for provider in providers):
        raise UsageError("only the CPU provider tells the times of nodes", "leave out --ep")


def _entrant(model: Model, provider: Provider) -> _Entrant:
    with Session(model, provider=provider) as session:
        return _Entrant(model, provider, session.fallback)


def _check_inputs(models: Sequence[Model]) -> None:
    first, *others = ({spec.name for spec in model.view().inputs} for model in models)
    for found, model in zip(others, models[1:], strict=True):
        if found != first:
            raise UsageError(
                f"'{_name(model)}' reads {', '.join(sorted(found))}, and '{_name(models[0])}' "
                f"reads {', '.join(sorted(first))}",
                "compare forms of one model",
            )


def _share(progress: Progress | None, number: int, total: int) -> Callable[[int, int], None] | None:
    """Tells how much of all runs is done, where that is asked for."""
    if progress is None:
        return None
    told = progress
    return lambda done, of: told("latency", (100 * number + 100 * done // of) // total, 100)


def _measure(
    entrants: Sequence[_Entrant],
    feed: Feed,
    threads: int,
    seconds: float,
    progress: Callable[[int, int], None] | None,
    *,
    made_up: bool,
) -> Latency:
    try:
        return measure_models(
            [entrant.model for entrant in entrants],
            feed,
            provider=[entrant.provider for entrant in entrants],
            threads=threads,
            seconds=seconds,
            progress=progress,
        )
    except RuntimeFailure as error:
        if not made_up:
            raise
        raise RuntimeFailure(f"made-up samples do not do here: {error}", "give --data") from error


def _peak(entrant: _Entrant, feed: Feed, threads: int) -> int | None:
    return peak_memory(entrant.model, feed, provider=entrant.provider, threads=threads)


def node_times(
    models: Sequence[Model], feed: Feed, threads: int, seconds: float
) -> tuple[tuple[NodeTime, ...], tuple[float, ...]]:
    """Times of the nodes of forms of one model, and microseconds in mere conversions, by model.

    Args:
        models: The forms; nodes are those of the first one, in the order of its graph.
        feed: What all of them are fed.
        threads: Threads inside an operator.
        seconds: About how long to measure all of them.

    Raises:
        RuntimeFailure: A model cannot be loaded, or fails on the feed.
    """
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


def _time(
    latency: Latency, index: int, entrant: _Entrant, batch: int, peak_bytes: int | None
) -> ModelTime:
    low, high = np.percentile(latency.samples[index], (25, 75))
    return ModelTime(
        model=_name(entrant.model),
        provider=entrant.provider.name,
        speed=latency.ratio(0, index),
        noise=latency.noise(0, index) if index else _steady(latency).noise(0, 1),
        ms=latency.ms[index],
        low=float(low),
        high=float(high),
        per_second=1000 * batch / latency.ms[index],
        peak_bytes=peak_bytes,
        fallback=entrant.fallback,
    )


def _steady(latency: Latency) -> Latency:
    """The first model beside one that always takes a millisecond."""
    ones = (1.0,) * latency.rounds
    return Latency((latency.ms[0], 1.0), latency.rounds, (latency.samples[0], ones))


def _name(model: Model) -> str:
    return str(model.path or "the model")
