"""Operators by name: what computes a node in PyTorch.

An operator is a function of the node and of its inputs, None for one that is omitted::

    @operator("Relu")
    def relu(node: NodeView, x: Tensor) -> Tensor:
        return torch.relu(x)

It returns its output, or a tuple of outputs. It never changes an input in place. Numbers that
shapes are made of (int64) stay on the CPU, whatever device the float tensors are on.

An operator that holds subgraphs gets one argument more, which computes such a body::

    @control("If")
    def conditional(node: NodeView, run: Run, condition: Tensor) -> tuple[Tensor, ...]:
        return tuple(run("then_branch" if condition.item() else "else_branch", {}))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias, TypeVar

from torch import Tensor

Outputs: TypeAlias = "Tensor | tuple[Tensor | None, ...]"
Operator = Callable[..., Outputs]
# Computes the body that an attribute holds, its inputs given by name; returns its outputs in order.
# The body sees the tensors around the node.
Run = Callable[[str, Mapping[str, Tensor]], list[Tensor]]

Function = TypeVar("Function", bound=Operator)

OPERATORS: dict[str, Operator] = {}
CONTROL: dict[str, Operator] = {}


def operator(*names: str) -> Callable[[Function], Function]:
    """Register a function for operator types, with their domain: ``com.microsoft::Gelu``."""
    return _registrar(OPERATORS, names)


def control(*names: str) -> Callable[[Function], Function]:
    """Register a function for operator types that hold bodies; it is called with a ``Run``."""
    return _registrar(CONTROL, names)


def _registrar(
    registry: dict[str, Operator], names: tuple[str, ...]
) -> Callable[[Function], Function]:
    def register(function: Function) -> Function:
        for name in names:
            if name in OPERATORS or name in CONTROL:
                raise ValueError(f"two functions for operator {name}")
            registry[name] = function
        return function

    return register
