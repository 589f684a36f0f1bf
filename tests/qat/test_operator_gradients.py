"""Gradients of the operators whose mathematics is written here, against numerical ones.

``gradcheck`` compares with central differences in float64, to 1e-5 of the value and 1e-6.
"""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from onnxq.graph import NodeView  # noqa: E402
from onnxq.qat.operators import OPERATORS  # noqa: E402

MICROSOFT = "com.microsoft"


def draw(*shape: int) -> torch.Tensor:
    """Values that no two of are so close that a small step changes which is the larger."""
    count = torch.Size(shape).numel()
    order = torch.randperm(count, generator=torch.Generator().manual_seed(count))
    return (((order + 0.5) / count - 0.5) * 3).to(torch.float64).reshape(shape)


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


POOL = {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (0, 1, 2, 1)}
ATTENTION = {"q_num_heads": 2, "kv_num_heads": 2, "is_causal": 1, "softcap": 1.5}
LSTM = [draw(4, 2, 3), draw(2, 8, 3), draw(2, 8, 2), draw(2, 16)]
GRU = [draw(4, 2, 3), draw(1, 6, 3), draw(1, 6, 2), draw(1, 12), ints(3, 4), draw(1, 2, 2)]
IMAGE = draw(1, 2, 5, 6)

CASES: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    "conv with uneven padding": (
        "Conv",
        [IMAGE, draw(2, 1, 3, 3), draw(2)],
        {"auto_pad": "SAME_UPPER", "strides": (2, 2), "group": 2},
    ),
    "transposed conv that is cut": (
        "ConvTranspose",
        [draw(1, 2, 3, 3), draw(2, 2, 3, 3), draw(2)],
        {"strides": (2, 2), "pads": (1, 0, 0, 2), "output_padding": (1, 1)},
    ),
    "max pool": ("MaxPool", [IMAGE], POOL),
    "mean of values": ("AveragePool", [IMAGE], POOL),
    "mean of values and padding": ("AveragePool", [IMAGE], {**POOL, "count_include_pad": 1}),
    "dilated mean": ("AveragePool", [IMAGE], {"kernel_shape": (2, 2), "dilations": (2, 3)}),
    "norm of windows": ("LpPool", [IMAGE], {**POOL, "p": 3}),
    "lstm": (
        "LSTM",
        [*LSTM, ints(3, 4), draw(2, 2, 2), draw(2, 2, 2) * 0.9, draw(2, 6)],
        {"direction": "bidirectional"},
    ),
    "lstm without extras": ("LSTM", LSTM, {"direction": "bidirectional", "layout": 0}),
    "gru": ("GRU", GRU, {"direction": "reverse"}),
    "gru that resets last": ("GRU", GRU, {"linear_before_reset": 1}),
    "rnn": ("RNN", [draw(4, 2, 3), draw(1, 2, 3), draw(1, 2, 2)], {"activations": ("Softsign",)}),
    **{
        f"resize {mode} {size} {coordinates}": (
            "Resize",
            [IMAGE, None, None, ints(1, 2, *size)],
            {"mode": mode, "coordinate_transformation_mode": coordinates, "antialias": small},
        )
        for mode, size, coordinates, small in (
            ("nearest", (10, 12), "asymmetric", 0),
            ("nearest", (7, 4), "half_pixel", 0),
            ("linear", (7, 4), "half_pixel", 0),
            ("linear", (10, 3), "align_corners", 0),
            ("cubic", (7, 9), "half_pixel", 0),
            ("cubic", (3, 3), "half_pixel", 1),
        )
    },
    **{
        f"pad {mode}": ("Pad", [draw(3, 4), ints(1, 2, 2, 3)], {"mode": mode})
        for mode in ("constant", "reflect", "edge", "wrap")
    },
    "attention": (
        f"{MICROSOFT}::Attention",
        [draw(2, 3, 4), draw(4, 12), draw(12), ints(2, 3)],
        {"num_heads": 2, "unidirectional": 1},
    ),
    "attention of several inputs": (
        f"{MICROSOFT}::MultiHeadAttention",
        [draw(2, 3, 4), draw(2, 2, 4), draw(2, 2, 6), draw(14), None, draw(1, 2, 3, 2)],
        {"num_heads": 2},
    ),
    "onnx attention": ("Attention", [draw(1, 3, 4), draw(1, 3, 4) * 0.9, draw(1, 3, 6)], ATTENTION),
    "rotary embedding": (
        "RotaryEmbedding",
        [draw(1, 2, 3, 4), draw(1, 3, 2), draw(1, 3, 2)],
        {"interleaved": 1},
    ),
    "embeddings": (
        f"{MICROSOFT}::EmbedLayerNormalization",
        [ints(0, 2, 1)[None], ints(0, 1, 1)[None], *[draw(3, 4)] * 2, draw(2, 4), *[draw(4)] * 2],
        {},
    ),
    "layer normalization and its statistics": (
        "LayerNormalization",
        [draw(2, 3, 4), draw(3, 4), draw(3, 4)],
        {"axis": 1},
    ),
    "rms normalization": ("RMSNormalization", [draw(2, 5), draw(5)], {}),
    "skipped normalization": (
        f"{MICROSOFT}::SkipLayerNormalization",
        [draw(2, 5), draw(2, 5) * 0.7, draw(5), draw(5), draw(5)],
        {},
    ),
    "group normalization": (
        "GroupNormalization",
        [draw(2, 4, 3), draw(2), draw(2)],
        {"num_groups": 2},
    ),
    "instance normalization": ("InstanceNormalization", [draw(2, 2, 3, 2), draw(2), draw(2)], {}),
    "neighbouring channels": ("LRN", [draw(2, 5, 2)], {"size": 4, "alpha": 0.5}),
    "1-norm": ("LpNormalization", [draw(3, 4)], {"p": 1}),
    "mean and variance": ("MeanVarianceNormalization", [draw(2, 2, 3, 2)], {}),
    "written slices": (
        "ScatterND",
        [draw(3, 2), ints(0, 2, 0)[:, None], draw(3, 2)],
        {"reduction": "add"},
    ),
    "gathered slices": ("GatherND", [draw(3, 2, 4), ints(0, 1, 2, 0, 0, 1).reshape(3, 2)], {}),
    "scales of integers": (
        "DequantizeLinear",
        [ints(1, -2, 3, 4).reshape(2, 2).to(torch.int8), draw(2)],
        {"axis": 0},
    ),
    "slopes": ("PRelu", [draw(2, 3, 4), draw(3, 4)], {}),
    "limits": ("Clip", [draw(3, 4), torch.tensor(-0.6).double(), torch.tensor(0.8).double()], {}),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients(name) -> None:
    full_op, inputs, attrs = CASES[name]
    domain, _, op = full_op.rpartition("::")
    count = {"LSTM": 3, "GRU": 2, "RNN": 2, "LayerNormalization": 3}.get(op, 1)
    node = NodeView("node", op, domain, (), tuple(f"y{at}" for at in range(count)), attrs)
    trained = [x for x in inputs if x is not None and x.is_floating_point()]

    def compute(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = iter(values)
        takes = [x is not None and x.is_floating_point() for x in inputs]
        full = [next(given) if t else x for t, x in zip(takes, inputs, strict=True)]
        made = OPERATORS[full_op](node, *full)
        outputs = made if isinstance(made, tuple) else (made,)
        return tuple(y for y in outputs if y is not None and y.requires_grad)

    leaves = [x.clone().requires_grad_() for x in trained]
    total = sum(y.sum() * (at + 1.5) for at, y in enumerate(compute(*leaves)))
    assert all(g is not None for g in torch.autograd.grad(total, leaves))
    assert torch.autograd.gradcheck(compute, leaves)
