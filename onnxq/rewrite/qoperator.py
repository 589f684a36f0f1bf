"""``lower_qoperator``: pairs around operators on float become operators on integers.

Every node is judged by the graph as it was: tensors of integers keep their names, so that no node
has to know what became of another. Where there is no operator on integers, the float operator
stays between its pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxq.graph import Editor, GraphView, Model, NodeView
from onnxq.numerics import quantize
from onnxq.rewrite.integer_ops import EIGHT_BITS, IntegerOp, Integers, Site, integer_op
from onnxq.rewrite.names import Names
from onnxq.types import QParams, QType

BIAS = (QType.INT32,)


def lower_qoperator(model: Model) -> Model:
    """Turn the pairs of a model into operators on integers (QLinearConv, QGemm, ...).

    A node becomes one when all its data come out of DequantizeLinear and its output goes into one
    QuantizeLinear and nowhere else; the results agree to a quantization step, and exactly where
    the node only moves data. MatMul and Gemm may have float outputs. A Relu or Clip before the
    QuantizeLinear vanishes when the range does its work, and cuts the integers otherwise. The new
    operator has the node's name; names of inputs and outputs of the graph stay.

    Args:
        model: A model as ``to_qdq`` writes it.

    Returns:
        A new model. It computes the same function, except for rounding.
    """
    return _Lowering(model).run()


@dataclass(frozen=True)
class _Sink:
    """Where a float tensor goes: into a QuantizeLinear, perhaps through Relu and Clip.

    Attributes:
        into: What is stored.
        low: The least integer that the clamps on the way let through.
        high: The largest one.
        clamp: The last clamp that cuts more than the range does; empty without one.
    """

    into: Integers
    low: int
    high: int
    clamp: str = ""


class _Lowering:
    """The lowering of one model."""

    def __init__(self, model: Model) -> None:
        self._view: GraphView = model.view()
        self._editor = Editor(model)
        self._names = Names(self._view)
        self._sources: dict[str, Integers] = {}
        self._sinks: dict[str, _Sink] = {}
        for node in reversed(self._view.nodes):
            if node.domain:
                continue
            if node.op == "DequantizeLinear":
                self._note_source(node)
            elif node.op in ("QuantizeLinear", "Relu", "Clip"):
                self._note_sink(node)

    def run(self) -> Model:
        """Replace every node that has a twin on integers."""
        for node in self._view.nodes:
            if node.domain or node.op in ("QuantizeLinear", "DequantizeLinear"):
                continue
            sinks = [self._sinks.get(tensor) for tensor in node.outputs]
            reads = [self._sources.get(tensor) for tensor in node.inputs]
            makes = [sink.into if sink else None for sink in sinks]
            found = integer_op(Site(node, reads, makes, self._view))
            if found is not None:
                self._replace(node, found, sinks)
        return self._editor.finish()

    def _note_source(self, node: NodeView) -> None:
        found = self._integers(node, node.inputs[0])
        if found is not None:
            self._sources[node.outputs[0]] = found

    def _note_sink(self, node: NodeView) -> None:
        """Remember what a tensor becomes that this node alone reads."""
        tensor = node.inputs[0]
        if len(self._view.uses(tensor)) != 1 or tensor in self._view.output_names:
            return
        if node.op == "QuantizeLinear":
            into = self._integers(node, node.outputs[0])
            if into is not None and into.is_plain:
                qtype = into.params.qtype
                self._sinks[tensor] = _Sink(into, qtype.qmin, qtype.qmax)
        elif node.outputs[0] in self._sinks:
            sink = self._through(node, self._sinks[node.outputs[0]])
            if sink is not None:
                self._sinks[tensor] = sink

    def _through(self, clamp: NodeView, behind: _Sink) -> _Sink | None:
        """The sink before a clamp, given the one behind it.

        Quantizing keeps the order of values, and so a clamp of values is one of integers.
        """
        limits = self._limits(clamp)
        if limits is None:
            return None
        cut = quantize(np.array(limits, np.float32), behind.into.params)
        low, high = (int(q) for q in np.minimum(np.maximum(cut, behind.low), behind.high))
        same = (low, high) == (behind.low, behind.high)
        name = behind.clamp or ("" if same else clamp.name)
        return _Sink(behind.into, low, high, name)

    def _limits(self, clamp: NodeView) -> tuple[float, float] | None:
        """Ends of a Relu or Clip; None when they are not constant."""
        if clamp.op == "Relu":
            return 0.0, np.inf
        ends = [-np.inf, np.inf]
        for port, tensor in enumerate(clamp.inputs[1:3]):
            if tensor:
                value = self._view.constant(tensor)
                if value is None or np.isnan(value).any():
                    return None
                ends[port] = float(value.reshape(()))
        return ends[0], ends[1]

    def _integers(self, node: NodeView, tensor: str) -> Integers | None:
        """What a Q or DQ says of its integers; None when no operator here can use it."""
        scale_name, zero_name = (*node.inputs[1:], "")[:2]
        scale, zero = self._view.constant(scale_name), self._view.constant(zero_name)
        if scale is None or scale.ndim > 1 or (zero is None and zero_name):
            return None
        if scale.dtype != np.float32:  # pairs of float16 values have scales of that type
            return None
        kind = zero.dtype.name if zero is not None else self._view.dtype(tensor)
        # Only a bias may lack its zero point; the others' operators take it as an input.
        if kind not in (BIAS if zero is None else (*EIGHT_BITS, *BIAS)):
            return None
        rank, axis = self._view.rank(tensor), None
        if scale.ndim:
            axis = int(node.attrs.get("axis", 1))
            axis += (rank or 0) if axis < 0 else 0
        zeros = np.zeros(scale.shape, np.int32) if zero is None else zero
        params = QParams(
            QType(kind), tuple(np.atleast_1d(scale).tolist()),
            tuple(np.atleast_1d(zeros).tolist()), axis,
        )  # fmt: skip
        return Integers(tensor, scale_name, zero_name, params, rank)

    def _replace(self, node: NodeView, found: IntegerOp, sinks: list[_Sink | None]) -> None:
        """Put the operator on integers in the place of the node, and of the pairs behind it."""
        cut = [(t, s) for t, s in zip(node.outputs, sinks, strict=True) if s and s.clamp]
        for tensor, sink in cut:
            self._cut(tensor, sink)
        outputs = [
            sink.into.tensor if sink and not sink.clamp else tensor
            for tensor, sink in zip(node.outputs, sinks, strict=True)
            if tensor  # a MaxPool may leave out its indices
        ]
        self._editor.replace(
            node.name, found.op, found.inputs,
            outputs=outputs, attrs=found.attrs, domain=found.domain,
        )  # fmt: skip
        for tensor, sink in cut:  # it holds integers from now on
            self._editor.copy_type(sink.into.tensor, tensor)

    def _cut(self, tensor: str, sink: _Sink) -> None:
        """Let a clamp cut integers, under its own name."""
        dtype = sink.into.params.qtype.dtype
        limits = [
            self._editor.add_constant(self._names.new(tensor, end), np.array(value, dtype))
            for end, value in (("low", sink.low), ("high", sink.high))
        ]
        self._editor.replace(sink.clamp, "Clip", [tensor, *limits], outputs=[sink.into.tensor])
