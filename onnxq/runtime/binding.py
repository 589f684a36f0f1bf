"""ONNX Runtime itself: its import, its version, and what it raises."""

from __future__ import annotations

import re
from importlib.metadata import distributions

from onnxq.errors import RuntimeFailure

try:
    import onnxruntime as ort
except ImportError as error:
    raise RuntimeFailure(
        "ONNX Runtime is not installed",
        "install one build of it: pip install 'onnxq[cpu]' (or [cuda], [directml], [openvino])",
    ) from error

__all__ = ["ORT_ERRORS", "first_line", "ort", "ort_package", "ort_version"]

# What ONNX Runtime raises for a bad model or feed: its own exceptions, which it derives from
# RuntimeError or Exception only.
ORT_ERRORS = (
    RuntimeError,
    ValueError,
    ort.capi.onnxruntime_pybind11_state.Fail,
    ort.capi.onnxruntime_pybind11_state.InvalidArgument,
    ort.capi.onnxruntime_pybind11_state.InvalidGraph,
    ort.capi.onnxruntime_pybind11_state.InvalidProtobuf,
    ort.capi.onnxruntime_pybind11_state.NotImplemented,
    ort.capi.onnxruntime_pybind11_state.RuntimeException,
    ort.capi.onnxruntime_pybind11_state.NoSuchFile,
)
# Where in its own source ONNX Runtime failed, down to the function's signature.
_SOURCE_LINE = re.compile(r"/\S+\.(?:cc|h):\d+ .*?\) ")


def first_line(error: BaseException) -> str:
    """What is wrong, without where in its source ONNX Runtime found it."""
    text = _SOURCE_LINE.sub("", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:400] if lines else type(error).__name__


def ort_version() -> str:
    """Version of the installed ONNX Runtime."""
    return str(ort.__version__)


def ort_package() -> str:
    """Name and version of the package that ONNX Runtime came with."""
    names = {dist.metadata["Name"] or "": dist.version for dist in distributions()}
    found = sorted(
        name
        for name, version in names.items()
        if name.lower().startswith("onnxruntime") and version == ort_version()
    )
    return f"{found[0] if found else 'onnxruntime'} {ort_version()}"
