"""How the range of each tensor is read from what was observed: by which method, for which width."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from onnxq.errors import UsageError
from onnxq.graph import GraphView
from onnxq.ops import Census
from onnxq.plan.layers import layer_settings
from onnxq.plan.policy import Regions, not_static
from onnxq.plan.recipe import Recipe
from onnxq.types import Precision


class Reading(msgspec.Struct, frozen=True):
    """How one range is read.

    Attributes:
        observer: The calibration method; None for that of the recipe.
        wide: Whether the tensor is to have 16 bits, which gain less from clipping than 8.
    """

    observer: str | None = None
    wide: bool = False


def readings(view: GraphView, census: Census, recipe: Recipe) -> dict[str, Reading]:
    """How the range of every tensor is read that a plan may quantize.

    A tensor has one range, whoever reads it: by the method of the node that makes it, or else of
    the nodes that read it. It has 16 bits where no node of 8 bits makes or reads it.

    Raises:
        UsageError: Nodes that read a tensor want different methods; or as ``layer_settings``.
    """
    layers = layer_settings(census, recipe)
    regions = Regions(view, census, not_static(census, layers))
    made: dict[str, dict[str, str]] = {}
    read: dict[str, dict[str, str]] = {}
    narrow: set[str] = set()
    tensors: dict[str, None] = {}
    for node in census.nodes:
        if node.name not in regions.int8:
            continue
        observed, inputs = regions.observed(node), {tensor for _, tensor in node.data}
        tensors.update(observed)
        wanted = layers[node.name]
        if wanted.precision is not Precision.INT16:
            narrow.update(observed)
        for tensor in observed if wanted.observer else ():
            wishes = read if tensor in inputs else made
            wishes.setdefault(tensor, {})[node.name] = wanted.observer or ""
    return {t: Reading(_one(t, made.get(t) or read.get(t, {})), t not in narrow) for t in tensors}


def _one(tensor: str, wishes: Mapping[str, str]) -> str | None:
    """The one method that nodes want for a tensor."""
    kinds = {method: node for node, method in wishes.items()}
    if len(kinds) > 1:
        (method, node), (other, its) = list(kinds.items())[:2]
        raise UsageError(
            f"node '{node}' wants observer {method} of tensor '{tensor}', and node '{its}' wants "
            f"{other}",
            "a tensor has one range: give both the same",
        )
    return next(iter(kinds), None)
