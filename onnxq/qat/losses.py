"""What training makes small: the distance to labels, to a teacher, or to both."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from onnxq.data import suggest, user_code
from onnxq.errors import DataError, UsageError
from onnxq.graph import GraphView
from onnxq.plan import QATSettings, QuantPlan
from onnxq.qat.evaluator import Tensors
from onnxq.types import Precision

# Below this, a probability says nothing more.
LEAST = 1e-12
_CLAMPS = ("Relu", "Clip")
_FLOATS = (Precision.FLOAT, Precision.FP16)


def normalised_error(found: Tensor, taught: Tensor) -> Tensor:
    """The squared error per squared value: the inverse of the signal-to-noise ratio."""
    return ((found - taught) ** 2).sum() / (taught**2).sum().clamp(min=LEAST)


@dataclass(frozen=True)
class Outputs:
    """What the outputs of a graph mean.

    Attributes:
        scores: The output that holds class scores; None when there is none.
        probabilities: Outputs that a Softmax makes.
        logarithms: Outputs that a LogSoftmax makes.
    """

    scores: str | None
    probabilities: frozenset[str] = frozenset()
    logarithms: frozenset[str] = frozenset()

    @classmethod
    def of(cls, view: GraphView, judged: str | None = None) -> Outputs:
        """Look at a graph.

        Args:
            view: The graph.
            judged: The output that holds class scores; the first of two axes if None.
        """
        by_op: dict[str, set[str]] = {"Softmax": set(), "LogSoftmax": set()}
        for name in view.output_names:
            producer = view.producer(name)
            if producer is not None and producer.op in by_op:
                by_op[producer.op].add(name)
        flat = [s.name for s in view.outputs if s.dtype == "float32" and view.rank(s.name) == 2]
        return cls(
            judged or next(iter(flat), None),
            frozenset(by_op["Softmax"]),
            frozenset(by_op["LogSoftmax"]),
        )

    def log_probabilities(self, name: str, value: Tensor, temperature: float = 1.0) -> Tensor:
        """Logarithms of the probabilities that an output of class scores stands for."""
        if name in self.probabilities:
            value = torch.log(value.clamp(min=LEAST))
        if temperature == 1.0 and (name in self.probabilities or name in self.logarithms):
            return value
        return F.log_softmax(value / temperature, -1)


@dataclass(frozen=True)
class Loss:
    """The loss of a run.

    Attributes:
        name: ``cross-entropy``, ``mse``, ``distill`` or a function's.
        outputs: What the outputs mean.
        teacher: The teacher's share.
        temperature: Of distilled class scores.
        matched: Inner tensors that are matched to the teacher's.
        function: The user's function.
    """

    name: str
    outputs: Outputs
    teacher: float
    temperature: float
    matched: tuple[str, ...] = ()
    function: Callable[..., Tensor] | None = None

    @property
    def wants_teacher(self) -> bool:
        """Whether the float model is computed beside."""
        return self.teacher > 0 or bool(self.matched)

    @property
    def wants_labels(self) -> bool:
        """Whether labels are looked at."""
        return self.name != "distill"

    def __call__(
        self, found: Tensors, taught: Mapping[str, Tensor] | None, labels: Tensor | None
    ) -> Tensor:
        """The loss of one batch: the mean over its samples."""
        made = self.judged(found, taught, labels)
        if self.matched and taught is not None:
            errors = [normalised_error(found[name], taught[name]) for name in self.matched]
            made = made + torch.stack(errors).mean()
        return made

    def judged(
        self, found: Tensors, taught: Mapping[str, Tensor] | None, labels: Tensor | None
    ) -> Tensor:
        """The part of the loss that is about the outputs."""
        parts = []
        if self.teacher < 1 and self.wants_labels:
            parts.append((1 - self.teacher) * self._to_labels(found, labels))
        if self.teacher > 0 and taught is not None:
            parts.append(self.teacher * self._to_teacher(found, taught))
        return torch.stack(parts).sum()

    def _to_labels(self, found: Tensors, labels: Tensor | None) -> Tensor:
        assert labels is not None  # choose_loss has seen to that
        if self.function is not None:
            with user_code(f"loss '{self.name}' failed"):
                made = self.function(found, labels)
            if not isinstance(made, Tensor) or made.numel() != 1:
                raise DataError(
                    f"loss '{self.name}' returned {type(made).__name__}",
                    "return a tensor of one number, made of the outputs by PyTorch",
                )
            if torch.is_grad_enabled() and not made.requires_grad:
                raise DataError(
                    f"what loss '{self.name}' returned does not depend on the outputs",
                    "compute it with PyTorch, without .detach(), .item() or NumPy",
                )
            return made.reshape(())
        name = self.outputs.scores or next(iter(found))
        value = found[name]
        shapes = f"labels are {tuple(labels.shape)}, output '{name}' {tuple(value.shape)}"
        if self.name == "mse":
            if labels.numel() != value.numel():
                raise DataError(f"mse needs a number for every value of the output; {shapes}")
            return F.mse_loss(value, labels.to(value.dtype).reshape(value.shape))
        hint = "name another loss in the recipe's [qat], or train without labels: --distill"
        rows = value.ndim == 2 and value.shape[1] > 1 and labels.shape == value.shape[:1]
        if not rows or labels.is_floating_point():
            raise DataError(
                f"cross-entropy needs a class for every row of scores; {shapes} of "
                f"{str(labels.dtype).removeprefix('torch.')}",
                hint,
            )
        lowest, highest = (int(end) for end in torch.aminmax(labels))
        if lowest < 0 or highest >= value.shape[1]:
            raise DataError(
                f"labels go from {lowest} to {highest}, and output '{name}' has classes 0 to "
                f"{value.shape[1] - 1}",
                hint,
            )
        return F.nll_loss(self.outputs.log_probabilities(name, value), labels.long())

    def _to_teacher(self, found: Tensors, taught: Mapping[str, Tensor]) -> Tensor:
        parts = []
        for name, value in taught.items():
            if name in self.matched or not value.is_floating_point():
                continue
            if name == self.outputs.scores and value.ndim == 2 and value.shape[1] > 1:
                heat = self.temperature
                made = self.outputs.log_probabilities(name, found[name], heat)
                wanted = self.outputs.log_probabilities(name, value, heat)
                divergence = F.kl_div(made, wanted, reduction="batchmean", log_target=True)
                parts.append(divergence * heat**2)
            else:
                parts.append(normalised_error(found[name], value))
        if not parts:
            raise UsageError("the model has no float output that could be matched to a teacher's")
        return torch.stack(parts).mean()


def choose_loss(
    view: GraphView,
    plan: QuantPlan,
    settings: QATSettings,
    *,
    labelled: bool,
    judged: str | None = None,
    function: Callable[..., Tensor] | None = None,
) -> Loss:
    """The loss that a recipe asks for.

    Args:
        view: The prepared graph.
        plan: What becomes of it.
        settings: The recipe's ``[qat]``.
        labelled: Whether the samples have labels.
        judged: The output that holds class scores.
        function: The user's function, where the settings name one.

    Raises:
        UsageError: A name matches no tensor.
        DataError: There are no labels, and the loss is about them.
    """
    name = settings.loss
    if name == "auto":
        name = "cross-entropy" if labelled else "distill"
    if name != "distill" and not labelled:
        raise DataError(
            f"loss '{name}' needs labels, and the data have none",
            "give data with labels, or train without: --distill",
        )
    layers = layer_outputs(view, plan) if settings.layerwise else ()
    matched = (*layers, *(t for t in _named(view, settings.match) if t not in layers))
    return Loss(
        name,
        Outputs.of(view, judged),
        1.0 if name == "distill" else settings.teacher,
        settings.temperature,
        matched,
        function,
    )


def layer_outputs(view: GraphView, plan: QuantPlan) -> tuple[str, ...]:
    """What every layer with quantized weights makes, behind the Relu or Clip that follows it."""
    precisions, found = plan.precision(), []
    for node in view.nodes:
        stored = any(t in plan.tensors or t in plan.blocks for t in node.inputs[1:])
        if precisions.get(node.name, Precision.FLOAT) in _FLOATS or not stored:
            continue
        tensor = node.outputs[0]
        uses = view.uses(tensor)
        reader = view.by_name[uses[0].node] if len(uses) == 1 else None
        if reader is not None and reader.op in _CLAMPS:
            tensor = reader.outputs[0]
        if tensor not in view.output_names and tensor not in found:
            found.append(tensor)
    return tuple(found)


def _named(view: GraphView, globs: Collection[str]) -> list[str]:
    made = [name for node in view.nodes for name in node.outputs if name]
    found: list[str] = []
    for glob in globs:
        fits = fnmatch.filter(made, glob)
        if not fits:
            raise UsageError(f"no tensor matches '{glob}'", suggest(glob, made, "tensors"))
        found += [name for name in fits if name not in found and name not in view.output_names]
    return found
