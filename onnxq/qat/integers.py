"""Evaluation on integers: what int8 kernels compute, to the bit.

Sums of float32 values round on their way, in an order of their own. Where such a sum falls beside
the middle of two steps it tips, and a step that differs in the first layer is several some layers
on. So where there are no gradients to find, nodes whose inputs and output are quantized compute as
ONNX Runtime's CPU kernels do: sums of products of integers, which are exact, times one float32
factor, rounded half to even. Integers are carried in float32 as long as it holds all sums, else in
float64.

The arithmetic is that of QLinearConv, QGemm, QLinearMatMul, MatMulIntegerToFloat, QLinearAdd,
QLinearMul and QLinearGlobalAveragePool, found by comparing with each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from onnxq.graph import GraphView, NodeView
from onnxq.plan import pair_serves_all
from onnxq.qat.fake_quant import Integers, TensorQuantizer, steps_of
from onnxq.qat.operators import OPERATORS, Operator
from onnxq.qat.simulation import INT32, Simulation
from onnxq.targets import Kernel, get_target

# Computes a node from its quantized inputs, and rounds as the quantizer of its output does; without
# one it makes floats.
Arithmetic = Callable[[NodeView, Sequence[Integers], TensorQuantizer | None], Tensor]
# The largest distance between two integers of 8 bits.
MOST = 255
# float32 holds every integer up to this.
FLOAT32 = 2**24


def integer_kernels(view: GraphView, simulation: Simulation) -> dict[str, Operator]:
    """What computes nodes on integers, by their names.

    A kernel takes the node and its inputs as they are before they are quantized, and makes values
    that the quantizer of its output leaves as they are. Its scales are those of the simulation at
    the time of the call.

    Args:
        view: The prepared float graph.
        simulation: Its quantizers.

    Returns:
        Kernels of the nodes whose inputs and output are quantized to 8 bits, or that have an int8
        kernel with float output; none unless weights and activations are simulated.
    """
    settings = simulation.settings
    if not (settings.quantize_weights and settings.quantize_activations):
        return {}
    found = {node.name: _kernel(view, simulation, node) for node in view.nodes}
    return {name: kernel for name, kernel in found.items() if kernel is not None}


def _kernel(view: GraphView, simulation: Simulation, node: NodeView) -> Operator | None:
    arithmetic = ARITHMETIC.get(node.full_op)
    if arithmetic is None or not simulation.plan.is_static(node.name):
        return None
    places = [(node.name, port) for port, name in enumerate(node.inputs) if name]
    biases = [place for place in places if place in simulation.biases]
    read = [simulation.quantizer(node.inputs[at[1]], at) for at in places if at not in biases]
    inputs = [quantizer for quantizer in read if quantizer is not None]
    out = _output(view, simulation, node)
    float_output = get_target(simulation.plan.target).support(node.op).float_output
    if len(inputs) < len(read) or (out is None and not float_output):
        return None
    if any(q.params.qtype.bits != 8 for q in (*inputs, *([out] if out else []))):
        return None

    def kernel(node: NodeView, *values: Tensor) -> Tensor:
        terms = [q.integers(value) for q, value in zip(inputs, values, strict=False)]
        for _, port in biases:
            bias, scale = values[port], terms[0].scale * terms[1].scale
            zero = torch.zeros_like(scale)
            terms.append(Integers(steps_of(bias, scale, zero, *INT32), scale, zero))
        return arithmetic(node, terms, out)

    return kernel


def _output(view: GraphView, simulation: Simulation, node: NodeView) -> TensorQuantizer | None:
    """What quantizes a node's output, at once or behind clamps that vanish into its range."""
    target, tensor = get_target(simulation.plan.target), node.outputs[0]
    while tensor not in simulation.activations:
        uses = view.uses(tensor)
        if tensor in view.output_names or len(uses) != 1:
            return None
        reader = view.by_name[uses[0].node]
        if target.support(reader.op).kernel is not Kernel.CLAMP:
            return None
        tensor = reader.outputs[0]
    served = pair_serves_all(view, simulation.plan, tensor)
    return simulation.activations[tensor] if served else None


def _products(node: NodeView, terms: Sequence[Integers], out: TensorQuantizer | None) -> Tensor:
    """Conv, Gemm and MatMul: ``float32(sum) * (scale_a * scale_b / scale_out)``."""
    a, b, *bias = terms
    most = MOST * float(_summed(node, b.steps.abs()).max())
    most += sum(float(term.steps.abs().max()) for term in bias)
    width = torch.float32 if most < FLOAT32 else torch.float64
    sums = OPERATORS[node.full_op](node, *(term.steps.to(width) for term in terms))
    assert isinstance(sums, Tensor)
    factor = a.scale * b.scale if out is None else a.scale * b.scale / out.scale()
    if node.op == "Conv":
        factor = factor.reshape(-1, *(1,) * (sums.ndim - 2))
    made = sums.float() * factor
    return made if out is None else out.rounded(made)


def _summed(node: NodeView, b: Tensor) -> Tensor:
    """Sums of the second factors, as each sum of products has them."""
    if node.op == "Conv":
        return b.flatten(1).sum(1)
    return b.sum(-1 if node.attrs.get("transB", 0) or b.ndim == 1 else -2)


def _sum(node: NodeView, terms: Sequence[Integers], out: TensorQuantizer | None) -> Tensor:
    """Add: to what is constant comes the second term, then the first, rounded to float32 each time.

    The zero point is a part of what is rounded to integers, which decides ties.
    """
    assert out is not None
    a, b = terms
    # in float64 a product and a sum are one rounding, as in one fused instruction
    of_a, of_b = ((term.scale / out.scale()).double() for term in terms)
    zeros = (of_a * a.zero_point + (of_b * b.zero_point).float()).float()
    made = (of_b * (b.steps + b.zero_point) + (out.zero_point - zeros)).float()
    made = (of_a * (a.steps + a.zero_point) + made).float()
    return out.rounded(made.round_() - out.zero_point)


def _product(node: NodeView, terms: Sequence[Integers], out: TensorQuantizer | None) -> Tensor:
    """Mul, with the zero point in what is rounded to integers."""
    assert out is not None
    a, b = terms
    made = a.steps * b.steps * (a.scale * b.scale / out.scale()) + out.zero_point
    return out.rounded(made.round_() - out.zero_point)


def _mean(node: NodeView, terms: Sequence[Integers], out: TensorQuantizer | None) -> Tensor:
    """GlobalAveragePool: ``float32(sum) * (scale / (scale_out * count))``."""
    assert out is not None
    (x,) = terms
    axes = tuple(range(2, x.steps.ndim))
    count = x.steps[0, 0].numel()
    sums = x.steps.sum(axes, keepdim=True, dtype=torch.float64).float()
    return out.rounded(sums * (x.scale / (out.scale() * count)))


ARITHMETIC: dict[str, Arithmetic] = {
    "Conv": _products,
    "Gemm": _products,
    "MatMul": _products,
    "Add": _sum,
    "Mul": _product,
    "GlobalAveragePool": _mean,
}
