"""``PTQQuantizer``: quantizing as an object that is set up layer by layer, run, and asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import msgspec

from onnxq.api.job import PRESET, make_job
from onnxq.api.pipeline import Result, quantize
from onnxq.data import Data
from onnxq.errors import UsageError
from onnxq.graph import Model
from onnxq.ops import Census, NodeInfo
from onnxq.plan import LayerRule, QuantPlan, Recipe
from onnxq.plan.settings import MATCHERS
from onnxq.targets import Kernel
from onnxq.types import Precision, QParams, WeightBlocks

SETTINGS = tuple(key for key in LayerRule.__struct_fields__ if key not in MATCHERS)
# A recipe, or the name of a preset.
Config = Recipe | str


class Quantizer(Protocol):
    """What makes a quantized model out of a float one, and can leave layers out."""

    def quantize(
        self,
        model: str | Path | Model,
        calibration_data: Data | None = None,
        config: Config | None = None,
    ) -> Result:
        """Quantize a model.

        Args:
            model: A path, or a model that was loaded.
            calibration_data: Samples, where ranges of activations are needed.
            config: What to do; the quantizer's own if None.
        """
        ...

    def set_per_layer_fallback(self, layer_name: str, enabled: bool) -> None:
        """Keep a layer float, or no longer."""
        ...


class LayerParameters(msgspec.Struct, frozen=True):
    """How one node of a quantized model computes.

    Attributes:
        precision: How it computes.
        inputs: Type, scale and zero point of its activations, by tensor, in the order of its
            inputs; those that are float when they come in, or quantized at run time, are missing.
        weights: The same of its weights, of which an LSTM has two and most others one, or how they
            are stored in blocks.
        outputs: The same of what it makes, or of what a Relu or Clip makes of that which vanished
            into its range.
    """

    precision: Precision
    inputs: dict[str, QParams]
    weights: dict[str, QParams | WeightBlocks]
    outputs: dict[str, QParams]


class PTQQuantizer:
    """Post-training quantization, static or dynamic, as its recipe says: a ``Quantizer``.

    Args:
        config: A recipe, or the name of a preset; the defaults if None. A recipe that lies beside
            a model is not read.

    Raises:
        UsageError: There is no such preset.

    Examples:
        >>> quantizer = onnxq.PTQQuantizer("mobile")  # doctest: +SKIP
        >>> quantizer.set_per_layer_fallback("/head/Gemm", True)  # doctest: +SKIP
        >>> result = quantizer.quantize("model.onnx", "samples.npz")  # doctest: +SKIP
        >>> quantizer.quantization_parameters["/stem/Conv"].inputs["x"].scale  # doctest: +SKIP
        (0.00392156862745098,)
    """

    def __init__(self, config: Config | None = None) -> None:
        self._recipe = _recipe(config)
        self._layers: dict[str, LayerRule] = {}
        self._floats: dict[str, None] = {}
        self._made: dict[str, LayerParameters] | None = None

    def configure_layer(self, name: str, **settings: Any) -> None:  # noqa: ANN401 - checked below
        """Set what is wanted of one layer, in addition to what was set before.

        Args:
            name: A node's name, or a glob of names.
            **settings: ``precision``, ``bits``, ``symmetric``, ``per_channel``, ``block_size``,
                ``method``, ``observer``, as in a recipe's ``layers``; None takes one back.

        Raises:
            UsageError: A setting is not known, or its value.
        """
        before = self._layers.get(name)
        said = msgspec.structs.asdict(before) if before is not None else {"name": name}
        said = {key: value for key, value in (said | settings).items() if value is not None}
        if set(said) == {"name"}:
            self._layers.pop(name, None)
            return
        try:
            self._layers[name] = msgspec.convert(said, LayerRule)
        except msgspec.ValidationError as error:
            text = str(error).replace(" - at `$.", " at `")
            raise UsageError(
                f"layer '{name}' cannot be set up so: {text}",
                f"its settings: {', '.join(SETTINGS)}",
            ) from error

    def set_per_layer_fallback(self, layer_name: str, enabled: bool) -> None:
        """Keep a layer float, or no longer.

        A precision that ``configure_layer`` set for this name counts again when the fallback ends.

        Args:
            layer_name: A node's name, or a glob of names.
            enabled: Whether it stays float.
        """
        if enabled:
            self._floats[layer_name] = None
        else:
            self._floats.pop(layer_name, None)

    def quantize(
        self,
        model: str | Path | Model,
        calibration_data: Data | None = None,
        config: Config | None = None,
        *,
        test_data: Data | None = None,
        output: str | Path | None = None,
        force: bool = False,
        seed: int = 0,
    ) -> Result:
        """Quantize a model, and measure what came out.

        Args:
            model: A path, or a model that was loaded.
            calibration_data: Samples in any form that ``onnxq.quantize`` takes; the recipe's if
                None.
            config: A recipe or a preset for this run alone; what was set layer by layer is added
                to it as well.
            test_data: Samples to verify with; else some of the others are held back.
            output: Where to write the model; without it nothing is written.
            force: Whether an existing output may be overwritten.
            seed: Draws the calibration samples.

        Returns:
            The model, its plan and its receipt, as ``onnxq.quantize`` does.

        Raises:
            OnnxqError: See ``onnxq.errors`` for the tree; a layer that does not exist is a
                ``UsageError`` here.
        """
        recipe = self._recipe if config is None else _recipe(config)
        result = quantize(
            model,
            data=calibration_data,
            test_data=test_data,
            recipe=self._with_layers(recipe),
            output=output,
            force=force,
            seed=seed,
        )
        self._made = layer_parameters(result.census, result.plan)
        return result

    @property
    def quantization_parameters(self) -> dict[str, LayerParameters]:
        """How each node of the model that was quantized last computes, by its name.

        Raises:
            UsageError: None was quantized yet.
        """
        if self._made is None:
            raise UsageError("no model was quantized yet", "call quantize first")
        return self._made

    def _with_layers(self, recipe: Recipe) -> Recipe:
        own = [rule for name, rule in self._layers.items() if name not in self._floats]
        return msgspec.structs.replace(
            recipe,
            layers=(*recipe.layers, *own),
            keep_float=tuple(dict.fromkeys((*recipe.keep_float, *self._floats))),
        )


def layer_parameters(census: Census, plan: QuantPlan) -> dict[str, LayerParameters]:
    """Scales and zero points of every node, read from a plan.

    Args:
        census: What each node is.
        plan: What becomes of them.
    """
    precisions = plan.precision()
    clamps = {
        tensor: node.outputs
        for node in census.nodes
        if node.kernel is Kernel.CLAMP and precisions[node.name].static
        for _, tensor in node.data
    }

    def of(node: NodeInfo) -> LayerParameters:
        precision = precisions[node.name]
        read = sorted((*node.data, *node.constants)) if precision.static else []
        made = node.outputs if precision.static else ()
        made = tuple(t for tensor in made for t in _behind(tensor, plan, clamps))
        stored = node.stored if precision is not Precision.FLOAT else ()
        weights = {
            s.tensor: plan.tensors.get(s.tensor) or plan.blocks.get(s.tensor) for s in stored
        }
        return LayerParameters(
            precision,
            {tensor: plan.tensors[tensor] for _, tensor in read if tensor in plan.tensors},
            {tensor: found for tensor, found in weights.items() if found is not None},
            {tensor: plan.tensors[tensor] for tensor in made if tensor in plan.tensors},
        )

    return {node.name: of(node) for node in census.nodes}


def _behind(tensor: str, plan: QuantPlan, clamps: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """A tensor, or what the clamp makes of it that it vanished into."""
    return (tensor,) if tensor in plan.tensors else clamps.get(tensor, ())


def _recipe(config: object) -> Recipe:
    if config is None:
        return Recipe()
    if isinstance(config, Recipe):
        return config
    if not isinstance(config, str):
        kind = type(config).__name__
        raise UsageError(f"a {kind} is no configuration", "give a Recipe or the name of a preset")
    return make_job(None, f"{PRESET}{config.removeprefix(PRESET)}").recipe
