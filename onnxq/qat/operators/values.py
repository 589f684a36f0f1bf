"""What operators share: types, numbers out of tensors, tensors on one device, refusals."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from onnxq.errors import ModelError
from onnxq.graph import NodeView
from onnxq.types import Array

# ONNX's numbers for the types that PyTorch can hold. Integers of 4 bits lie in 8 bits here.
DTYPES: dict[int, torch.dtype] = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    4: torch.uint16,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    12: torch.uint32,
    13: torch.uint64,
    16: torch.bfloat16,
    21: torch.uint8,
    22: torch.int8,
}


def unsupported(node: NodeView, what: str, hint: str = "") -> ModelError:
    """The error that tells which node cannot be computed in PyTorch, and why."""
    hint = hint or "keep that part out of the model that is trained"
    return ModelError(f"node '{node.name}' ({node.full_op}) cannot be trained: {what}", hint)


def dtype_of(node: NodeView, code: int) -> torch.dtype:
    """PyTorch's type for ONNX's number of a type.

    Raises:
        ModelError: PyTorch has none.
    """
    if code not in DTYPES:
        raise unsupported(node, f"PyTorch has no type for ONNX's data type {code}")
    return DTYPES[code]


def to_tensor(array: Array) -> Tensor:
    """A tensor with a copy of an array's values, on the CPU.

    Raises:
        ModelError: PyTorch has no such type.
    """
    try:
        return torch.from_numpy(np.array(array, order="C"))
    except TypeError as error:
        raise ModelError(f"cannot train a model with values of type {array.dtype}") from error


def numbers(tensor: Tensor) -> list[int]:
    """The values of a tensor of integers, flat."""
    return [int(value) for value in tensor.reshape(-1).tolist()]


def asks(node: NodeView, output: int) -> bool:
    """Whether a node's output has a reader, or is the graph's."""
    return len(node.outputs) > output and bool(node.outputs[output])


def together(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors on one device: those on the CPU join the ones that are elsewhere."""
    away = next((t.device for t in tensors if t.device.type != "cpu"), None)
    return tensors if away is None else tuple(t.to(away) for t in tensors)
