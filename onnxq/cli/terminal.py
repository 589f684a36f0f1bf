"""What reaches a terminal: nothing that models, data or receipts bring along is obeyed by it."""

from __future__ import annotations

import re
from collections.abc import Iterable

import click
import msgspec
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from onnxq.errors import printable, printable_lines

# JSON strings need no escapes for these, but terminals obey them: C1 controls, marks of direction;
# and CI runners obey ``##[``.
_OBEYED = re.compile("[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]|(?<=#)#")


class Terminal(Console):
    """A console that shows texts, and obeys no escape sequence in them; colours are its own."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render, and leave out of all texts what is not printable."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(printable_lines(segment.text), segment.style)


def echo_json(value: object) -> None:
    """Print a value as JSON."""
    text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    click.echo(_OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def echo_line(text: str, *, err: bool = False) -> None:
    """Print a line that names what others named: files, nodes."""
    click.echo(printable(text), err=err)
