"""Operators that compute value by value; most are one function of PyTorch each."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from onnxq.graph import NodeView
from onnxq.qat.operators.registry import operator
from onnxq.qat.operators.values import dtype_of, together, unsupported

Unary = Callable[[Tensor], Tensor]
Binary = Callable[[Tensor, Tensor], Tensor]

UNARY: dict[str, Unary] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "BitwiseNot": torch.bitwise_not,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "HardSwish": F.hardswish,
    "Identity": lambda x: x,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Mish": F.mish,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": torch.round,  # to the nearest, halves to even
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}

# Activations of a number or two: attributes with their defaults, in the order of the function's.
Parametric = tuple[Callable[..., Tensor], dict[str, float]]
PARAMETRIC: dict[str, Parametric] = {
    "Celu": (F.celu, {"alpha": 1.0}),
    "Elu": (F.elu, {"alpha": 1.0}),
    "HardSigmoid": (lambda x, a, b: (a * x + b).clamp(0, 1), {"alpha": 0.2, "beta": 0.5}),
    "LeakyRelu": (F.leaky_relu, {"alpha": 0.01}),
    "Selu": (
        lambda x, a, g: g * F.elu(x, a),
        {"alpha": 1.67326319217681884765625, "gamma": 1.05070102214813232421875},
    ),
    "Shrink": (
        lambda x, b, limit: torch.where(x.abs() > limit, x - b * x.sign(), torch.zeros_like(x)),
        {"bias": 0.0, "lambd": 0.5},
    ),
    "Swish": (lambda x, a: x * torch.sigmoid(a * x), {"alpha": 1.0}),
    "ThresholdedRelu": (lambda x, a: F.threshold(x, a, 0.0), {"alpha": 1.0}),
    "com.microsoft::QuickGelu": (lambda x, a: x * torch.sigmoid(a * x), {"alpha": 1.702}),
}


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


BINARY: dict[str, Binary] = {
    "Add": torch.add,
    "And": torch.logical_and,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
    "Div": _divide,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Mul": torch.mul,
    "Or": torch.logical_or,
    "Sub": torch.sub,
    "Xor": torch.logical_xor,
}

VARIADIC: dict[str, Binary] = {"Max": torch.maximum, "Min": torch.minimum, "Sum": torch.add}


def _register_unary(name: str, function: Unary) -> None:
    @operator(name)
    def compute(node: NodeView, x: Tensor) -> Tensor:
        return function(x)


def _register_parametric(
    name: str, function: Callable[..., Tensor], asked: dict[str, float]
) -> None:
    @operator(name)
    def compute(node: NodeView, x: Tensor) -> Tensor:
        return function(x, *(node.attrs.get(key, value) for key, value in asked.items()))


def _register_binary(name: str, function: Binary) -> None:
    @operator(name)
    def compute(node: NodeView, a: Tensor, b: Tensor) -> Tensor:
        return function(*together(a, b))


def _register_variadic(name: str, function: Binary) -> None:
    @operator(name)
    def compute(node: NodeView, *inputs: Tensor) -> Tensor:
        return reduce(function, together(*inputs))


for _name, _unary in UNARY.items():
    _register_unary(_name, _unary)
for _name, (_activation, _asked) in PARAMETRIC.items():
    _register_parametric(_name, _activation, _asked)
for _name, _binary in BINARY.items():
    _register_binary(_name, _binary)
for _name, _binary in VARIADIC.items():
    _register_variadic(_name, _binary)


@operator("Mean")
def mean(node: NodeView, *inputs: Tensor) -> Tensor:
    """The mean of the inputs, value by value."""
    return reduce(torch.add, together(*inputs)) / len(inputs)


@operator("Mod")
def modulo(node: NodeView, a: Tensor, b: Tensor) -> Tensor:
    """The remainder: with the sign of the divisor, or with ``fmod`` of the dividend."""
    a, b = together(a, b)
    return torch.fmod(a, b) if node.attrs.get("fmod", 0) else torch.remainder(a, b)


@operator("Pow")
def power(node: NodeView, base: Tensor, exponent: Tensor) -> Tensor:
    """Powers of the base, in its type."""
    if exponent.dim() == 0 and _is_number(exponent):  # of a number PyTorch computes faster
        return torch.pow(base, exponent.item()).to(base.dtype)
    return torch.pow(*together(base, exponent)).to(base.dtype)


def _is_number(x: Tensor) -> bool:
    """Whether the value of a tensor is at hand, and has no gradient."""
    return x.numel() == 1 and x.device.type == "cpu" and not x.requires_grad


@operator("PRelu")
def parametric_relu(node: NodeView, x: Tensor, slope: Tensor) -> Tensor:
    """Negative values times a slope, which is most often one per channel."""
    x, slope = together(x, slope)
    per_channel = (x.shape[1], *(1,) * (x.dim() - 2)) if x.dim() > 1 else None
    if slope.numel() == 1 or slope.shape == per_channel:
        return F.prelu(x, slope.reshape(-1))
    return torch.where(x >= 0, x, slope * x)


@operator("Clip")
def clip(
    node: NodeView, x: Tensor, low: Tensor | None = None, high: Tensor | None = None
) -> Tensor:
    """Cut values off at limits, which may be trained."""
    limits = [limit for limit in (low, high) if limit is not None]
    if not limits:
        return x
    if x.is_floating_point() and all(_is_number(limit) for limit in limits):
        least = -torch.inf if low is None else low.item()
        most = torch.inf if high is None else high.item()
        if least <= most:  # its gradient takes one pass over the values, that of clamp takes four
            return F.hardtanh(x, least, most)
    return torch.clamp(x, *(None if t is None else t.to(x.device) for t in (low, high)))


@operator("IsInf")
def is_infinite(node: NodeView, x: Tensor) -> Tensor:
    """Where values are infinite, on the sides that are asked for."""
    found = torch.zeros_like(x, dtype=torch.bool)
    if node.attrs.get("detect_positive", 1):
        found = found | torch.isposinf(x)
    if node.attrs.get("detect_negative", 1):
        found = found | torch.isneginf(x)
    return found


@operator("Where")
def where(node: NodeView, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Choose between two tensors value by value."""
    condition, a, b = together(condition, a, b)
    return torch.where(condition, a, b)


@operator("BitShift")
def bit_shift(node: NodeView, a: Tensor, b: Tensor) -> Tensor:
    """Shift integers to the left or right."""
    a, b = together(a, b)
    return a << b if node.attrs["direction"] == "LEFT" else a >> b


@operator("Cast")
def cast(node: NodeView, x: Tensor) -> Tensor:
    """Values in another type."""
    return x.to(dtype_of(node, node.attrs["to"]))


@operator("CastLike")
def cast_like(node: NodeView, x: Tensor, like: Tensor) -> Tensor:
    """Values in the type of another tensor."""
    return x.to(like.dtype)


@operator("Dropout")
def dropout(
    node: NodeView, x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The input itself, as when a model is used; the mask keeps everything."""
    if training is not None and training.item():
        raise unsupported(node, "it drops values at random", "export the model for inference")
    return x, torch.ones_like(x, dtype=torch.bool)


@operator("Gelu")
def gelu(node: NodeView, x: Tensor) -> Tensor:
    """Gaussian error linear unit, exact or by tanh."""
    return F.gelu(x, approximate=node.attrs.get("approximate", "none"))


@operator("com.microsoft::Gelu", "com.microsoft::BiasGelu")
def exact_gelu(node: NodeView, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Gaussian error linear unit of the input plus a bias."""
    return F.gelu(x if bias is None else torch.add(*together(x, bias)))


@operator("com.microsoft::FastGelu")
def fast_gelu(node: NodeView, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Gaussian error linear unit by tanh, of the input plus a bias."""
    return F.gelu(x if bias is None else torch.add(*together(x, bias)), approximate="tanh")


def _axis(node: NodeView) -> int:
    return int(node.attrs.get("axis", -1))


@operator("Softmax")
def softmax(node: NodeView, x: Tensor) -> Tensor:
    """Exponentials that sum to 1 along an axis."""
    return torch.softmax(x, _axis(node))


@operator("LogSoftmax")
def log_softmax(node: NodeView, x: Tensor) -> Tensor:
    """The logarithm of softmax."""
    return torch.log_softmax(x, _axis(node))


@operator("Hardmax")
def hardmax(node: NodeView, x: Tensor) -> Tensor:
    """1 at the first of the largest values along an axis, 0 elsewhere."""
    axis = _axis(node)
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1)
