"""The table of a calibration: readable at any width, honest about what it cannot tell."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console, RenderableType

from onnxq.calibrate import Statistics, TensorStatistics
from onnxq.report import calibration_table, calibration_verdict, sparkline
from onnxq.types import Grid

ODD = "block[bold]/conv[/]"  # would be markup, and an error for the closing tag


def text(view: RenderableType, width: int = 120) -> str:
    console = Console(file=StringIO(), width=width, color_system=None)
    console.print(view)
    return console.file.getvalue()  # type: ignore[attr-defined]


def statistics(moved: float | None = 0.01, **changes) -> Statistics:
    known = TensorStatistics(-1.5, 6.0, -1.0, 5.5, True, 0.00123, 41.2, moved, (0.25, 0.5, 0.25))
    masked = TensorStatistics(0.0, 1.0, 0.0, 1.0, finite=False)
    return Statistics(200, "mse", Grid(**changes), {ODD: known, "mask": masked})


@pytest.mark.parametrize("width", [80, 100, 200])
def test_every_figure_is_there(width: int) -> None:
    said = text(calibration_table(statistics(), width=width), width)
    line = next(line for line in said.splitlines() if "block" in line)
    for figure in (ODD[:11], "-1 … 5.5", "0.123%", "41.2", "1.0%", "▆█▆"):
        assert figure in line, figure
    assert ("-1.5" in line) == (width >= 100)  # the exact ends, where there is room
    # a long name takes two lines of a narrow terminal
    assert ODD in said or "[/]" in said
    assert "inf or mask: float" in said
    assert "…\n" not in said  # nothing was cut off


def test_the_grid_is_told() -> None:
    said = " ".join(text(calibration_table(statistics(bits=4, symmetric=True))).split())
    assert "ranges by mse for 4 bits, symmetric" in said


def test_ascii_terminals_get_ascii_pictures() -> None:
    assert "▆" not in text(calibration_table(statistics(), unicode=False)).replace("…", "")
    assert sparkline((0.0, 1.0), unicode=False) == " @"


@pytest.mark.parametrize(
    ("shares", "picture"),
    [((), ""), ((0.0, 0.0), "  "), ((1.0,), "█"), ((0.0, 1.0, 0.0001), " █▁"), ((0.5, 0.5), "██")],
)
def test_sparkline(shares: tuple[float, ...], picture: str) -> None:
    assert sparkline(shares) == picture


@pytest.mark.parametrize(
    ("moved", "said"),
    [
        (0.01, "ranges moved by at most 1.0%: enough"),
        (0.3, f"still moving: {ODD} 30.0%; more samples may help (--resume)"),
        (None, "too few samples to tell whether they were enough"),
    ],
)
def test_verdict(moved: float | None, said: str) -> None:
    assert said in " ".join(text(calibration_verdict(statistics(moved))).split())


def test_a_model_without_tensors_to_observe_has_a_verdict_of_its_own() -> None:
    said = text(calibration_verdict(Statistics(0, "minmax", Grid(), {})))
    assert "no tensor was observed" in said
    assert "few samples" not in said


def test_verdict_names_the_worst_first_and_not_all() -> None:
    tensors = {
        f"t{n}": TensorStatistics(0.0, 1.0, 0.0, 1.0, True, moved=n / 100) for n in range(1, 9)
    }
    said = text(calibration_verdict(Statistics(90, "minmax", Grid(), tensors)))
    assert "still moving: t8 8.0%, t7 7.0%, t6 6.0%, t5 5.0%, t4 4.0% and 1 more" in said
