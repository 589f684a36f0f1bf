"""What holds for every page: self-contained, safe, as wide as the screen, sorted and filtered."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from shutil import which
from subprocess import run
from typing import Any

import numpy as np
import onnx
import pytest
from msgspec.structs import replace

import onnxq
from onnxq.api import Result
from onnxq.plan import Recipe, VerifySettings
from onnxq.report import (
    ModelFigures,
    bench_page,
    check_page,
    models_page,
    quantize_page,
    sensitivity_page,
)
from onnxq.runtime.bench import BenchReport, BenchRun, ModelTime, NodeTime
from onnxq.sensitivity import SensitivityReport
from onnxq.verify import (
    Change,
    Changes,
    Check,
    CheckGate,
    FileFacts,
    Growth,
    LayerError,
    ModelComparison,
    Moved,
)

pytest.importorskip("jinja2")
pytest.importorskip("plotly")

Parse = Callable[[str], Any]
Open = Callable[[str], Any]
Pages = dict[str, str]
MODELS = Path(__file__).parents[2] / "models"
# A name that would run as a script wherever it is not escaped.
EVIL = "</script><script>alert(1)</script>"
# The page's table that is looked at, a key of figures in it, and one of words.
SHEETS = {
    "sensitivity": ("layers", "parameters", "op"),
    "compare": ("layers", "new_db", "op"),
    "quantize": ("layers", "parameters", "precision"),
    "bench": ("nodes", "first_us", "op"),
    "check": ("changes", "moved", "part"),
}
COMPARISON = ModelComparison(
    reference=FileFacts("a/float.onnx", "0" * 64, 2_000_000),
    other=FileFacts(f"b/{EVIL}", "1" * 64, 500_000),
    data="2" * 64,
    samples=200,
    outputs={},
    max_errors={},
    metric=None,
    speed=None,
    growth=Growth(
        (
            LayerError("x", "x", "name", "", "input", 50.0, None, 50.0, 44.0),
            LayerError("s", "s", "name", "/stem", "Conv", 38.1, 50.0, 38.5, 34.0),
            LayerError("p", "p", "name", "/pool", "MaxPool", 38.1, 38.1, 200.0, None),
            LayerError("e", "e", "name", EVIL, "Gemm", 14.2, 38.1, 14.2, 14.5),
        ),
        output_db=14.0,
        samples=64,
        unmatched=0,
    ),
    environment={"processor": EVIL},
)
FIRST = ModelTime("a/float.onnx", "cpu", 1.0, 0.01, 2.0, 1.9, 2.2, 4000.0)
SECOND = ModelTime(f"b/{EVIL}", "cpu", 2.0, 0.03, 1.0, 0.9, 1.1, 8000.0)
BENCH = BenchReport(
    runs=(BenchRun(8, 1, 40, (FIRST, SECOND)), BenchRun(1, 2, 40, (FIRST, SECOND))),
    made_up=False,
    nodes=(
        NodeTime("/pool", "MaxPool", (100.0, 150.0), ("MaxPool", "NhwcMaxPool")),
        NodeTime(EVIL, "Conv", (600.0, 400.0), ("Conv", EVIL)),
        NodeTime("/gone", "Relu", (30.0, None), ("Relu", "")),
    ),
    conversions=(20.0, 130.0),
    environment={"processor": EVIL},
)
CHECK = Check(
    model=f"models/{EVIL}",
    baseline="base.json",
    passed=False,
    gates=(
        CheckGate("metric", "failed", 0.02, 0.99, 0.95, 0.04, 0.03, EVIL),
        CheckGate("sqnr", "passed", 3.0, 40.0, 40.0, 0.0),
        CheckGate("size", "passed", 0.0, 1_000_000, 900_000, -0.1),
        CheckGate("latency", "skipped", 0.25, note="another machine than the baseline's"),
    ),
    changes=Changes(
        graph=(Change("opset", "", "17", "18"), Change("added", EVIL, after="Mul")),
        plan=(Change("precision", "/conv", "int8", "float"),),
        ranges=(Moved("t1", (0, 1), (0, 2.5), 1.5), Moved("t2", (0, 1), (0, 1.1), 0.1)),
    ),
    plan="the baseline's, on 9 of 16 nodes; 7 new ones by the recipe",
    notes=("calibrated with 8 samples",),
)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, ModelFigures]:
    """The digits' model with an evil name on a layer, of which one layer stays float."""
    proto = onnx.load(MODELS / "digits_cnn.onnx")
    convs = [node for node in proto.graph.node if node.op_type == "Conv"]
    convs[1].name = EVIL
    recipe = Recipe(
        precision="int8",
        objective="int8-everywhere",
        keep_float=(convs[0].name,),
        verify=VerifySettings(seconds=0.01),
    )
    with np.load(MODELS / "digits_test.npz") as data:
        samples = {name: data[name][:40] for name in data.files}
    path = tmp_path_factory.mktemp("model") / "odd.onnx"
    onnx.save(proto, path)
    result = onnxq.quantize(path, data=samples, recipe=recipe)
    return result, onnxq.layer_figures(result)


@pytest.fixture(scope="module")
def pages(quantized: tuple[Result, ModelFigures]) -> Pages:
    result, figures = quantized
    return {
        "compare": models_page(COMPARISON),
        "quantize": quantize_page(result.receipt, figures),
        "bench": bench_page(BENCH),
        "check": check_page(CHECK),
    }


@pytest.fixture(params=SHEETS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def text(name: str, pages: Pages, report: SensitivityReport) -> str:
    """A page of every command."""
    return pages[name] if name in pages else sensitivity_page(report)


def test_nothing_comes_from_elsewhere(parse: Parse, text: str) -> None:
    """No element names a place but the empty icon, and no script runs but those of the page."""
    page = parse(text)
    places = [
        attrs[name]
        for _, attrs in page.elements
        for name in ("src", "href", "srcset", "action", "data")
        if name in attrs
    ]
    assert places == ["data:,"]
    policy = next(a["content"] for _, a in page.elements if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'")
    (allowed,) = re.findall(r"script-src ([^;]+)", policy)
    digests = [hashlib.sha256(code.encode()).digest() for kind, code in page.scripts if not kind]
    assert allowed.split() == [f"'sha256-{base64.b64encode(d).decode()}'" for d in digests]


def test_names_are_text(parse: Parse, text: str) -> None:
    """The evil name closes no script, adds no element, and is still there to be read."""
    page = parse(text)
    assert EVIL not in text
    assert next(kind for kind, _ in page.scripts) == "application/json"
    assert not any("alert(1)" in code for kind, code in page.scripts if not kind)
    assert EVIL in page.text or EVIL in [attrs.get("title") for _, attrs in page.elements]
    assert EVIL in str(page.data)


def test_only_pages_with_charts_hold_plotly(pages: Pages) -> None:
    assert (
        len(pages["check"])
        < 50_000
        < 4_000_000
        < min(len(page) for name, page in pages.items() if name != "check")
    )


@pytest.mark.skipif(which("node") is None, reason="needs node to read the scripts")
def test_scripts_are_read() -> None:
    folder = files("onnxq.report") / "templates"
    scripts = [str(file) for file in folder.iterdir() if file.name.endswith(".js")]
    assert len(scripts) >= 6
    for script in scripts:
        run(["node", "--check", script], check=True)


# --- In a browser ---------------------------------------------------------------------------------


@pytest.fixture
def tab(open_tab: Open, text: str) -> Iterator[Any]:
    tab = open_tab(text)
    yield tab
    tab.resize(None)
    tab.colours("light")


@pytest.mark.parametrize("width", [1280, 390])
def test_opens_without_a_word_at_any_width(tab: Any, width: int) -> None:
    """Nothing is logged, nothing is asked for, and nothing is wider than the screen."""
    tab.resize(width)
    tab.until("return innerWidth", width)
    tab.colours("dark")
    tab.run("return new Promise(done => setTimeout(done, 300))")  # the charts follow
    assert tab.run("return document.documentElement.scrollWidth") <= width
    wide = (
        "return [...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, svg'))"
        ".filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.className)"
    )
    assert tab.run(wide) == []
    assert tab.errors() == []
    assert tab.requests() == []


def test_sorts(tab: Any, name: str, parse: Parse, text: str) -> None:
    """By a figure down and up, rows without one last; the same order as Python's."""
    sheet, key, _ = SHEETS[name]
    values = [row[key] for row in parse(text).data["tables"][sheet]]
    known = [index for index, value in enumerate(values) if value is not None]
    left = [index for index, value in enumerate(values) if value is None]
    assert len({values[index] for index in known}) > 1
    falling = sorted(known, key=lambda index: -values[index])
    rising = sorted(known, key=lambda index: values[index])
    tab.sort(key, sheet)
    first = tab.rows(sheet)
    tab.sort(key, sheet)
    second = tab.rows(sheet)
    assert sorted([first, second]) == sorted([falling + left, rising + left])
    states = f"return document.querySelector('#{sheet} th[data-key={key}]').ariaSort"
    assert tab.run(states) == ("ascending" if second == rising + left else "descending")


def test_filters(tab: Any, name: str, parse: Parse, text: str) -> None:
    sheet, _, key = SHEETS[name]
    rows = parse(text).data["tables"][sheet]
    word = rows[-1][key]
    wanted = [index for index, row in enumerate(rows) if word.lower() in str(row).lower()]
    tab.find(word.upper(), sheet)
    assert set(tab.rows(sheet)) <= set(wanted)
    assert len(rows) - 1 in tab.rows(sheet)
    assert tab.count(sheet) == f"{len(tab.rows(sheet))} of {len(rows)}"
    tab.find("nothing like it", sheet)
    assert tab.rows(sheet) == []
    tab.find("", sheet)
    assert len(tab.rows(sheet)) == len(rows)
    assert tab.errors() == []


class TestQuantize:
    @pytest.fixture
    def name(self) -> str:
        return "quantize"

    def test_the_map_holds_every_node(
        self, tab: Any, quantized: tuple[Result, ModelFigures]
    ) -> None:
        plan = quantized[0].plan
        cells = "return [...document.querySelectorAll('.cell')].map(c => c.className.split(' ')[1])"
        assert tab.run(cells) == [node.precision.value for node in plan.nodes]
        key = "return [...document.querySelectorAll('.key li')].map(k => k.textContent)"
        counts = {p: plan.count(p) for p in {node.precision for node in plan.nodes}}
        assert sorted(tab.run(key)) == sorted(f"{p}: {n}" for p, n in counts.items())

    def test_the_map_is_walked_by_keys(
        self, tab: Any, quantized: tuple[Result, ModelFigures]
    ) -> None:
        nodes = quantized[0].plan.nodes
        press = (
            "document.activeElement.dispatchEvent("
            "new KeyboardEvent('keydown', { key: arguments[0], bubbles: true }));"
            "return document.activeElement.getAttribute('aria-label')"
        )
        tab.run("document.querySelector('.cell').focus()")
        assert tab.run(press, "ArrowRight") == nodes[1].name
        assert tab.run(press, "End") == nodes[-1].name
        assert tab.run(press, "ArrowRight") == nodes[-1].name
        assert tab.run(press, "Home") == nodes[0].name
        stops = "return document.querySelectorAll('.cell[tabindex=\"0\"]').length"
        assert tab.run(stops) == 1  # one stop of the Tab key, however many nodes
        told = tab.run("return document.getElementById('told').textContent")
        assert told.startswith(f"{nodes[0].name} ({nodes[0].op}): float")
        assert nodes[0].reason is not None
        assert nodes[0].reason.sentence in told
        tab.run("document.querySelector('#told button').click()")
        assert tab.run("return document.querySelector('tr.detail .full').textContent").startswith(
            nodes[0].name
        )

    def test_a_row_shows_the_chosen_range(
        self, tab: Any, quantized: tuple[Result, ModelFigures]
    ) -> None:
        """Dashed lines at the ends that the receipt has of what the layer reads."""
        result, figures = quantized
        layer = next(x for x in figures.layers if x.name == EVIL)
        known = result.receipt.ranges[layer.reads]
        tab.open(EVIL)
        lines = (
            "return [...document.querySelectorAll('tr.detail .js-plotly-plot')]"
            ".map(plot => plot.layout.shapes.map(shape => shape.x0))"
        )
        weights, activations = tab.run(lines)
        assert activations == pytest.approx([known.lo, known.hi])
        assert weights == pytest.approx(list(layer.weight_range))
        assert tab.errors() == []

    def test_charts(self, tab: Any, quantized: tuple[Result, ModelFigures]) -> None:
        _, figures = quantized
        assert figures.growth is not None
        points = "return document.getElementById('growth').data[0].y.length"
        assert tab.run(points) == len(figures.growth.layers)
        drawn = (
            "return Object.fromEntries(document.getElementById('times').data"
            ".map(trace => [trace.name, trace.x]))"
        )
        timed = [x.time.us for x in figures.layers if x.time is not None]
        found = tab.run(drawn)
        for index, form in enumerate(("float", "output")):
            wanted = sorted(us[index] for us in timed if us[index] is not None)
            assert sorted(found[form]) == pytest.approx(wanted)
        tab.run(
            "const t = document.getElementById('time'); t.value = 'gain';"
            "t.dispatchEvent(new Event('change'))"
        )
        gains = sorted(x.time.gain for x in figures.layers if x.time is not None)
        assert sorted(tab.run(drawn)["saved"]) == pytest.approx(gains)

    def test_a_precision_is_chosen(self, tab: Any, quantized: tuple[Result, ModelFigures]) -> None:
        tab.choose("precision", "float")
        assert tab.names() == list(quantized[0].plan.named(onnxq.types.Precision.FLOAT))


class TestBench:
    @pytest.fixture
    def name(self) -> str:
        return "bench"

    def test_ratios_and_medians_have_their_spread(self, tab: Any) -> None:
        drawn = (
            "return document.getElementById(arguments[0]).data.map(trace =>"
            "[trace.name, trace.x, trace.error_x.arrayminus, trace.error_x.array])"
        )
        speeds, medians = tab.run(drawn, "speeds"), tab.run(drawn, "medians")
        names = ["batch 8, 1 thread", "batch 1, 2 threads"]
        assert [trace[0] for trace in speeds] == [trace[0] for trace in medians] == names
        for _, found, low, high in speeds:
            assert found == [1, 2]
            assert low == high == pytest.approx([0, 0.06])  # 3 % of 2
        for _, found, low, high in medians:
            assert found == [2, 1]
            assert low == pytest.approx([0.1, 0.1])
            assert high == pytest.approx([0.2, 0.1])

    def test_a_batch_is_chosen(self, tab: Any) -> None:
        tab.choose("batch", "1", "models")
        assert tab.rows("models") == [2, 3]
        shown = "return document.getElementById('speeds').data.map(trace => trace.name)"
        assert tab.run(shown) == ["batch 1, 2 threads"]
        assert tab.count("nodes") == "3 of 3"  # another table


def test_bullets_stand_by_the_tolerance(parse: Parse) -> None:
    """A figure beyond its tolerance stands to the right of it, one that is better left of zero."""
    page = parse(check_page(CHECK))
    circles = [float(a["cx"]) for tag, a in page.elements if tag == "circle"]
    marks = [float(a["x1"]) for tag, a in page.elements if a.get("class") == "limit"]
    pairs = list(zip(marks[::2], marks[1::2], strict=True))
    assert len(circles) == len(pairs) == 3  # none for what was skipped
    (zero, limit), value = pairs[0], circles[0]
    assert zero < limit < value
    assert circles[1] == pairs[1][0]  # no change
    assert circles[2] < pairs[2][0]
    intervals = [a for _, a in page.elements if a.get("class") == "interval"]
    assert [float(a["x1"]) for a in intervals] == [pytest.approx(limit + (limit - zero) / 2, abs=3)]


def test_a_check_that_found_nothing(parse: Parse) -> None:
    none = replace(CHECK, passed=True, gates=CHECK.gates[1:], changes=Changes())
    assert "no worse than the baseline in all 2 figures" in parse(check_page(none)).text
    first = replace(CHECK, passed=True, gates=(), changes=Changes())
    assert "this is the first baseline" in parse(check_page(first)).text
