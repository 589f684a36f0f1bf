"""The page of an analysis: what its text holds, and what a browser makes of it."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from onnxq.errors import RuntimeFailure
from onnxq.report import sensitivity_page
from onnxq.report.html import shorten
from onnxq.sensitivity import Loss, SensitivityReport

pytest.importorskip("jinja2")
pytest.importorskip("plotly")

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--window-size=1280,1000",
)  # fmt: skip


class Page(HTMLParser):
    """What a parser sees: elements with their attributes, text, and scripts by their type."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[str | None, str]] = []
        self.text = ""
        self._script: str | None = None
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append((dict(attrs).get("type"), ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            kind, content = self.scripts[-1]
            self.scripts[-1] = (kind, content + data)
        elif self._inside != "style":
            self.text += data

    @property
    def data(self) -> dict[str, Any]:
        (content,) = [text for kind, text in self.scripts if kind == "application/json"]
        return json.loads(content)


@pytest.fixture
def page(report: SensitivityReport) -> Page:
    return Page(sensitivity_page(report))


def test_nothing_comes_from_elsewhere(page: Page) -> None:
    """No element names a place but the empty icon; the scripts of the page are told by hash."""
    places = [
        attrs[name]
        for _, attrs in page.elements
        for name in ("src", "href", "srcset", "action", "data")
        if name in attrs
    ]
    assert places == ["data:,"]
    policy = next(a["content"] for t, a in page.elements if a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    (allowed,) = re.findall(r"script-src ([^;]+)", policy)
    assert re.fullmatch(r"('sha256-[\w+/]+=*' ?){2}", allowed)


def test_names_are_text(page: Page, evil: str) -> None:
    """The evil name closes no script, adds no element, and is still there to be read."""
    assert [kind for kind, _ in page.scripts] == ["application/json", None, None]
    assert evil in page.text
    assert evil in [row["layer"] for row in page.data["rows"]]
    assert "a <fast> one" in page.text
    titles = [attrs.get("title") for tag, attrs in page.elements if tag == "th"]
    assert evil in titles


def test_figures_of_the_charts(page: Page, report: SensitivityReport) -> None:
    data = page.data
    assert data["rows"][0]["noise"] == pytest.approx(10)  # 20 dB: a tenth of the signal
    assert data["rows"][0]["recovered_db"] == pytest.approx(10.4)
    assert [bar[0] for bar in data["bars"]] == ["noise", "drop", "kl", "recovered_db", "saved_ms"]
    assert [(p["ms"], p["measured"]) for p in data["front"]] == [
        (0.71, True), (0.8, False),  # the third was not built: nothing to draw
    ]  # fmt: skip
    assert [p["drop"] for p in data["front"]] == pytest.approx([7, 2])  # points below 0.99
    assert [loss[0] for loss in data["losses"]] == ["noise", "drop"]
    same = replace(report, front=(replace(report.front[0], loss=Loss(200.0)),))
    (point,) = Page(sensitivity_page(same)).data["front"]
    assert point["noise"] == 0  # the float model itself
    assert data["weights"]["/stem/conv"]["counts"] == [1, 20, 300, 40, 0, 2]


def test_what_is_missing_is_left_out(report: SensitivityReport) -> None:
    layers = tuple(
        replace(row, float_ms=None, rest=None, only=replace(row.only, metric=None, kl=None))
        for row in report.layers
    )
    bare = replace(report, layers=layers, front=(), metric=None, float_metric=None)
    page = Page(sensitivity_page(bare))
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


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium that tells what it logs and what it asks for."""
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("chromium or chromedriver is not installed")
    options = selenium.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp("chromium")
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = selenium.Chrome(options=options, service=selenium.ChromeService(DRIVER))
    yield driver
    driver.quit()


class Tab:
    """A page in the browser."""

    def __init__(self, browser: Any, page: str, folder: Path) -> None:
        self._browser = browser
        file = folder / "page.html"
        file.write_text(page, encoding="utf-8")
        for kind in ("browser", "performance"):
            browser.get_log(kind)  # what an earlier page left
        self._url = file.as_uri()
        browser.get(self._url)
        # the driver may come back while the page before still stands there
        loaded = "return document.URL === arguments[0] && document.readyState === 'complete'"
        until = time.monotonic() + 20
        while not self.run(loaded, self._url):
            assert time.monotonic() < until, "the page does not load"
            time.sleep(0.05)

    def run(self, script: str, *values: object) -> Any:
        return self._browser.execute_script(script, *values)

    def names(self) -> list[str]:
        """Layers in the table, from top to bottom, hidden ones left out."""
        return self.run(
            "return [...document.querySelectorAll('tr[data-row]')].filter(r => !r.hidden)"
            ".map(r => r.cells[0].title)"
        )

    def bars(self) -> list[str]:
        """Labels of the bars, from top to bottom, as they are drawn."""
        return self.run(
            "const top = (t) => t.getBoundingClientRect().top;"
            "return [...document.querySelectorAll('#bars .ytick text')]"
            ".sort((a, b) => top(a) - top(b)).map(t => t.textContent)"
        )

    def sort(self, key: str) -> None:
        self.run("document.querySelector(`th[data-key=${arguments[0]}] button`).click()", key)

    def find(self, words: str) -> None:
        self.run(
            "const find = document.getElementById('find'); find.value = arguments[0];"
            "find.dispatchEvent(new Event('input'))",
            words,
        )

    def open(self, layer: str) -> None:
        self.run(
            "[...document.querySelectorAll('tr[data-row]')]"
            ".find(r => r.cells[0].title === arguments[0]).cells[1].click()",
            layer,
        )

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self._browser.get_log("browser")]

    def requests(self) -> list[str]:
        """Whatever the page asked for, but for itself."""
        events = (json.loads(e["message"])["message"] for e in self._browser.get_log("performance"))
        sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
        asked = [e["request"]["url"] for e in sent if e["documentURL"] == self._url]
        return [url for url in asked if url != self._url and not url.startswith("data:")]


@pytest.fixture
def tab(browser: Any, report: SensitivityReport, tmp_path: Path) -> Tab:
    return Tab(browser, sensitivity_page(report), tmp_path)


def test_opens_without_errors_and_without_a_network(tab: Tab, report: SensitivityReport) -> None:
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
    browser: Any, report: SensitivityReport, tmp_path: Path
) -> None:
    """The policy stops both, and the tests above would see it."""
    page = sensitivity_page(report)
    foreign = "<script>window.ran = 1</script><img src='http://127.0.0.1:9/x.png'></main>"
    assert page.count("</main>") == 1
    tab = Tab(browser, page.replace("</main>", foreign), tmp_path)
    assert tab.run("return window.ran") is None
    assert len([text for text in tab.errors() if "Content Security Policy" in text]) == 2
    allowed = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    tab = Tab(browser, allowed.replace("</main>", foreign), tmp_path)
    assert tab.run("return window.ran") == 1
    assert tab.requests() == ["http://127.0.0.1:9/x.png"]


def test_sorts(tab: Tab, evil: str) -> None:
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


def test_filters_table_and_bars(tab: Tab, evil: str) -> None:
    tab.find("gemm")
    assert tab.names() == [evil]
    assert tab.bars() == [evil]
    assert tab.run("return document.getElementById('count').textContent") == "1 of 4"
    tab.find("conv BLOCK")  # all words, in any case
    assert tab.names() == ["block[bold]/a|b[/]"]
    tab.find("nothing like it")
    assert tab.names() == tab.bars() == []
    tab.find("")
    assert len(tab.names()) == 4
    assert tab.errors() == []


def test_a_row_shows_its_histograms(tab: Tab, evil: str) -> None:
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


def test_a_measure_is_chosen(tab: Tab) -> None:
    tab.run(
        "const m = document.getElementById('measure'); m.value = 'saved_ms';"
        "m.dispatchEvent(new Event('change'))"
    )
    assert tab.bars()[-1] == "/stem/conv"  # the only one that is slower quantized
    assert "ms per run" in tab.run("return document.querySelector('#bars .xtitle').textContent")


def test_dark_and_light(browser: Any, tab: Tab) -> None:
    """The page and the charts in it: light on dark, and dark on light."""
    looks = (
        "const chart = document.querySelector('#bars .ytick text');"
        "const body = getComputedStyle(document.body);"
        "return [body.backgroundColor, body.color, getComputedStyle(chart).fill]"
    )

    def brightness(scheme: str) -> list[int]:
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        tab.run("return new Promise(done => setTimeout(done, 300))")  # the charts follow
        return [sum(map(int, re.findall(r"\d+", color)[:3])) for color in tab.run(looks)]

    page, ink, chart = brightness("dark")
    assert page < 150 < 600 < min(ink, chart)
    page, ink, chart = brightness("light")
    assert max(ink, chart) < 150 < 600 < page


def test_the_front_shows_another_loss(tab: Tab) -> None:
    drawn = "return document.getElementById('front').data[0].y"
    assert tab.run(drawn) == pytest.approx([100 * 10**-0.93, 100 * 10**-1.45])  # 18.6 and 29 dB
    tab.run(
        "const l = document.getElementById('loss'); l.value = 'drop';"
        "l.dispatchEvent(new Event('change'))"
    )
    assert tab.run(drawn) == pytest.approx([7, 2])


def test_names_stand_above_the_bars_of_a_phone(browser: Any, tab: Tab) -> None:
    """Bars have most of the width there, names are whole, and nothing is wider than the screen."""
    widest = (
        "return Math.max(...[...document.querySelectorAll('#bars .point path')]"
        ".map(p => p.getBoundingClientRect().width))"
    )
    size = {"width": 390, "height": 900, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        until = time.monotonic() + 10
        while tab.bars() and time.monotonic() < until:  # the labels beside the bars go
            time.sleep(0.05)
        assert tab.bars() == []
        names = "document.querySelectorAll('#bars .annotation-text')"
        assert tab.run(f"return [...{names}].map(t => t.textContent)") == tab.names()
        assert tab.run(widest) > 200
        assert tab.run("return document.documentElement.scrollWidth") <= 390
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert tab.errors() == []
