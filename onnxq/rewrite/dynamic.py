"""``lower_dynamic``: layers on dequantized weights become layers that quantize what they read.

ONNX Runtime fuses what is written here into ``DynamicQuantizeMatMul``, or, where several layers
share a quantized input, into ``MatMulIntegerToFloat``. Both are other names for the same numbers,
so MatMul and Gemm are written in plain ONNX; LSTM and attention have an operator of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from onnxq.errors import SelfCheckError
from onnxq.graph import Editor, GraphView, Model, NodeView
from onnxq.rewrite.at_load import FLOAT, is_plain
from onnxq.rewrite.names import Names
from onnxq.types import Array

MICROSOFT = "com.microsoft"
QATTENTION_ATTRIBUTES = ("num_heads", "unidirectional", "scale", "mask_filter_value")


def lower_dynamic(model: Model, nodes: Collection[str]) -> Model:
    """Turn nodes on dequantized weights into their dynamic forms.

    * MatMul and Gemm: DynamicQuantizeLinear, MatMulInteger, Cast and Mul, and Add for a bias. A
      tensor is quantized once, however many of them read it.
    * LSTM: DynamicQuantizeLSTM. Attention: DynamicQuantizeLinear and QAttention.
      EmbedLayerNormalization: QEmbedLayerNormalization.
    * Gather: the rows are gathered as integers, and only they are scaled.

    The main operator has the node's name, and what it computes in the end has the tensor's name.

    Args:
        model: A model as ``to_qdq`` writes it: weights behind DequantizeLinear, int8 and symmetric.
        nodes: Names of the nodes to turn.

    Returns:
        A new model. Its inputs and outputs are those of ``model``.

    Raises:
        SelfCheckError: The weight of a node is not stored as symmetric int8.
    """
    return _Lowering(model).run(nodes)


@dataclass(frozen=True)
class _Weight:
    """A weight as it is stored.

    Attributes:
        integers: Name of the int8 values.
        scale: Name of the scales.
        zero_point: Name of the zero point or points, which are 0.
        per_channel: Whether there is a scale per channel.
    """

    integers: str
    scale: str
    zero_point: str
    per_channel: bool


class _Lowering:
    """The lowering of one model."""

    def __init__(self, model: Model) -> None:
        self._view: GraphView = model.view()
        self._editor = Editor(model)
        self._names = Names(self._view)
        self._rules: dict[str, Callable[[NodeView], None]] = {
            "MatMul": self._matmul,
            "Gemm": self._gemm,
            "LSTM": self._lstm,
            "Gather": self._gather,
            f"{MICROSOFT}::Attention": self._attention,
            f"{MICROSOFT}::EmbedLayerNormalization": self._embedding,
        }

    def run(self, nodes: Collection[str]) -> Model:
        """Turn the nodes, in the graph's order."""
        wanted = set(nodes)
        for node in self._view.nodes:
            if node.name in wanted and node.full_op in self._rules:
                self._rules[node.full_op](node)
        return self._editor.finish()

    def _matmul(self, node: NodeView) -> None:
        weight = self._weight(node, 1)
        self._multiply(node, weight.integers, weight.scale)

    def _gemm(self, node: NodeView) -> None:
        weight = self._weight(node, 1)
        integers = weight.integers
        if node.attrs.get("transB", 0):
            integers = self._transposed(integers, (1, 0))
        self._multiply(node, integers, weight.scale)
        if len(node.inputs) > 2 and node.inputs[2]:
            self._behind(node, "Add", [node.inputs[2]])

    def _multiply(self, node: NodeView, integers: str, scale: str) -> None:
        """Integers times integers, times the product of both scales."""
        x, x_scale, x_zero = self._quantize(node.inputs[0])
        product = self._names.new(node.name, "s")
        name = self._names.new(product, "Mul")
        self._editor.add_node("Mul", [x_scale, scale], [product], name=name)
        self._editor.replace(node.name, "MatMulInteger", [x, integers, x_zero])
        self._behind(node, "Cast", [], to=FLOAT)
        self._behind(node, "Mul", [product])

    def _lstm(self, node: NodeView) -> None:
        inputs = [*node.inputs, *[""] * 8][:8]
        for port in (1, 2):
            inputs[port], scale, zero = self._recurrent(self._weight(node, port))
            inputs += [scale, zero]
        attrs = {name: value for name, value in node.attrs.items() if name != "layout"}
        self._editor.replace(
            node.name, "DynamicQuantizeLSTM", inputs, attrs=attrs, domain=MICROSOFT
        )

    def _recurrent(self, weight: _Weight) -> tuple[str, str, str]:
        """[directions, 4 * hidden, n] as [directions, n, 4 * hidden], with a scale per direction.

        Directions share the scales of their channels in the plan; the operator wants them apart.
        """
        directions = (self._view.shape(weight.integers) or ())[0]
        assert isinstance(directions, int)
        scale = self._constant(weight.scale)
        scale = np.broadcast_to(scale, (directions, *scale.shape))
        return (
            self._transposed(weight.integers, (0, 2, 1)),
            self._made(scale, weight.scale, "by_direction"),
            self._made(np.zeros(scale.shape, np.int8), weight.zero_point, f"x{directions}"),
        )

    def _gather(self, node: NodeView) -> None:
        weight, indices = self._weight(node, 0), node.inputs[1]
        scale = weight.scale
        if weight.per_channel:
            axis = int(node.attrs.get("axis", 0))
            shape = [1] * (self._view.rank(weight.integers) or 1)
            shape[axis] = -1
            column = self._constant(weight.scale).reshape(shape)
            scales = self._made(column, weight.scale, "of_axis", str(axis % len(shape)))
            scale = self._names.new(node.name, "s")
            name = self._names.new(scale, "Gather")
            self._editor.add_node("Gather", [scales, indices], [scale], name=name, attrs=node.attrs)
        self._editor.replace(node.name, "Gather", [weight.integers, indices], attrs=node.attrs)
        self._behind(node, "Cast", [], to=FLOAT)
        self._behind(node, "Mul", [scale])

    def _attention(self, node: NodeView) -> None:
        weight = self._weight(node, 1)
        x, x_scale, x_zero = self._quantize(node.inputs[0])
        bias, mask, past = (*node.inputs[2:], "", "")[:3]
        operands = [x, weight.integers, bias, x_scale, weight.scale]
        operands += [mask, x_zero, weight.zero_point, past]
        attrs = {name: node.attrs[name] for name in QATTENTION_ATTRIBUTES if name in node.attrs}
        self._editor.replace(node.name, "QAttention", operands, attrs=attrs, domain=MICROSOFT)

    def _embedding(self, node: NodeView) -> None:
        inputs = [*node.inputs, *[""] * 8][:8]
        tables = {port: self._weight(node, port) for port in range(2, 7) if inputs[port]}
        for port, table in tables.items():
            inputs[port] = table.integers
        inputs += [tables[port].scale if port in tables else "" for port in range(2, 7)]
        inputs += [tables[port].zero_point if port in tables else "" for port in range(2, 7)]
        attrs = {name: value for name, value in node.attrs.items() if name == "epsilon"}
        self._editor.replace(
            node.name, "QEmbedLayerNormalization", inputs, attrs=attrs, domain=MICROSOFT
        )

    def _weight(self, node: NodeView, port: int) -> _Weight:
        maker = self._view.producer(node.inputs[port])
        if maker is None or not is_plain(self._view, maker) or len(maker.inputs) < 3:
            raise SelfCheckError(f"input {port} of node '{node.name}' is not stored as int8")
        integers, scale, zero_point = maker.inputs
        return _Weight(integers, scale, zero_point, per_channel=self._view.rank(scale) == 1)

    def _quantize(self, tensor: str) -> tuple[str, str, str]:
        """Integers, scale and zero point of a tensor, quantized while the model runs."""
        parts = ("q", "s", "zp")
        x, scale, zero = (self._names.of(tensor, "dynamic", part) for part in parts)
        if not self._editor.has_tensor(x):
            name = self._names.new(tensor, "dynamic", "Q")
            self._editor.add_node("DynamicQuantizeLinear", [tensor], [x, scale, zero], name=name)
        return x, scale, zero

    def _behind(self, node: NodeView, op: str, operands: Sequence[str], **attrs: int) -> None:
        """Let an operator follow on the one output of a node, or on what follows already."""
        made = node.outputs[0]
        inner = self._names.new(made, "before", op)
        name = self._names.new(node.name, op)
        self._editor.put_behind(made, inner, op, [inner, *operands], name=name, attrs=attrs)

    def _transposed(self, tensor: str, order: Sequence[int]) -> str:
        values = self._constant(tensor).transpose(order)
        return self._made(np.ascontiguousarray(values), tensor, "transposed")

    def _made(self, values: Array, *parts: str) -> str:
        """A constant that nodes which share a weight share as well."""
        return self._editor.add_constant(self._names.of(*parts), values)

    def _constant(self, tensor: str) -> Array:
        values = self._view.constant(tensor)
        assert values is not None
        return values
