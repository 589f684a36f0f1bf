"""The page of an analysis: what its text holds, and what a browser makes of it."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from onnxq.errors import RuntimeFailure
from onnxq.report import sensitivity_page
from onnxq.report.html import shorten
from onnxq.sensitivity import Loss, SensitivityReport

pytest.importorskip("jinja2")
pytest.importorskip("plotly")

Parse = Callable[[str], Any]
Open = Callable[[str], Any]


@pytest.fixture
def page(parse: Parse, report: SensitivityReport) -> Any:
    return parse(sensitivity_page(report))


def test_figures_of_the_charts(page: Any, parse: Parse, report: SensitivityReport) -> None:
    data = page.data
    assert data["tables"]["layers"][0]["noise"] == pytest.approx(10)  # 20 dB: a tenth of the signal
    assert data["tables"]["layers"][0]["recovered_db"] == pytest.approx(10.4)
    assert [bar[0] for bar in data["bars"]] == ["noise", "drop", "kl", "recovered_db", "saved_ms"]
    assert [(p["ms"], p["measured"]) for p in data["front"]] == [
        (0.71, True), (0.8, False),  # the third was not built: nothing to draw
    ]  # fmt: skip
    assert [p["drop"] for p in data["front"]] == pytest.approx([7, 2])  # points below 0.99
    assert [loss[0] for loss in data["losses"]] == ["noise", "drop"]
    same = replace(report, front=(replace(report.front[0], loss=Loss(200.0)),))
    (point,) = parse(sensitivity_page(same)).data["front"]
    assert point["noise"] == 0  # the float model itself
    assert data["weights"]["/stem/conv"]["counts"] == [1, 20, 300, 40, 0, 2]


def test_what_is_missing_is_left_out(parse: Parse, report: SensitivityReport) -> None:
    layers = tuple(
        replace(row, float_ms=None, rest=None, only=replace(row.only, metric=None, kl=None))
        for row in report.layers
    )
    bare = replace(report, layers=layers, front=(), metric=None, float_metric=None)
    page = parse(sensitivity_page(bare))
    assert [bar[0] for bar in page.data["bars"]] == ["noise"]
    assert "Latency against accuracy" not in page.text


def test_no_layers(report: SensitivityReport) -> None:
    assert "there is no layer to quantize" in sensitivity_page(
        replace(report, layers=(), front=(), everything={})
    )


@pytest.mark.parametrize("module", ["jinja2", "plotly.offline"])
def test_without_the_extra(
    module: str, report: SensitivityReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RuntimeFailure, match=r"cannot be imported; pip install 'onnxq\[report\]'"):
        sensitivity_page(report)


def test_long_names_lose_their_middle() -> None:
    name = "/backbone/features/features.13/conv/conv.1/conv.1.0/Conv_quant"
    short = shorten(name, 30)
    assert len(short) == 30
    head, tail = short.split("…")
    assert name.startswith(head)
    assert name.endswith(tail)
    assert shorten("Conv_1", 30) == "Conv_1"


# --- In a browser ---------------------------------------------------------------------------------


@pytest.fixture
def tab(open_tab: Open, report: SensitivityReport) -> Any:
    return open_tab(sensitivity_page(report))


def test_opens_without_errors_and_without_a_network(tab: Any, report: SensitivityReport) -> None:
    assert tab.names() == [layer.name for layer in report.layers]
    assert tab.bars() == [layer.name for layer in report.layers]
    assert tab.run("return document.querySelectorAll('#front .point').length") == 2
    titles = (
        "return [...document.querySelectorAll('#front .infolayer text')].map(t => t.textContent)"
    )
    assert any("filled: measured, open: predicted" in title for title in tab.run(titles))
    assert tab.errors() == []
    assert tab.requests() == []


def test_the_browser_tells_of_scripts_and_requests(
    open_tab: Open, report: SensitivityReport
) -> None:
    """The policy stops both, and the tests above would see it."""
    page = sensitivity_page(report)
    foreign = "<script>window.ran = 1</script><img src='http://127.0.0.1:9/x.png'></main>"
    assert page.count("</main>") == 1
    tab = open_tab(page.replace("</main>", foreign))
    assert tab.run("return window.ran") is None
    assert len([text for text in tab.errors() if "Content Security Policy" in text]) == 2
    allowed = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    tab = open_tab(allowed.replace("</main>", foreign))
    assert tab.run("return window.ran") == 1
    assert tab.requests() == ["http://127.0.0.1:9/x.png"]


def test_sorts(tab: Any, evil: str) -> None:
    stem, odd, last = "/stem/conv", "block[bold]/a|b[/]", "sum"
    tab.sort("parameters")
    assert tab.names()[0] == evil  # most first
    assert tab.names()[-1] == last
    tab.sort("parameters")
    assert tab.names()[0] == last
    tab.sort("weights_sqnr_db")  # the worst ratio first, empty ones last whatever the direction
    assert tab.names() == [stem, evil, odd, last]
    tab.sort("weights_sqnr_db")
    assert tab.names() == [evil, stem, odd, last]
    tab.sort("op")
    assert tab.names() == [last, stem, odd, evil]  # Add, Conv, Conv, Gemm
    header = "return document.querySelector('th[data-key=op]').ariaSort"
    assert tab.run(header) == "ascending"


def test_filters_table_and_bars(tab: Any, evil: str) -> None:
    tab.find("gemm")
    assert tab.names() == [evil]
    assert tab.bars() == [evil]
    assert tab.count() == "1 of 4"
    tab.find("conv BLOCK")  # all words, in any case
    assert tab.names() == ["block[bold]/a|b[/]"]
    tab.find("nothing like it")
    assert tab.names() == tab.bars() == []
    tab.find("")
    assert len(tab.names()) == 4
    assert tab.errors() == []


def test_a_row_shows_its_histograms(tab: Any, evil: str) -> None:
    drawn = (
        "return [...document.querySelectorAll('tr.detail .js-plotly-plot')]"
        ".map(plot => plot.data[0].y.reduce((a, b) => a + b))"
    )
    tab.open("/stem/conv")
    assert tab.run(drawn) == [363, 961]
    tab.sort("op")  # the detail moves along with its row
    row = "return document.querySelector('tr.detail').previousElementSibling.cells[0].title"
    assert tab.run(row) == "/stem/conv"
    tab.open(evil)
    said = tab.run("return document.querySelector('tr.detail').textContent")
    assert said.startswith(f"{evil} (Gemm)")
    assert "No histogram of weights." in said
    tab.open(evil)
    assert tab.run("return document.querySelectorAll('tr.detail').length") == 0
    assert tab.errors() == []


def test_a_measure_is_chosen(tab: Any) -> None:
    tab.run(
        "const m = document.getElementById('measure'); m.value = 'saved_ms';"
        "m.dispatchEvent(new Event('change'))"
    )
    assert tab.bars()[-1] == "/stem/conv"  # the only one that is slower quantized
    assert "ms per run" in tab.run("return document.querySelector('#bars .xtitle').textContent")


def test_dark_and_light(tab: Any) -> None:
    """The page and the charts in it: light on dark, and dark on light."""
    looks = (
        "const chart = document.querySelector('#bars .ytick text');"
        "const body = getComputedStyle(document.body);"
        "return [body.backgroundColor, body.color, getComputedStyle(chart).fill]"
    )

    def brightness(scheme: str) -> list[int]:
        tab.colours(scheme)
        tab.run("return new Promise(done => setTimeout(done, 300))")  # the charts follow
        return [sum(map(int, re.findall(r"\d+", color)[:3])) for color in tab.run(looks)]

    page, ink, chart = brightness("dark")
    assert page < 150 < 600 < min(ink, chart)
    page, ink, chart = brightness("light")
    assert max(ink, chart) < 150 < 600 < page


def test_the_front_shows_another_loss(tab: Any) -> None:
    drawn = "return document.getElementById('front').data[0].y"
    assert tab.run(drawn) == pytest.approx([100 * 10**-0.93, 100 * 10**-1.45])  # 18.6 and 29 dB
    tab.run(
        "const l = document.getElementById('loss'); l.value = 'drop';"
        "l.dispatchEvent(new Event('change'))"
    )
    assert tab.run(drawn) == pytest.approx([7, 2])


def test_names_stand_above_the_bars_of_a_phone(tab: Any) -> None:
    """Bars have most of the width there, names are whole, and nothing is wider than the screen."""
    widest = (
        "return Math.max(...[...document.querySelectorAll('#bars .point path')]"
        ".map(p => p.getBoundingClientRect().width))"
    )
    tab.resize(390)
    try:
        until = time.monotonic() + 60
        while tab.bars() and time.monotonic() < until:  # the labels beside the bars go
            time.sleep(0.05)
        assert tab.bars() == []
        names = "document.querySelectorAll('#bars .annotation-text')"
        assert tab.run(f"return [...{names}].map(t => t.textContent)") == tab.names()
        assert tab.run(widest) > 200
    finally:
        tab.resize(None)
    assert tab.errors() == []
