"""A hook of mkdocs.yml: pages of the site that are files of the repository outside of docs/.

``changelog.md``, ``contributing.md`` and ``models.md`` are such files as they stand;
``examples.md`` is the README of examples/ and behind it every script, recipe and log of that
folder. Links to these files, which lead somewhere in the repository, are turned to the pages.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
HOME = "index.md"
# Pages by the file of the repository that they show; home is a page of its own.
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "README.md": HOME,
    "examples/README.md": "examples.md",
    "models/README.md": "models.md",
}
LANGUAGES = {".py": "python", ".toml": "toml", ".log": "text"}
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages."""
    for source, page in PAGES.items():
        if page != HOME:
            files.append(File.generated(config, page, content=text_of(source)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that leave docs/."""
    place = page.file.src_uri
    shown = {PAGES[source]: source for source in PAGES if PAGES[source] != HOME}
    return turned(markdown, shown.get(place, f"docs/{place}"), place)


def text_of(source: str) -> str:
    """What a page shows of a file of the repository."""
    text = (ROOT / source).read_text(encoding="utf-8")
    if source != "examples/README.md":
        return text
    folder = ROOT / "examples"
    files = sorted(file for file in folder.rglob("*") if file.suffix in LANGUAGES)
    scripts = [_section(file, folder) for file in files if file.parent == folder]
    recipes = [_section(file, folder) for file in files if file.parent == folder / "qat"]
    return "\n\n".join([text, *scripts, "## qat", *recipes])


def turned(markdown: str, source: str, page: str) -> str:
    """Links of a file of the repository, as links of the page that shows it.

    Args:
        markdown: The text.
        source: The file's place in the repository.
        page: The page's place in the site.
    """

    def link(found: re.Match[str]) -> str:
        target, anchor = found.group(1), found.group(2) or ""
        if "://" in target:
            return found.group()
        place = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if place in PAGES:
            return f"]({_from(page, PAGES[place])}{anchor})"
        if place.startswith("examples/"):
            name = place.removeprefix("examples/")
            return f"]({_from(page, 'examples.md')}#{_anchor(name)})"
        if place.startswith("docs/") and not source.startswith("docs/"):
            return f"]({_from(page, place.removeprefix('docs/'))}{anchor})"
        return found.group()

    return LINK.sub(link, markdown)


def _from(page: str, target: str) -> str:
    return posixpath.relpath(target, posixpath.dirname(page) or ".")


def _anchor(name: str) -> str:
    return re.sub(r"[^\w-]", "", name.replace("/", "-"))


def _section(file: Path, folder: Path) -> str:
    name = file.relative_to(folder).as_posix()
    level = "##" if file.parent == folder else "###"
    body = file.read_text(encoding="utf-8").rstrip()
    title = f"{level} {name} {{#{_anchor(name)}}}"
    return f"{title}\n\n```{LANGUAGES[file.suffix]}\n{body}\n```"
