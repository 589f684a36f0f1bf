"""Sessions: an ONNX Runtime session that speaks in onnxq's values and errors."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from onnxq.errors import RuntimeFailure
from onnxq.graph import Model, lend, save, serialize
from onnxq.runtime.binding import ORT_ERRORS, first_line, ort, ort_version
from onnxq.runtime.memory import give_back
from onnxq.runtime.providers import append, fallen_back, quiet, require
from onnxq.targets import CPU, Provider
from onnxq.types import Array, Feed, TensorSpec

LEVELS = {
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
# A session keeps the bytes that it was made from as long as it lives. Larger models lend it their
# weights, or are read from a file, which costs a third of a second per 100 MB.
IN_MEMORY_LIMIT = 16_000_000
# Nodes that a sentence about a fallback names.
_NAMED = 3


class Session:
    """One model, ready to run on one execution provider.

    Another provider is another session. ``close`` frees the memory at once, as the end of a
    ``with`` does; a session that is forgotten frees it too.

    Args:
        model: The model.
        provider: Where it runs. Nodes that it leaves run on the CPU provider.
        threads: Threads inside an operator. One is the stablest to measure with.
        level: Graph optimisation: ``none``, ``basic`` or ``all``.
        fuse_pairs: Whether layers between QuantizeLinear and DequantizeLinear may compute on
            integers. Without, pairs round what flows through them, and nothing else is rounded;
            only the CPU provider can be told so, and it then runs the model whatever ``provider``.
        write_optimized: Where ONNX Runtime writes the graph that it really runs; its tensors
            go to a file beside it when they do not fit into one. Only the CPU provider's graph
            can be written.
        profile: What the file is called that the profiler writes, without its ending.

    Attributes:
        provider: Where it runs.
        fallback: Names of the nodes that the CPU provider runs instead; None where ONNX Runtime
            does not tell.

    Raises:
        UsageError: There is no such provider.
        RuntimeFailure: ONNX Runtime refuses the model, has no such provider or cannot start it, or
            a node falls back where the provider is strict.
    """

    def __init__(
        self,
        model: Model,
        *,
        provider: Provider = CPU,
        threads: int = 1,
        level: str = "all",
        fuse_pairs: bool = True,
        write_optimized: Path | None = None,
        profile: Path | None = None,
    ) -> None:
        self.provider = provider if fuse_pairs else CPU
        require(self.provider)
        options = session_options(threads, level)
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
        name = f"'{model.path}'" if model.path else "the model"
        with _source(model, options, self.provider) as (source, lent):
            self._session = _start(source, name, options, self.provider, threads)
        self._lent = lent
        if large:
            give_back()
        self.inputs = tuple(_spec(value) for value in self._session.get_inputs())
        self.outputs = tuple(_spec(value) for value in self._session.get_outputs())
        self._name = str(model.path or "the model")
        self.fallback = () if self.provider.is_cpu else fallen_back(self._session)
        if self.provider.strict and self.fallback:
            raise RuntimeFailure(
                f"'{self._name}': {told_fallback(self.fallback, self.provider)}",
                "leave out --strict-ep to let them",
            )

    def close(self) -> None:
        """Free the memory; nothing runs afterwards. Closing twice does no harm."""
        self._session = None
        self._lent = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def run(self, feed: Feed, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run once.

        Returns:
            The outputs by name; those that are no tensors (sequences, maps) are left out.

        Raises:
            RuntimeFailure: ONNX Runtime failed on this feed, or the session is closed.
        """
        if self._session is None:
            raise RuntimeFailure(f"the session of '{self._name}' is closed", "open another one")
        names = list(outputs) if outputs is not None else [o.name for o in self.outputs]
        try:
            values = self._session.run(names, feed)
        except ORT_ERRORS as error:
            raise RuntimeFailure(f"running '{self._name}' failed: {first_line(error)}") from error
        pairs = zip(names, values, strict=True)
        return {name: value for name, value in pairs if hasattr(value, "dtype")}

    def end_profiling(self) -> Path:
        """Stop the profiler.

        Returns:
            The file that it wrote: Chrome's trace format, one event per kernel and run.
        """
        return Path(self._session.end_profiling())


def session_options(threads: int, level: str = "all") -> Any:  # noqa: ANN401 - onnxruntime is untyped
    """What every session of onnxq's has in common."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # failures are raised, not logged
    options.graph_optimization_level = LEVELS[level]
    # Two live sessions with spinning pools disturb each other up to three times.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # The arena doubles as it grows: up to half of what it holds for weights is empty.
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    return options


def told_fallback(nodes: Sequence[str], provider: Provider) -> str:
    """A sentence about nodes that fell back."""
    named = ", ".join(f"'{name}'" for name in nodes[:_NAMED])
    more = f" and {len(nodes) - _NAMED} more" if len(nodes) > _NAMED else ""
    what = f"{len(nodes)} node{'s' if len(nodes) > 1 else ''}"
    run = "run" if len(nodes) > 1 else "runs"
    return f"{what} ({named}{more}) {run} on the CPU provider, and not on {provider.name}"


def open_file(path: Path, provider: Provider, threads: int) -> Any:  # noqa: ANN401 - onnxruntime is untyped
    """ONNX Runtime's own session of a file, for who counts what nothing but that takes.

    Raises:
        RuntimeFailure: As ``Session``.
    """
    require(provider)
    return _start(str(path), f"'{path}'", session_options(threads), provider, threads)


@contextmanager
def _source(
    model: Model,
    options: Any,  # noqa: ANN401 - onnxruntime is untyped
    provider: Provider,
) -> Iterator[tuple[str | bytes, Sequence[Any]]]:
    """What a session is opened from, and what has to live as long as the session does."""
    writes = bool(options.optimized_model_filepath)  # which needs weights of its own
    if model.weight_bytes < IN_MEMORY_LIMIT:
        yield serialize(model), ()
    elif provider.is_cpu and not writes and model.fits_one_file:
        graph, arrays = lend(model)
        lent = [ort.OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
        options.add_external_initializers(list(arrays), lent)
        yield graph, lent
    else:
        with tempfile.TemporaryDirectory(prefix="onnxq-") as folder:
            path = Path(folder) / "model.onnx"
            save(model, path)
            yield str(path), ()


def _start(source: str | bytes, name: str, options: Any, provider: Provider, threads: int) -> Any:  # noqa: ANN401 - onnxruntime is untyped
    try:
        providers = append(options, provider, threads) or None
        with quiet():
            # with fallback it would print, and open the session on the CPU provider alone
            session = ort.InferenceSession(source, options, providers=providers, enable_fallback=0)
    except ORT_ERRORS as error:
        on = "" if provider.is_cpu else f" on {provider.name}"
        raise RuntimeFailure(
            f"ONNX Runtime {ort_version()} cannot load {name}{on}: {first_line(error)}"
        ) from error
    if provider.runtime_name not in session.get_providers():
        raise RuntimeFailure(
            f"execution provider '{provider.name}' is installed, and cannot start here",
            "are its device, its driver and the libraries there, in the versions that it needs?",
        )
    return session


def _spec(value: Any) -> TensorSpec:  # noqa: ANN401 - onnxruntime is untyped
    kind = value.type.removeprefix("tensor(").removesuffix(")")
    dtype = {"float": "float32", "double": "float64"}.get(kind, kind)
    return TensorSpec(value.name, dtype, tuple(value.shape))
