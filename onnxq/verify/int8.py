"""How much of what the target can run as int8 does run as int8."""

from __future__ import annotations

from onnxq.graph import Model
from onnxq.ops import Census, Role
from onnxq.plan import QuantPlan
from onnxq.runtime import int8_coverage
from onnxq.types import Precision, Reason
from onnxq.verify.receipt import Int8Share

# Precisions that compute on 8 bit integers.
_INT8 = (Precision.INT8, Precision.INT8_DYNAMIC)
_FLOATS = (Precision.FLOAT, Precision.FP16)
# What the layers of the others do, where the plan had nothing to refuse.
_INSTEAD = {
    Precision.FLOAT: "stays float",
    Precision.FP16: "computes in float16",
    Precision.INT16: "computes on activations of 16 bits",
    Precision.INT8_WEIGHTS: "stores its weight as int8, and computes in float",
    Precision.INT4_WEIGHTS: "stores its weight in 4 bits, and computes in float",
}


def int8_share(output: Model, plan: QuantPlan, census: Census) -> Int8Share:
    """Count the layers that can compute on integers, and those that do.

    Layers are what multiplies: nodes that move values or cut them off follow their neighbours.
    All that the target can run as int8 count, whatever the plan wants of them: a plan cannot
    gain by quantizing less. So do those that the plan makes dynamic, which some layers can be
    that have no static int8.

    Args:
        output: The output model.
        plan: What it was made by.
        census: What each node of the prepared model is.

    Raises:
        RuntimeFailure: ONNX Runtime refuses the model.
    """
    nodes = {node.name: node for node in plan.nodes}
    layers = [node for node in census.nodes if node.role is Role.COMPUTE]
    wanted = [node.name for node in layers if nodes[node.name].precision in _INT8]
    missed = {
        reason.node: reason
        for reason in (int8_coverage(output, wanted).float_nodes if wanted else ())
    }
    able = [node.name for node in layers if node.quantizable or node.name in wanted]
    for name in able:
        if name not in wanted:
            why = Reason("not-planned", _INSTEAD[nodes[name].precision], name)
            refused = nodes[name].reason if nodes[name].precision in _FLOATS else None
            missed[name] = refused or why
    floats = tuple(missed[name] for name in able if name in missed)
    return Int8Share(len(able), len(able) - len(floats), floats)
