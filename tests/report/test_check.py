"""A check as text, JUnit, Markdown and annotations, from one made up by hand."""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree as Xml

import pytest
from msgspec.structs import replace
from rich.console import Console

from onnxq.errors import printable
from onnxq.report import check_markdown, check_view, to_annotations, to_junit
from onnxq.report.checkwords import change_lines, range_lines, sentence
from onnxq.verify import Change, Changes, Check, CheckGate, Moved

# Names that break what is not escaped, in each of the forms.
EVIL = "a&b<c>[red]|`x`_y_\x01\n::error::%0A"
# Names that a runner, a terminal or GitHub would obey or link.
ORDERS = (
    "\n::stop-commands::tok\r::error::x\x1b[31m##[error]\u2028\u202e@octocat www.x.org http://x.org"
)
CHECK = Check(
    model="models/a,b:c.onnx",
    baseline="base.json",
    passed=False,
    gates=(
        CheckGate("metric", "failed", 0.005, 0.99, 0.95, 0.04, 0.03, "24 lost and 0 won"),
        CheckGate("sqnr", "passed", 3.0, 40.0, 39.0, 1.0, None, f"output '{EVIL}'"),
        CheckGate("size", "passed", 0.05, 1_000_000, 900_000, -0.1),
        CheckGate("latency", "skipped", 0.25, note="another machine than the baseline's"),
        CheckGate("coverage", "failed", 0.02, 1.0, 0.75, 0.25, note=f"{EVIL}: runs as float"),
    ),
    changes=Changes(
        graph=(
            Change("opset", "", "17", "18"),
            Change("removed", "norm", "BatchNormalization"),
            *(Change("weights", f"conv{i}", "1", "2") for i in range(9)),
            *(Change("added", f"mul{i}", after="Mul") for i in range(7)),
        ),
        plan=(Change("precision", EVIL, "int8", "float"),),
        ranges=tuple(Moved(f"t{i}", (0, 1), (0, 2.5), 1.5) for i in range(8)),
        setting=(Change("data", "calibration", "aaa", "bbb"),),
    ),
    plan="the baseline's, on 9 of 16 nodes; 7 new ones by the recipe",
    notes=("calibrated with 8 samples",),
)
KEPT = replace(
    CHECK,
    passed=True,
    gates=tuple(replace(gate, status="passed") for gate in CHECK.gates[:3]),
    changes=Changes(),
)


def shown(check: Check, width: int = 110) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(check_view(check), soft_wrap=True)
    return console.file.getvalue()


class TestText:
    def test_fits_one_screen(self) -> None:
        text = shown(CHECK)
        assert len(text.splitlines()) <= 50
        assert "worse than the baseline in 2 of 4 figures: metric, coverage" in text

    def test_figures_have_their_units(self) -> None:
        text = shown(CHECK)
        for figure in ("0.9900", "+4.00 points", "0.50 points", "40.0 dB", "1.0 MB", "-10.0%"):
            assert figure in text, figure

    def test_long_lists_are_counted(self) -> None:
        text = shown(CHECK)
        assert "added: and 2 more" in text
        assert "weights: of conv0, conv1, conv2, conv3, conv4 and 4 more" in text
        assert "and 3 more" in text
        assert "'t4': 0..1 to 0..2.5, 150% of its width" in text

    def test_names_are_no_markup(self) -> None:
        assert "[red]" in shown(CHECK)

    def test_nothing_changed(self) -> None:
        text = shown(KEPT)
        assert "nothing changed since the baseline" in text
        assert "no worse than the baseline in all 3 figures" in text

    def test_first_baseline(self) -> None:
        assert "nothing to compare with" in shown(replace(KEPT, gates=(), updated=True))


class TestOrders:
    """Names are of those who made the model: nobody is to obey them."""

    CHECK = replace(
        CHECK,
        gates=tuple(replace(gate, note=gate.note + ORDERS) for gate in CHECK.gates),
        changes=Changes(
            graph=(Change("removed", ORDERS, ORDERS), Change("weights", ORDERS)),
            plan=(Change("precision", ORDERS, ORDERS, ORDERS),),
            ranges=(Moved("::stop-commands::tok::", (0, 1), (0, 2.5), 1.5),),
            setting=(),
        ),
        plan=ORDERS,
        notes=(ORDERS,),
    )  # fmt: skip

    def test_printable(self) -> None:
        assert printable("g\n::x::\x1b[31m\x85\u2028\u202e") == "g ::x::?[31m  ?"
        assert printable("##[error]###vso[x] #1") == "# #[error]# # #vso[x] #1"
        assert printable("é ünï 漢字 #[1] ::") == "é ünï 漢字 #[1] ::"

    @pytest.mark.parametrize("width", [5, 20, 110])
    def test_text_is_no_command(self, width: int) -> None:
        self.assert_harmless(shown(self.CHECK, width))

    def test_other_forms_are_no_commands(self) -> None:
        self.assert_harmless(check_markdown(self.CHECK))
        annotations = to_annotations(self.CHECK).splitlines()
        assert len(annotations) == 2
        assert all(line.startswith("::error file=") for line in annotations)
        self.assert_harmless("\n".join(f"> {line}" for line in annotations))

    @staticmethod
    def assert_harmless(text: str) -> None:
        """By the rules of GitHub's runner: ``::`` after spaces, and ``##[`` anywhere."""
        assert "stop-commands" in text
        assert "##[" not in text
        assert not any(line.lstrip().startswith("::") for line in text.splitlines())
        assert all(c.isprintable() for c in text if c not in "\n\N{ZERO WIDTH SPACE}")

    def test_markdown_links_and_mentions_nothing(self) -> None:
        """Outside of spans of code, in which GitHub looks for nothing."""
        text = check_markdown(replace(self.CHECK, plan="&commat;octocat WWW.x.org", model=ORDERS))
        prose = re.sub(r"`[^`\n]+`", "", text.replace("\\`", ""))
        assert "octocat" in prose
        for alive in ("@octocat", "www.", "WWW.", "://"):
            assert alive not in prose, alive
        assert r"\&commat;" in prose
        changed = prose[prose.index("<details>") :]
        assert not re.search("octocat|x.org|stop", changed)


class TestJUnit:
    def test_one_case_per_gate(self) -> None:
        root = Xml.fromstring(to_junit(CHECK))
        assert root.tag == "testsuites"
        counts = {"tests": "5", "failures": "2", "errors": "0", "skipped": "1"}
        (suite,) = root
        for element in (root, suite):
            assert {key: element.get(key) for key in counts} == counts
        assert [case.get("name") for case in suite] == [gate.name for gate in CHECK.gates]
        results = {case.get("name"): [child.tag for child in case] for case in suite}
        assert results == {
            "metric": ["failure"], "sqnr": ["system-out"], "size": ["system-out"],
            "latency": ["skipped"], "coverage": ["failure"],
        }  # fmt: skip

    def test_failure_says_what_and_what_changed(self) -> None:
        failure = Xml.fromstring(to_junit(CHECK)).find(".//testcase[@name='metric']/failure")
        assert failure is not None
        assert failure.get("message") == sentence(CHECK.gates[0])
        assert "removed norm (BatchNormalization)" in (failure.text or "")

    def test_any_name_is_xml(self) -> None:
        failure = Xml.fromstring(to_junit(CHECK)).find(".//testcase[@name='coverage']/failure")
        assert failure is not None
        assert "a&b<c>[red]|`x`_y_? ::error" in (failure.get("message") or "")


class TestMarkdown:
    def test_table_and_verdict(self) -> None:
        text = check_markdown(CHECK)
        assert text.startswith("### ❌ onnxq check: `models/a,b:c.onnx`\n")
        table = [line for line in text.splitlines() if line.startswith("|")]
        assert len(table) == 2 + len(CHECK.gates)
        assert {line.count("|") for line in table} == {7}
        assert "❌ worse" in table[2]
        assert check_markdown(KEPT).startswith("### ✅")

    def test_names_are_shown_as_they_are(self) -> None:
        """No line break, no table, no HTML comes of a name."""
        lines = check_markdown(CHECK).splitlines()
        (line,) = (line for line in lines if line.startswith("* ❌ nodes quantized"))
        assert r"\<c\>\[red\]\|\`x\`\_y\_" in line
        assert "::error" in line

    def test_what_changed_is_folded(self) -> None:
        text = check_markdown(CHECK)
        assert text.index("<details>") < text.index("removed norm") < text.index("</details>")
        assert "<details>" not in check_markdown(KEPT)


class TestAnnotations:
    def test_one_error_per_failed_gate(self) -> None:
        lines = to_annotations(CHECK).splitlines()
        assert len(lines) == 2
        assert lines[0].startswith(
            "::error file=models/a%2Cb%3Ac.onnx,title=onnxq check%3A metric::metric: "
        )
        assert "_y_? ::error::%250A" in lines[1]  # a name makes no command of its own

    def test_notice_where_all_is_well(self) -> None:
        (line,) = to_annotations(KEPT).splitlines()
        assert line.startswith("::notice file=models/a%2Cb%3Ac.onnx,title=onnxq check::no worse")


@pytest.mark.parametrize(
    ("gate", "told"),
    [
        (CHECK.gates[0],
         "metric: 0.9900 to 0.9500, worse by +4.00 points (tolerance 0.50 "
         "points), at least +3.00 points with 95% confidence; 24 lost and 0 won"),
        (CHECK.gates[2], "size: 1.0 MB to 900.0 kB, no worse"),
        (CheckGate("ranges", "failed", 0.5, worse=2.0, note="'x': 0..1 to 0..3"),
         "ranges: worse by +200.0% (tolerance 50.0%); 'x': 0..1 to 0..3"),
        (CheckGate("metric", "failed", 0.005, 0.9, note="give labels"),
         "metric: give labels"),
        (CheckGate("latency", "failed", 0.25, 0.4, 1.0, 1.5, 1.4),
         "time per float run: 0.40 to 1.00, worse by +150.0% (tolerance 25.0%), at least "
         "+140.0% whatever chance did"),
    ],
    ids=["metric", "size", "ranges", "missing", "latency"],
)  # fmt: skip
def test_sentence(gate: CheckGate, told: str) -> None:
    assert sentence(gate) == told


def test_lines_of_changes() -> None:
    assert change_lines(()) == []
    assert range_lines(()) == []
    assert change_lines((Change("shape", "n", "float32[1]", ""),)) == [
        "shape n: float32[1] to none"
    ]
