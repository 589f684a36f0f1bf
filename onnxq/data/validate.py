"""Check that feeds fit a model's inputs, before a runtime sees them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from onnxq.data.npz import Rows
from onnxq.errors import DataError, nearest
from onnxq.types import Array, TensorSpec


def quoted(names: Iterable[str]) -> str:
    """Names for a message: ``'a', 'b'``."""
    return ", ".join(f"'{name}'" for name in names)


def suggest(name: str, known: Collection[str], kind: str) -> str:
    """A hint that names the nearest known name, or all of them when none is near."""
    return nearest(name, known, f"the {kind} are {quoted(known)}")


def only_input(required: Sequence[TensorSpec], what: str, hint: str) -> TensorSpec:
    """The one input that data without names are for.

    Args:
        required: The inputs that a feed must hold.
        what: What the data are, for the message.
        hint: What to use for a model with several inputs.

    Raises:
        DataError: There is not exactly one.
    """
    if len(required) != 1:
        raise DataError(
            f"{what} feeds a model with one input, but this model has {len(required)} "
            f"({quoted(spec.name for spec in required)})",
            hint,
        )
    return required[0]


def check_names(
    found: Collection[str],
    inputs: Sequence[TensorSpec],
    where: str,
    optional: Collection[str] = (),
) -> None:
    """Raise a DataError unless ``found`` are the names of the inputs, without some ``optional``."""
    known = [spec.name for spec in inputs]
    for name in found:
        if name not in known:
            hint = suggest(name, known, "model's inputs")
            raise DataError(f"{where}: the model has no input '{name}'", hint)
    for name in known:
        if name not in found and name not in optional:
            hint = f"found {quoted(found)}" if found else "it holds no array at all"
            raise DataError(f"{where}: nothing for the model's input '{name}'", hint)


def check_feed(
    feed: Mapping[str, Array],
    inputs: Sequence[TensorSpec],
    where: str,
    samples: Rows,
    optional: Collection[str] = (),
) -> None:
    """Check names, types, shapes and values of one feed.

    Args:
        feed: Arrays by input name, as the runtime takes them.
        inputs: The model's inputs.
        where: File or function that the feed comes from.
        samples: Index of each sample along axis 0 of the arrays; a single one names all of it.
        optional: Names of inputs that a feed may leave out.

    Raises:
        DataError: The feed does not fit; the message names the input, what it takes, what was
            found and the sample.
    """
    check_names(feed, inputs, where, optional)
    symbols: dict[str, tuple[int, str]] = {}
    for spec in inputs:
        if spec.name not in feed:
            continue
        array = feed[spec.name]
        _check_type(array, spec, where)
        _check_shape(array, spec, where)
        for size, symbol in zip(array.shape, spec.shape or (), strict=False):
            if not isinstance(symbol, str) or not symbol:
                continue
            known, owner = symbols.setdefault(symbol, (size, spec.name))
            if known != size:
                raise DataError(
                    f"{where}: the model's axis '{symbol}' is {known} in input '{owner}' but "
                    f"{size} in input '{spec.name}'",
                    "both inputs of a feed must agree",
                )
        _check_finite(array, spec, where, samples)


def check_labels(feed: Mapping[str, Array], labels: Array, where: str) -> None:
    """Raise a DataError when a feed's labels cannot belong to its samples.

    One label for the whole feed is always fine, and inputs that disagree on their first axis
    (a state beside the samples) do not tell how many samples there are.
    """
    counts = {array.shape[0] for array in feed.values() if array.ndim}
    if len(counts) == 1 and len(labels) not in (1, *counts):
        raise DataError(
            f"{where}: {len(labels)} labels for {counts.pop()} samples",
            "give one label per sample",
        )


def _check_type(array: Array, spec: TensorSpec, where: str) -> None:
    is_text = spec.dtype in ("object", "str")
    if (array.dtype.kind in "OU") if is_text else (spec.dtype in ("", array.dtype.name)):
        return
    hint = f"convert it, for example with .astype(np.{spec.dtype})"
    if spec.dtype == "float32":
        hint += ", or set [data.preprocess] in the recipe"
    found = array.dtype.name
    raise DataError(f"{where}: input '{spec.name}' takes {spec.dtype}, found {found}", hint)


def _check_shape(array: Array, spec: TensorSpec, where: str) -> None:
    if spec.shape is None:
        return
    fits = array.ndim == len(spec.shape) and all(
        size == axis
        for size, axis in zip(array.shape, spec.shape, strict=True)
        if isinstance(axis, int)
    )
    if not fits:
        takes = ", ".join("?" if axis is None else str(axis) for axis in spec.shape)
        raise DataError(
            f"{where}: input '{spec.name}' takes rank {len(spec.shape)} shape [{takes}], "
            f"found rank {array.ndim} shape {list(array.shape)}",
            _shape_hint(array.shape, spec.shape),
        )


def _shape_hint(found: tuple[int, ...], takes: tuple[int | str | None, ...]) -> str:
    """Name the preprocessing that would make the shape fit, if there is one."""

    def fits(shape: tuple[int, ...]) -> bool:
        return all(not isinstance(b, int) or a == b for a, b in zip(shape, takes, strict=True))

    if len(takes) == 4 and len(found) == 3 and fits((found[0], 1, *found[1:])):
        return "[data.preprocess] add_channel = true turns N,H,W into N,1,H,W"
    if len(takes) == len(found) == 4:
        n, a, b, c = found
        if fits((n, c, a, b)):
            return '[data.preprocess] layout = "NHWC->NCHW" may be what is missing'
        if fits((n, b, c, a)):
            return '[data.preprocess] layout = "NCHW->NHWC" may be what is missing'
    return "reshape or crop the data to what the model takes"


def _check_finite(array: Array, spec: TensorSpec, where: str, samples: Rows) -> None:
    # ml_dtypes' float types (bfloat16, float8) are no np.inexact, but carry float in their name
    if "float" not in array.dtype.name and array.dtype.kind != "c":
        return
    finite = np.isfinite(array)
    if finite.all():
        return
    at = np.argwhere(~finite)[0]
    sample = samples[at[0]] if len(samples) > 1 else samples[0]
    kind = "NaN" if np.isnan(array[tuple(at)]) else "Inf"
    raise DataError(
        f"{where}: input '{spec.name}' holds {kind} in sample {sample}",
        "repair or leave out that sample",
    )
