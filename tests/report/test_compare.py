"""Two models side by side: figures made by hand, that anybody can check."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from msgspec.structs import replace
from rich.console import Console

from onnxq.report import models_markdown, models_page, models_view
from onnxq.report.compare import COLUMNS, headline
from onnxq.verify import (
    FileFacts,
    Growth,
    LayerError,
    MetricFacts,
    ModelComparison,
    OutputFacts,
    Speed,
)

EVIL = "</script><script>alert(1)</script>"


def layer(
    name: str, before: float | None, sqnr: float, new: float, alone: float | None
) -> LayerError:
    op = "Conv" if before is not None else "input"
    tensor, node = (f"{name}_out", name) if before is not None else (name, "")
    return LayerError(tensor, f"{tensor}_q", "name", node, op, sqnr, before, new, alone)


FOUND = ModelComparison(
    reference=FileFacts("a/float.onnx", "0" * 64, 2_000_000),
    other=FileFacts("b/[int8].onnx", "1" * 64, 500_000),
    data="2" * 64,
    samples=200,
    outputs={"scores": OutputFacts(14.0, 0.98, 0.9), "ids": OutputFacts(equal=0.5)},
    max_errors={"scores": 0.25},
    metric=MetricFacts("top1", 0.95, 0.9, 200, "scores"),
    speed=Speed(3.0, 1.5, 2.0, 0.03, 30, 8, 2),
    growth=Growth(
        (
            layer("image", None, 50.0, 50.0, 44.0),
            layer("/[stem]", 50.0, 38.1, 38.5, 34.0),
            layer("/pool", 38.1, 38.1, 200.0, None),
            layer("/conv3", 38.1, 14.2, 14.2, 14.5),
            layer(EVIL, 14.2, 14.0, 40.0, 41.0),
        ),
        output_db=14.0,
        samples=64,
        unmatched=2,
    ),
    environment={"processor": "a <fast> one"},
    notes=("one | note",),
)


def text(found: ModelComparison, **options: int) -> str:
    console = Console(file=io.StringIO(), width=120, color_system=None)
    console.print(models_view(found, **options))
    return console.file.getvalue()


def rows(shown: str) -> list[list[str]]:
    return [line.split() for line in shown.splitlines()]


def test_tables() -> None:
    shown = text(FOUND)
    assert "The error enters at '/conv3': 38.1 dB before it, 14.2 dB behind it.\n" in shown
    lines = rows(shown)
    assert ["float.onnx", "[int8].onnx", "change"] in lines
    assert ["size", "2.0", "MB", "500.0", "kB", "0.25x"] in lines
    assert ["top1", "0.9500", "0.9000", "-5.00", "points"] in lines
    assert "latency, batch 8, 2 threads" in shown
    assert [
        "latency,",
        "batch",
        "8,",
        "2",
        "threads",
        "3",
        "ms",
        "1.5",
        "ms",
        "2.00x",
        "(±3%)",
    ] in (lines)
    assert "SQNR 14.0 dB, cosine 0.980000, largest error 0.25, same top class on 90.00%" in shown
    assert "output ids: 50.00% of its entries are equal" in shown
    # 10^((14 - 34) / 10) and 10^(-0.05)
    assert ["/[stem]", "Conv", "50.0", "38.1", "38.5", "34.0", "1.0%"] in lines
    assert ["/conv3", "Conv", "38.1", "14.2", "14.2", "14.5", "89.1%"] in lines
    assert ["image", "input", "50.0", "50.0", "44.0", "0.1%"] in lines
    assert "/pool" not in shown  # it adds nothing
    assert "64 samples; 1 more add no error; 2 have no counterpart" in shown


def test_top_keeps_the_order_of_the_graph() -> None:
    shown = text(FOUND, top=2)
    assert [line[0] for line in rows(shown) if line and line[0].startswith("/")] == [
        "/[stem]", "/conv3",
    ]  # fmt: skip
    assert "image " not in shown
    assert "2 more layers with less harm" in shown


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"output_db": 8.0}, "No layer makes most of the error; the most harm comes from '/conv3'"),
        ({"layers": FOUND.growth.layers[:1]}, "comes from input 'image': 50.0 dB behind it, 0.1%"),
        ({"layers": FOUND.growth.layers[2:3]}, "No error enters in any layer that was compared."),
        (
            {"layers": (layer("/conv", 200.0, 9.0, 9.0, 14.0),)},
            "The error enters at '/conv': no error before it, 9.0 dB behind it.",
        ),
    ],
)
def test_headline(change: dict[str, object], said: str) -> None:
    assert said in headline(replace(FOUND, growth=replace(FOUND.growth, **change)))


def test_slower_is_told() -> None:
    slow = replace(FOUND, speed=Speed(1.0, 2.0, 0.5, 0.03, 30, 8, 1))
    assert "0.50x (±3%): slower" in text(slow)


def test_what_was_not_measured_is_left_out() -> None:
    bare = replace(FOUND, growth=None, speed=None, metric=None)
    shown = text(bare)
    assert "latency" not in shown
    assert "enters" not in shown
    assert "Layers were not compared" not in models_markdown(bare)


def test_markdown() -> None:
    shown = models_markdown(FOUND)
    assert r"# \[int8\].onnx against float.onnx" in shown
    bold = ("/conv3", "Conv", "38.1", "14.2", "14.2", "14.5", "89.1%")
    assert f"| {' | '.join(f'**{cell}**' for cell in bold)} |" in shown
    assert r"- one \| note" in shown
    assert EVIL not in shown


class TestPage:
    @pytest.fixture
    def page(self) -> str:
        pytest.importorskip("jinja2")
        pytest.importorskip("plotly")
        return models_page(FOUND)

    def test_points_of_the_chart(self, page: str) -> None:
        (data,) = re.findall(r'id="data">(.*?)</script>', page)
        drawn = json.loads(data)["tables"]["layers"]
        assert [row["layer"] for row in drawn] == ["image", "/[stem]", "/pool", "/conv3", EVIL]
        assert drawn[2]["new_db"] is None  # no point where nothing is added
        assert drawn[3]["share"] == pytest.approx(10**-0.05)

    def test_the_worst_is_marked(self, page: str) -> None:
        (marked,) = re.findall(r'<tr data-row="(\d)" class="worst">', page)
        assert marked == "3"

    def test_without_layers(self, page: str) -> None:
        bare = models_page(replace(FOUND, growth=None))
        assert "How the error grows" in page
        assert "How the error grows" not in bare
        assert len(bare) < 100_000  # there is no chart, and no plotly


def test_the_page_of_the_docs_explains_every_figure() -> None:
    text = (Path(__file__).parents[2] / "docs/compare.md").read_text(encoding="utf-8")
    told = {tuple(cell.strip() for cell in line.split("|")[1:3]) for line in text.splitlines()}
    assert {(column.title, column.meaning) for column in COLUMNS if column.number} <= told
