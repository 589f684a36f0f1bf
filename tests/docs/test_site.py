"""The documentation site: it builds without a warning, and works in a browser without a network."""

from __future__ import annotations

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--window-size=1280,1000",
)  # fmt: skip
# Elements that a browser fetches something for by itself, and the attribute that says what.
FETCHED = {"img": "src", "script": "src", "link": "href", "iframe": "src", "source": "src"}
PATIENCE = 60

pytestmark = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings")),
    reason="the extra docs is not installed",
)


class Html(HTMLParser):
    """What a page names: its anchors, its links, and what a browser fetches for it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.pictures: dict[str, str | None] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = dict(attrs)
        self.anchors |= {said[key] or "" for key in ("id", "name") if key in said}
        if tag == "a" and said.get("href"):
            self.links.append(said["href"] or "")
        elif (
            tag in FETCHED and (place := said.get(FETCHED[tag])) and said.get("rel") != "canonical"
        ):
            self.fetched.append(place)
        if tag == "img":
            self.pictures[said["src"] or ""] = said.get("alt")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as ``mkdocs build --strict`` makes it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    # the theme says at every start that it has a successor: no warning about these pages
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment
    )
    told = [line for line in done.stderr.splitlines() if not line.startswith("INFO")]
    assert (done.returncode, told) == (0, [])
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Html]:
    return {page: Html(page.read_text(encoding="utf-8")) for page in sorted(site.rglob("*.html"))}


def test_links_and_anchors_lead_somewhere(site: Path, pages: dict[Path, Html]) -> None:
    """Those that MkDocs checks, and those of API pages, which it does not know of."""
    dead = []
    for page, html in pages.items():
        for link in html.links:
            place, anchor = urldefrag(link)
            parts = urlsplit(place)
            if parts.scheme:
                assert parts.scheme in {"https", "mailto"}, (page.name, link)
                continue
            folder = site if place.startswith("/") else page.parent
            target = (folder / unquote(parts.path.lstrip("/"))).resolve() if place else page
            if target.is_dir():
                target /= "index.html"
            known = pages[target].anchors if target in pages else set()
            if not target.is_file() or (anchor and unquote(anchor) not in known):
                dead.append((page.relative_to(site).as_posix(), link))
    assert len(pages) > 30
    assert dead == []


def test_nothing_is_fetched_from_elsewhere(site: Path, pages: dict[Path, Html]) -> None:
    for page, html in pages.items():
        assert [place for place in html.fetched if urlsplit(place).netloc] == [], page.name
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        assert re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)\"']+", text) == [], sheet


def test_pictures_are_told_in_words(pages: dict[Path, Html]) -> None:
    pictures = [picture for html in pages.values() for picture in html.pictures.items()]
    assert len(pictures) > 10
    assert [place for place, words in pictures if not words] == []


def test_a_dead_link_stops_the_build(tmp_path: Path) -> None:
    """With the settings of mkdocs.yml: a missing page, a missing anchor, and a page not listed."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text("# Home\n\n[a](none.md) [b](other.md#none)\n")
    (tmp_path / "docs/other.md").write_text("# Other\n")
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    validation = re.search(r"^validation:\n(?: .*\n)+", settings, re.MULTILINE)
    assert validation
    small = f"site_name: x\n{validation[0]}nav: [index.md]\n"
    (tmp_path / "mkdocs.yml").write_text(small)
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "'none.md'" in done.stderr
    assert "'#none'" in done.stderr or "other.md#none" in done.stderr
    assert "other.md" in done.stderr.split("not included in the")[1]


# --- In a browser ---------------------------------------------------------------------------------


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def server(site: Path) -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


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
    """The site in the browser, from a server or from its folder."""

    def __init__(self, browser: Any, base: str) -> None:
        self.browser, self.base = browser, base
        for kind in ("browser", "performance"):
            browser.get_log(kind)  # what an earlier test left

    def open(self, page: str) -> None:
        url = f"{self.base}/{page}"
        self.browser.get(url)
        self.until(
            "return document.URL === arguments[0] && document.readyState === 'complete'", url
        )

    def run(self, script: str, *values: object) -> Any:
        return self.browser.execute_script(script, *values)

    def until(self, script: str, *values: object) -> Any:
        end = time.monotonic() + PATIENCE
        while not (found := self.run(script, *values)):
            assert time.monotonic() < end, script
            time.sleep(0.05)
        return found

    def search(self, words: str) -> list[str]:
        """Addresses of what the search finds."""
        self.run(
            "document.querySelector('#__search').click();"
            "const field = document.querySelector('.md-search__input');"
            "field.focus(); field.value = arguments[0];"
            "field.dispatchEvent(new Event('input', {bubbles: true}));"
            "field.dispatchEvent(new KeyboardEvent('keyup', {bubbles: true}))",
            words,
        )
        return self.until(
            "const found = [...document.querySelectorAll('a.md-search-result__link')];"
            "return found.length && found.map(link => link.href)"
        )

    def check_quiet(self) -> None:
        """Nothing was logged, and nothing asked for but the site's own files."""
        assert [entry["message"] for entry in self.browser.get_log("browser")] == []
        events = (json.loads(e["message"])["message"] for e in self.browser.get_log("performance"))
        sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
        asked = [e["request"]["url"] for e in sent if e["documentURL"].startswith(self.base)]
        assert asked
        own = (self.base, "data:", "blob:", "about:")
        assert [url for url in asked if not url.startswith(own)] == []


@pytest.fixture(params=["served", "from a folder"])
def tab(request: pytest.FixtureRequest, browser: Any, site: Path, server: str) -> Tab:
    return Tab(browser, server if request.param == "served" else site.as_uri())


def test_opens(tab: Tab) -> None:
    tab.open("index.html")
    assert tab.run("return document.querySelector('h1').textContent").startswith("onnxq")
    tabs = tab.run(
        "return [...document.querySelectorAll('.md-tabs__link')].map(t => t.textContent.trim())"
    )
    assert tabs == ["Home", "Tutorials", "Guides", "How it works", "Reference", "Project"]
    tab.check_quiet()


def test_search_finds_percentile(tab: Tab) -> None:
    tab.open("index.html")
    found = tab.search("percentile")
    assert any("/calibration.html" in address for address in found)
    assert all(address.startswith(tab.base) for address in found)
    tab.check_quiet()


def test_search_finds_names_and_options(tab: Tab) -> None:
    tab.open("index.html")
    found = tab.search("PTQQuantizer")  # the address also says which words to mark
    assert any(re.search(r"/api/ptq\.html(\?h=\w+)?#onnxq\.PTQQuantizer$", url) for url in found)


def test_a_foreign_request_is_seen(tab: Tab) -> None:
    tab.open("index.html")
    tab.run("new Image().src = 'http://127.0.0.1:9/x.png'")
    tab.until("return performance.getEntriesByName('http://127.0.0.1:9/x.png').length")
    with pytest.raises(AssertionError, match=r"127\.0\.0\.1:9"):
        tab.check_quiet()


def test_pictures_load(tab: Tab, site: Path, pages: dict[Path, Html]) -> None:
    """On every page that has any."""
    for page, html in pages.items():
        if not html.pictures:
            continue
        tab.open(page.relative_to(site).as_posix())
        empty = (
            "return [...document.querySelectorAll('article img')]"
            ".filter(i => !i.complete || !i.naturalWidth).map(i => i.src)"
        )
        assert tab.run(empty) == []
    tab.check_quiet()


def test_dark_and_light(browser: Any, tab: Tab) -> None:
    """As the system wants it, without a click."""
    background = "return getComputedStyle(document.body).backgroundColor"
    shades = {}
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        tab.open("index.html")
        shades[scheme] = sum(map(int, re.findall(r"\d+", tab.run(background))[:3]))
    assert shades["dark"] < 150 < 600 < shades["light"]
