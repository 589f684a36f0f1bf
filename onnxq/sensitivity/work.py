"""What an analysis has to measure: layers, the variants of each, and the order to run them in."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from onnxq.graph import Model
from onnxq.plan import QuantPlan
from onnxq.sensitivity.cuts import Cuts, Steps
from onnxq.sensitivity.facts import Sight
from onnxq.sensitivity.frontier import Part, Variant
from onnxq.sensitivity.plans import (
    Subject,
    changed_nodes,
    has_constants,
    layers_of,
    of_layer,
    weights_only,
    with_clamps,
)
from onnxq.sensitivity.spread import Roll
from onnxq.types import Precision

# Operators whose input alone can be rounded as the dynamic form of the layer rounds it.
_ROUNDS_INPUT = ("MatMul", "Gemm")


def finding(precision: Precision, part: Part, layer: str) -> str:
    """What the loss of a variant is called in a journal."""
    return f"{precision} {part} {layer}"


class Work:
    """The plans, layers and variants of an analysis.

    Args:
        subject: What is analysed.
        precisions: What to try.
        screen: Whether to look at every layer alone as a whole, and at nothing else.
        rest: Whether to look at everything but each layer, too.
        wanted: The layers to look at; all if None.

    Attributes:
        plans: The whole plan of each precision.
        layers: The layers of each precision, in the graph's order.
        steps: The nodes of the graph as steps: a layer and what vanishes into it is one.
    """

    def __init__(
        self,
        subject: Subject,
        precisions: Sequence[Precision],
        *,
        screen: bool,
        rest: bool,
        wanted: Collection[str] | None = None,
    ) -> None:
        self._subject, self._screen, self._rest = subject, screen, rest and not screen
        self.plans = {p: subject.plan(p) for p in dict.fromkeys(precisions)}
        self.layers = {
            p: tuple(
                name
                for name in layers_of(plan, subject.census, p)
                if wanted is None or name in wanted
            )
            for p, plan in self.plans.items()
        }
        followers = with_clamps(subject.view, subject.census, self.plans.values())
        self.steps = Steps.of(subject.view, followers)

    @property
    def names(self) -> tuple[str, ...]:
        """All layers, each once, in the graph's order."""
        found = {name for names in self.layers.values() for name in names}
        return tuple(sorted(found, key=self.steps.place.__getitem__))

    def findings(self) -> list[str]:
        """The names of all losses of single layers that are wanted."""
        return [
            finding(precision, part, layer)
            for precision, layers in self.layers.items()
            for layer in layers
            for part in self._parts(precision, layer)
        ]

    def rolls(
        self, model: Model, outputs: Iterable[str], sight: Sight, done: Collection[str], budget: int
    ) -> list[Roll]:
        """What is left to do: variants of the float model, and of each quantized one.

        Args:
            model: The model.
            outputs: Its outputs that are compared.
            sight: What a sample showed of its tensors.
            done: Names of what is found already.
            budget: The most bytes of activations to keep, for all samples.
        """
        cuts = Cuts(model, self.steps, outputs)
        rolls = [self._roll(None, self._of_float_model(), cuts, sight, done, budget)]
        if self._rest:
            for precision, plan in self.plans.items():
                variants = [self._rest_of(precision, layer) for layer in self.layers[precision]]
                rolls.append(self._roll(plan, variants, cuts, sight, done, budget))
        return [roll for roll in rolls if roll.variants]

    def _roll(
        self,
        plan: QuantPlan | None,
        variants: Sequence[Variant],
        cuts: Cuts,
        sight: Sight,
        done: Collection[str],
        budget: int,
    ) -> Roll:
        """The variants in order; stops are those of all of them, whatever is done already."""
        stops = cuts.stops({variant.start for variant in variants}, sight.bytes, budget)
        left = [v for v in variants if finding(v.precision, v.part, v.layer) not in done]
        left.sort(key=lambda variant: (variant.start, variant.stop))
        return Roll(plan, tuple(left), self.steps, tuple(stops))

    def _parts(self, precision: Precision, layer: str) -> list[Part]:
        """What is run for a layer; a part that is all of its quantization is not run twice."""
        return [*self._parts_alone(precision, layer), *([Part.REST] if self._rest else [])]

    def _parts_alone(self, precision: Precision, layer: str) -> list[Part]:
        dynamic = precision is Precision.INT8_DYNAMIC
        view = self._subject.view
        if self._screen or not (precision.static or dynamic):
            return [Part.ONLY]
        if not has_constants(self.plans[precision], view, layer):
            return [Part.ONLY]
        if dynamic and view.by_name[layer].op not in _ROUNDS_INPUT:
            return [Part.ONLY, Part.WEIGHTS]
        return [Part.ONLY, Part.WEIGHTS, Part.ACTIVATIONS]

    def _of_float_model(self) -> list[Variant]:
        """Every layer alone, and its parts."""
        view, census, variants = self._subject.view, self._subject.census, []
        for precision, layers in self.layers.items():
            for layer in layers:
                whole = self.plans[precision]
                alone = of_layer(whole, view, census, layer)
                place = self.steps.place[layer]
                for part in self._parts_alone(precision, layer):
                    plan = weights_only(whole, view, layer) if part is Part.WEIGHTS else alone
                    variants.append(Variant(layer, precision, part, plan, place, place + 1))
        return variants

    def _rest_of(self, precision: Precision, layer: str) -> Variant:
        """Everything but a layer: what leaves with it may be more than the layer."""
        plan = self._subject.plan(precision, [layer])
        changed = changed_nodes(self._subject.view, self.plans[precision], plan)
        start, stop = self.steps.around({layer, *changed})
        return Variant(layer, precision, Part.REST, plan, start, stop)
