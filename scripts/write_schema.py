"""Write docs/receipt.schema.json, the JSON Schema of receipts: python scripts/write_schema.py."""

from __future__ import annotations

import json
from pathlib import Path

from onnxq.verify import receipt_schema

PATH = Path(__file__).parents[1] / "docs" / "receipt.schema.json"


def text() -> str:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "onnxq receipt",
        **receipt_schema(),
    }
    for definition in schema["$defs"].values():
        if "description" in definition:  # a docstring: its first paragraph is for users
            definition["description"] = " ".join(definition["description"].split("\n\n")[0].split())
    return json.dumps(schema, indent=2) + "\n"


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
