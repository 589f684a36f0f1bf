"""The table of targets. Adding a provider is adding a row."""

from __future__ import annotations

import difflib

import msgspec

from onnxq.errors import UsageError
from onnxq.targets.target import Kernel, Support, Target
from onnxq.types import QType

_FUSED = Support(Kernel.FUSED)
_MOVES = Support(Kernel.MOVES)
_CLAMP = Support(Kernel.CLAMP)

# ONNX Runtime 1.31, CPU provider: which Q/DQ patterns its optimiser fuses, read from the graph
# that it really runs, and what each costs in time (docs/architecture.md, "What runs as int8").
_CPU_OPERATORS = {
    **dict.fromkeys(("Conv", "MatMul", "Gemm"), _FUSED),
    **dict.fromkeys(("Add", "Mul", "Concat", "Where"), _FUSED),
    **dict.fromkeys(("Sigmoid", "LeakyRelu", "GlobalAveragePool"), _FUSED),
    **dict.fromkeys(("Relu", "Clip"), _CLAMP),
    **dict.fromkeys(
        (
            "MaxPool", "Split", "Resize", "Reshape", "Transpose", "Slice", "Squeeze", "Unsqueeze",
            "Flatten", "Gather", "Expand", "Tile", "DepthToSpace",
        ),
        _MOVES,
    ),
    "AveragePool": Support(
        Kernel.FLOAT, "the int8 kernel for windowed averages is so slow that it cancels the gain"
    ),
    "Softmax": Support(Kernel.FLOAT, "the int8 kernel is slower than the float one"),
}  # fmt: skip

_X86 = Target(
    name="cpu-x86",
    activation=QType.UINT8,
    weight=QType.INT8,
    weight_headroom=1.0,
    requantizes_float_layers=True,
    operators=_CPU_OPERATORS,
    source="ONNX Runtime 1.31 CPU provider on AVX-512 VNNI, measured",
)

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        _X86,
        msgspec.structs.replace(
            _X86,
            name="cpu-x86-avx2",
            weight_headroom=2.0,
            source="as cpu-x86; without VNNI, vpmaddubsw saturates pairs of uint8 x int8 products",
        ),
    )
}


def get_target(name: str) -> Target:
    """The target of a name.

    Raises:
        UsageError: There is none; the nearest names are told.
    """
    if name in TARGETS:
        return TARGETS[name]
    near = difflib.get_close_matches(name, TARGETS, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(TARGETS)}"
    raise UsageError(f"unknown target '{name}'", hint)
