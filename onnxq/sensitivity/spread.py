"""Who runs the variants: this process, or workers that roll a frontier each."""

from __future__ import annotations

import math
import pickle
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import (
    BrokenExecutor,
    CancelledError,
    Executor,
    ProcessPoolExecutor,
    as_completed,
)
from contextlib import ExitStack
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from onnxq.calibrate import Workers
from onnxq.errors import RuntimeFailure, UsageError
from onnxq.graph import Model, deserialize, load, save, serialize
from onnxq.plan import QuantPlan
from onnxq.sensitivity.cuts import Cuts, Steps
from onnxq.sensitivity.evaluate import Evaluator
from onnxq.sensitivity.frontier import Frontier, Variant
from onnxq.sensitivity.values import Loss

# Spans for each worker: the later ones are shorter than they look, and a kill costs one at most.
SPANS = 4


@dataclass(frozen=True)
class Roll:
    """Variants of one base model, in the order that the frontier meets them.

    Attributes:
        plan: The plan of the base model; None for the float model.
        variants: What is wanted.
        steps: The nodes as steps.
        stops: Where activations are kept.
    """

    plan: QuantPlan | None
    variants: tuple[Variant, ...]
    steps: Steps
    stops: tuple[int, ...]


Found = Iterator[tuple[Variant, Loss]]


def run(model: Model, rolls: Sequence[Roll], evaluator: Evaluator, workers: Workers) -> Found:
    """The loss of every variant.

    Where states are fed back, a sample depends on those before it: no activations can be kept, and
    every variant is run as a whole.

    Args:
        model: The prepared float model.
        rolls: What is wanted of it.
        evaluator: The samples.
        workers: Who runs it. The same losses, whoever does.

    Raises:
        RuntimeFailure: ONNX Runtime fails, or a worker dies.
        UsageError: The metric cannot be sent to workers.
    """
    if workers.alone:
        for roll in rolls:
            yield from losses(model, roll, evaluator)
        return
    with ExitStack() as stack:
        executor, source = _employ(model, workers, stack)
        errand = _Errand(source, _pickled(evaluator))
        spans = [span for roll in rolls for span in _spans(roll, SPANS * workers.jobs)]
        futures = [executor.submit(_run_errand, errand, span) for span in spans]
        try:
            for future in as_completed(futures):
                yield from future.result()
        except (BrokenExecutor, CancelledError) as error:
            raise RuntimeFailure(
                "a worker process died, maybe for want of memory",
                "use fewer --jobs; run again: what was finished is kept",
            ) from error
        finally:
            for future in futures:
                future.cancel()


def losses(model: Model, roll: Roll, evaluator: Evaluator) -> Found:
    """The loss of every variant, in this process."""
    if evaluator.stateful:
        for variant in roll.variants:
            yield variant, naive(model, variant, evaluator)
        return
    cuts = Cuts(model, roll.steps, evaluator.expected[0])
    frontier = Frontier(model, roll.plan, cuts, roll.stops, evaluator)
    for variant in roll.variants:
        yield variant, evaluator.judge(frontier.outputs(variant))


def naive(model: Model, variant: Variant, evaluator: Evaluator) -> Loss:
    """The loss of a variant, by running all of it."""
    return evaluator.loss(variant.build(model), fuse_pairs=variant.fuse_pairs)


def _spans(roll: Roll, count: int) -> list[Roll]:
    """Neighbouring variants, about as much work in each: what is behind a variant is run."""
    work = [roll.steps.count + 1 - variant.start for variant in roll.variants]
    ends = np.cumsum(work) * count / sum(work)
    spans: dict[int, list[Variant]] = {}
    for variant, end in zip(roll.variants, ends, strict=True):
        spans.setdefault(math.ceil(end), []).append(variant)
    return [replace(roll, variants=tuple(span)) for span in spans.values()]


def _pickled(evaluator: Evaluator) -> bytes:
    try:
        return pickle.dumps(evaluator)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UsageError(
            f"metric '{evaluator.metric_name}' cannot be sent to workers",
            "let it be a function of a module or file, or use --jobs 1",
        ) from error


def _employ(model: Model, workers: Workers, stack: ExitStack) -> tuple[Executor, str | bytes]:
    """The workers, and the model as they can read it."""
    if workers.executor is not None:
        return workers.executor, serialize(model)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="onnxq-")))
    save(model, folder / "model.onnx")
    # ONNX Runtime's threads do not survive a fork
    pool = ProcessPoolExecutor(workers.jobs, mp_context=get_context("spawn"))
    stack.callback(pool.shutdown, cancel_futures=True)
    return pool, str(folder / "model.onnx")


@dataclass(frozen=True)
class _Errand:
    """What all spans share: the model's path or bytes, and the evaluator."""

    model: str | bytes
    evaluator: bytes


def _run_errand(errand: _Errand, span: Roll) -> list[tuple[Variant, Loss]]:
    """Run a span in this process."""
    source = errand.model
    model = deserialize(source) if isinstance(source, bytes) else load(source)
    evaluator = pickle.loads(errand.evaluator)  # noqa: S301 - the parent process made it
    return list(losses(model, span, evaluator))
