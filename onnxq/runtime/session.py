"""Sessions: an ONNX Runtime session that speaks in onnxq's values and errors."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnxq.errors import RuntimeFailure
from onnxq.graph import Model, save, serialize
from onnxq.runtime.memory import give_back
from onnxq.types import Array, Feed, TensorSpec

try:
    import onnxruntime as ort
except ImportError as error:
    raise RuntimeFailure(
        "ONNX Runtime is not installed",
        "install one build of it: pip install 'onnxq[cpu]' (or [cuda], [directml], [openvino])",
    ) from error

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
LEVELS = {
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
# Where in its own source ONNX Runtime failed, down to the function's signature.
_SOURCE_LINE = re.compile(r"/\S+\.(?:cc|h):\d+ .*?\) ")
# A session keeps the bytes that it was made from as long as it lives; larger models are read from
# a file, which costs a tenth of a second per 100 MB.
IN_MEMORY_LIMIT = 16_000_000


class Session:
    """One model, ready to run on one execution provider.

    Args:
        model: The model.
        threads: Threads inside an operator. One is the stablest to measure with.
        level: Graph optimisation: ``none``, ``basic`` or ``all``.
        fuse_pairs: Whether layers between QuantizeLinear and DequantizeLinear may compute on
            integers. Without, pairs round what flows through them, and nothing else is rounded.
        write_optimized: Where ONNX Runtime writes the graph that it really runs; its tensors
            go to a file beside it when they do not fit into one.
        profile: What the file is called that the profiler writes, without its ending.

    Raises:
        RuntimeFailure: ONNX Runtime refuses the model.
    """

    def __init__(
        self,
        model: Model,
        *,
        threads: int = 1,
        level: str = "all",
        fuse_pairs: bool = True,
        write_optimized: Path | None = None,
        profile: Path | None = None,
    ) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # failures are raised, not logged
        options.graph_optimization_level = LEVELS[level]
        # Two live sessions with spinning pools disturb each other up to three times.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # The arena doubles as it grows: up to half of what it holds for weights is empty.
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
        if not fuse_pairs:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        if write_optimized is not None:
            options.optimized_model_filepath = str(write_optimized)
            if not model.fits_one_file:
                data = "session.optimized_model_external_initializers_"
                options.add_session_config_entry(f"{data}file_name", f"{write_optimized.name}.data")
                options.add_session_config_entry(f"{data}min_size_in_bytes", "1024")
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        large = model.weight_bytes > IN_MEMORY_LIMIT
        if large:
            give_back()  # what earlier stages freed
        self._session = _open(model, options)
        if large:
            give_back()
        self.inputs = tuple(_spec(value) for value in self._session.get_inputs())
        self.outputs = tuple(_spec(value) for value in self._session.get_outputs())
        self._name = str(model.path or "the model")

    def run(self, feed: Feed, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run once.

        Returns:
            The outputs by name; those that are no tensors (sequences, maps) are left out.

        Raises:
            RuntimeFailure: ONNX Runtime failed on this feed.
        """
        names = list(outputs) if outputs is not None else [o.name for o in self.outputs]
        try:
            values = self._session.run(names, feed)
        except ORT_ERRORS as error:
            raise RuntimeFailure(f"running '{self._name}' failed: {_first_line(error)}") from error
        pairs = zip(names, values, strict=True)
        return {name: value for name, value in pairs if hasattr(value, "dtype")}

    def end_profiling(self) -> Path:
        """Stop the profiler.

        Returns:
            The file that it wrote: Chrome's trace format, one event per kernel and run.
        """
        return Path(self._session.end_profiling())


def _open(model: Model, options: Any) -> Any:  # noqa: ANN401 - onnxruntime is untyped
    providers = ["CPUExecutionProvider"]
    try:
        if model.weight_bytes < IN_MEMORY_LIMIT:
            return ort.InferenceSession(serialize(model), options, providers=providers)
        with tempfile.TemporaryDirectory(prefix="onnxq-") as folder:
            path = Path(folder) / "model.onnx"
            save(model, path)
            return ort.InferenceSession(str(path), options, providers=providers)
    except ORT_ERRORS as error:
        name = f"'{model.path}'" if model.path else "the model"
        raise RuntimeFailure(
            f"ONNX Runtime {ort.__version__} cannot load {name}: {_first_line(error)}"
        ) from error


def _first_line(error: BaseException) -> str:
    text = _SOURCE_LINE.sub("", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:400] if lines else type(error).__name__


def _spec(value: Any) -> TensorSpec:  # noqa: ANN401 - onnxruntime is untyped
    kind = value.type.removeprefix("tensor(").removesuffix(")")
    dtype = {"float": "float32", "double": "float64"}.get(kind, kind)
    return TensorSpec(value.name, dtype, tuple(value.shape))


def ort_version() -> str:
    """Version of the installed ONNX Runtime."""
    return str(ort.__version__)
