"""Pages that need nothing but a browser: templates, tables, scripts (extra ``report``)."""

from __future__ import annotations

import base64
import hashlib
import importlib
import importlib.resources
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import msgspec

from onnxq.errors import RuntimeFailure

# Characters of a name that tables and charts have room for; the full name shows on hover.
ROOM = 44


@dataclass(frozen=True)
class Head:
    """A column of a page's table.

    Attributes:
        key: Its name for the page's script.
        title: Its name for people, with its unit.
        meaning: What it says, in one sentence.
        number: Whether it holds figures, which are sorted by size and stand at the right.
        rises: Whether the smallest figure comes first when it is chosen to sort by.
        wide: Whether it holds sentences, which break into lines.
    """

    key: str
    title: str
    meaning: str
    number: bool = True
    rises: bool = False
    wide: bool = False


@dataclass(frozen=True)
class Row:
    """A row of a page's table.

    Attributes:
        texts: A cell for each column.
        values: What the script sorts, filters and draws by: of each column at least, by its key.
        title: What shows when the pointer rests on the first cell; that cell's text where empty.
        marked: Whether it stands out.
    """

    texts: Sequence[str]
    values: Mapping[str, Any]
    title: str = ""
    marked: bool = False


@dataclass(frozen=True)
class Sheet:
    """A table that a page sorts and filters.

    Attributes:
        heads: Its columns; the first one names the row.
        rows: Its rows.
        choices: Columns, by their keys, that a list of all their values filters by.
        opens: Whether a row opens to show more.
    """

    heads: Sequence[Head]
    rows: Sequence[Row]
    choices: Sequence[str] = ()
    opens: bool = False


def page_of(
    template: str,
    *,
    sheets: Mapping[str, Sheet],
    drawn: Mapping[str, Any] | None = None,
    scripts: Sequence[str] = (),
    **values: object,
) -> str:
    """A self-contained page: it asks no network for anything, and forbids itself to.

    Names in it come from whoever made the model: they are escaped everywhere, and a policy in the
    page lets no script run but its own.

    Args:
        template: ``NAME`` of the template ``NAME.html.j2``.
        sheets: Its tables that can be sorted, by their ids.
        drawn: What its scripts draw beside the rows of these tables, as JSON.
        scripts: ``NAME`` of every script ``NAME.js`` that draws charts; without any, the page has
            none and holds no plotly.
        values: What the template shows.

    Raises:
        RuntimeFailure: The extra ``report`` is not installed.
    """
    jinja2, plotly = load_extra()
    pages = jinja2.Environment(
        loader=jinja2.PackageLoader("onnxq.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters["shorten"] = shorten
    sources = [_template("page.js")]
    if scripts:
        charts = (_template(f"{name}.js") for name in ("charts", *scripts))
        sources = [plotly.get_plotlyjs(), *sources, *charts]
    rows = {name: [row.values for row in sheet.rows] for name, sheet in sheets.items()}
    page: str = pages.get_template(f"{template}.html.j2").render(
        values,
        sheets=sheets,
        style=_template("page.css"),
        scripts=sources,
        hashes=[_hash(script) for script in sources],
        data=_embedded({**(drawn or {}), "tables": rows}),
    )
    return page


def load_extra() -> tuple[ModuleType, ModuleType]:
    """jinja2 and ``plotly.offline``: call it before long work whose end is a page.

    Raises:
        RuntimeFailure: One cannot be imported.
    """
    try:
        return importlib.import_module("jinja2"), importlib.import_module("plotly.offline")
    except ImportError as error:
        raise RuntimeFailure(
            f"an HTML report needs {error.name}, which cannot be imported",
            "pip install 'onnxq[report]'",
        ) from error


def shorten(name: str, room: int = ROOM) -> str:
    """A name with its middle left out, where it is too long: both ends tell nodes apart."""
    if len(name) <= room:
        return name
    tail = (room - 1) * 2 // 3  # numbers and operators stand at the end
    return f"{name[: room - 1 - tail]}…{name[-tail:]}"


def _template(name: str) -> str:
    folder = importlib.resources.files("onnxq.report") / "templates"
    return (folder / name).read_text(encoding="utf-8")


def _embedded(data: Mapping[str, Any]) -> str:
    """JSON that no HTML parser reads anything into, whatever strings it holds."""
    text = msgspec.json.encode(data).decode()
    return text.translate({ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"})


def _hash(script: str) -> str:
    """What a content security policy knows an inline script by."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
