"""Evaluation on floats: what float kernels compute, to the bit.

Some layers between those on integers stay float. PyTorch rounds their sums in another order than
ONNX Runtime. What falls beside the middle of two steps then tips, and the layers behind it make
several steps of that one. So where there are no gradients to find, these nodes too compute as ONNX
Runtime's CPU kernels do.

The arithmetic is that of LayerNormalization, SkipLayerNormalization, Softmax, Erf, Gelu and
ReduceMean on x86 with AVX2, found by comparing with each of them. On other processors values may
differ by roundings, as PyTorch's do everywhere.
"""

from __future__ import annotations

import math
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from onnxq.graph import GraphView, NodeView
from onnxq.qat.operators import OPERATORS, Operator
from onnxq.qat.operators.registry import Outputs
from onnxq.qat.operators.values import asks, numbers
from onnxq.qat.simulation import Simulation


def _float32(*values: float) -> tuple[float, ...]:
    return tuple(torch.tensor(values, dtype=torch.float32).tolist())


# Values per register: LayerNormalization uses those of AVX2, Softmax the widest there are. Rows of
# up to 16 have the same Softmax with both.
AVX2 = 8
WIDEST = 16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else AVX2
# Polynomials, the highest power first: exp as Softmax and as Erf have it; erf(x) / x - 1 of the
# square of x up to ERF_SPLIT, and -log(1 - erf(x)) / x - 1 of x from there to where erf is 1.
SOFTMAX_EXP = _float32(0.00137805939, 0.00837312452, 0.0416695364, 0.16666472, 0.499999851, 1, 1)
ERF_EXP = _float32(0.00138319808, 0.00837550033, 0.0416689515, 0.166664466, 0.499999851, 1, 1)
ERF_NEAR = _float32(
    -0.000599104969, 0.00499339588, -0.0267667342, 0.112818025, -0.376124859, 0.128379151
)  # fmt: skip
ERF_FAR = _float32(
    1.7294893e-5, -0.00038320868, 0.00388393435, -0.0242545605, 0.106777847, 0.634846687,
    0.128717512,
)  # fmt: skip
ERF_SPLIT, ERF_END = _float32(0.921875, 3.925)
# ln 2 is the sum of two values, of which the first has few bits.
(LOG2_E,) = _float32(1 / math.log(2))
LN_2 = _float32(0.693145752, 1.42860677e-6)
# exp of anything lower is 0.
EXP_END = -104.0


def float_kernels(view: GraphView, simulation: Simulation) -> dict[str, Operator]:
    """What computes nodes that stay float, by their names.

    Args:
        view: The prepared float graph.
        simulation: Its quantizers.

    Returns:
        Kernels of the nodes whose arithmetic is known here and that read float32 values as they
        are; none unless activations are simulated, which alone can tip.
    """
    if not (simulation.settings.quantize_activations and simulation.activations):
        return {}
    found = {node.name: _kernel(view, node) for node in view.nodes if _is_float(simulation, node)}
    return {name: kernel for name, kernel in found.items() if kernel is not None}


def _is_float(simulation: Simulation, node: NodeView) -> bool:
    places = [(name, (node.name, port)) for port, name in enumerate(node.inputs)]
    return all(simulation.quantizer(*place) is None for place in places)


def _kernel(view: GraphView, node: NodeView) -> Operator | None:
    if node.domain or not node.inputs or view.dtype(node.inputs[0]) != "float32":
        return None
    if node.op == "LayerNormalization" and _of_sum(view, node.inputs[0]):
        return skip_layer_norm
    if node.op == "Div" and _of_gelu(view, node):
        return divided_by_root
    return ARITHMETIC.get(node.op)


def _of_sum(view: GraphView, tensor: str) -> bool:
    """Whether ONNX Runtime makes one SkipLayerNormalization of an Add and what reads it."""
    add = view.producer(tensor)
    if add is None or add.op != "Add" or len(view.uses(tensor)) > 1 or tensor in view.output_names:
        return False
    a, b = (view.shape(name) for name in add.inputs)
    return a is not None and len(a) == 3 and a == b


def _of_gelu(view: GraphView, node: NodeView) -> bool:
    """Whether ONNX Runtime makes one Gelu of a division and what follows it.

    It does not where the sum is halved before it is multiplied, nor where the root divides as a
    factor.
    """
    divisor = view.constant(node.inputs[1])
    if divisor is None or divisor.size != 1 or divisor.ndim > (view.rank(node.inputs[0]) or 0):
        return False
    if not math.isclose(divisor.item(), 2**0.5, rel_tol=1e-6):
        return False
    for op in ("Erf", "Add", "Mul"):
        readers = [view.by_name[use.node] for use in view.uses(node.outputs[0])]
        if [reader.op for reader in readers] != [op]:
            return False
        (node,) = readers
    return not any(view.is_constant(factor) for factor in node.inputs)


def layer_norm(node: NodeView, x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Outputs:
    """LayerNormalization of rows of 8 or more; exact where their length is a multiple of 8.

    The mean is of float64; the squares are summed in eight lanes.
    """
    last = node.attrs.get("axis", -1) in (-1, x.ndim - 1)
    if not last or asks(node, 1) or asks(node, 2):
        return OPERATORS[node.op](node, x, scale, shift)
    x = x - x.double().mean(-1, keepdim=True).float()
    parts = _parts(x.double(), AVX2)
    lanes = reduce(lambda sums, part: _fma(part, part, sums), parts, torch.zeros_like(x[..., :1]))
    while lanes.shape[-1] > 1:
        lanes = _halved(lanes)
    normal = x * (1 / _deviation(node, lanes / x.shape[-1]))
    return normal * scale if shift is None else _fma(normal, scale, shift)


def skip_layer_norm(
    node: NodeView, x: Tensor, scale: Tensor, shift: Tensor | None = None
) -> Outputs:
    """SkipLayerNormalization of a sum, by Welford's method: mean and squares of one pass."""
    if asks(node, 1) or asks(node, 2):
        return OPERATORS[node.op](node, x, scale, shift)
    mean = squares = torch.zeros(x.shape[:-1], device=x.device)
    for count, values in enumerate(x.unbind(-1), 1):
        apart = values - mean
        mean = mean + apart / count
        squares = squares + apart * (values - mean)
    deviation = _deviation(node, squares / x.shape[-1])
    normal = (x - mean.unsqueeze(-1)) / deviation.unsqueeze(-1) * scale
    return normal if shift is None else normal + shift


def softmax(node: NodeView, x: Tensor) -> Outputs:
    """Softmax: exponentials are summed in the lanes of a register, those side by side first."""
    if not x.numel() or not x.ndim:
        return OPERATORS[node.op](node, x)
    axis = node.attrs.get("axis", -1)
    x = x.movedim(axis, -1)
    powers = _exp(x - x.amax(-1, keepdim=True), SOFTMAX_EXP)
    lanes = reduce(torch.add, _parts(powers, WIDEST))
    if lanes.shape[-1] > AVX2:
        lanes = _halved(lanes)
    while lanes.shape[-1] > 1:
        lanes = lanes[..., ::2] + lanes[..., 1::2]
    return (powers * (1 / lanes)).movedim(-1, axis)


def erf(node: NodeView, x: Tensor) -> Tensor:
    """Erf: a polynomial near zero, one less an exponential of one further out."""
    size = x.abs().clamp_(max=ERF_END).flatten()
    made = _fma(_polynomial(size * size, ERF_NEAR), size, size)
    far = (size > ERF_SPLIT).nonzero().squeeze(1)
    size = size.index_select(0, far)
    powers = _exp(-_fma(_polynomial(size, ERF_FAR), size, size), ERF_EXP)
    return made.index_copy_(0, far, 1 - powers).reshape(x.shape).copysign_(x)


def gelu(node: NodeView, x: Tensor) -> Outputs:
    """Gelu by erf."""
    if node.attrs.get("approximate", "none") != "none":
        return OPERATORS[node.op](node, x)
    return x * 0.5 * (erf(node, x * 0.5**0.5) + 1)


def divided_by_root(node: NodeView, x: Tensor, root: Tensor) -> Tensor:
    """Division by the root of 2 as a part of Gelu, which multiplies."""
    return x * 0.5**0.5


def reduce_mean(node: NodeView, x: Tensor, axes: Tensor | None = None) -> Outputs:
    """ReduceMean over axes before the last: of each four rows in turn, then of these sums."""
    named = node.attrs.get("axes", ()) if axes is None else numbers(axes)
    over = sorted(axis % x.ndim for axis in named)
    first, last = (over[0], over[-1]) if over else (0, x.ndim - 1)
    if len(over) <= last - first or last == x.ndim - 1 or not x.numel():
        return OPERATORS[node.op](node, x, axes)
    rows = x.flatten(first, last)
    count = rows.shape[first]
    # without an axis in front it is one row after the other
    sizes = [4] * (count // 4) + [2] * (count % 4 // 2) + [1] * (count % 2)
    parts = rows.split(sizes if x.shape[:first].numel() > 1 else 1, first)
    made = reduce(torch.add, (reduce(torch.add, part.unbind(first)) for part in parts)) / count
    kept = [1 if axis in over else length for axis, length in enumerate(x.shape)]
    return made.reshape(kept) if node.attrs.get("keepdims", 1) else made


def _deviation(node: NodeView, variance: Tensor) -> Tensor:
    # by way of float64, as PyTorch's roots of float32 are not always the nearest
    return (variance + node.attrs.get("epsilon", 1e-5)).double().sqrt().float()


def _parts(x: Tensor, lanes: int) -> tuple[Tensor, ...]:
    """Rows cut into what a register holds, the last filled up with zeros."""
    return F.pad(x, (0, -x.shape[-1] % lanes)).unflatten(-1, (-1, lanes)).unbind(-2)


def _halved(lanes: Tensor) -> Tensor:
    low, high = lanes.chunk(2, -1)
    return low + high


def _fma(a: Tensor, b: Tensor, c: Tensor | float) -> Tensor:
    """``a * b + c``: float64 holds every product of two float32 values.

    The sum is rounded to float64 and then to float32, which is once but for one in 2^29 or so.
    """
    wide = torch.as_tensor(c, dtype=torch.float64, device=a.device)
    return torch.addcmul(wide, a.double(), b.double()).float()


def _polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    x, made = x.double(), torch.tensor(coefficients[0], device=x.device)
    for coefficient in coefficients[1:]:
        made = _fma(x, made, coefficient)
    return made


def _exp(x: Tensor, polynomial: tuple[float, ...]) -> Tensor:
    """Powers of e, of values of at most 0: a power of 2 times a polynomial of what is left."""
    x = x.clamp(min=EXP_END).double()
    power = (x * LOG2_E).round_()
    for part in LN_2:
        x = (x - power * part).float().double()
    return (_polynomial(x, polynomial) * power.exp2_()).float()


ARITHMETIC: dict[str, Operator] = {
    "LayerNormalization": layer_norm,
    "Softmax": softmax,
    "Erf": erf,
    "Gelu": gelu,
    "ReduceMean": reduce_mean,
}
