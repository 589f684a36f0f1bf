"""The reference pages say what the program does; where they do not, a script writes them anew."""

from __future__ import annotations

import json
import re
import runpy
import tomllib
from pathlib import Path

import click
import jsonschema
import msgspec
import pytest

from onnxq.cli import main
from onnxq.cli.main import COMMANDS
from onnxq.data import Preprocess
from onnxq.plan import (
    Budgets,
    CalibrationSettings,
    CheckSettings,
    DataSettings,
    LayerRule,
    QATSettings,
    Recipe,
    VerifySettings,
    WeightSettings,
    presets,
)
from onnxq.targets import Provider
from onnxq.types import Precision
from onnxq.verify import receipt_schema

ROOT = Path(__file__).parents[2]
RECIPE_PAGE = (ROOT / "docs/recipe.md").read_text(encoding="utf-8")
SECTIONS = {
    "First level": Recipe,
    "`[[layers]]`": LayerRule,
    "`[data]`": DataSettings,
    "`[data.preprocess]`": Preprocess,
    "`[calibration]`": CalibrationSettings,
    "`[weights]`": WeightSettings,
    "`[verify]`": VerifySettings,
    "`[budgets]`": Budgets,
    "`[qat]`": QATSettings,
    "`[check]`": CheckSettings,
    "`[provider]`": Provider,
}


@pytest.mark.parametrize(
    ("page", "script"),
    [
        ("receipt.schema.json", "write_schema.py"),
        ("cli.md", "write_cli_docs.py"),
        ("qat.md", "write_operator_docs.py"),
    ],
)
def test_page_is_up_to_date(page: str, script: str) -> None:
    expected = runpy.run_path(str(ROOT / "scripts" / script))["text"]()
    found = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert found == expected, f"run: python scripts/{script}"


class TestSchema:
    schema = json.loads((ROOT / "docs/receipt.schema.json").read_bytes())

    def test_is_a_schema(self) -> None:
        jsonschema.Draft202012Validator.check_schema(self.schema)

    def test_refuses_what_is_no_receipt(self) -> None:
        required = receipt_schema()["$defs"]["Receipt"]["required"]
        with pytest.raises(jsonschema.ValidationError, match="is a required property"):
            jsonschema.validate({key: {} for key in required[1:]}, self.schema)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_in_the_reference(command: str) -> None:
    found = main.get_command(click.Context(main), command)
    assert found is not None
    assert found.help
    page = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    section = page.split(f"## onnxq {command}\n")[1].split("\n## ")[0]
    if isinstance(found, click.Group):  # its options are those of its default command, if any
        found = found.commands.get("run", found)
    for option in (p for p in found.params if isinstance(p, click.Option)):
        assert option.help, option.name
        for flag in option.opts:
            assert re.search(rf"^  (-\w, )?{flag}\b", section, re.MULTILINE), flag


def rows(section: str) -> dict[str, tuple[str, str, str]]:
    """The table of a section: type, default and meaning by key."""
    text = RECIPE_PAGE.split(f"## {section}\n")[1].split("\n## ")[0]
    (table,) = re.findall(r"^\| key (?:.+\n?)+", text, re.MULTILINE)
    cells = [re.split(r"\s*\|\s*", line.strip("| ")) for line in table.splitlines()]
    assert cells[0] == ["key", "type", "default", "meaning"]
    return {key.strip("`"): (kind, default, meaning) for key, kind, default, meaning in cells[2:]}


def as_toml(field: msgspec.inspect.Field) -> str:
    """A default as the page writes it; nothing for a table that is always there."""
    default = field.default
    if default is msgspec.NODEFAULT:
        default = field.default_factory()
    if isinstance(default, msgspec.Struct):
        return ""
    if default is None:
        return "none"
    return f"`{json.dumps(list(default) if isinstance(default, tuple) else default)}`"


@pytest.mark.parametrize(("section", "struct"), SECTIONS.items(), ids=SECTIONS)
def test_recipe_keys(section: str, struct: type[msgspec.Struct]) -> None:
    documented = rows(section)
    fields = {field.encode_name: field for field in msgspec.inspect.type_info(struct).fields}
    assert list(documented) == list(fields)
    for name, (kind, default, meaning) in documented.items():
        assert default == as_toml(fields[name]), name
        assert kind, name
        assert meaning.endswith("."), name


def test_recipe_page_has_all_tables() -> None:
    """The page's sections are the recipe's tables, and there is no other."""
    titles = re.findall(r"^## (.+)$", RECIPE_PAGE, re.MULTILINE)
    assert titles == ["Example", "A first recipe", "Presets", *SECTIONS]


def test_recipe_page_has_all_presets_and_precisions() -> None:
    first = {line.split("`")[1] for line in RECIPE_PAGE.splitlines() if line.startswith("| `")}
    assert set(presets()) | set(Precision) <= first


def test_recipe_example() -> None:
    texts = re.findall(r"```toml\n(.*?)```", RECIPE_PAGE, re.DOTALL)
    recipe, inline = (msgspec.convert(tomllib.loads(text), Recipe) for text in texts)
    assert recipe.precision == "int8"
    assert recipe.data.preprocess is not None
    assert recipe.budgets.max_drop == 0.005
    assert [str(rule) for rule in recipe.layers] == ["position 'last'", "name '/blocks/*/fc?/Gemm'"]
    assert [str(rule) for rule in inline.layers] == [
        "position 'first'",
        "name '/blocks/*/fc?/Gemm'",
    ]
