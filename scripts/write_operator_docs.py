"""Write the operators that can be trained through into docs/qat.md.

::

    python scripts/write_operator_docs.py
"""

from __future__ import annotations

import textwrap
from pathlib import Path

from onnxq.qat.operators import CONTROL, OPERATORS

PATH = Path(__file__).parents[1] / "docs" / "qat.md"
START, END = "<!-- operators -->\n", "<!-- end of operators -->"
WIDTH = 100


def _paragraph(title: str, names: list[str]) -> str:
    listed = ", ".join(f"`{name}`" for name in sorted(names))
    return textwrap.fill(f"**{title}**: {listed}.", WIDTH, break_on_hyphens=False) + "\n"


def text() -> str:
    """The page, with its list of operators anew."""
    page = PATH.read_text(encoding="utf-8")
    before, rest = page.split(START)
    _, after = rest.split(END)
    domains: dict[str, list[str]] = {}
    for name in OPERATORS:
        domain, _, op = name.rpartition("::")
        domains.setdefault(domain, []).append(op)
    parts = [_paragraph("ONNX", domains.pop(""))]
    parts += [_paragraph(domain, names) for domain, names in sorted(domains.items())]
    parts.append(_paragraph("With bodies", list(CONTROL)))
    listed = "\n".join(parts)
    return f"{before}{START}\n{listed}\n{END}{after}"


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
