"""States of recurrent models: outputs that are fed back as inputs of the next run."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from copy import copy
from typing import Self

import numpy as np

from onnxq.errors import UsageError, nearest
from onnxq.types import Array, Feed, TensorSpec


class StateLoop:
    """Completes feeds with the states that the run before left.

    A sequence starts with zeros, an axis of unknown size with length 1. A feed that holds a state
    itself starts from that one.

    Args:
        state: Input by output: ``{"hidden_out": "hidden_in"}``.
        inputs: The model's inputs.
        outputs: Names of the model's outputs.

    Raises:
        UsageError: The model has no such input or output, or an input would get two of them.
    """

    def __init__(
        self, state: Mapping[str, str], inputs: Sequence[TensorSpec], outputs: Collection[str]
    ) -> None:
        specs = {spec.name: spec for spec in inputs}
        fed: dict[str, str] = {}
        for output, name in state.items():
            if output not in outputs:
                raise UsageError(
                    f"state: the model has no output '{output}'",
                    nearest(output, sorted(outputs)),
                )
            if name not in specs:
                raise UsageError(f"state: the model has no input '{name}'", nearest(name, specs))
            if name in fed:
                raise UsageError(
                    f"state: input '{name}' is to get both '{fed[name]}' and '{output}'",
                    "name one output for each input",
                )
            fed[name] = output
        self._state = dict(state)
        self._specs = {name: specs[name] for name in fed}
        self._now: Feed = {}

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs that are fed back."""
        return tuple(self._state)

    def restarted(self) -> Self:
        """The same at the start of a sequence of its own."""
        other = copy(self)
        other._now = {}
        return other

    def complete(self, feed: Feed) -> Feed:
        """Add the states that a feed does not hold.

        Raises:
            UsageError: A sequence starts without a state whose rank the model does not tell.
        """
        known = self._now | feed
        zeros = {name: _zeros(spec) for name, spec in self._specs.items() if name not in known}
        return zeros | known

    def keep(self, outputs: Mapping[str, Array]) -> None:
        """Remember the states that a run left."""
        self._now = {name: outputs[output] for output, name in self._state.items()}


def _zeros(spec: TensorSpec) -> Array:
    if spec.shape is None:
        raise UsageError(
            f"state: not even the rank of input '{spec.name}' is known",
            "let the first feed hold it",
        )
    shape = [axis if isinstance(axis, int) else 1 for axis in spec.shape]
    return np.zeros(shape, spec.dtype or "float32")
