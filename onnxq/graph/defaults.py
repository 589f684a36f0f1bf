"""What an attribute is when a node does not say it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import onnx


@cache
def attribute_defaults(op: str, domain: str, opset: int) -> Mapping[str, Any]:
    """The defaults of an operator's attributes by their names, as ``NodeView.attrs`` has values.

    Args:
        op: Operator type.
        domain: Operator domain, empty for ONNX itself.
        opset: Version of the default operator set.

    Returns:
        Those that the operator's schema tells; none for an operator that has none here.
    """
    if domain or not onnx.defs.has(op, opset):
        return {}
    schema = onnx.defs.get_schema(op, opset)
    known = (attr.default_value for attr in schema.attributes.values())
    return {attr.name: _plain(onnx.helper.get_attribute_value(attr)) for attr in known if attr.name}


def _plain(value: Any) -> Any:  # noqa: ANN401 - an attribute is any of a dozen types
    if isinstance(value, bytes):
        return value.decode()
    return tuple(value) if isinstance(value, list) else value
