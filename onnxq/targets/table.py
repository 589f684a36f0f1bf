"""The table of targets. Adding a provider is adding a row."""

from __future__ import annotations

from msgspec.structs import replace as with_fields

from onnxq.errors import UsageError, nearest
from onnxq.targets.target import Kernel, Pairs, Support, Target
from onnxq.types import Precision, QType

_FUSED = Support(Kernel.FUSED)
_FUSED_FLOAT = Support(Kernel.FUSED, float_output=True)
_MOVES = Support(Kernel.MOVES)
_CLAMP = Support(Kernel.CLAMP)
# ONNX Runtime makes a MatMul and the Add of its bias one Gemm, for every provider.
_MATMUL = Support(Kernel.FUSED, float_output=True, merges_with="Add")


def _rows(support: Support, ops: str) -> dict[str, Support]:
    return dict.fromkeys(ops.split(), support)


# ONNX Runtime 1.31, CPU provider: which Q/DQ patterns its optimiser fuses, read from the graph
# that it really runs, and what each costs in time (docs/architecture.md, "What runs as int8").
_CPU_OPERATORS = {
    **_rows(_FUSED, "Conv Add Mul Concat Where Sigmoid LeakyRelu GlobalAveragePool"),
    "Gemm": _FUSED_FLOAT,
    "MatMul": _MATMUL,
    **_rows(_CLAMP, "Relu Clip"),
    **_rows(
        _MOVES,
        "MaxPool Split Resize Reshape Transpose Slice Squeeze Unsqueeze Flatten Gather Expand Tile "
        "DepthToSpace",
    ),
    "AveragePool": Support(
        Kernel.FLOAT, "the int8 kernel for windowed averages is so slow that it cancels the gain"
    ),
    "Softmax": Support(Kernel.FLOAT, "the int8 kernel is slower than the float one"),
}

_X86 = Target(
    name="cpu-x86",
    provider="CPUExecutionProvider",
    operators=_CPU_OPERATORS,
    folds_bias_scales=True,
    conv_channels=4,
    requantizes_float_layers=True,
    scales_at_run=True,
    runs_as_written=True,
    splits_norms=True,
    source="ONNX Runtime 1.31 CPU provider on AVX-512 VNNI, measured",
)

# OpenVINO 2025.4, CPU plugin: what its compiled models run as u8 or i8, one operator at a time.
_OPENVINO_FUSES = Support(Kernel.FLOAT, "OpenVINO fuses it with the int8 layer before it as it is")
_OPENVINO_OPERATORS = {
    **_rows(_FUSED_FLOAT, "Conv Gemm MatMul"),
    **_rows(_FUSED, "Add Mul Concat AveragePool GlobalAveragePool"),
    **_rows(_CLAMP, "Relu Clip"),
    **_rows(_OPENVINO_FUSES, "Sigmoid LeakyRelu"),
    **_rows(
        _MOVES,
        "MaxPool Split Resize Reshape Transpose Slice Squeeze Unsqueeze Flatten Gather "
        "DepthToSpace",
    ),
}

# The rules that ONNX Runtime registers for DirectML. Resize is not among them: DirectML itself
# drops the pairs around one where it can, which is not known beforehand. LeakyRelu no longer is:
# DirectML has no kernel for what ONNX Runtime up to 1.23 makes of it.
_DIRECTML_OPERATORS = {
    **_rows(_FUSED, "Conv Add Concat Sigmoid GlobalAveragePool"),
    "MatMul": _MATMUL,
    **_rows(_CLAMP, "Relu Clip"),
    **_rows(
        _MOVES,
        "MaxPool Split Reshape Transpose Slice Squeeze Unsqueeze Flatten Gather Expand Tile",
    ),
}

_TENSORRT_FUSES = Support(Kernel.FLOAT, "TensorRT fuses it with the int8 layer before it as it is")
_TENSORRT_MOVES = Support(Kernel.FLOAT, "TensorRT moves pairs across it where that pays")
_TENSORRT_OPERATORS = {
    **_rows(_FUSED_FLOAT, "Conv Gemm MatMul"),
    "Add": Support(Kernel.RESIDUAL),
    **_rows(_TENSORRT_FUSES, "Relu Clip LeakyRelu Sigmoid Tanh Mul"),
    **_rows(
        Support(Kernel.FLOAT, "TensorRT's int8 kernel needs pairs on both sides, for little gain"),
        "AveragePool GlobalAveragePool ReduceMean",
    ),
    **_rows(
        _TENSORRT_MOVES,
        "MaxPool Concat Split Resize Reshape Transpose Slice Squeeze Unsqueeze Flatten Gather "
        "Expand Tile DepthToSpace SpaceToDepth",
    ),
}

_CUDA_INSTEAD = "use fp16 or int4-weights, or the target tensorrt"
_CUDA_PAIRS = f"the CUDA provider fuses no Q/DQ pair, and converts at every one; {_CUDA_INSTEAD}"

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        _X86,
        with_fields(
            _X86,
            name="cpu-x86-amx",
            matrix_units=True,
            source="as cpu-x86; convolutions of many products per output measured on AMX with "
            "ONNX Runtime 1.31, one thread",
        ),
        with_fields(
            _X86,
            name="cpu-x86-avx2",
            weight_headroom=2.0,
            source="as cpu-x86; without VNNI, vpmaddubsw saturates pairs of uint8 x int8 products",
        ),
        with_fields(
            _X86,
            name="cpu-arm",
            conv_channels=1,  # not measured there
            activation=QType.INT8,
            activation16=QType.INT16,
            source="as cpu-x86; ONNX Runtime fuses int8 activations as they are on Arm only "
            "(QDQIsInt8Allowed), where int8 x int8 is the fast path of its kernels",
        ),
        Target(
            name="openvino",
            provider="OpenVINOExecutionProvider",
            operators=_OPENVINO_OPERATORS,
            integer_bias=False,
            requantizes_float_layers=True,
            refuses={
                Precision.INT8_DYNAMIC: "OpenVINO runs MatMulInteger slower than a float layer; "
                "use int8-weights, for which it quantizes activations by itself"
            },
            source="onnxruntime-openvino 1.24 (OpenVINO 2025.4) on AVX-512 VNNI, measured",
        ),
        Target(
            name="directml",
            provider="DmlExecutionProvider",
            operators=_DIRECTML_OPERATORS,
            requantizes_float_layers=True,
            float_type=Precision.FP16,
            refuses={Precision.INT16: "DirectML fuses 8 bit integers only; use int8 or fp16"},
            source="ONNX Runtime's fusion rules for DirectML: core/optimizer/qdq_transformer/"
            "selectors_actions/qdq_selector_action_transformer.cc, and its pull request 26822 (no "
            "LeakyRelu); a scale per channel: learn.microsoft.com/windows/win32/api/directml, "
            "FilterScaleTensor of DML_QUANTIZED_LINEAR_CONVOLUTION_OPERATOR_DESC and BScaleTensor "
            "of DML_QUANTIZED_LINEAR_MATRIX_MULTIPLY_OPERATOR_DESC, which DmlOperatorQLinearConv "
            "and DmlOperatorQLinearMatMul fill",
        ),
        Target(
            name="tensorrt",
            provider="TensorrtExecutionProvider",
            operators=_TENSORRT_OPERATORS,
            activation=QType.INT8,
            activation16=QType.INT16,
            symmetric_activations=True,
            integer_bias=False,
            pairs=Pairs.BEFORE,
            float_type=Precision.FP16,
            refuses={
                Precision.INT16: "TensorRT has no kernels for 16 bit integers; use int8 or fp16",
                Precision.INT8_DYNAMIC: "TensorRT reads ranges from the graph; use int8 with data",
            },
            source="docs.nvidia.com/deeplearning/tensorrt: Working with Quantized Types (symmetric "
            "int8), Explicit Quantization (placement of pairs), Add Custom QDQ Insertion Case "
            "(residual branches); ONNX Runtime issues 14229 and 17738 (no int32 bias)",
        ),
        Target(
            name="cuda",
            provider="CUDAExecutionProvider",
            operators={},
            float_type=Precision.FP16,
            refuses={
                Precision.INT8: _CUDA_PAIRS,
                Precision.INT16: _CUDA_PAIRS,
                Precision.INT8_DYNAMIC: "the CUDA provider has no DynamicQuantizeLinear, and sends "
                f"data to the CPU and back; {_CUDA_INSTEAD}",
            },
            source="ONNX Runtime's fusion rules, as for directml: for CUDA they make MatMulNBits "
            "alone; docs/OperatorKernels.md",
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
    raise UsageError(f"unknown target '{name}'", nearest(name, TARGETS))
