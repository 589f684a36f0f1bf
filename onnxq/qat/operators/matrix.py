"""Products of matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from onnxq.graph import NodeView
from onnxq.qat.operators.registry import operator
from onnxq.qat.operators.values import together


@operator("MatMul")
def matmul(node: NodeView, a: Tensor, b: Tensor) -> Tensor:
    """The product of two (stacks of) matrices, as ``numpy.matmul``."""
    return torch.matmul(*together(a, b))


@operator("Gemm")
def gemm(node: NodeView, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """``alpha * A @ B + beta * C``, with A and B transposed where asked."""
    alpha, beta = node.attrs.get("alpha", 1.0), node.attrs.get("beta", 1.0)
    a, b = together(a, b)
    a = a.T if node.attrs.get("transA", 0) else a
    b = b.T if node.attrs.get("transB", 0) else b
    if c is not None:
        return torch.addmm(c.to(a.device), a, b, beta=beta, alpha=alpha)
    product = a @ b
    return product if alpha == 1.0 else product * alpha


@operator("com.microsoft::FusedMatMul")
def fused_matmul(node: NodeView, a: Tensor, b: Tensor) -> Tensor:
    """``alpha * A @ B``, after moving axes of A and B where asked."""
    attrs = node.attrs
    a, b = together(a, b)
    a = _arranged(a, attrs.get("transBatchA", 0), attrs.get("transA", 0))
    b = _arranged(b, attrs.get("transBatchB", 0), attrs.get("transB", 0))
    alpha = attrs.get("alpha", 1.0)
    product = torch.matmul(a, b)
    return product if alpha == 1.0 else product * alpha


def _arranged(x: Tensor, batch: int, transpose: int) -> Tensor:
    """``batch`` puts the first axis before the last; ``transpose`` then swaps the last two."""
    if x.dim() < 2:
        return x
    if batch:
        x = x.movedim(0, -2)
    return x.transpose(-2, -1) if transpose else x


@operator("Einsum")
def einsum(node: NodeView, *inputs: Tensor) -> Tensor:
    """A sum of products by Einstein's convention."""
    return torch.einsum(node.attrs["equation"].replace(" ", ""), *together(*inputs))
