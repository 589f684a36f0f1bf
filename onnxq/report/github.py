"""A check as annotations of GitHub Actions: workflow commands on standard output."""

from __future__ import annotations

from onnxq.errors import printable
from onnxq.report.checkwords import sentence, verdict
from onnxq.verify import Check


def to_annotations(check: Check) -> str:
    """``::error`` for every failed gate, ``::notice`` for the verdict where none failed."""
    where = f"file={_property(check.model)}"
    failed = [gate for gate in check.gates if gate.status == "failed"]
    lines = [
        f"::error {where},title={_property(f'onnxq check: {gate.name}')}::{_data(sentence(gate))}"
        for gate in failed
    ]
    if not failed:
        lines.append(f"::notice {where},title=onnxq check::{_data(verdict(check))}")
    return "\n".join(lines)


def _data(text: str) -> str:
    """A printable message, escaped as the toolkit's ``escapeData`` does; it has no line breaks."""
    return printable(text).replace("%", "%25")


def _property(text: str) -> str:
    """Escape a property's value as the toolkit's ``escapeProperty`` does."""
    return _data(text).replace(":", "%3A").replace(",", "%2C")
