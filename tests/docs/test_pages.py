"""Pages tell of every command, option, name and file format, and of nothing that is not there."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
from click.testing import CliRunner

import onnxq
from onnxq import errors
from onnxq.cli import main
from onnxq.plan import preset_text, presets

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
# Pages that are read where they lie; those of docs/ are checked in the site.
OUTSIDE = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + [
    ROOT / "examples/README.md",
    ROOT / "models/README.md",
]
PROSE = [page for page in sorted(DOCS.rglob("*.md")) if page.name != "cli.md"]
DIRECTIVES = {
    page.name: re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    for page in sorted((DOCS / "api").glob("*.md"))
}
# Modules that a page shows as a whole, or in parts.
MODULES = {"onnxq.errors", "onnxq.types"}
# Options of scripts and other programs that are spoken of in the text, and of every command.
FOREIGN = {"--gb", "--help", "--onnxq-update", "--quick", "--strict"}
SCHEMAS = runpy.run_path(str(ROOT / "scripts/write_schema.py"))


def commands(
    command: click.Command = main, path: tuple[str, ...] = ("onnxq",)
) -> Iterator[tuple[str, click.Command]]:
    """Every command by its words, the groups among them."""
    yield " ".join(path), command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from commands(inner, (*path, name))


COMMANDS = dict(commands())


def test_every_command_is_in_the_reference() -> None:
    page = (DOCS / "cli.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", page, re.MULTILINE) == list(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_page_tells_of_every_command(command: str) -> None:
    """In words, and not in the reference alone."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in [*PROSE, ROOT / "README.md"])
    assert re.search(rf"\b{command}\b", text), command


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_of_the_help_are_parsed(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(click.Command, "invoke", lambda _self, _context: None)
    lines = re.findall(r"^ +onnxq (.+)$", COMMANDS[command].epilog or "", re.MULTILINE)
    for line in lines:
        done = CliRunner().invoke(main, shlex.split(re.split(r" [>|] ", line)[0]))
        assert done.exit_code == 0, (line, done.output)


def test_every_option_exists() -> None:
    """Those that the text names, in code or not."""
    options = {name for one in COMMANDS.values() for param in one.params for name in param.opts}
    for command in COMMANDS.values():
        if isinstance(command, click.Group):  # a default command is not listed
            options |= {
                o for inner in command.commands.values() for p in inner.params for o in p.opts
            }
    named = {
        option: page.name
        for page in [*PROSE, ROOT / "README.md", ROOT / "examples/README.md"]
        for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", page.read_text(encoding="utf-8"))
    }
    assert len(named) > 60
    assert {o: page for o, page in named.items() if o not in options | FOREIGN} == {}


def test_every_public_name_is_on_one_page() -> None:
    count = Counter(name for names in DIRECTIVES.values() for name in names)
    assert {name for name, times in count.items() if times > 1} == set()
    places = Counter(n.rpartition(".")[2] for n in count if re.match(r"onnxq\.(api\.|\w+$)", n))
    assert {name: places[name] for name in onnxq.__all__ if places[name] != 1} == {}


def test_every_name_is_what_it_says() -> None:
    """A function whose module has its name is found by its full path alone."""
    griffe = pytest.importorskip("griffe", reason="the extra docs is not installed")
    package = griffe.load("onnxq", search_paths=[str(ROOT)])
    for names in DIRECTIVES.values():
        for name in names:
            found = package[name.removeprefix("onnxq.")]
            assert found.is_module == (name in MODULES), name
            assert found.has_docstring, name


def test_every_error_is_told() -> None:
    page = (DOCS / "api/errors.md").read_text(encoding="utf-8")
    listed = re.findall(r"^ +- (\w+)$", page, re.MULTILINE)
    known = [n for n, one in vars(errors).items() if isinstance(one, type) and n.endswith("Error")]
    assert set(listed) == {*known, "RuntimeFailure"}


@pytest.mark.parametrize("page", OUTSIDE, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", text):
        if "://" in target:
            continue
        place = (page.parent / target) if target else page
        assert place.exists(), target
        if anchor:
            assert anchor in set(anchors(place.read_text(encoding="utf-8"))), (target, anchor)


def anchors(text: str) -> Iterator[str]:
    """What headings are called in links, by code hosts and by the site alike."""
    for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")


def test_every_example_is_listed() -> None:
    page = (ROOT / "examples/README.md").read_text(encoding="utf-8")
    files = {path.name for path in (ROOT / "examples").glob("*.py")}
    assert {name for name in files if f"]({name})" not in page} == set()


# --- File formats ---------------------------------------------------------------------------------


def schema(name: str) -> dict[str, Any]:
    return json.loads((DOCS / f"{name}.schema.json").read_bytes())


@pytest.mark.parametrize("name", SCHEMAS["SCHEMAS"])
def test_schema_is_up_to_date(name: str) -> None:
    expected = SCHEMAS["text"](name)
    found = (DOCS / name).read_text(encoding="utf-8")
    assert found == expected, "run: python scripts/write_schema.py"
    jsonschema.Draft202012Validator.check_schema(json.loads(found))


@pytest.mark.parametrize(
    ("title", "name", "structure"),
    [
        ("## Plan", "plan", "QuantPlan"),
        ("## Ranges", "ranges", "RangesFile"),
        ("## Receipt", "receipt", "Receipt"),
        ("### `measured`", "receipt", "Measured"),
        ("## Sensitivity report", "sensitivity", "SensitivityReport"),
    ],
)
def test_every_key_is_told(title: str, name: str, structure: str) -> None:
    page = (DOCS / "formats.md").read_text(encoding="utf-8")
    section = page.split(f"{title}\n")[1].split("\n#")[0]
    told = re.findall(r"^\| `(\w+)` \| (.+?) \| .+\. \|$", section, re.MULTILINE)
    properties = schema(name)["$defs"][structure]["properties"]
    assert [key for key, _ in told] == list(properties)
    kinds = {"object", "string", "integer", "number", "boolean", "list"}
    assert {kind.split()[0] for _, kind in told} <= kinds


def test_recipes_follow_their_schema() -> None:
    validator = jsonschema.Draft202012Validator(schema("recipe"))
    texts = {path.name: path.read_text() for path in ROOT.glob("models/*.toml")}
    texts |= {path.name: path.read_text() for path in ROOT.glob("examples/qat/*.toml")}
    texts |= {name: preset_text(name) for name in presets()}
    assert len(texts) > 15
    for text in texts.values():
        validator.validate(tomllib.loads(text))
    with pytest.raises(jsonschema.ValidationError, match="no_such_key"):
        validator.validate({"no_such_key": 1})


def test_files_follow_their_schemas(tmp_path: Path) -> None:
    """What the commands print and write: a plan, ranges."""
    model, ranges = str(ROOT / "models/digits_cnn.onnx"), tmp_path / "digits.ranges.json"
    plan = CliRunner().invoke(main, ["quantize", model, "--dry-run", "--json"])
    assert plan.exit_code == 0, plan.output
    jsonschema.validate(json.loads(plan.stdout), schema("plan"))
    data = ["--data", str(ROOT / "models/digits_calibration.npz"), "--samples", "8"]
    done = CliRunner().invoke(main, ["calibrate", model, *data, "-o", str(ranges)])
    assert done.exit_code == 0, done.output
    content = json.loads(ranges.read_bytes())
    jsonschema.validate(content, schema("ranges"))
    del content["states"]
    with pytest.raises(jsonschema.ValidationError, match="states"):
        jsonschema.validate(content, schema("ranges"))
