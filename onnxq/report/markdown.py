"""A check as Markdown, for a comment on a pull request or the summary of a job."""

from __future__ import annotations

import re

from onnxq.errors import printable
from onnxq.report.checkwords import (
    VERDICTS,
    figure,
    sections,
    sentence,
    title,
    tolerance,
    verdict,
    worsening,
)
from onnxq.verify import Check

_SIGNS = {"passed": "✅", "failed": "❌", "skipped": "➖"}


def check_markdown(check: Check) -> str:
    """The verdict, a table of figures, and what changed behind a fold."""
    sign = _SIGNS["passed" if check.passed else "failed"]
    lines = [f"### {sign} onnxq check: {_code(check.model)}", "", f"{_plain(verdict(check))}.", ""]
    if check.gates:
        lines += ["| | baseline | now | worse by | tolerance | |", "|---|--:|--:|--:|--:|---|"]
        lines += [
            f"| {title(gate)} | {figure(gate, gate.before)} | {figure(gate, gate.after)} "
            f"| {worsening(gate)} | {tolerance(gate)} "
            f"| {_SIGNS[gate.status]} {VERDICTS[gate.status]} |"
            for gate in check.gates
        ]
        lines.append("")
    lines += [f"* ❌ {_plain(sentence(g))}" for g in check.gates if g.status == "failed"]
    lines += [f"* ➖ {title(g)}: {_plain(g.note)}" for g in check.gates if g.status == "skipped"]
    lines += [f"* plan: {_plain(check.plan)}"]
    lines += [f"* note: {_plain(note)}" for note in check.notes]
    found = sections(check)
    if found:
        lines += ["", "<details><summary>What changed since the baseline</summary>", ""]
        for name, changed in found:
            lines += [f"**{name}**", "", *(f"* {_code(line)}" for line in changed), ""]
        lines += ["</details>"]
    elif check.gates:
        lines += ["", "Nothing changed since the baseline."]
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    """A span of code, in which nothing is a link, a mention or HTML."""
    return f"`{printable(text).replace('`', chr(39))}`"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is: names of nodes hold underscores, stars and brackets.

    Escapes do not keep GitHub from making mentions, references and links of what is shown: a
    space of no width does.
    """
    text = re.sub(r"([\\`*_\[\]<>|#&~$])", r"\\\1", printable(text))
    return re.sub(r"(?i)(@|#|:(?=//)|www(?=\.))", "\\1\N{ZERO WIDTH SPACE}", text)
