"""Small charts as SVG: enough for the figures of the documentation, and the same bytes each time.

Figures are light cards, so that they read on a light page and on a dark one, and 600 units wide
with letters of 17, so that they read at the width of a phone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

# Okabe and Ito's colours, told apart by people who do not see red or green.
BLUE, ORANGE, GREEN, PINK = "#0072b2", "#d55e00", "#00805f", "#b5578c"
SKY, GOLD = "#56b4e9", "#8a6d00"
INK, SOFT, LINE, CARD = "#24292f", "#57606a", "#d0d7de", "#ffffff"
WIDTH, LETTER = 600, 17
Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """From values to places: the ends, the ticks with their labels, and a name."""

    lo: float
    hi: float
    ticks: Sequence[tuple[float, str]] = ()
    name: str = ""
    log: bool = False

    def share(self, value: float) -> float:
        lo, hi, at = (math.log(v) if self.log else v for v in (self.lo, self.hi, value))
        return (at - lo) / (hi - lo)


def numbers(values: Iterable[float], form: str = "{:g}") -> list[tuple[float, str]]:
    """Ticks at some values."""
    return [(value, form.format(value)) for value in values]


@dataclass
class Card:
    """A card to draw on, in units of its own: a title, and whatever is put on it.

    What is drawn first lies below what is drawn later.
    """

    title: str
    height: float
    parts: list[str] = field(default_factory=list)

    def line(self, points: Sequence[Point], color: str = INK, width: float = 3, dash: str = ""):
        path = " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="{_n(width)}"'
            f'{dashed} stroke-linejoin="round"/>'
        )

    def box(self, x, y, w, h, fill=LINE, *, stroke="none", round_=0.0, opacity=1.0):
        self.parts.append(
            f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(w)}" height="{_n(h)}" rx="{_n(round_)}" '
            f'fill="{fill}" fill-opacity="{_n(opacity)}" stroke="{stroke}" stroke-width="2"/>'
        )

    def dot(self, x, y, color=BLUE, radius=6.0, *, hollow=False):
        fill, stroke = (CARD, color) if hollow else (color, CARD)
        self.parts.append(
            f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(radius)}" fill="{fill}" stroke="{stroke}" '
            f'stroke-width="{3 if hollow else 1.5}"/>'
        )

    def text(self, x, y, words, color=INK, anchor="start", size=LETTER, *, bold=False, turn=0):
        turned = f' transform="rotate({turn} {_n(x)} {_n(y)})"' if turn else ""
        weight = ' font-weight="600"' if bold else ""
        self.parts.append(
            f'<text x="{_n(x)}" y="{_n(y)}" fill="{color}" text-anchor="{anchor}" '
            f'font-size="{_n(size)}"{weight}{turned}>{escape(words)}</text>'
        )

    def arrow(self, start: Point, end: Point, color: str = SOFT, width: float = 2.5, dash=""):
        angle = math.atan2(end[1] - start[1], end[0] - start[0])
        back = end[0] - 9 * math.cos(angle), end[1] - 9 * math.sin(angle)
        self.line([start, back], color, width, dash)
        corners = [end] + [
            (end[0] - 12 * math.cos(angle + a), end[1] - 12 * math.sin(angle + a))
            for a in (0.4, -0.4)
        ]
        path = " ".join(f"{_n(x)},{_n(y)}" for x, y in corners)
        self.parts.append(f'<polygon points="{path}" fill="{color}"/>')

    def legend(self, entries: Sequence[tuple[str, str]], y: float = 62, x: float = 24) -> None:
        """Names with their colours, in one row."""
        for words, color in entries:
            self.box(x, y - 11, 14, 12, color, round_=3)
            self.text(x + 20, y, words, SOFT, size=LETTER - 1)
            x += 20 + 0.52 * (LETTER - 1) * len(words) + 22

    def svg(self) -> str:
        """The whole file."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {_n(self.height)}" '
            f'role="img" font-family="system-ui, -apple-system, Segoe UI, Roboto, sans-serif">\n'
            f"<title>{escape(self.title)}</title>\n"
            f'<rect x="1" y="1" width="{WIDTH - 2}" height="{_n(self.height - 2)}" rx="12" '
            f'fill="{CARD}" stroke="{LINE}"/>\n'
            f'<text x="24" y="34" fill="{INK}" font-size="18" font-weight="600">'
            f"{escape(self.title)}</text>\n" + "\n".join(self.parts) + "\n</svg>\n"
        )


@dataclass(frozen=True)
class Plot:
    """Axes on a card: from values to the card's units."""

    card: Card
    x: Axis
    y: Axis
    left: float = 70
    top: float = 80
    right: float = 576
    bottom: float = 320

    def at(self, x: float, y: float) -> Point:
        return (
            self.left + self.x.share(x) * (self.right - self.left),
            self.bottom - self.y.share(y) * (self.bottom - self.top),
        )

    def axes(self, *, grid: bool = True) -> Plot:
        """Draw ticks, names and lines."""
        card = self.card
        for value, words in self.y.ticks:
            _, y = self.at(self.x.lo, value)
            if grid:
                card.line([(self.left, y), (self.right, y)], LINE, 1)
            card.text(self.left - 8, y + 6, words, SOFT, "end", LETTER - 2)
        card.line([(self.left, self.bottom), (self.right, self.bottom)], SOFT, 1.5)
        for value, words in self.x.ticks:
            x, _ = self.at(value, self.y.lo)
            card.line([(x, self.bottom), (x, self.bottom + 5)], SOFT, 1.5)
            card.text(x, self.bottom + 23, words, SOFT, "middle", LETTER - 2)
        middle = (self.left + self.right) / 2
        if self.x.name:
            card.text(middle, self.bottom + 48, self.x.name, SOFT, "middle", LETTER - 1)
        if self.y.name:
            card.text(
                22, (self.top + self.bottom) / 2, self.y.name, SOFT, "middle", LETTER - 1, turn=-90
            )
        return self

    def curve(self, points: Iterable[Point], color: str = BLUE, width: float = 3, dash: str = ""):
        self.card.line([self.at(x, y) for x, y in points], color, width, dash)

    def dots(self, points: Iterable[Point], color: str = BLUE, radius=6.0, *, hollow=False):
        for x, y in points:
            self.card.dot(*self.at(x, y), color, radius, hollow=hollow)

    def bar(self, lo: Point, hi: Point, color: str, opacity: float = 1.0) -> None:
        """A rectangle between two corners."""
        (x0, y0), (x1, y1) = self.at(*lo), self.at(*hi)
        self.card.box(min(x0, x1), min(y0, y1), abs(x1 - x0), abs(y1 - y0), color, opacity=opacity)

    def label(self, x: float, y: float, words: str, color: str = INK, anchor="start", dx=0, dy=0):
        at = self.at(x, y)
        self.card.text(at[0] + dx, at[1] + dy, words, color, anchor, LETTER - 1)


def _n(value: float) -> str:
    """A number in as few letters as the eye needs."""
    return f"{value:.1f}".rstrip("0").rstrip(".") or "0"
