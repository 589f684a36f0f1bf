"""Words of a list, as options take them: what is none of them is told the nearest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

from onnxq.errors import nearest


class Word(click.Choice):  # type: ignore[type-arg]
    """One of some words.

    Args:
        words: All that there are.
    """

    def __init__(self, words: Iterable[str]) -> None:
        super().__init__(list(words))

    def convert(
        self,
        value: Any,  # noqa: ANN401 - click hands over any type
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> str:
        """Take it, or name the nearest word beside all."""
        try:
            return str(super().convert(value, param, ctx))
        except click.BadParameter as error:
            if near := nearest(str(value), self.choices, otherwise=""):
                self.fail(f"{error.message.rstrip('.')}; {near}", param, ctx)
            raise
