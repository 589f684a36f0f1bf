"""``calibrate``: the only pass over the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from onnxq.calibrate.observers import Observer, Tap
from onnxq.data import Reader
from onnxq.errors import DataError
from onnxq.graph import Model
from onnxq.runtime import TappedSession
from onnxq.types import TensorRange

Progress = Callable[[int, int], None]


class Ranges(msgspec.Struct, frozen=True):
    """What calibration observed.

    Attributes:
        samples: How many samples were seen.
        tensors: The range of every tapped tensor; one that was empty all the time is missing.
        schema: Version of this structure.
    """

    samples: int
    tensors: dict[str, TensorRange]
    schema: int = 1


def calibrate(
    model: Model,
    taps: Sequence[str],
    reader: Reader,
    observer: Callable[[], Observer],
    *,
    batch_size: int = 8,
    threads: int = 1,
    progress: Progress | None = None,
) -> Ranges:
    """Show every tapped tensor of every sample to an observer of its own.

    Memory holds one batch and one observer per tensor, whatever the number of samples.

    Args:
        model: The prepared float model.
        taps: Names of the float32 tensors to observe.
        reader: The samples.
        observer: Makes an observer.
        batch_size: Samples per run.
        threads: Threads inside an operator.
        progress: Called after every batch with (samples seen, samples in all).

    Returns:
        The ranges that the observers chose.

    Raises:
        DataError: The data are unusable, or a tensor holds NaN; the message names it.
        RuntimeFailure: ONNX Runtime fails on a feed.
    """
    if not taps:
        return Ranges(0, {})
    observers = {tensor: observer() for tensor in taps}
    wants_values = any(o.wants_values for o in observers.values())
    session = TappedSession(model, taps, sample=wants_values, threads=threads)
    held: set[str] = set()  # tensors that had elements
    seen = 0
    for batch in reader.batches(batch_size):
        for reading in session.read(batch.feed):
            if reading.empty:
                continue
            held.add(reading.tensor)
            tap = Tap(reading.min, reading.max, reading.values, seen=1)
            _observe(observers[reading.tensor], tap, reading.tensor, seen, seen + batch.count)
        seen += batch.count
        if progress is not None:
            progress(seen, reader.size)
    return Ranges(seen, {tensor: o.range() for tensor, o in observers.items() if tensor in held})


def _observe(observer: Observer, tap: Tap, tensor: str, first: int, end: int) -> None:
    try:
        observer.observe(tap)
    except DataError as error:
        where = f"sample {first}" if end - first == 1 else f"samples {first} to {end - 1}"
        raise DataError(
            f"tensor '{tensor}' became NaN at {where}",
            "the float model itself computes NaN there: check the model and this input",
        ) from error
