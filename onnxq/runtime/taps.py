"""Taps: inner tensors of a model as outputs of a session, while it runs as it always does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Self

import numpy as np

from onnxq.errors import RuntimeFailure
from onnxq.graph import Editor, Model
from onnxq.runtime.session import Session
from onnxq.runtime.state import StateLoop
from onnxq.targets import CPU, Provider
from onnxq.types import Array, Feed


class TappedSession:
    """A session that returns inner tensors.

    It runs with all optimisations, so that it takes little longer than the model itself: reducing
    tensors inside the graph is no faster than copying them out (docs/architecture.md,
    "Calibration").

    Args:
        model: The model.
        tensors: Names of the tensors to tap; inputs and outputs may be among them.
        state: Input by output that is fed back.
        provider: Where it runs.
        threads: Threads inside an operator.

    Raises:
        RuntimeFailure: ONNX Runtime refuses the instrumented model.
        UsageError: The model has no such state.
    """

    def __init__(
        self,
        model: Model,
        tensors: Sequence[str],
        *,
        state: Mapping[str, str] | None = None,
        provider: Provider = CPU,
        threads: int = 1,
    ) -> None:
        view, editor = model.view(), Editor(model)
        self._tensors = tuple(tensors)
        self._inputs = {spec.name for spec in view.inputs}
        known = {*view.output_names, *self._inputs}
        for tensor in self._tensors:
            if tensor not in known:
                editor.add_output(tensor)
        self._session = _open(editor.finish(), provider, threads)
        self._loop = StateLoop(state or {}, view.inputs, view.output_names)
        found = [t for t in self._tensors if t not in self._inputs]
        self._wanted = list(dict.fromkeys([*found, *self._loop.outputs]))

    @property
    def bytes_of_row(self) -> int | None:
        """Bytes of the tapped tensors per entry of their first axis; None when a shape is open."""
        specs = {spec.name: spec for spec in (*self._session.inputs, *self._session.outputs)}
        total = 0
        for tensor in self._tensors:
            dtype, shape = specs[tensor].dtype, specs[tensor].shape
            row = [axis for axis in (shape or ())[1:] if isinstance(axis, int)]
            if not shape or len(row) < len(shape) - 1:
                return None
            total += math.prod(row) * np.dtype(dtype).itemsize
        return total

    def sequence(self) -> Self:
        """The same session at the start of a sequence of its own, whatever other threads run."""
        other = copy(self)
        other._loop = self._loop.restarted()
        return other

    def read(self, feed: Feed) -> dict[str, Array]:
        """Run once.

        Returns:
            The tapped tensors by name.

        Raises:
            RuntimeFailure: ONNX Runtime failed on this feed.
            UsageError: It lacks a state that cannot start with zeros.
        """
        feed = self._loop.complete(feed)
        # ONNX Runtime takes an empty list for all outputs
        found = self._session.run(feed, self._wanted) if self._wanted else {}
        self._loop.keep(found)
        return {t: feed[t] if t in self._inputs else found[t] for t in self._tensors}


def _open(model: Model, provider: Provider, threads: int) -> Session:
    """Open with all optimisations, or with fewer where these lose a tensor.

    Some fusions (Gelu, in 1.31) remove an inner tensor that is an output as well; ONNX Runtime then
    refuses its own graph.
    """
    try:
        return Session(model, provider=provider, threads=threads)
    except RuntimeFailure:
        return Session(model, provider=provider, threads=threads, level="basic")
