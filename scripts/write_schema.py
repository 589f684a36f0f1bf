"""Write the JSON Schemas in docs/: python scripts/write_schema.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from onnxq.sensitivity import SensitivityReport
from onnxq.verify import receipt_schema

FOLDER = Path(__file__).parents[1] / "docs"
RECEIPT, SENSITIVITY = "receipt.schema.json", "sensitivity.schema.json"


def text(name: str = RECEIPT) -> str:
    if name == RECEIPT:
        return _text("onnxq receipt", receipt_schema())
    return _text("onnxq sensitivity report", msgspec.json.schema(SensitivityReport))


def _text(title: str, content: dict[str, Any]) -> str:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        **content,
    }
    for definition in schema["$defs"].values():
        if "description" in definition:  # a docstring: its first paragraph is for users
            definition["description"] = " ".join(definition["description"].split("\n\n")[0].split())
    return json.dumps(schema, indent=2) + "\n"


if __name__ == "__main__":
    for name in (RECEIPT, SENSITIVITY):
        (FOLDER / name).write_text(text(name), encoding="utf-8")
