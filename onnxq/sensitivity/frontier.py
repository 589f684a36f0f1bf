"""The rolling frontier: what a change in one layer does to the outputs, at about half the cost.

A model in which one layer is quantized computes up to that layer what the float model computes. So
the activations in front of the layer are kept, and only the layer and what follows it run; then the
frontier moves on. The same holds for a model in which all layers but one are quantized.

The findings are those of the whole models, but for the last places of float32, which decide about
a rounding here and there. Two kernels of ONNX Runtime's CPU provider differ by more: between nodes
of float16, which it computes in float32, it leaves out some of the rounding, and never at a cut (up
to 3 dB, 70 dB below the signal); and MatMul with 4 bit weights rounds activations to 8 bits, but
not where its result is an output that others read too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from onnxq.graph import Editor, Model
from onnxq.plan import QuantPlan
from onnxq.rewrite import rewrite
from onnxq.rewrite.qdq import to_qdq
from onnxq.runtime import Session
from onnxq.sensitivity.cuts import Cuts, fitting
from onnxq.sensitivity.evaluate import Evaluator, Outputs
from onnxq.sensitivity.plans import reduced
from onnxq.types import Precision


class Part(StrEnum):
    """Which part of the quantization of a layer is looked at."""

    ONLY = "only"  # the layer alone is quantized
    WEIGHTS = "weights"  # its constants alone
    ACTIVATIONS = "activations"  # what it reads and makes alone
    REST = "rest"  # everything but the layer


@dataclass(frozen=True, eq=False)
class Variant:
    """A model that differs from a base model in some steps only.

    Attributes:
        layer: The node that it is about.
        precision: The precision that is tried.
        part: What is done to the layer.
        plan: What becomes of each node.
        start: The first step that differs from the base model.
        stop: The first step behind them.
    """

    layer: str
    precision: Precision
    part: Part
    plan: QuantPlan
    start: int
    stop: int

    @property
    def fuse_pairs(self) -> bool:
        """Whether a session may fuse pairs: parts of a layer are no kernels, and round alone."""
        return self.part not in (Part.WEIGHTS, Part.ACTIVATIONS)

    def build(self, model: Model) -> Model:
        """The whole model, or a part of it, as this variant wants it."""
        if self.part is not Part.ACTIVATIONS:
            return build(model, self.plan)
        if self.precision is Precision.INT8_DYNAMIC:
            return _rounded_input(model, self.layer)
        # as pairs are written first: other forms may store constants in other shapes
        return _float_constants(build(model, self.plan, to_qdq), model, self.layer)


def build(
    model: Model, plan: QuantPlan | None, write: Callable[[Model, QuantPlan], Model] = rewrite
) -> Model:
    """A model, or a part of the one that a plan was made for, as the plan wants it; None: float."""
    if plan is None:
        return model
    plan = reduced(plan, model.view())
    return model if plan.empty else write(model, plan)


def _float_constants(made: Model, source: Model, layer: str) -> Model:
    """Give a layer its own constants back."""
    view, editor = source.view(), Editor(made)
    node = view.by_name.get(layer)
    for port, tensor in enumerate(node.inputs if node is not None else ()):
        values = view.constant(tensor)
        if values is not None:
            # what it was stored as may have its name
            kept = editor.add_constant(f"{tensor}/{layer}/float", values)
            editor.redirect(layer, port, kept)
    return editor.finish()


def _rounded_input(model: Model, layer: str) -> Model:
    """Round what a layer reads as a dynamic layer does, and let it compute in float."""
    view, editor = model.view(), Editor(model)
    if layer not in view.by_name:
        return model
    tensor = view.by_name[layer].inputs[0]
    stored, scale, zero, made = (f"{tensor}/{layer}/{part}" for part in ("q", "s", "z", "dq"))
    editor.add_node("DynamicQuantizeLinear", [tensor], [stored, scale, zero], name=stored)
    editor.add_node("DequantizeLinear", [stored, scale, zero], [made], name=made)
    editor.redirect(layer, 0, made)
    return editor.finish()


class _Piece:
    """A part of a model, opened; or nothing, where a part makes nothing."""

    def __init__(
        self, model: Model | None, evaluator: Evaluator, *, fuse_pairs: bool = True
    ) -> None:
        self._session: Session | None = None
        if model is not None:
            self._session = Session(
                model,
                provider=evaluator.provider,
                threads=evaluator.threads,
                fuse_pairs=fuse_pairs,
            )
            self._inputs = [spec.name for spec in model.view().inputs]

    def run(self, values: Outputs) -> Outputs:
        """Some tensors, and those that the part makes of them."""
        if self._session is None:
            return values
        return values | self._session.run({name: values[name] for name in self._inputs})


class Frontier:
    """What crosses a cut of a base model, for all evaluation samples; it only moves forward.

    It moves through the same stops whatever it is asked for, so that results do not depend on
    where it began: kernels that are fused in one part and not in another round differently.

    Args:
        model: The prepared float model.
        plan: The plan of the base model; None for the float model itself.
        cuts: Where it can be cut.
        stops: The cuts whose activations may be kept; the first is 0.
        evaluator: The samples.

    Attributes:
        cut: The cut that it stands at.
        values: What crosses that cut, batch by batch.
    """

    def __init__(
        self,
        model: Model,
        plan: QuantPlan | None,
        cuts: Cuts,
        stops: Sequence[int],
        evaluator: Evaluator,
    ) -> None:
        self._model, self._plan, self._cuts, self._stops = model, plan, cuts, stops
        self._evaluator = evaluator
        self.values: list[Outputs] = [dict(batch.feed) for batch in evaluator.batches]
        self.cut = 0
        self._behind: tuple[int, _Piece] | None = None

    def outputs(self, variant: Variant) -> Iterator[Outputs]:
        """What a variant answers, batch by batch; the frontier moves to it first."""
        self._move(fitting(variant.start, self._stops))
        behind = self._rest(variant.stop)
        part = self._cuts.between(self.cut, variant.stop)
        changed = _Piece(
            variant.build(part) if part is not None else None,
            self._evaluator,
            fuse_pairs=variant.fuse_pairs,
        )
        for values, expected in zip(self.values, self._evaluator.expected, strict=True):
            found = behind.run(changed.run(values))
            # what is neither made nor an input is a constant
            yield {name: found.get(name, value) for name, value in expected.items()}

    def _move(self, cut: int) -> None:
        for stop in self._stops:
            if self.cut < stop <= cut:
                piece = self._base(self.cut, stop)
                kept = self._cuts.crossing(stop)
                for number, values in enumerate(self.values):
                    found = piece.run(values)
                    self.values[number] = {tensor: found[tensor] for tensor in kept}
                self.cut = stop

    def _rest(self, cut: int) -> _Piece:
        """The base model from a cut to the outputs; the last one is kept."""
        if self._behind is None or self._behind[0] != cut:
            self._behind = None  # its memory, before the next one takes its own
            self._behind = cut, self._base(cut, self._cuts.steps.count)
        return self._behind[1]

    def _base(self, start: int, stop: int) -> _Piece:
        part = self._cuts.between(start, stop)
        made = build(part, self._plan) if part is not None else None
        return _Piece(made, self._evaluator)
