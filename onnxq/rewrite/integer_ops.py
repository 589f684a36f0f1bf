"""The operators on integers that ONNX Runtime's CPU provider has for operators on float.

Each rule looks at one node between its DequantizeLinear and its QuantizeLinear, and says which
operator computes the same from integers to integers. Source: the kernels that ONNX Runtime 1.31
registers; ``tests/rewrite/test_qoperator.py`` runs each of them. Operators without a rule here
(ConvTranspose, ReduceMean, Sub, Tanh, ...) have no such kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxq.graph import GraphView, NodeView
from onnxq.types import QParams, QType

MICROSOFT = "com.microsoft"
EIGHT_BITS = (QType.UINT8, QType.INT8)
# Type of an activation: types of the weights that it can be multiplied with.
FACTORS = {QType.UINT8: EIGHT_BITS, QType.INT8: (QType.INT8,)}
# A bias is added to products as it is stored. Scales are products of float32 values, which may be
# rounded in another order.
SAME_SCALE = 1e-5


@dataclass(frozen=True)
class Integers:
    """A tensor as it is stored.

    Attributes:
        tensor: Name of the integers.
        scale: Name of the scale.
        zero: Name of the zero point; empty when there is none.
        params: What the two hold.
        rank: Number of axes, where it is known.
    """

    tensor: str
    scale: str
    zero: str
    params: QParams
    rank: int | None

    @property
    def names(self) -> tuple[str, str, str]:
        """Integers, scale and zero point, as operators on integers take them."""
        return self.tensor, self.scale, self.zero

    @property
    def is_plain(self) -> bool:
        """True for 8 bits with one scale."""
        return self.params.qtype in EIGHT_BITS and self.params.axis is None


@dataclass(frozen=True)
class Site:
    """A node, and the integers on both sides of it.

    Attributes:
        node: The node.
        reads: What its inputs are dequantized from, by port; None for those that are not.
        makes: What its outputs are quantized to, by port; None for those that are not.
        view: The graph.
    """

    node: NodeView
    reads: Sequence[Integers | None]
    makes: Sequence[Integers | None]
    view: GraphView

    def data(self, ports: Sequence[int]) -> list[Integers] | None:
        """What these inputs are dequantized from; None unless all are, with one scale each."""
        found = [self.reads[port] for port in ports if port < len(self.reads)]
        plain = [one for one in found if one is not None and one.is_plain]
        return plain if len(plain) == len(ports) else None


@dataclass(frozen=True)
class IntegerOp:
    """An operator on integers, to be put in the place of a node.

    Attributes:
        op: Its type.
        inputs: Names of the tensors that it reads.
        attrs: Its attributes.
        domain: Its domain.
    """

    op: str
    inputs: Sequence[str]
    attrs: Mapping[str, Any]
    domain: str = ""


def integer_op(site: Site) -> IntegerOp | None:
    """The operator that computes a node's outputs on integers; None when there is none."""
    return _moved(site) or (_RULES[site.node.op](site) if site.node.op in _RULES else None)


def _moved(site: Site) -> IntegerOp | None:
    """The node itself, on integers: it only moves values, and all have one scale."""
    node = site.node
    if node.op not in MOVERS or not _keeps_values(site):
        return None
    ports = MOVERS[node.op] or range(len(node.inputs))
    data = site.data(ports)
    made = site.makes[:1] if node.op == "MaxPool" else site.makes  # its second are indices
    if data is None or any(m is None or m.params != data[0].params for m in made):
        return None
    if any(one.params != data[0].params for one in data):
        return None
    inputs = list(node.inputs)
    for port, one in zip(ports, data, strict=True):
        inputs[port] = one.tensor
    if node.op == "Pad":
        inputs[2:3] = [data[0].zero]
    return IntegerOp(node.op, inputs, node.attrs)


def _keeps_values(site: Site) -> bool:
    """False where a mover interpolates, or puts in values of its own that are not 0."""
    node = site.node
    if node.op == "Resize":
        way = node.attrs.get("coordinate_transformation_mode")
        return node.attrs.get("mode") in (None, "nearest") and way != "tf_crop_and_resize"
    if node.op == "Pad" and any(node.inputs[2:3]):
        value = site.view.constant(node.inputs[2])
        return value is not None and not value.any()
    return True


def _pointwise(op: str, ports: Sequence[int]) -> Callable[[Site], IntegerOp | None]:
    """A rule for operators that take every tensor with its scale and zero point."""

    def rule(site: Site) -> IntegerOp | None:
        data, out = site.data(ports), site.makes[0]
        if data is None or out is None or not _one_type(*data, out):
            return None
        inputs = [*(name for one in data for name in one.names), out.scale, out.zero]
        return IntegerOp(op, inputs, site.node.attrs, MICROSOFT)

    return rule


def _softmax(site: Site) -> IntegerOp | None:
    found = _pointwise("QLinearSoftmax", (0,))(site)
    # The meaning of ``axis`` that Softmax has since opset 13.
    axis = {"axis": site.node.attrs.get("axis", -1), "opset": 13}
    return found and IntegerOp(found.op, found.inputs, axis, found.domain)


def _average_pool(site: Site) -> IntegerOp | None:
    attrs = dict(site.node.attrs)
    if any(step != 1 for step in attrs.pop("dilations", ())):
        return None
    found = _pointwise("QLinearAveragePool", (0,))(site)
    return found and IntegerOp(found.op, found.inputs, attrs, found.domain)


def _where(site: Site) -> IntegerOp | None:
    found = _pointwise("QLinearWhere", (1, 2))(site)
    return found and IntegerOp(found.op, [site.node.inputs[0], *found.inputs], {}, found.domain)


def _concat(site: Site) -> IntegerOp | None:
    data, out = site.data(range(len(site.node.inputs))), site.makes[0]
    if data is None or out is None or not _one_type(*data, out):
        return None
    inputs = [out.scale, out.zero, *(name for one in data for name in one.names)]
    return IntegerOp("QLinearConcat", inputs, site.node.attrs, MICROSOFT)


def _conv(site: Site) -> IntegerOp | None:
    factors, out = _factors(site, 0), site.makes[0]
    if factors is None or out is None or not _bias_fits(site, *factors):
        return None
    x, w = factors
    # The kernel has one zero point for all channels.
    if len(set(w.params.zero_point)) > 1:
        return None
    inputs = [*x.names, *w.names, out.scale, out.zero, *_bias(site)]
    return IntegerOp("QLinearConv", inputs, site.node.attrs)


def _gemm(site: Site) -> IntegerOp | None:
    out, attrs = site.makes[0], dict(site.node.attrs)
    factors = _factors(site, 0 if attrs.get("transB", 0) else 1)
    scaled = attrs.pop("alpha", 1.0) != 1.0 or attrs.pop("beta", 1.0) != 1.0
    if factors is None or scaled or not _bias_fits(site, *factors):
        return None
    x, w = factors
    inputs = [*x.names, *w.names, *_bias(site)]
    if out is not None:
        no_bias = [""] * (7 - len(inputs))
        inputs += [*no_bias, out.scale, out.zero]
    return IntegerOp("QGemm", inputs, attrs, MICROSOFT)


def _matmul(site: Site) -> IntegerOp | None:
    factors, out = _factors(site, -1), site.makes[0]
    if factors is None:
        return None
    x, w = factors
    if w.params.axis is not None and w.rank != 2:
        return None  # the kernels take scales per column of a matrix only
    if out is not None:
        return IntegerOp("QLinearMatMul", [*x.names, *w.names, out.scale, out.zero], {})
    inputs = [x.tensor, w.tensor, x.scale, w.scale, x.zero, w.zero]
    return IntegerOp("MatMulIntegerToFloat", inputs, {}, MICROSOFT)


def _one_type(*tensors: Integers) -> bool:
    return all(t.is_plain and t.params.qtype is tensors[0].params.qtype for t in tensors)


def _factors(site: Site, channels: int) -> tuple[Integers, Integers] | None:
    """Activation and weight, if there are kernels for their types, and scales per channel.

    Args:
        site: The node.
        channels: The weight's axis of output channels; negative counts from the end.
    """
    (x, w), out = site.reads[:2], site.makes[0]
    if x is None or w is None or not _one_type(x, *([out] if out else [])):
        return None
    if w.params.qtype not in FACTORS[x.params.qtype]:
        return None
    by_channel = w.rank is not None and w.rank > 1 and w.params.axis == channels % w.rank
    return (x, w) if w.params.axis is None or by_channel else None


def _bias(site: Site) -> list[str]:
    return [one.tensor for one in site.reads[2:3] if one is not None]


def _bias_fits(site: Site, x: Integers, w: Integers) -> bool:
    """Whether there is no bias, or one in int32 whose scale is that of the products."""
    if len(site.node.inputs) < 3 or not site.node.inputs[2]:
        return True
    bias = site.reads[2]
    if bias is None or bias.params.qtype is not QType.INT32 or any(bias.params.zero_point):
        return False
    product = np.array(w.params.scale) * x.params.scale[0]
    return bool(np.allclose(bias.params.scale, product, rtol=SAME_SCALE, atol=0))


# Operators that run on integers as they are, with the inputs that carry data; none means all.
MOVERS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(
        (
            "MaxPool", "Resize", "Pad", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze",
            "Slice", "Split", "Gather", "Expand", "Tile", "DepthToSpace", "SpaceToDepth",
        ),
        (0,),
    ),
    "Concat": (),
    "Where": (1, 2),
}  # fmt: skip

_RULES: dict[str, Callable[[Site], IntegerOp | None]] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Add": _pointwise("QLinearAdd", (0, 1)),
    "Mul": _pointwise("QLinearMul", (0, 1)),
    "Sigmoid": _pointwise("QLinearSigmoid", (0,)),
    "LeakyRelu": _pointwise("QLinearLeakyRelu", (0,)),
    "GlobalAveragePool": _pointwise("QLinearGlobalAveragePool", (0,)),
    "AveragePool": _average_pool,
    "Softmax": _softmax,
    "Where": _where,
    "Concat": _concat,
}
