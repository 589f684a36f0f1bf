"""Which execution providers run here, which one suits a model, and which one a job runs on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from msgspec.structs import replace as with_fields

from onnxq.api.feeds import one_feed
from onnxq.api.job import Job, Progress
from onnxq.data import Data
from onnxq.errors import RuntimeFailure
from onnxq.graph import Model, from_text, load
from onnxq.runtime import (
    Latency,
    Session,
    default_target,
    devices,
    environment,
    installed_providers,
    measure_models,
    openvino_devices,
    ort_package,
    require,
)
from onnxq.runtime.backends import Backend, BackendReport, BackendTime
from onnxq.targets import AUTO, CPU, PROVIDERS, Provider
from onnxq.types import Feed

# What shows that a provider starts.
_SMALLEST = """<ir_version: 8, opset_import: ["" : 13]>
g (float[1,4,4,4] x) => (float[1,4,4,4] y) { y = Relu (x) }"""


def known_backends(plugins: Iterable[Provider] = ()) -> tuple[Backend, ...]:
    """All execution providers that onnxq knows or finds; those that run here come first.

    Args:
        plugins: Providers with a library of their own, which is loaded.
    """
    providers = {name: Provider(name) for name in PROVIDERS}
    providers |= {plugin.name: plugin for plugin in plugins}
    known = {provider.runtime_name for provider in providers.values()}
    providers |= {name: Provider(name) for name in installed_providers() if name not in known}
    found = [_backend(provider) for provider in providers.values()]
    return tuple(sorted(found, key=lambda backend: not backend.runs))


def available_backends(plugins: Iterable[Provider] = ()) -> tuple[Backend, ...]:
    """The execution providers that run here, the one that is preferred first.

    Each of them has opened a small session: that a provider is built into ONNX Runtime does not
    mean that its device and its libraries are here.

    Args:
        plugins: Providers with a library of their own, which is loaded.

    Examples:
        >>> [backend.name for backend in onnxq.available_backends()]  # doctest: +SKIP
        ['openvino', 'cpu']
    """
    return tuple(backend for backend in known_backends(plugins) if backend.runs)


def select_backend(
    model: str | Path | Model | None = None,
    data: Data | None = None,
    *,
    threads: int = 1,
    seconds: float = 2.0,
) -> Provider:
    """The execution provider to run a model on.

    Args:
        model: A path, or a model that was loaded: then providers are measured on it. Without one,
            they are told apart by their hardware alone.
        data: Samples to measure with, in any form that ``onnxq.data.open_data`` takes; noise if
            None.
        threads: Threads inside an operator.
        seconds: About how long to measure.

    Returns:
        The fastest; the CPU provider where no other runs the model.

    Raises:
        OnnxqError: See ``onnxq.errors`` for the tree.
    """
    names = [backend.name for backend in available_backends()]
    if model is None or len(names) == 1:
        return Provider(names[0])
    return Provider(compare_backends(model, data, threads=threads, seconds=seconds).best)


def compare_backends(
    model: str | Path | Model,
    data: Data | None = None,
    *,
    providers: Sequence[Provider] = (),
    batch_size: int | None = None,
    threads: int = 1,
    seconds: float = 5.0,
    progress: Progress | None = None,
) -> BackendReport:
    """Measure one model on every provider that runs here, interleaved.

    Args:
        model: A path, or a model that was loaded.
        data: Samples, of which the first batch is fed; noise if None.
        providers: What to compare beside the CPU provider; all that run here if empty.
        batch_size: Samples in the feed, 1 if None.
        threads: Threads inside an operator.
        seconds: About how long to measure.
        progress: Called with (stage, done, total).

    Raises:
        OnnxqError: See ``onnxq.errors`` for the tree.
    """
    source = model if isinstance(model, Model) else load(model)
    given = providers or [Provider(backend.name) for backend in available_backends()]
    wanted = [CPU, *(provider for provider in given if not provider.is_cpu)]
    feed, batch = one_feed(source.view().inputs, data, batch_size)
    tried = [_tried(source, provider, feed, threads) for provider in wanted]
    if tried[0].why_not:
        raise RuntimeFailure(tried[0].why_not, "" if data is not None else "give --data")
    running = [p for p, found in zip(wanted, tried, strict=True) if not found.why_not]
    latency = measure_models(
        [source] * len(running), feed, provider=running, threads=threads, seconds=seconds,
        progress=partial(progress, "latency") if progress is not None else None,
    )  # fmt: skip
    places = {provider.name: place for place, provider in enumerate(running)}
    measured = [_timed(found, latency, places.get(found.name)) for found in tried]
    measured.sort(key=lambda found: -(found.speed or 0.0))
    return BackendReport(
        str(source.path or "the model"),
        measured[0].name,
        tuple(measured),
        batch,
        threads,
        latency.rounds,
        data is None,
        len(source.view().nodes),
        environment(),
    )


def settled(job: Job, source: Model) -> Job:
    """The job with a provider that is there, and the target that suits it.

    ``auto`` becomes the provider that runs the model fastest.

    Raises:
        UsageError: There is no such provider.
        RuntimeFailure: It is not here.
    """
    recipe, provider = job.recipe, job.recipe.provider
    if provider.name == AUTO:
        chosen = select_backend(source, threads=recipe.verify.threads)
        provider = with_fields(provider, name=chosen.name)
    require(provider)
    target = recipe.target or default_target(provider)
    return replace(job, recipe=with_fields(recipe, provider=provider, target=target))


def _backend(provider: Provider) -> Backend:
    facts = PROVIDERS.get(provider.name)
    why_not = _why_not(provider)
    return Backend(
        name=provider.name,
        provider=provider.runtime_name,
        runs=not why_not,
        why_not=why_not,
        install=facts.install if facts is not None else "",
        device=_device(provider) or (facts.device if facts is not None else ""),
        version=_version(provider) if not why_not else "",
        int8=facts.int8 if facts is not None else None,
        fp16=facts.fp16 if facts is not None else None,
        int4=facts.int4 if facts is not None else None,
        source=facts.source if facts is not None else provider.library or "",
    )


def _why_not(provider: Provider) -> str:
    """Why a provider does not start here; empty where it does."""
    if provider.library is None and provider.runtime_name not in installed_providers():
        return "not installed"
    try:
        with Session(from_text(_SMALLEST), provider=provider) as session:
            return "it leaves even a Relu to the CPU provider" if session.fallback else ""
    except RuntimeFailure as error:
        return str(error)


def _device(provider: Provider) -> str:
    """What the provider finds here; empty where it does not tell."""
    if provider.is_cpu:
        return environment()["processor"]
    if provider.name == "openvino":
        return ", ".join(openvino_devices())
    found = [d for d in devices() if d.provider == provider.runtime_name]
    return ", ".join(dict.fromkeys(f"{d.vendor} {d.kind}".strip() for d in found))


def _version(provider: Provider) -> str:
    if provider.library is not None:
        found = (d.version for d in devices() if d.provider == provider.runtime_name)
        return next((version for version in found if version), "")
    return ort_package()


def _tried(model: Model, provider: Provider, feed: Feed, threads: int) -> BackendTime:
    """Whether a model runs on a provider at all, and which nodes fall back."""
    try:
        with Session(model, provider=provider, threads=threads) as session:
            session.run(feed)
            return BackendTime(provider.name, None, None, None, session.fallback)
    except RuntimeFailure as error:
        return BackendTime(provider.name, None, None, None, None, str(error))


def _timed(found: BackendTime, latency: Latency, place: int | None) -> BackendTime:
    if place is None:
        return found
    noise = latency.noise(0, place) if place else None
    return with_fields(found, speed=latency.ratio(0, place), noise=noise, ms=latency.ms[place])
