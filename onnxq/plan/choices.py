"""What a search decides about single nodes, on top of what the recipe wants."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec.structs import replace as with_fields

from onnxq.plan.layers import LayerSettings
from onnxq.types import Precision, Reason


class Choice(msgspec.Struct, frozen=True):
    """The precision that a search chose for a node.

    Attributes:
        precision: How it is to compute.
        why: Why it is no cheaper one: the rest of the sentence "stays float: ...", or of "has
            int8-weights: ...", which is left out where there is nothing to say.
    """

    precision: Precision
    why: str = ""


Choices = Mapping[str, Choice]
_CHEAPEST = "so all layers together cost least"


def with_choices(layers: Mapping[str, LayerSettings], choices: Choices) -> dict[str, LayerSettings]:
    """What is wanted of every node, with what was chosen for some of them."""
    found = dict(layers)
    for name, choice in choices.items():
        reason = None
        if choice.precision is Precision.FLOAT:
            reason = Reason("measured", f"stays float: {choice.why or _CHEAPEST}", name)
        elif choice.why:
            reason = Reason("measured", f"has {choice.precision}: {choice.why}", name)
        found[name] = with_fields(layers[name], precision=choice.precision, reason=reason)
    return found
