"""Reports that are made by hand, and what a parser and a browser see of a page."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from onnxq.sensitivity import FrontPoint, Histogram, LayerSensitivity, Loss, SensitivityReport
from onnxq.types import Precision

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--window-size=1280,1000",
)  # fmt: skip
# A name that would run as a script wherever it is not escaped.
EVIL = "</script><script>alert(1)</script>"


def layer(name: str, op: str, db: float, rest: float, **changes: object) -> LayerSensitivity:
    """A layer whose top1 falls by a hundredth of a point for every dB below 40."""
    figures = {
        "only": Loss(db, 10 ** (-db / 10), 1 - (60 - db) / 1000, 0.99 - max(40 - db, 0) / 10_000),
        "weights": Loss(db + 6),
        "activations": Loss(db + 1.5),
        "rest": Loss(rest, 0.01, 0.97, 0.97),
        "float_ms": 0.30,
        "quantized_ms": 0.10,
        "parameters": 1_500,
        "macs": 2_400_000,
    }
    return LayerSensitivity(name, op, Precision.INT8, **(figures | changes))  # type: ignore[arg-type]


@pytest.fixture
def evil() -> str:
    return EVIL


@pytest.fixture
def report() -> SensitivityReport:
    """Four layers: one that makes most of the noise, and one with an evil name."""
    return SensitivityReport(
        model="models/face.onnx",
        sha256="ab" * 32,
        data="cd" * 32,
        method="exact",
        samples=64,
        metric="top1",
        float_metric=0.99,
        layers=(
            layer("/stem/conv", "Conv", 20.0, 29.0, quantized_ms=0.35),
            layer(EVIL, "Gemm", 30.0, 19.0, parameters=3_000_000),
            layer("block[bold]/a|b[/]", "Conv", 40.0, 18.7, weights=None),
            layer("sum", "Add", 200.0, 18.6, weights=None, parameters=0, macs=None),
        ),
        everything={"int8": Loss(18.6, 0.02, 0.94, 0.92)},
        front=(
            FrontPoint((), 0.7, Loss(18.6, metric=0.92), 0.71),
            FrontPoint(("/stem/conv",), 0.8, Loss(29.0, metric=0.97)),
            FrontPoint(("/stem/conv", EVIL), 1.2),
        ),
        weight_histograms={"/stem/conv": Histogram(-1.0, 1.0, (1, 20, 300, 40, 0, 2))},
        activation_histograms={"/stem/conv": Histogram(0.0, 255.0, (900, 50, 10, 1))},
        environment={"onnxq": "0.1.0", "processor": "a <fast> one"},
        notes=("calibrated with 8 samples",),
    )


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


@pytest.fixture(scope="session")
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
    # elements are told that they have the focus, though nobody looks at the window
    driver.execute_cdp_cmd("Emulation.setFocusEmulationEnabled", {"enabled": True})
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
        until = time.monotonic() + 60
        while not self.run(loaded, self._url):
            assert time.monotonic() < until, "the page does not load"
            time.sleep(0.05)

    def run(self, script: str, *values: object) -> Any:
        return self._browser.execute_script(script, *values)

    def names(self, sheet: str = "layers") -> list[str]:
        """First cells of a table, whole, from top to bottom, hidden ones left out."""
        return self.run(
            f"return [...document.querySelectorAll('#{sheet} tr[data-row]')]"
            ".filter(r => !r.hidden).map(r => r.cells[0].title)"
        )

    def rows(self, sheet: str = "layers") -> list[int]:
        """Numbers of the rows of a table, from top to bottom, hidden ones left out."""
        return self.run(
            f"return [...document.querySelectorAll('#{sheet} tr[data-row]')]"
            ".filter(r => !r.hidden).map(r => Number(r.dataset.row))"
        )

    def bars(self) -> list[str]:
        """Labels of the bars, from top to bottom, as they are drawn."""
        return self.run(
            "const top = (t) => t.getBoundingClientRect().top;"
            "return [...document.querySelectorAll('#bars .ytick text')]"
            ".sort((a, b) => top(a) - top(b)).map(t => t.textContent)"
        )

    def sort(self, key: str, sheet: str = "layers") -> None:
        self.run(f"document.querySelector('#{sheet} th[data-key={key}] button').click()")

    def find(self, words: str, sheet: str = "layers") -> None:
        self.run(
            f"const find = document.querySelector('.tools[data-for={sheet}] input');"
            "find.value = arguments[0]; find.dispatchEvent(new Event('input', { bubbles: true }))",
            words,
        )

    def choose(self, key: str, value: str, sheet: str = "layers") -> None:
        self.run(
            f"const chosen = document.querySelector('.tools[data-for={sheet}] [data-key={key}]');"
            "chosen.value = arguments[0];"
            "chosen.dispatchEvent(new Event('input', { bubbles: true }))",
            value,
        )

    def count(self, sheet: str = "layers") -> str:
        """How many rows are told to be shown."""
        return self.run(
            f"return document.querySelector('.tools[data-for={sheet}] .count').textContent"
        )

    def open(self, layer: str) -> None:
        self.run(
            "[...document.querySelectorAll('tr[data-row]')]"
            ".find(r => r.cells[0].title === arguments[0]).cells[1].click()",
            layer,
        )

    def resize(self, width: int | None) -> None:
        """Another width: a phone's if it is small; the window's own if None."""
        if width is None:
            self._browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
            return
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 640}
        self._browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def colours(self, scheme: str) -> None:
        """Light or dark."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self._browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    def until(self, script: str, wanted: object) -> None:
        """Wait for what a script returns."""
        end = time.monotonic() + 60
        while (found := self.run(script)) != wanted:
            assert time.monotonic() < end, found
            time.sleep(0.05)

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self._browser.get_log("browser")]

    def requests(self) -> list[str]:
        """Whatever the page asked for, but for itself."""
        events = (json.loads(e["message"])["message"] for e in self._browser.get_log("performance"))
        sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
        asked = [e["request"]["url"] for e in sent if e["documentURL"] == self._url]
        return [url for url in asked if url != self._url and not url.startswith("data:")]


@pytest.fixture
def open_tab(browser: Any, tmp_path: Path) -> Callable[[str], Tab]:
    """Opens a page in the browser."""
    return lambda page: Tab(browser, page, tmp_path)


@pytest.fixture
def parse() -> type[Page]:
    """Reads a page without a browser."""
    return Page
