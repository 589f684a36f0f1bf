"""What a search may choose for every node, and what each choice is worth to an objective."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from onnxq.plan import Costs, cheapest
from onnxq.sensitivity.costs import LayerTimes
from onnxq.sensitivity.maker import Maker
from onnxq.types import Precision

# By precision and node: the noise at the outputs per unit of signal, when that node alone has it.
# Once there is a price for noise, a node of which nothing is known stays as it is.
Noise = Mapping[Precision, Mapping[str, float]]
Assignment = dict[str, Precision]
# More than anything that is saved.
_NEVER = 1e12
# What a search for the fewest bytes may choose.
_SMALL = (Precision.INT8_WEIGHTS, Precision.INT4_WEIGHTS)

_BITS = {
    Precision.FLOAT: 32.0,
    Precision.FP16: 16.0,
    Precision.INT8: 8.0,
    Precision.INT8_DYNAMIC: 8.0,
    Precision.INT8_WEIGHTS: 8.0,
    Precision.INT4_WEIGHTS: 4.5,  # a scale of float32 for every 32 values, with its zero point
}


class Options(Protocol):
    """Choices for every node, and what they cost."""

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """What may be chosen beside float."""

    def assign(self, worth: float, noise: Noise) -> Assignment:
        """The cheapest choices, when a unit of noise costs ``worth``."""

    def cost(self, assignment: Assignment) -> float:
        """What choices cost, noise left out."""

    def why(self, node: str) -> str:
        """Why a node may cost least in float; empty where nothing is to be said."""


@dataclass(frozen=True)
class LatencyOptions:
    """Float, static integers and dynamic ones, at what each was measured to take.

    Attributes:
        maker: The model.
        times: What every node takes.
        price: Nanoseconds per element that crosses between float and static integers.
    """

    maker: Maker
    times: LayerTimes
    price: float

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """What was measured."""
        return tuple(self.times.quantized)

    def assign(self, worth: float, noise: Noise) -> Assignment:
        """The fastest choices: a minimum cut over times and crossings."""
        costs, dynamic = self._costs(worth, noise)
        integers = cheapest(self.maker.view, self.maker.subject.census, costs)
        found = dict.fromkeys(dynamic - integers, Precision.INT8_DYNAMIC)
        return found | dict.fromkeys(integers, self.times.static)

    def cost(self, assignment: Assignment) -> float:
        """Microseconds that choices take by the model of costs."""
        costs, _ = self._costs(0.0, {})
        integers = frozenset(n for n, p in assignment.items() if p.static)
        floating = dict(self.times.floating)
        for name, precision in assignment.items():
            if precision is Precision.INT8_DYNAMIC:
                floating[name] = self.times.quantized[precision][name]
        known = Costs(floating, costs.integer, costs.to_integer, costs.to_float)
        return known.of(self.maker.view, integers)

    def why(self, node: str) -> str:
        """What was measured of it."""
        known = {p: by[node] for p, by in self.times.quantized.items() if node in by}
        if not known:
            return ""
        precision, spent = min(known.items(), key=lambda item: item[1])
        floating = self.times.floating.get(node, 0.0)
        if spent >= max(floating, 0.5):
            return f"{precision} takes {spent:.0f} us here, float {floating:.0f} us"
        return f"converting around it takes longer than {precision} saves"

    def _costs(self, worth: float, noise: Noise) -> tuple[Costs, frozenset[str]]:
        losses = {
            p: {name: _price(worth, noise, p, name) for name in by}
            for p, by in self.times.quantized.items()
        }
        return self.times.costs(self.price, losses, self.maker.pins)


@dataclass(frozen=True)
class CountOptions:
    """One precision wherever it may be: a layer that stays float costs as much as it holds.

    Attributes:
        nodes: What each node costs while it is float.
        precision: The precision.
    """

    nodes: Mapping[str, float]
    precision: Precision

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """The one precision."""
        return (self.precision,)

    def assign(self, worth: float, noise: Noise) -> Assignment:
        """The nodes whose noise costs less than their staying float."""
        return {
            name: self.precision
            for name, cost in self.nodes.items()
            if _price(worth, noise, self.precision, name) <= cost
        }

    def cost(self, assignment: Assignment) -> float:
        """What stays float."""
        return sum(cost for name, cost in self.nodes.items() if name not in assignment)

    def why(self, node: str) -> str:
        """Nothing: without a budget no node stays float."""
        return ""


@dataclass(frozen=True)
class SizeOptions:
    """How weights are stored: the bytes of every choice.

    Attributes:
        weights: Values in the weights of every node that can have each precision.
    """

    weights: Mapping[Precision, Mapping[str, int]]
    precisions: tuple[Precision, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "precisions", tuple(self.weights))

    def assign(self, worth: float, noise: Noise) -> Assignment:
        """For every node the choice with the fewest bytes, noise counted as bytes."""
        found: Assignment = {}
        for name in self._names():
            best = min(
                (Precision.FLOAT, *self.precisions),
                key=lambda p: self._bytes(name, p) + _price(worth, noise, p, name),
            )
            if best is not Precision.FLOAT:
                found[name] = best
        return found

    def cost(self, assignment: Assignment) -> float:
        """Bytes of all weights."""
        return sum(self._bytes(n, assignment.get(n, Precision.FLOAT)) for n in self._names())

    def why(self, node: str) -> str:
        """Nothing: no node is smaller in float."""
        return ""

    def _names(self) -> Iterable[str]:
        return dict.fromkeys(name for by in self.weights.values() for name in by)

    def _bytes(self, name: str, precision: Precision) -> float:
        if precision is Precision.FLOAT:
            return max(by.get(name, 0) for by in self.weights.values()) * 4.0
        known = self.weights[precision].get(name)
        return float("inf") if known is None else known * _BITS[precision] / 8


def untimed(maker: Maker, precision: Precision | None) -> CountOptions | SizeOptions:
    """What nodes may have where nothing is timed, and what each choice is worth.

    Args:
        maker: The model.
        precision: What all of them are to have that can. 4 bits give way to 8 before they do to
            float; what cannot have 4 stays as it is. None for the fewest bytes everywhere.
    """
    if precision is None:
        return SizeOptions({p: _weights(maker, p) for p in _SMALL})
    if precision is Precision.INT4_WEIGHTS:
        four, eight = _weights(maker, precision), _weights(maker, Precision.INT8_WEIGHTS)
        both = {name: size for name, size in eight.items() if name in four}
        return SizeOptions({precision: four, Precision.INT8_WEIGHTS: both})
    sizes = _weights(maker, precision)
    most = max(sizes.values(), default=1) or 1
    # what stays float costs 1, and a little for its weights
    nodes = {n: 1.0 + 1e-3 * sizes.get(n, 0) / most for n in _able(maker, precision)}
    return CountOptions(nodes, precision)


def _weights(maker: Maker, precision: Precision) -> dict[str, int]:
    """Values in the weights of every node that can have a precision."""
    view, names = maker.view, set(_able(maker, precision))
    found = {}
    for node in maker.subject.census.nodes:
        if node.name in names:
            arrays = [view.constant(stored.tensor) for stored in node.stored]
            found[node.name] = sum(array.size for array in arrays if array is not None)
    return found


def _able(maker: Maker, precision: Precision) -> tuple[str, ...]:
    """The nodes that can have a precision, or what comes nearest to it, in the graph's order."""
    nearest = (Precision.INT8_WEIGHTS,) if precision is Precision.INT8_DYNAMIC else ()
    names = maker.whole(precision).named(precision, *nearest)
    return tuple(name for name in names if name not in maker.pins)


def _price(worth: float, noise: Noise, precision: Precision, name: str) -> float:
    """What the noise of a node costs."""
    if worth == 0.0 or precision is Precision.FLOAT:
        return 0.0
    known = noise.get(precision, {}).get(name)
    return _NEVER if known is None else worth * known
