"""A check as JUnit XML, which most CI systems show: one test case per gate."""

from __future__ import annotations

from xml.etree import ElementTree as Xml

from onnxq.errors import printable
from onnxq.report.checkwords import sections, sentence
from onnxq.verify import Check


def to_junit(check: Check) -> str:
    """The XML, to be written in UTF-8. A gate is a test case of class ``onnxq.check.MODEL``."""
    counts = {
        "tests": len(check.gates),
        "failures": sum(gate.status == "failed" for gate in check.gates),
        "errors": 0,
        "skipped": sum(gate.status == "skipped" for gate in check.gates),
    }
    told = {name: str(count) for name, count in counts.items()}
    suites = Xml.Element("testsuites", told)
    suite = Xml.SubElement(
        suites, "testsuite", {"name": f"onnxq check {printable(check.model)}"} | told
    )
    for gate in check.gates:
        case = Xml.SubElement(
            suite,
            "testcase",
            {"classname": f"onnxq.check.{printable(check.model)}", "name": gate.name},
        )
        told_of = printable(sentence(gate))
        if gate.status == "failed":
            Xml.SubElement(case, "failure", {"message": told_of}).text = _changes(check)
        elif gate.status == "skipped":
            Xml.SubElement(case, "skipped", {"message": printable(gate.note)})
        else:
            Xml.SubElement(case, "system-out").text = told_of
    Xml.indent(suites)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{Xml.tostring(suites, encoding="unicode")}\n'


def _changes(check: Check) -> str:
    told = (line for name, lines in sections(check) for line in (f"{name}:", *lines))
    return "\n".join(map(printable, told))
