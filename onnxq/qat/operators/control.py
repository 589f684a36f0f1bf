"""Operators that compute bodies: If, Loop, Scan."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from onnxq.graph import NodeView
from onnxq.qat.operators.registry import Run, control
from onnxq.qat.operators.values import unsupported
from onnxq.types import TensorSpec


@control("If")
def if_(node: NodeView, run: Run, condition: Tensor) -> tuple[Tensor, ...]:
    """One of two bodies."""
    return tuple(run("then_branch" if condition.item() else "else_branch", {}))


@control("Loop")
def loop(
    node: NodeView,
    run: Run,
    limit: Tensor | None = None,
    condition: Tensor | None = None,
    *carried: Tensor,
) -> tuple[Tensor, ...]:
    """A body over and over, up to a number of times and as long as a condition holds.

    What it carries from one round to the next comes first, then what every round adds, stacked.
    """
    body, count = node.bodies["body"], len(carried)
    most = None if limit is None else int(limit.item())
    going = condition is None or bool(condition.item())
    names = [spec.name for spec in body.inputs]
    state, rounds = list(carried), list[list[Tensor]]()
    while going and (most is None or len(rounds) < most):
        known = (torch.tensor(len(rounds)), torch.tensor(True), *state)
        again, *made = run("body", dict(zip(names, known, strict=True)))
        going, state = bool(again.item()), made[:count]
        rounds.append(made[count:])
    specs = body.outputs[1 + count :]
    return *state, *(_stacked(node, spec, rounds, at) for at, spec in enumerate(specs))


@control("Scan")
def scan(node: NodeView, run: Run, *inputs: Tensor) -> tuple[Tensor, ...]:
    """A body for every slice of some inputs; it carries the others from one to the next."""
    body, scanned = node.bodies["body"], node.attrs["num_scan_inputs"]
    count = len(inputs) - scanned
    axes = node.attrs.get("scan_input_axes", (0,) * scanned)
    backwards = node.attrs.get("scan_input_directions", (0,) * scanned)
    slices = [
        x.unbind(axis)[:: -1 if back else 1]
        for x, axis, back in zip(inputs[count:], axes, backwards, strict=True)
    ]
    names = [spec.name for spec in body.inputs]
    state, rounds = list(inputs[:count]), list[list[Tensor]]()
    for now in zip(*slices, strict=True):
        made = run("body", dict(zip(names, (*state, *now), strict=True)))
        state = made[:count]
        rounds.append(made[count:])
    specs = body.outputs[count:]
    axes = node.attrs.get("scan_output_axes", (0,) * len(specs))
    backwards = node.attrs.get("scan_output_directions", (0,) * len(specs))
    outputs = (
        _stacked(node, spec, rounds[:: -1 if back else 1], at, axis)
        for at, (spec, axis, back) in enumerate(zip(specs, axes, backwards, strict=True))
    )
    return *state, *outputs


def _stacked(
    node: NodeView, spec: TensorSpec, rounds: list[list[Tensor]], at: int, axis: int = 0
) -> Tensor:
    """One output of every round, stacked; of none, nothing with the shape that the body tells."""
    if rounds:
        return torch.stack([made[at] for made in rounds], axis)
    if spec.shape is None or not spec.dtype:
        raise unsupported(node, f"its body never ran, and tells no shape of output '{spec.name}'")
    sizes = [size if isinstance(size, int) else 0 for size in spec.shape]
    axis = axis % (len(sizes) + 1)
    return torch.from_numpy(np.empty((*sizes[:axis], 0, *sizes[axis:]), spec.dtype))
