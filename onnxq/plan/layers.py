"""What is wanted of every node: the recipe's precision, and what it says of single layers."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NoReturn

import msgspec
from msgspec.structs import replace as with_fields

from onnxq.errors import UsageError
from onnxq.ops import Census, NodeInfo, Role
from onnxq.plan.recipe import Recipe
from onnxq.plan.settings import LayerRule
from onnxq.types import Precision, Reason

_STATIC = tuple(precision for precision in Precision if precision.static)
_BLOCKS = (Precision.INT4_WEIGHTS, Precision.INT8_WEIGHTS)
# The precisions that a setting means something to.
_MEANS: dict[str, tuple[Precision, ...]] = {
    "per_channel": (*_STATIC, Precision.INT8_DYNAMIC, Precision.INT8_WEIGHTS),
    "block_size": _BLOCKS,
    "symmetric": _BLOCKS,
    "method": _BLOCKS,
    "observer": _STATIC,
}


class LayerSettings(msgspec.Struct, frozen=True):
    """What the recipe wants of one node.

    Attributes:
        precision: How it is to compute, if it can.
        per_channel: One weight scale per output channel instead of one per tensor.
        block_size: Values of a weight that share a scale; None for a whole channel or tensor.
        symmetric: Whether weights in blocks have their zero point in the middle.
        method: How scales of weights in blocks are chosen: ``rtn`` or ``hqq``.
        observer: The calibration method for its activations; None for that of all others.
        reason: Why it is to stay float, when the user wants that.
    """

    precision: Precision
    per_channel: bool = True
    block_size: int | None = None
    symmetric: bool = True
    method: str = "rtn"
    observer: str | None = None
    reason: Reason | None = None


def layer_settings(census: Census, recipe: Recipe) -> dict[str, LayerSettings]:
    """What is wanted of every node, by its name.

    What tables of ``layers``, ``keep_float`` and ``keep_float_op`` say of a node wins over what
    the recipe says of all. None of them wins over another one.

    Raises:
        UsageError: A pattern matches no node, two want different things of one node, or a setting
            means nothing to the precision, or to the weights, of any node that it is said of.
    """
    usual = LayerSettings(
        recipe.usual,
        recipe.per_channel,
        recipe.weights.block_size,
        recipe.weights.symmetric,
        recipe.weights.method,
    )
    said: dict[str, dict[str, _Said]] = {}
    rules = [(rule, label, _matches(rule, census)) for rule, label in _rules(recipe)]
    for rule, label, names in rules:
        for key, value in _settings(rule, usual.precision).items():
            for name in names:
                before = said.setdefault(name, {}).setdefault(key, _Said(value, label))
                if before.value != value:
                    raise UsageError(
                        f"{before.by} wants {key} {_show(before.value)} of node '{name}', and "
                        f"{label} wants {_show(value)}",
                        "no pattern wins over another one: let one of them leave the node out",
                    )
    found = {node.name: _settled(usual, node, said.get(node.name, {})) for node in census.nodes}
    for rule, label, names in rules:
        _check_meaning(rule, label, {found[name].precision for name in names})
        _check_weights(rule, label, [node for node in census.nodes if node.name in set(names)])
    return found


def pinned(census: Census, recipe: Recipe) -> frozenset[str]:
    """The nodes whose precision the recipe itself says: no search may change it.

    Raises:
        UsageError: A pattern matches no node.
    """
    rules = (rule for rule, _ in _rules(recipe) if rule.wanted(recipe.usual) is not None)
    return frozenset(name for rule in rules for name in _matches(rule, census))


# Settings that nodes without weights cannot have, and those of weights in blocks.
_OF_WEIGHTS = ("per_channel", "block_size", "symmetric", "method")
_OF_BLOCKS = ("block_size", "symmetric", "method")


@dataclass(frozen=True)
class _Said:
    """A value, and what wants it."""

    value: Any
    by: str


def _rules(recipe: Recipe) -> list[tuple[LayerRule, str]]:
    """All that is said of single layers, and what messages call it."""
    kept = [(LayerRule(name=p, precision="float"), f"keep_float '{p}'") for p in recipe.keep_float]
    kept += [
        (LayerRule(op=op, precision="float"), f"keep_float_op '{op}'")
        for op in recipe.keep_float_op
    ]
    return kept + [(rule, str(rule)) for rule in recipe.layers]


def _settings(rule: LayerRule, usual: Precision) -> dict[str, Any]:
    """What a rule says, its bits as the precision that they mean."""
    said = {"precision": rule.wanted(usual)} | {key: getattr(rule, key) for key in _MEANS}
    return {key: value for key, value in said.items() if value is not None}


def _settled(usual: LayerSettings, node: NodeInfo, said: dict[str, _Said]) -> LayerSettings:
    if not said:
        return usual
    found = with_fields(usual, **{key: one.value for key, one in said.items()})
    if "precision" in said and found.precision is Precision.FLOAT:
        text = f"kept float by {said['precision'].by}"
        return with_fields(found, reason=Reason("kept-float", text, node.name))
    return found


def _check_meaning(rule: LayerRule, label: str, precisions: Collection[Precision]) -> None:
    """Refuse what would have no effect at all: it is a misunderstanding."""
    for key, meant in _MEANS.items():
        if getattr(rule, key) is not None and not set(precisions) & set(meant):
            raise UsageError(
                f"{key} means nothing to the nodes of {label}, which are to compute as "
                f"{' and '.join(sorted(precisions))}",
                f"it is about {', '.join(meant)}: give them such a precision, or leave it out",
            )


def _check_weights(rule: LayerRule, label: str, nodes: Collection[NodeInfo]) -> None:
    """Refuse settings of weights where there are none, or none that can lie in blocks."""
    said = [key for key in _OF_WEIGHTS if getattr(rule, key) is not None]
    stored = [one for node in nodes for one in node.stored]
    if said and not stored:
        raise UsageError(
            f"{label} is about how weights are stored, and its nodes have none",
            "name nodes with weights, or leave the setting out",
        )
    of_blocks = [key for key in said if key in _OF_BLOCKS]
    if of_blocks and all(one.summed is None for one in stored):
        raise UsageError(
            f"{of_blocks[0]} means nothing to the nodes of {label}: weights of "
            f"{' and '.join(sorted({one.op for one in stored}))} are not stored in blocks",
            "name a MatMul, Gemm, Gather or recurrent layer, or leave the setting out",
        )


def _matches(rule: LayerRule, census: Census) -> list[str]:
    """Names of the nodes that a rule is about.

    Raises:
        UsageError: There are none.
    """
    names = [node.name for node in census.nodes]
    pattern = rule.pattern
    if rule.name is not None:
        # a name may hold brackets, which globs read as a set of characters
        exact = [pattern] if pattern in names else []
        found = exact or [name for name in names if fnmatchcase(name, pattern)]
        return found or _nothing(f"no node is called '{pattern}'", pattern, names)
    if rule.regex is not None:
        found = [name for name in names if re.fullmatch(pattern, name)]
        return found or _nothing(f"no node's name matches '{pattern}'", pattern, names)
    if rule.op is not None:
        found = [node.name for node in census.nodes if node.op == pattern]
        known = sorted({node.op for node in census.nodes})
        return found or _nothing(f"no node is a '{pattern}'", pattern, known)
    layers = [node.name for node in census.nodes if _is_layer(node)]
    if not layers:
        raise UsageError(f"no node multiplies with constant weights: none is the {rule.position}")
    return [layers[0 if rule.position == "first" else -1]]


def _is_layer(node: NodeInfo) -> bool:
    """True for what multiplies with constant weights; looking up in a table is another thing."""
    return node.role is Role.COMPUTE and (node.weight is not None or bool(node.stored))


def _nothing(message: str, wanted: str, known: list[str]) -> NoReturn:
    near = difflib.get_close_matches(re.sub(r"[*^$\\]|\.[*+]", "", wanted), known, n=1, cutoff=0.3)
    shown = f"did you mean '{near[0]}'?" if near else "the model has other names"
    raise UsageError(
        message, f"{shown} (`onnxq inspect MODEL` lists all that are left after preparing)"
    )


def _show(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
