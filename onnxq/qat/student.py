"""``Student``: a graph whose constants can be trained, while its quantization is simulated."""

from __future__ import annotations

import math

import torch

from onnxq.graph import Model, with_constants
from onnxq.ops import Census
from onnxq.plan import QATSettings, QuantPlan
from onnxq.qat.evaluator import Evaluator, Tensors, placed
from onnxq.qat.fake_quant import WeightQuantizer
from onnxq.qat.floats import float_kernels
from onnxq.qat.integers import integer_kernels
from onnxq.qat.operators.values import to_tensor
from onnxq.qat.simulation import Simulation
from onnxq.qat.weights import trained_weights
from onnxq.types import Feed


class Student:
    """One prepared model and the plan that it is trained for.

    Args:
        model: The prepared float model, which is the teacher too.
        census: What ``classify`` said of it.
        plan: What becomes of its nodes; scales to start from.
        settings: What is quantized, and how scales are found.
        device: Where to compute: ``cpu`` or ``cuda``.

    Attributes:
        weights: The constants that are trained, by name.
        scales: Logarithms of the growth of the scales that are trained, by tensor.
        simulation: The quantizers.
        device: Where it computes.

    Raises:
        ModelError: The model holds operators without a derivative here, or nothing to train.
    """

    def __init__(
        self,
        model: Model,
        census: Census,
        plan: QuantPlan,
        settings: QATSettings,
        device: str = "cpu",
    ) -> None:
        self._model, self._settings = model, settings
        self.device = torch.device(device)
        self._evaluator = Evaluator(model.view())
        given = self._evaluator.constants()
        self.simulation = Simulation.of(model.view(), census, plan, given, settings)
        self.simulation.to(self.device)
        self._kernels = {
            **float_kernels(model.view(), self.simulation),
            **integer_kernels(model.view(), self.simulation),
        }
        names = trained_weights(model.view(), frozenset(self.simulation.constants))
        self._constants = {n: placed(t, self.device) for n, t in given.items()}
        self.weights = {n: self._constants[n].clone().requires_grad_() for n in names}
        self.scales = self.simulation.parameters()
        self._masks = _masks(self.weights) if settings.keep_zeros else {}
        self.simulation.project(self.weights, self._constants)
        self._first_scales = [q.scale().detach().clone() for q in self.simulation.quantizers()]

    def forward(
        self, feed: Tensors, keep: tuple[str, ...] = (), detach: tuple[str, ...] = ()
    ) -> Tensors:
        """The outputs, and inner tensors to keep, with quantization simulated.

        Without gradients to find, nodes round as the kernels of the int8 model do.

        Args:
            feed: Inputs by name.
            keep: Inner tensors that are wanted too.
            detach: Tensors whose readers send no gradient further back.
        """
        return self._evaluator.run(
            feed,
            {**self._constants, **self.weights},
            reading=self.simulation.reading(),
            kernels={} if torch.is_grad_enabled() else self._kernels,
            keep=keep,
            detach=detach,
        )

    def teach(self, feed: Tensors, keep: tuple[str, ...] = ()) -> Tensors:
        """What the float model computes, without gradients."""
        with torch.no_grad():
            return self._evaluator.run(feed, self._constants, keep=keep)

    def simulate(self, feed: Feed) -> Tensors:
        """The outputs for a feed, with quantization simulated and without gradients."""
        with torch.no_grad():
            return self.forward(self.tensors(feed))

    def tensors(self, feed: Feed) -> Tensors:
        """A feed as tensors on the device."""
        return {name: placed(to_tensor(array), self.device) for name, array in feed.items()}

    def project(self) -> None:
        """Bring weights and scales back to where they may be, after a step of an optimizer.

        Pruned weights are 0 again, where these are to stay so.
        """
        with torch.no_grad():
            for name, mask in self._masks.items():
                self.weights[name].mul_(mask)
        self.simulation.settle()
        self.simulation.project(self.weights, self._constants)

    def drift(self) -> float:
        """The most that a scale of activations has changed: 0.1 is by a tenth."""
        with torch.no_grad():
            pairs = zip(self.simulation.quantizers(), self._first_scales, strict=True)
            moved = [float((q.scale() / first).log().abs().max()) for q, first in pairs]
        return math.expm1(max(moved, default=0.0))

    def convert(self) -> tuple[Model, QuantPlan]:
        """The trained float model, and the plan with the trained scales."""
        with torch.no_grad():
            plan = self.simulation.planned(self.weights)
            arrays = {}
            for name, weight in self.weights.items():
                quantizer = self.simulation.weights.get(name)
                if isinstance(quantizer, WeightQuantizer) and self._always_rounded(name):
                    arrays[name] = quantizer.clipped(weight)
                else:
                    arrays[name] = weight
            found = {name: array.detach().cpu().numpy() for name, array in arrays.items()}
        return with_constants(self._model, found), plan

    def _always_rounded(self, weight: str) -> bool:
        """Whether all that read a weight read it rounded."""
        places = self.simulation.places.get(weight, set())
        uses = self._model.view().uses(weight)
        return self._settings.quantize_weights and all((u.node, u.port) in places for u in uses)


def _masks(weights: Tensors) -> Tensors:
    """Where pruned weights are not zero; of weights without zeros there is none."""
    found = {name: (weight.detach() != 0) for name, weight in weights.items()}
    return {name: mask for name, mask in found.items() if not bool(mask.all())}
