"""Write the JSON Schemas in docs/: python scripts/write_schema.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from onnxq.calibrate import calibration
from onnxq.plan import QuantPlan, recipe_schema
from onnxq.sensitivity import SensitivityReport
from onnxq.verify import receipt_schema

FOLDER = Path(__file__).parents[1] / "docs"
RECEIPT = "receipt.schema.json"
SCHEMAS = {
    "recipe.schema.json": lambda: ("onnxq recipe", recipe_schema()),
    "plan.schema.json": lambda: ("onnxq plan", msgspec.json.schema(QuantPlan)),
    "ranges.schema.json": lambda: ("onnxq ranges", _ranges_schema()),
    RECEIPT: lambda: ("onnxq receipt", receipt_schema()),
    "sensitivity.schema.json": lambda: (
        "onnxq sensitivity report",
        msgspec.json.schema(SensitivityReport),
    ),
}


def text(name: str = RECEIPT) -> str:
    title, content = SCHEMAS[name]()
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        **content,
    }
    for definition in schema["$defs"].values():
        if "description" in definition:  # a docstring: its first paragraph is for users
            definition["description"] = " ".join(definition["description"].split("\n\n")[0].split())
    return json.dumps(schema, indent=2) + "\n"


def _ranges_schema() -> dict[str, Any]:
    """The file's structure is private, since nothing but ``decode`` may read it back."""
    structure = calibration._Saved
    schema = json.dumps(msgspec.json.schema(structure))
    return json.loads(schema.replace(structure.__name__, "RangesFile"))


if __name__ == "__main__":
    for name in SCHEMAS:
        (FOLDER / name).write_text(text(name), encoding="utf-8")
