"""What a page tells of every node of a quantized model: plain values, made by ``onnxq.api``."""

from __future__ import annotations

import msgspec

from onnxq.runtime.bench import NodeTime
from onnxq.sensitivity import Histogram
from onnxq.verify import Growth

Ends = tuple[float, float]


class LayerFigures(msgspec.Struct, frozen=True):
    """One node of the prepared graph.

    Attributes:
        name: The node.
        parameters: Values in its float constants.
        reads: The activation that it reads first; empty where it reads none.
        weights: Of its constant weight; None where it has none.
        weight_range: The widest range that the plan's scales of it give; None where there are none.
        activations: Of ``reads``, over a few samples; None where it was not looked at.
        activation_range: The range that was chosen for it; None where none was.
        time: Microseconds in the prepared float model and in the output; None where it was not
            measured, and where no kernel is counted for the node in either.
    """

    name: str
    parameters: int
    reads: str = ""
    weights: Histogram | None = None
    weight_range: Ends | None = None
    activations: Histogram | None = None
    activation_range: Ends | None = None
    time: NodeTime | None = None


class ModelFigures(msgspec.Struct, frozen=True):
    """All nodes, and how the error grows from one to the next.

    Attributes:
        layers: The nodes in the order of the prepared graph.
        growth: Where the error enters; None where layers were not compared.
        conversions: Microseconds in kernels that only change types or layouts, in the prepared
            float model and in the output; None where nothing was timed.
        notes: What was not measured, and why.
    """

    layers: tuple[LayerFigures, ...]
    growth: Growth | None = None
    conversions: tuple[float, ...] | None = None
    notes: tuple[str, ...] = ()
