"""``Evaluator``: computes an ONNX graph in PyTorch, so that gradients flow through it.

It reads the same graph that everything else reads, and holds no weights of its own: constants are
handed over with each call, by their names in the graph. A graph is therefore trained by training
tensors, and written back by writing these.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from onnxq.errors import ModelError
from onnxq.graph import GraphView, NodeView
from onnxq.qat.operators import CONTROL, OPERATORS, Operator
from onnxq.qat.operators.values import to_tensor
from onnxq.types import Array

Tensors = dict[str, Tensor]
# What an input of a node becomes before the node reads it: (tensor's name, its value, node, port).
Reading = Callable[[str, Tensor, str, int], Tensor]
# Computes a node out of the tensors that are there.
Call = Callable[[NodeView, Tensors], tuple[Tensor | None, ...]]


class Evaluator:
    """Computes a graph.

    Args:
        view: The graph; opset 13 or newer.

    Raises:
        ModelError: It holds operators that are not known here; they are named.
    """

    def __init__(self, view: GraphView) -> None:
        self._view = view
        if missing := sorted(_missing(view)):
            raise ModelError(
                f"cannot train a model with {', '.join(missing)}: "
                f"{'it has' if len(missing) == 1 else 'they have'} no derivative here",
                "see docs/qat.md for the operators that onnxq can train through",
            )
        self._dropped = _dropped(view)

    def constants(self) -> Tensors:
        """All constants by name, on the CPU; trained ones take their place in a call."""
        return {name: to_tensor(array) for name, array in _constants(self._view).items()}

    def run(
        self,
        feed: Mapping[str, Tensor],
        constants: Mapping[str, Tensor],
        *,
        reading: Reading | None = None,
        kernels: Mapping[str, Operator] | None = None,
        keep: Collection[str] = (),
        detach: Collection[str] = (),
    ) -> Tensors:
        """Compute the outputs.

        Args:
            feed: Inputs by name.
            constants: Constants by name.
            reading: What becomes of an input before a node reads it, and, with port -1 and an
                empty name for the node, of an output.
            kernels: What computes nodes instead of their operators, by the nodes' names; from the
                inputs as they are, whatever becomes of them elsewhere.
            keep: Other tensors that are wanted.
            detach: Tensors whose readers send no gradient further back.

        Returns:
            The outputs and what was to be kept, by name.

        Raises:
            ModelError: A node cannot be computed; it is named.
        """
        values: Tensors = {**constants, **feed}
        kept: Tensors = {name: values[name] for name in keep if name in values}
        call = partial(_call, reading=reading, kernels=kernels or {})
        _compute(self._view, values, self._dropped, call, kept, frozenset(keep), detach)
        outputs = self._view.output_names
        for name in outputs:
            value = kept[name] if name in keep else values[name]
            kept[name] = reading(name, value, "", -1) if reading is not None else value
        return kept


def _compute(
    view: GraphView,
    values: Tensors,
    dropped: Mapping[str, tuple[str, ...]],
    call: Call,
    kept: Tensors,
    keep: Collection[str],
    detach: Collection[str],
) -> None:
    """Compute every node, in order; what nothing reads any more is forgotten."""
    for node in view.nodes:
        made = call(node, values)
        for name, value in zip(node.outputs, made, strict=False):
            if not name or value is None:
                continue
            if name in keep:
                kept[name] = value
            values[name] = value.detach() if name in detach else value
        for name in dropped.get(node.name, ()):
            del values[name]


def _call(
    node: NodeView,
    values: Tensors,
    *,
    reading: Reading | None = None,
    kernels: Mapping[str, Operator] = MappingProxyType({}),
) -> tuple[Tensor | None, ...]:
    kernel = kernels.get(node.name)
    inputs: list[Tensor | None] = []
    for port, name in enumerate(node.inputs):
        value = values[name] if name else None
        if value is not None and reading is not None and kernel is None:
            value = reading(name, value, node.name, port)
        inputs.append(value)
    try:
        if kernel is not None:
            made = kernel(node, *inputs)
        elif node.full_op in CONTROL:
            run = _body_runner(node, values, reading)
            made = CONTROL[node.full_op](node, run, *inputs)
        else:
            made = OPERATORS[node.full_op](node, *inputs)
    except (
        RuntimeError,
        ValueError,
        TypeError,
        IndexError,
        KeyError,
        NotImplementedError,
    ) as error:
        shapes = ", ".join("none" if x is None else str(tuple(x.shape)) for x in inputs)
        raise ModelError(
            f"node '{node.name}' ({node.full_op}) cannot be computed for inputs of shape "
            f"{shapes}: {type(error).__name__}: {error}"
        ) from error
    return made if isinstance(made, tuple) else (made,)


def _body_runner(
    node: NodeView, outer: Tensors, reading: Reading | None
) -> Callable[[str, Mapping[str, Tensor]], list[Tensor]]:
    """What runs a body of a node, with access to the tensors around it."""
    bodies = node.bodies
    around = dict(outer)
    if reading is not None:
        around |= {
            name: reading(name, outer[name], node.name, -1)
            for name in node.captures
            if name in outer
        }

    def run(attribute: str, feed: Mapping[str, Tensor]) -> list[Tensor]:
        body = bodies[attribute]
        constants = {name: to_tensor(array) for name, array in _constants(body).items()}
        values = {**around, **constants, **feed}
        _compute(body, values, {}, _call, {}, (), ())
        return [values[spec.name] for spec in body.outputs]

    return run


def _missing(view: GraphView) -> set[str]:
    """Operators that are not known, in the graph and in its bodies."""
    found = set()
    for node in view.nodes:
        if node.full_op not in OPERATORS and node.full_op not in CONTROL:
            found.add(node.full_op)
        for body in node.bodies.values():
            found |= _missing(body)
    return found


def _dropped(view: GraphView) -> dict[str, tuple[str, ...]]:
    """By node: the tensors that it is the last to read, and those that nothing reads."""
    last: dict[str, str] = {}
    for node in view.nodes:
        for name in (*node.outputs, *node.inputs, *node.captures):
            if name:
                last[name] = node.name
    for name in view.output_names:
        last.pop(name, None)
    made = {name for node in view.nodes for name in node.outputs}
    dropped: dict[str, list[str]] = {}
    for name, node_name in last.items():
        if name in made:
            dropped.setdefault(node_name, []).append(name)
    return {node_name: tuple(names) for node_name, names in dropped.items()}


def _constants(view: GraphView) -> dict[str, Array]:
    found = {}
    for name in view.constant_names:
        values = view.constant(name)
        if values is not None:
            found[name] = values
    return found


def placed(tensor: Tensor, device: torch.device) -> Tensor:
    """Floats go to the device; integers, which shapes are made of, stay.

    Of four axes, channels lie last in memory: convolutions run fastest so.
    """
    if not tensor.is_floating_point():
        return tensor
    tensor = tensor.to(device)
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
