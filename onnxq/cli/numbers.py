"""Numbers as people type them: ``0.5%`` and ``0.005`` are the same share."""

from __future__ import annotations

import math
from typing import Any

import click


class Number(click.ParamType):  # type: ignore[type-arg]
    """A finite number above a limit.

    Args:
        above: It must be more than this; any number when None.
    """

    name = "number"

    def __init__(self, above: float | None = None) -> None:
        self._above = above

    def convert(
        self,
        value: Any,  # noqa: ANN401 - click hands over any type
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> float:
        """Read it, or say what is wrong with it."""
        number = _finite(str(value))
        if number is None:
            self.fail(f"'{value}' is no number.", param, ctx)
        if self._above is not None and number <= self._above:
            self.fail(f"{value} is not above {self._above:g}.", param, ctx)
        return number


class Numbers(click.ParamType):  # type: ignore[type-arg]
    """Whole numbers from 1 on, with commas between: ``1,8``."""

    name = "numbers"

    def convert(
        self,
        value: Any,  # noqa: ANN401 - click hands over any type
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> list[int]:
        """Read them, or say which one is wrong."""
        if isinstance(value, list):
            return value
        found = []
        for text in str(value).split(","):
            if not text.strip().isdecimal() or int(text) < 1:
                self.fail(f"'{text}' is no whole number from 1 on; say 1 or 1,8.", param, ctx)
            found.append(int(text))
        return found


class Share(click.ParamType):  # type: ignore[type-arg]
    """A share of a whole, ``99%`` or ``0.99``.

    Args:
        most: The largest that makes sense: 1, or more for a ratio.
        bare: The largest that is taken without a percent sign; beyond it, percents were probably
            meant.
    """

    name = "share"

    def __init__(self, most: float = 1.0, bare: float = 1.0) -> None:
        self._most, self._bare = most, bare

    def convert(
        self,
        value: Any,  # noqa: ANN401 - click hands over any type
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> float:
        """Read it, or say what was probably meant."""
        text = str(value).strip()
        percent = text.endswith("%")
        number = _finite(text.removesuffix("%"))
        if number is None or number < 0:
            self.fail(f"'{value}' is no share; say 1% or 0.01.", param, ctx)
        share = number / 100 if percent else number
        if share > self._most:
            hint = "" if percent else f"; for {number:g} percent, say {number:g}%"
            self.fail(f"{value} is too large for a share{hint}.", param, ctx)
        if not percent and share > self._bare:
            self.fail(f"{value} is {share:.0%}; say {number:g}% or {share:.0%}.", param, ctx)
        return share


def _finite(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
