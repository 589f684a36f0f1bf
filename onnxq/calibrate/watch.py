"""``Watch``: everything that is remembered of one tensor, and what it tells."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

from onnxq.calibrate.observers import MinMaxObserver, Observer, Tap
from onnxq.calibrate.state import restore, state_of
from onnxq.data import user_code
from onnxq.errors import DataError, UsageError
from onnxq.types import Grid, TensorRange

Factory = Callable[[], Observer]


class Watch:
    """The observer of a tensor, its exact ends, and whether all of it was ordinary.

    Args:
        factory: Makes the observer.

    Attributes:
        observer: The observer.
        ends: The exact ends: those of the observer where it is one of onnxq's.
        finite: False when an infinity or a mask was seen.
    """

    def __init__(self, factory: Factory) -> None:
        self._factory = factory
        self.observer = factory()
        # a user's class may be derived from one of onnxq's, and is guarded all the same
        self._own = type(self.observer).__module__ == MinMaxObserver.__module__
        self.ends = MinMaxObserver()
        if self._own and isinstance(self.observer, MinMaxObserver):
            self.ends = self.observer
        self.finite = True

    def observe(self, tap: Tap) -> None:
        """Show the observer some samples."""
        if self._own:
            self.observer.observe(tap)
            return
        self.ends.observe(tap)
        with user_code(f"observer {type(self.observer).__name__} failed"):
            self.observer.observe(tap)

    def merge(self, other: Self) -> None:
        """Fold in what another watch of the same tensor has seen."""
        self.finite &= other.finite
        if self._own:
            self.observer.merge(other.observer)
            return
        self.ends.merge(other.ends)
        with user_code(f"observer {type(self.observer).__name__} failed"):
            self.observer.merge(other.observer)

    def copy(self) -> Self:
        """The same, with an observer of its own."""
        if self.seen or not self.finite:
            return self.of(self.state(), self._factory)
        return type(self)(self._factory)

    def joined(self, other: Self) -> Self:
        """What both have seen."""
        both = type(self)(self._factory)
        both.merge(self)
        both.merge(other)
        return both

    @property
    def seen(self) -> bool:
        """Whether an ordinary value was observed."""
        return self.ends.min <= self.ends.max

    def range(self, grid: Grid) -> TensorRange | None:
        """The range to quantize for; None for a tensor that was always empty.

        A tensor of nothing but infinities and masks has the range ``[0, 0]``, not finite.

        Raises:
            DataError: A user's observer fails, or tells no range.
        """
        if not self.seen:
            return None if self.finite else TensorRange(0.0, 0.0, 0.0, 0.0, finite=False)
        if self._own:
            lo, hi = self.observer.range(grid)
        else:
            what = f"observer {type(self.observer).__name__}"
            with user_code(f"{what} failed"):
                lo, hi = map(float, self.observer.range(grid))
            if not -1e38 < lo <= hi < 1e38:
                raise DataError(f"{what} gives the range [{lo}, {hi}]", "return finite (lo, hi)")
        return TensorRange(lo, hi, *self.ends.ends, self.finite)

    def state(self) -> dict[str, Any]:
        """Everything that is remembered, as plain values and arrays.

        Raises:
            UsageError: A user's observer has other attributes than a new one of its class, so that
                they could not be given back.
        """
        if not self._own and vars(self.observer).keys() != vars(self._factory()).keys():
            raise UsageError(
                f"observer {type(self.observer).__name__} gained or lost attributes while it "
                "observed, so that it cannot be saved",
                "set all of them in __init__",
            )
        state = {"observer": state_of(self.observer), "finite": self.finite}
        return state if self._own else state | {"ends": state_of(self.ends)}

    @classmethod
    def of(cls, state: Mapping[str, Any], factory: Factory) -> Self:
        """A watch with that state.

        Raises:
            DataError: It is the state of another kind of observer.
        """
        watch = cls(factory)
        parts = {"observer": watch.observer} | ({} if watch._own else {"ends": watch.ends})
        if set(state) != {"finite", *parts} or not isinstance(state["finite"], bool):
            raise DataError(f"a watch has no parts {', '.join(map(str, state))}")
        watch.finite = state["finite"]
        for name, part in parts.items():
            restore(part, state[name])
        return watch
