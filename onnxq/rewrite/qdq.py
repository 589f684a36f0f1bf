"""``to_qdq``: a plan becomes QuantizeLinear/DequantizeLinear pairs in the graph.

Every name that is added starts with the tensor that it serves: ``x_q`` for its integers, ``x_dq``
for the floats that they become again, ``x_Q`` and ``x_DQ`` for the two nodes, ``x_s`` for the scale
and ``x_zp`` for zero points that differ; for a bias that several nodes read, and that is stored for
each of them, with the bias and the node. The floats of a constant that nothing reads as it was have
the constant's own name. Equal zero points are one constant, named after what it holds: ``u8_128``,
or ``i8_0_x64`` for 64 channels. The other forms hang words of their own onto these parts. Where a
name is taken already, underscores follow.

The names are short, for in a file of small layers they weigh as much as the scales; and tensors of
the source may end like them, so that only the graph tells what an added name goes back to.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxq.graph import Editor, GraphView, Model, NodeView, Use
from onnxq.numerics import quantize, quantize_blocks
from onnxq.ops import OPERATORS, stored_in_bodies
from onnxq.plan import QuantPlan, pair_readers, pair_serves_all
from onnxq.rewrite.check import check
from onnxq.rewrite.names import Names, zero_point_name
from onnxq.targets import get_target
from onnxq.types import Array, Precision, QParams, QType, WeightBlocks

# Float layers whose weights a runtime may quantize by itself (Target.requantizes_float_layers).
REQUANTIZED = ("Conv", "ConvTranspose", "Gemm")
# What an added name serves: a tensor, or a tensor in one of its roles.
Subject = tuple[str, ...]


def to_qdq(model: Model, plan: QuantPlan) -> Model:
    """Write pairs for activations, and constants as integers behind a DequantizeLinear.

    The result is checked: stripping it gives ``model`` back.

    Args:
        model: The prepared float model that the plan was made for.
        plan: Precisions and scales.

    Returns:
        A new model.

    Raises:
        SelfCheckError: The result differs from ``model`` in more than the quantization.
    """
    writer = _Writer(model, plan)
    for node in model.view().nodes:
        writer.quantize_constants(node)
    for tensor in plan.tensors:
        if not model.view().is_constant(tensor):
            writer.add_pair(tensor)
    quantized = writer.finish()
    check(model, quantized, plan, writer.raw)
    return quantized


class _Writer:
    """Adds the nodes of one plan to one model.

    Attributes:
        editor: The model in the making.
        raw: Tensors that lent their name to what comes out of their pair: new name to old.
    """

    def __init__(self, model: Model, plan: QuantPlan) -> None:
        self.editor = Editor(model)
        self.raw: dict[str, str] = {}
        self._view: GraphView = model.view()
        self._plan = plan
        self._large = not model.fits_one_file
        self._precision = plan.precision()
        self._names = Names(self._view)
        self._target = get_target(plan.target)
        self._restored: dict[str, str] = {}  # what dequantizes a constant: the constant

    def finish(self) -> Model:
        """The whole model; floats of a constant that nothing reads any more have its name."""
        for made, tensor in self._restored.items():
            self.editor.succeed(made, tensor)
        return self.editor.finish()

    def quantize_constants(self, node: NodeView) -> None:
        """Store a node's weight, bias and constant operands as integers.

        Weights that its bodies read are scaled outside of them: once, however often a body runs.
        """
        precision = self._precision.get(node.name, Precision.FLOAT)
        if precision in (Precision.FLOAT, Precision.FP16):
            return
        for stored in stored_in_bodies(self._view, node):
            if made := self._stored(stored.tensor):
                self.editor.redirect_captures(node.name, stored.tensor, made)
        spec = OPERATORS.get(node.full_op)
        if spec is None:
            return
        for port, tensor in enumerate(node.inputs):
            if made := self._stored(tensor):
                self.editor.redirect(node.name, port, made)
        has_bias = spec.bias is not None and spec.bias < len(node.inputs)
        integer = precision.static and self._target.integer_bias
        if integer and has_bias and node.inputs[spec.bias or 0]:
            self._quantize_bias(node, spec.bias or 0)

    def _stored(self, tensor: str) -> str:
        """What stands for a constant that the plan stores as integers; empty for any other."""
        params, scheme = self._plan.tensors.get(tensor), self._plan.blocks.get(tensor)
        if params is not None and self._view.is_constant(tensor):
            return self._constant((tensor,), params)
        return self._in_blocks((tensor,), scheme) if scheme is not None else ""

    def _constant(self, subject: Subject, params: QParams) -> str:
        """A DequantizeLinear over the stored integers of a constant; made once per subject."""
        made = self._floats(subject)
        if not self.editor.has_tensor(made):
            stored = self._names.of(*subject, "q")
            self._store(stored, subject[0], lambda values: quantize(values, params), params.qtype)
            self._dequantize(subject, stored, made, params)
        return made

    def _in_blocks(self, subject: Subject, scheme: WeightBlocks) -> str:
        """A DequantizeLinear over a weight in blocks; made once per subject."""
        made = self._floats(subject)
        if self.editor.has_tensor(made):
            return made
        found = quantize_blocks(self._values(subject[0]), scheme)
        stored = self._names.of(*subject, "q")
        if self._large:
            self._store(
                stored, subject[0], lambda w: quantize_blocks(w, scheme).stored, scheme.qtype
            )
        else:
            self.editor.add_constant(stored, found.stored)
        inputs = [stored, self.editor.add_constant(self._names.of(*subject, "s"), found.scale)]
        if found.zero_point.any():  # without one it is 0
            zero = self._names.of(*subject, "zp")
            inputs.append(self.editor.add_constant(zero, found.zero_point))
        self.editor.add_node(
            "DequantizeLinear",
            inputs,
            [made],
            name=self._names.of(*subject, "DQ"),
            attrs={"axis": scheme.axis, "block_size": scheme.size},
        )
        return made

    def _floats(self, subject: Subject) -> str:
        """The name of what a constant becomes again, until the model is finished."""
        made = self._names.of(*subject, "dq")
        if len(subject) == 1:  # stored for each of several nodes, it is several tensors
            self._restored[made] = subject[0]
        return made

    def _values(self, tensor: str) -> Array:
        values = self._view.constant(tensor)
        assert values is not None
        return values

    def _store(
        self, name: str, tensor: str, integers: Callable[[Array], Array], qtype: QType
    ) -> None:
        """Add the integers of a constant; those of a large model are made as they are written."""
        if self._large:
            shape = [size for size in self._view.shape(tensor) or () if isinstance(size, int)]
            self.editor.add_made(name, lambda: integers(self._values(tensor)), qtype.dtype, shape)
        else:
            self.editor.add_constant(name, integers(self._values(tensor)))

    def _quantize_bias(self, node: NodeView, port: int) -> None:
        """int32, with the scale of the products that it is added to: ``s_x * s_w``."""
        bias = node.inputs[port]
        x, w = (self._plan.tensors[node.inputs[p]] for p in (0, 1))
        scale = np.float32(x.scale[0]) * np.array(w.scale, np.float32)
        axis = None if w.axis is None else len(self._view.shape(bias) or ()) - 1
        params = QParams(QType.INT32, tuple(float(s) for s in scale), (0,) * len(scale), axis=axis)
        alone = len(self._view.uses(bias)) == 1
        made = self._constant((bias,) if alone else (bias, "of", node.name), params)
        self.editor.redirect(node.name, port, made)

    def _dequantize(self, subject: Subject, stored: str, made: str, params: QParams) -> None:
        self.editor.add_node(
            "DequantizeLinear",
            [stored, *self._parameters(subject, params)],
            [made],
            name=self._names.of(*subject, "DQ"),
            attrs=None if params.axis is None else {"axis": params.axis},
        )

    def _parameters(self, subject: Subject, params: QParams) -> list[str]:
        """Constants for scale and zero point; a bias has none, which means zero."""
        scale, zero = np.array(params.scale, np.float32), np.array(params.zero_point)
        if params.axis is None:
            scale, zero = scale[0], zero[0]
        made = [self.editor.add_constant(self._names.of(*subject, "s"), np.asarray(scale))]
        if params.qtype is not QType.INT32:
            stored = np.asarray(zero, params.qtype.dtype)
            made.append(self.editor.add_constant(self._zero_point_name(subject, params), stored))
        return made

    def _zero_point_name(self, subject: Subject, params: QParams) -> str:
        """One name for all zero points of one value, type and number of channels."""
        value, *others = set(params.zero_point)
        if others:
            return self._names.of(*subject, "zp")
        count = None if params.axis is None else len(params.scale)
        return self._names.of(zero_point_name(params.qtype, value, count))

    def add_pair(self, tensor: str) -> None:
        """Put Q and DQ behind a tensor, and let its readers read what comes out."""
        params = self._plan.tensors[tensor]
        for_all = pair_serves_all(self._view, self._plan, tensor)
        subject = (tensor,)
        stored = self._names.of(tensor, "q")
        if for_all and tensor in self._view.output_names:
            source, made = self._names.of(tensor, "float"), tensor
            self.editor.move_output(tensor, source)
            self.raw[source] = tensor
        else:
            source, made = tensor, self._names.of(tensor, "dq")
        self.editor.add_node(
            "QuantizeLinear",
            [source, *self._parameters(subject, params)],
            [stored],
            name=self._names.of(tensor, "Q"),
        )
        readers = pair_readers(self._view, self._plan, tensor)
        apart = [u for u in readers if self._wants_channels(tensor, u)]
        if made == tensor or len(apart) < len(readers):
            self._dequantize(subject, stored, made, params)
            self.editor.copy_type(source, made)
        if made == tensor:
            self.editor.claim_output(source, made)
        channels = self._per_channel(tensor, stored, params) if apart else ""
        for use in readers:
            if use.port < 0:
                self.editor.redirect_captures(use.node, source, made)
            else:
                self.editor.redirect(use.node, use.port, channels if use in apart else made)

    def _wants_channels(self, tensor: str, use: Use) -> bool:
        """True for a float layer that the runtime would quantize behind a scalar scale."""
        node = self._view.by_name[use.node]
        shape = self._view.shape(tensor)
        if (
            not self._target.requantizes_float_layers
            or use.port < 0
            or self._plan.is_static(use.node)
        ):
            return False
        if node.op not in REQUANTIZED or node.domain:
            return False
        return shape is not None and len(shape) > 1 and isinstance(shape[1], int)

    def _per_channel(self, tensor: str, stored: str, params: QParams) -> str:
        """A DequantizeLinear that repeats the tensor's one scale for every channel.

        The values are the same, but the runtime does not take the layer behind it for one that
        it may quantize itself.
        """
        channels = (self._view.shape(tensor) or ())[1]
        assert isinstance(channels, int)
        repeated = QParams(
            params.qtype, params.scale * channels, params.zero_point * channels, axis=1
        )
        made = self._names.of(tensor, "dq", "per_channel")
        self._dequantize((tensor, "per_channel"), stored, made, repeated)
        self.editor.copy_type(tensor, made)
        return made
