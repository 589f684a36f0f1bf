"""``Simulation``: where a plan puts fake quantizers into a float graph, and what they hold.

A tensor is read through its quantizer by the nodes that read its Q/DQ pair in the rewritten model;
a stored weight by every node that is not float; a bias as int32. So the float graph computes what
the rewritten one will, up to the rounding of sums. Where no gradients are wanted, sums are those of
integers: ``integers``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from msgspec.structs import replace as with_fields
from torch import Tensor

from onnxq.errors import UsageError
from onnxq.graph import GraphView
from onnxq.numerics import choose_qparams
from onnxq.ops import OPERATORS, Census, stored_in_bodies
from onnxq.plan import (
    BIAS_LIMIT,
    SMALLEST_PRODUCT,
    QATSettings,
    QuantPlan,
    pair_readers,
    pair_serves_all,
)
from onnxq.qat.evaluator import Reading
from onnxq.qat.fake_quant import (
    BlockQuantizer,
    TensorQuantizer,
    WeightQuantizer,
    dynamic_quantize,
    fake_quantize,
)
from onnxq.targets import Target, get_target
from onnxq.types import Precision, QParams, QType

_FLOATS = (Precision.FLOAT, Precision.FP16)
_DYNAMIC = ("MatMul", "Gemm")
# What an average of ranges keeps at each batch.
MOMENTUM = 0.9
INT32 = (QType.INT32.qmin, QType.INT32.qmax)
Place = tuple[str, int]
OUTPUT: Place = ("", -1)  # of the graph, as Evaluator says it


@dataclass
class Observed:
    """The range of one quantizer's tensors, over the batches of the warm-up.

    Attributes:
        lo: Lowest value, or its average.
        hi: Highest value, or its average.
        batches: Batches that are counted.
        ends: Of the batch that is being computed; tensors that share a scale share these.
    """

    lo: float = 0.0
    hi: float = 0.0
    batches: int = 0
    ends: tuple[float, float] | None = None

    def see(self, lo: float, hi: float) -> None:
        """Take one tensor of the batch in."""
        self.ends = (
            (lo, hi) if self.ends is None else (min(self.ends[0], lo), max(self.ends[1], hi))
        )

    def range(self, *, average: bool) -> tuple[float, float]:
        """The range with the batch that is being computed."""
        if self.ends is None or not self.batches:
            return self.ends or (self.lo, self.hi)
        lo, hi = self.ends
        if not average:
            return min(self.lo, lo), max(self.hi, hi)
        keep = MOMENTUM
        return keep * self.lo + (1 - keep) * lo, keep * self.hi + (1 - keep) * hi

    def settle(self, *, average: bool) -> None:
        """Count the batch: it is over."""
        if self.ends is not None:
            self.lo, self.hi = self.range(average=average)
            self.batches, self.ends = self.batches + 1, None


@dataclass
class Simulation:
    """The quantizers of one plan.

    Attributes:
        plan: The plan.
        activations: By tensor; tensors of a group share one.
        constants: Of constant operands, which are not trained, by tensor.
        weights: Of stored weights, by tensor.
        places: Where quantized values are read, by tensor: (node, port), and ``OUTPUT``.
        biases: Where a bias is stored as int32: what the node reads, its weight and its bias.
        dynamic: Where activations are quantized as they come.
        settings: What is quantized, and how scales are found.
        target: What the plan is for.
        observed: Ranges of the warm-up, by quantizer; None when it is over.
    """

    plan: QuantPlan
    activations: dict[str, TensorQuantizer]
    constants: dict[str, TensorQuantizer]
    weights: dict[str, WeightQuantizer | BlockQuantizer]
    places: dict[str, set[Place]]
    biases: dict[Place, tuple[str, str, str]]
    dynamic: set[Place]
    settings: QATSettings
    target: Target
    observed: dict[int, Observed] | None = field(default=None)

    @classmethod
    def of(
        cls,
        view: GraphView,
        census: Census,
        plan: QuantPlan,
        constants: Mapping[str, Tensor],
        settings: QATSettings,
    ) -> Simulation:
        """Place the quantizers of a plan.

        Args:
            view: The prepared float graph.
            census: What ``classify`` said of it.
            plan: The plan for it.
            constants: Its constants.
            settings: What is quantized, and how scales are found.

        Raises:
            UsageError: The plan stores nothing as integers, or weights are to have fewer bits and
                are stored in blocks, whose scales are those of their type.
        """
        if not (plan.tensors or plan.blocks):
            raise UsageError(
                "the plan stores nothing as integers, so that there is no rounding to train for",
                "train for int8, int8-weights, int4-weights, int8-dynamic or int16",
            )
        if plan.blocks and settings.weight_bits is not None:
            raise UsageError(
                f"weight_bits = {settings.weight_bits} is for weights with a scale per channel, "
                f"and '{next(iter(plan.blocks))}' is stored in blocks",
                "leave it out, or use precision int8 or int8-weights without block_size",
            )
        target = get_target(plan.target)
        learned, stored = settings.learn_scales, _stored(census, plan)
        activations = _activations(view, plan, learned=learned)
        weights: dict[str, WeightQuantizer | BlockQuantizer] = {
            tensor: BlockQuantizer(scheme) for tensor, scheme in plan.blocks.items()
        }
        fixed = {}
        for tensor, params in plan.tensors.items():
            if tensor in stored:
                same = params.qtype is target.weight
                weights[tensor] = WeightQuantizer(
                    params, constants[tensor], settings.weight_bits, learned=learned,
                    headroom=target.weight_headroom if same else 1.0,
                )  # fmt: skip
            elif view.is_constant(tensor):
                fixed[tensor] = TensorQuantizer(params)
        places = _places(view, plan, activations)
        observed: dict[int, Observed] | None = None if settings.observer == "calibrated" else {}
        dynamic = {
            (node.name, 0)
            for node in plan.nodes
            if node.precision is Precision.INT8_DYNAMIC and node.op in _DYNAMIC
        }
        biases = _biases(view, plan) if target.integer_bias else {}
        return cls(
            plan, activations, fixed, weights, places, biases, dynamic, settings, target, observed
        )

    def quantizers(self) -> list[TensorQuantizer]:
        """The quantizers of activations, each once."""
        return list({id(q): q for q in self.activations.values()}.values())

    def parameters(self) -> dict[str, Tensor]:
        """Logarithms of the growth of learned scales, by the first tensor that each serves."""
        found: dict[str, Tensor] = {}
        seen: set[int] = set()
        learned = (
            *(self.activations.items() if self.settings.quantize_activations else ()),
            *(self.weights.items() if self.settings.quantize_weights else ()),
        )
        for tensor, quantizer in learned:
            scale = getattr(quantizer, "log_factor", None)
            if scale is not None and id(quantizer) not in seen:
                seen.add(id(quantizer))
                found[tensor] = scale
        return found

    def to(self, device: torch.device) -> None:
        """Move all quantizers to a device."""
        moved = (*self.quantizers(), *self.constants.values(), *self.weights.values())
        for quantizer in moved:
            if not isinstance(quantizer, BlockQuantizer):
                quantizer.to(device)

    def quantizer(self, tensor: str, place: Place) -> TensorQuantizer | WeightQuantizer | None:
        """What a tensor is read through, where it has one scale or one per channel."""
        if place not in self.places.get(tensor, ()):
            return None
        found = (self.weights | self.constants | self.activations)[tensor]
        return None if isinstance(found, BlockQuantizer) else found

    def reading(self) -> Reading:
        """What nodes read, for one pass: every tensor is quantized once."""
        made: dict[str, Tensor] = {}
        given: dict[str, Tensor] = {}
        settings = self.settings

        def read(name: str, value: Tensor, node: str, port: int) -> Tensor:
            if (node, port) in self.dynamic:
                return dynamic_quantize(value) if settings.quantize_activations else value
            if (node, port) in self.biases:
                x, w, _ = self.biases[node, port]
                return self._bias(value, x, w, given[w]) if w in given else value
            if (node, port) not in self.places.get(name, ()):
                return value
            if name not in made:
                given[name] = value
                made[name] = self._quantize(name, value)
            return made[name]

        return read

    def _quantize(self, name: str, value: Tensor) -> Tensor:
        if name in self.weights:
            return self.weights[name](value) if self.settings.quantize_weights else value
        if not self.settings.quantize_activations:
            return value
        if name in self.constants:
            return self.constants[name](value)
        quantizer = self.activations[name]
        if self.observed is not None and torch.is_grad_enabled():
            seen = self.observed.setdefault(id(quantizer), Observed())
            lo, hi = (float(end) for end in torch.aminmax(value.detach()))
            seen.see(lo, hi)
            quantizer.set_params(self._params(quantizer, seen))
        return quantizer(value)

    def _bias(self, bias: Tensor, x: str, w: str, weight: Tensor) -> Tensor:
        """A bias as the rewritten model holds it: int32, with the scale of the products."""
        quantizer = self.weights[w]
        if not (self.settings.quantize_weights and self.settings.quantize_activations):
            return bias
        assert isinstance(quantizer, WeightQuantizer)
        scale = self.activations[x].scale().detach() * quantizer.scale(weight).detach()
        return fake_quantize(bias, scale, torch.zeros_like(scale), *INT32)

    def _params(self, quantizer: TensorQuantizer, seen: Observed) -> QParams:
        lo, hi = seen.range(average=self.settings.observer == "moving-average")
        return choose_qparams(
            min(lo, 0.0), max(hi, 0.0), quantizer.params.qtype,
            symmetric=self.target.symmetric_activations,
        )  # fmt: skip

    def settle(self) -> None:
        """Count the batch that was computed, where ranges are observed."""
        for seen in (self.observed or {}).values():
            seen.settle(average=self.settings.observer == "moving-average")

    def freeze(self) -> None:
        """End the warm-up: ranges are no longer observed."""
        self.observed = None

    def project(self, weights: Mapping[str, Tensor], constants: Mapping[str, Tensor]) -> None:
        """Bring scales back to where they may be, after a step of an optimizer.

        Scales behind a Clip stay below its end; those of weights leave room for the biases, which
        are int32 with the scale of the products.

        Args:
            weights: The trained constants.
            constants: All others.
        """
        for activation in self.quantizers():
            activation.project()
        floors: dict[str, Tensor] = {}
        for x, w, b in self.biases.values():
            bias = weights[b] if b in weights else constants[b]
            room = (bias.detach().abs().reshape(-1) / BIAS_LIMIT).clamp(min=SMALLEST_PRODUCT)
            floor = room / self.activations[x].scale().detach()
            floors[w] = torch.maximum(floors[w], floor) if w in floors else floor
        for w, floor in floors.items():
            quantizer = self.weights[w]
            if isinstance(quantizer, WeightQuantizer):
                quantizer.set_floor(floor)

    def planned(self, weights: Mapping[str, Tensor]) -> QuantPlan:
        """The plan with scales as they are now.

        Args:
            weights: The trained weights.
        """
        tensors = dict(self.plan.tensors)
        tensors |= {tensor: q.result() for tensor, q in self.activations.items()}
        tensors |= {
            tensor: quantizer.result(weights[tensor])
            for tensor, quantizer in self.weights.items()
            if isinstance(quantizer, WeightQuantizer)
        }
        # what was trained for is rounding to nearest
        nearest = {t: with_fields(scheme, method="rtn") for t, scheme in self.plan.blocks.items()}
        return with_fields(self.plan, tensors=tensors, blocks=nearest)


def _stored(census: Census, plan: QuantPlan) -> set[str]:
    """The weights that the plan stores as integers with scales per channel or per tensor."""
    found = {stored.tensor for node in census.nodes for stored in node.stored}
    return found & set(plan.tensors)


def _activations(view: GraphView, plan: QuantPlan, *, learned: bool) -> dict[str, TensorQuantizer]:
    """One quantizer per tensor that has a pair, and one for all tensors of a group."""
    tensors = [t for t in plan.tensors if not view.is_constant(t)]
    groups = [[t for t in group if t in tensors] for group in plan.groups]
    grouped = {t for group in groups for t in group}
    found = {}
    for group in (*groups, *([t] for t in tensors if t not in grouped)):
        limits = [limit for t in group if (limit := _ceiling(view, plan, t)) is not None]
        for quantizer in group[:1]:
            shared = TensorQuantizer(
                plan.tensors[quantizer], learned=learned, ceiling=min(limits, default=None)
            )
            found.update(dict.fromkeys(group, shared))
    return {t: found[t] for t in tensors}


def _ceiling(view: GraphView, plan: QuantPlan, tensor: str) -> float | None:
    """What a tensor's scale must not exceed: behind a Clip, a wider range would not cut as it does.

    The Clip, and the layer before it, would run as float then.
    """
    producer = view.producer(tensor)
    if producer is None or producer.op != "Clip" or not plan.is_static(producer.name):
        return None
    return plan.tensors[tensor].scale[0]


def _biases(view: GraphView, plan: QuantPlan) -> dict[Place, tuple[str, str, str]]:
    """The biases of nodes that compute on integers with known ranges."""
    found = {}
    for node in view.nodes:
        spec = OPERATORS.get(node.full_op)
        port = spec.bias if spec is not None else None
        if port is None or port >= len(node.inputs) or not plan.is_static(node.name):
            continue
        if node.inputs[port]:
            found[node.name, port] = (node.inputs[0], node.inputs[1], node.inputs[port])
    return found


def _places(
    view: GraphView, plan: QuantPlan, activations: Mapping[str, object]
) -> dict[str, set[Place]]:
    places: dict[str, set[Place]] = {}
    for tensor in activations:
        found = {(use.node, use.port) for use in pair_readers(view, plan, tensor)}
        if tensor in view.output_names and pair_serves_all(view, plan, tensor):
            found.add(OUTPUT)
        places[tensor] = found
    precisions = plan.precision()
    for node in view.nodes:
        if precisions.get(node.name, Precision.FLOAT) in _FLOATS:
            continue
        read = [(stored.tensor, -1) for stored in stored_in_bodies(view, node)]
        if node.full_op in OPERATORS:
            read += [(tensor, port) for port, tensor in enumerate(node.inputs)]
        for tensor, port in read:
            if view.is_constant(tensor) and (tensor in plan.tensors or tensor in plan.blocks):
                places.setdefault(tensor, set()).add((node.name, port))
    return places
