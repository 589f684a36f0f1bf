"""Execution providers: the value that says where models run, and a table of what each can do."""

from __future__ import annotations

import msgspec

from onnxq.errors import UsageError, nearest
from onnxq.targets.table import TARGETS
from onnxq.types import Precision

# Leaves the choice to a measurement.
AUTO = "auto"
# Options that choose among what is there. Others name files or libraries, which may hold code.
HARMLESS = frozenset({
    "device_type", "device_id", "precision", "num_of_threads", "num_streams", "trt_fp16_enable",
    "trt_int8_enable", "cudnn_conv_algo_search", "prefer_nhwc", "disable_metacommands",
})  # fmt: skip


class Provider(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where models run.

    Attributes:
        name: A name of ``PROVIDERS``, ``auto``, or the name of a plugin.
        options: What the provider is opened with, by ONNX Runtime's names and as text.
        library: The shared library of a plugin, which ONNX Runtime 1.22 and later can load.
        strict: Whether a node that falls back to the CPU provider is an error.
    """

    name: str = "cpu"
    options: dict[str, str] = {}
    library: str | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        # one name of what ONNX Runtime and onnxq call differently
        for short, facts in PROVIDERS.items():
            if self.name == facts.runtime_name:
                msgspec.structs.force_setattr(self, "name", short)

    @property
    def may_run_code(self) -> str:
        """What of it may bring code along: the key; empty where nothing does."""
        if self.library is not None:
            return "library"
        return next((f"options.{key}" for key in self.options if key not in HARMLESS), "")

    @property
    def is_cpu(self) -> bool:
        """Whether it is ONNX Runtime's own CPU provider, the only one whose kernels are told."""
        return self.name == "cpu"

    @property
    def runtime_name(self) -> str:
        """ONNX Runtime's name of it; a plugin's own name is that."""
        return PROVIDERS[self.name].runtime_name if self.name in PROVIDERS else self.name


class ProviderFacts(msgspec.Struct, frozen=True):
    """What is known of a provider before anything runs.

    Attributes:
        name: What ``--ep`` takes.
        runtime_name: ONNX Runtime's name of it.
        device: What it runs on.
        install: How to get it.
        target: The target that models are planned for there; None where no table was made.
        fp16: Whether it computes in float16; None where nobody knows.
        int4: Whether a MatMul reads its 4 bit weights as they are; None where nobody knows.
        source: Where these facts come from.
        options: What it is opened with, unless something else is said.
        threads_option: The option that tells how many threads it uses; empty where it has none.
        beside: Providers that take the nodes it leaves, before the CPU provider does.
        memory_pattern: Whether it takes sessions that plan their memory ahead.
    """

    name: str
    runtime_name: str
    device: str
    install: str
    target: str | None
    fp16: bool | None
    int4: bool | None
    source: str
    options: dict[str, str] = {}
    threads_option: str = ""
    beside: tuple[str, ...] = ()
    memory_pattern: bool = True

    @property
    def int8(self) -> bool | None:
        """Whether it fuses pairs of Q and DQ into kernels on integers, as its target says."""
        if self.target is None:
            return None
        return Precision.INT8 not in TARGETS[self.target].refuses


_DQ_MATMUL = "DQMatMulToMatMulNBits in ONNX Runtime's qdq_selector_action_transformer.cc"

# The fastest hardware first: what is preferred where nothing was measured.
PROVIDERS: dict[str, ProviderFacts] = {
    facts.name: facts
    for facts in (
        ProviderFacts(
            "tensorrt",
            "TensorrtExecutionProvider",
            "NVIDIA GPU",
            "pip install 'onnxq[cuda]', and TensorRT 10: pip install tensorrt-cu12",
            target="tensorrt",
            fp16=True,
            int4=True,
            source="as target tensorrt; docs.nvidia.com/deeplearning/tensorrt: Working with "
            "Quantized Types (int4 weights alone); onnxruntime.ai/docs/execution-providers/"
            "TensorRT-ExecutionProvider.html",
            # up to TensorRT 10 it refuses pairs without; layers without a pair stay as they are
            options={"trt_int8_enable": "1"},
            beside=("CUDAExecutionProvider",),
        ),
        ProviderFacts(
            "cuda",
            "CUDAExecutionProvider",
            "NVIDIA GPU",
            "pip install 'onnxq[cuda]', with CUDA 12 and cuDNN 9",
            target="cuda",
            fp16=True,
            int4=True,
            source=f"as target cuda; {_DQ_MATMUL}",
        ),
        ProviderFacts(
            "migraphx",
            "MIGraphXExecutionProvider",
            "AMD GPU",
            "AMD's build for ROCm: rocm.docs.amd.com, 'Install ONNX Runtime for ROCm'",
            target=None,
            fp16=True,
            int4=None,
            source="onnxruntime.ai/docs/execution-providers/MIGraphX-ExecutionProvider.html",
        ),
        ProviderFacts(
            "rocm",
            "ROCMExecutionProvider",
            "AMD GPU",
            "ONNX Runtime up to 1.22, built for ROCm; later ones have migraphx",
            target=None,
            fp16=True,
            int4=None,
            source="onnxruntime.ai/docs/execution-providers/ROCm-ExecutionProvider.html",
        ),
        ProviderFacts(
            "directml",
            "DmlExecutionProvider",
            "Windows GPU",
            "pip install 'onnxq[directml]', on Windows",
            target="directml",
            fp16=True,
            int4=True,
            source=f"as target directml; {_DQ_MATMUL}; no memory patterns: "
            "onnxruntime.ai/docs/execution-providers/DirectML-ExecutionProvider.html",
            memory_pattern=False,
        ),
        ProviderFacts(
            "coreml",
            "CoreMLExecutionProvider",
            "Apple CPU, GPU and Neural Engine",
            "pip install 'onnxq[cpu]', on macOS",
            target=None,
            fp16=True,
            int4=False,
            source="onnxruntime.ai/docs/execution-providers/CoreML-ExecutionProvider.html: "
            "DequantizeLinear is not among its operators",
        ),
        ProviderFacts(
            "openvino",
            "OpenVINOExecutionProvider",
            "Intel CPU, GPU and NPU",
            "pip install 'onnxq[openvino]'",
            target="openvino",
            fp16=None,
            int4=None,
            source="as target openvino; "
            "onnxruntime.ai/docs/execution-providers/OpenVINO-ExecutionProvider.html",
            options={"device_type": "CPU"},
            threads_option="num_of_threads",
        ),
        ProviderFacts(
            "cpu",
            "CPUExecutionProvider",
            "CPU",
            "pip install 'onnxq[cpu]'",
            target="cpu-x86",
            fp16=False,
            int4=True,
            source=f"as target cpu-x86; {_DQ_MATMUL}",
        ),
    )
}

CPU = Provider()


def get_provider(name: str) -> ProviderFacts:
    """What is known of a provider.

    Raises:
        UsageError: There is none of this name; the nearest names are told.
    """
    if name in PROVIDERS:
        return PROVIDERS[name]
    hint = nearest(name, [*PROVIDERS, AUTO])
    raise UsageError(
        f"unknown execution provider '{name}'", f"{hint}; a plugin needs its library (--ep-library)"
    )
