"""``to_float16``: some nodes of a model compute in float16, with Casts at the borders only.

A tensor that such a node makes is float16, under its own name; nodes of float32 read it through
one Cast, ``x_float32``. A tensor of float32 is read by all nodes of float16 through one Cast,
``x_float16``; a constant is stored rounded instead. Where a name is taken, underscores follow.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from onnxq.graph import (
    TYPELESS,
    Editor,
    FloatPorts,
    GraphView,
    Model,
    NodeView,
    float_ports,
    narrow,
)
from onnxq.rewrite.names import Names
from onnxq.types import Array

FLOAT32 = "float32"
CODES = {"float16": 10, "float32": 1, "bfloat16": 16}  # of onnx.TensorProtocol.DataType


def to_float16(
    model: Model, nodes: Collection[str], *, dtype: str = "float16", keep_io: bool = True
) -> Model:
    """Let nodes compute in float16.

    Inputs that an operator wants in float32 (the scales of a Resize) stay so. Nodes that have no
    such form (``float_ports``) are left as they are, and so is what lies inside the bodies of If,
    Loop and Scan: they read float32.

    Args:
        model: A model with its types inferred, quantized in part or not at all.
        nodes: Names of the nodes.
        dtype: ``float16``, or ``bfloat16``, which few kernels of ONNX Runtime take.
        keep_io: Whether the graph's inputs and outputs stay float32.

    Returns:
        A new model.
    """
    return _Writer(model, nodes, dtype, keep_io).write()


class _Writer:
    """Changes the types of one model.

    Every tensor has a type that it is made in; for the other one there is a second name, made by
    the first who asks for it.
    """

    def __init__(self, model: Model, nodes: Collection[str], dtype: str, keep_io: bool) -> None:
        self._view: GraphView = model.view()
        self._editor = Editor(model)
        self._dtype = dtype
        self._keep_io = keep_io
        self._unused = Names(self._view)
        self._names: dict[tuple[str, str], str] = {}  # (tensor, type) -> name
        self._casts = [n for n in self._view.nodes if n.op == "Cast" and not n.domain]
        self._ports = self._find_ports(frozenset(nodes))
        self._half = self._find_half()

    def _find_ports(self, nodes: frozenset[str]) -> dict[str, FloatPorts]:
        """What changes of every node; nothing of a Cast from float16: its input serves."""
        for node in self._casts:
            if self._view.dtype(node.inputs[0]) == self._dtype:
                nodes -= {node.name}
        found = (
            (n.name, float_ports(self._view, n, self._dtype))
            for n in self._view.nodes
            if n.name in nodes
        )
        return {name: ports for name, ports in found if ports is not None}

    def _find_half(self) -> frozenset[str]:
        """The tensors that are made in float16 from now on."""
        by_name = self._view.by_name
        made = {by_name[n].outputs[p] for n, ports in self._ports.items() for p in ports.outputs}
        if not self._keep_io:
            made |= {spec.name for spec in self._view.inputs if spec.dtype == FLOAT32}
        return frozenset(made)

    def write(self) -> Model:
        """The whole model."""
        for name, ports in self._ports.items():
            if ports.attribute:
                self._editor.retype_attribute(name, ports.attribute, self._dtype)
        for tensor in self._half:
            self._editor.retype(tensor, self._dtype)
        for spec in self._view.outputs:
            if spec.dtype == FLOAT32:
                self._settle_output(spec.name)
        for node in self._casts:
            self._use_cast(node)
        for node in self._view.nodes:
            self._redirect(node)
        for node in self._casts:
            self._editor.discard(node.name)
        return self._editor.finish()

    def _settle_output(self, tensor: str) -> None:
        """Keep an output's name for the type that the output has."""
        made, wanted = self._made_in(tensor), FLOAT32 if self._keep_io else self._dtype
        if made == wanted:
            return
        inner = self._unused.new(tensor, made)
        self._editor.move_output(tensor, inner)
        self._names[tensor, made], self._names[tensor, wanted] = inner, tensor
        self._cast(inner, tensor, wanted)
        self._editor.claim_output(inner, tensor)

    def _use_cast(self, node: NodeView) -> None:
        """Let a Cast between the two types, which the source has, serve as one of ours.

        Where a Cast to float16 now reads float16, what it reads takes its place.
        """
        (read,), (made,) = node.inputs, node.outputs
        types = self._view.dtype(read), self._view.dtype(made)
        if types == (self._dtype, FLOAT32):
            self._names.setdefault((made, self._dtype), read)
        elif types == (FLOAT32, self._dtype) and read not in self._half:
            self._names.setdefault((read, self._dtype), made)
        elif types == (FLOAT32, self._dtype) and made not in self._view.output_names:
            self._names[made, self._dtype] = self._as(read, self._dtype)
        elif types == (FLOAT32, self._dtype) and read not in self._view.output_names:
            aside = self._unused.new(made, self._dtype)
            self._editor.move_output(made, aside)
            self._editor.move_output(self._as(read, self._dtype), made)
            self._editor.copy_type(aside, made)
            self._editor.claim_output(aside, made)
            self._names[read, self._dtype] = made

    def _redirect(self, node: NodeView) -> None:
        """Let a node, and its subgraphs, read every tensor in the type that they want."""
        ports = self._ports.get(node.name)
        typeless = node.op in TYPELESS and not node.domain
        for port, tensor in enumerate(node.inputs):
            wanted = ports is not None and port in ports.inputs
            if wanted or (typeless and tensor in self._half):
                self._editor.redirect(node.name, port, self._as(tensor, self._dtype))
            elif tensor in self._half:
                self._editor.redirect(node.name, port, self._as(tensor, FLOAT32))
            elif (tensor, self._dtype) in self._names and self._view.dtype(tensor) == self._dtype:
                self._editor.redirect(node.name, port, self._names[tensor, self._dtype])
        for tensor in node.captures:
            if tensor in self._half:
                made = self._as(tensor, self._dtype)
                self._editor.redirect_captures(node.name, made, self._as(tensor, FLOAT32))

    def _made_in(self, tensor: str) -> str:
        return self._dtype if tensor in self._half else FLOAT32

    def _as(self, tensor: str, dtype: str) -> str:
        """The name of a tensor in one of the two types; a Cast or a constant makes it."""
        made = self._made_in(tensor)
        if (tensor, dtype) in self._names or made == dtype:
            return self._names.get((tensor, dtype), tensor)
        name = self._names[tensor, dtype] = self._unused.new(tensor, dtype)
        if self._view.is_constant(tensor):
            self._add_constant(tensor, name)
        else:
            self._cast(self._as(tensor, made), name, dtype)
        return name

    def _add_constant(self, tensor: str, name: str) -> None:
        """A constant, rounded when it is written, so that large ones are not held twice."""

        def rounded() -> Array:
            values = self._view.constant(tensor)
            assert values is not None
            return narrow(values, self._dtype)

        shape = [size for size in self._view.shape(tensor) or () if isinstance(size, int)]
        kind = narrow(np.zeros(0, np.float32), self._dtype).dtype
        self._editor.add_made(name, rounded, kind, shape)

    def _cast(self, source: str, made: str, dtype: str) -> None:
        name = self._unused.new(made, "Cast")
        self._editor.add_node("Cast", [source], [made], name=name, attrs={"to": CODES[dtype]})
        self._editor.copy_type(source, made)
        self._editor.retype(made, dtype)
