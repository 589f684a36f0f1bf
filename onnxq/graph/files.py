"""Read and write ONNX files: external data memory-mapped, whole files or none."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, EncodeError

from onnxq.errors import ModelError, OutputError
from onnxq.graph.model import Model, internal, mapped, serialize
from onnxq.graph.view import described
from onnxq.types import Array

# onnx_ir warns of tensors that nothing makes, and goes on; here they are errors.
logging.getLogger("onnx_ir.serde").setLevel(logging.ERROR)


def load(path: str | os.PathLike[str], *, in_memory: bool = False) -> Model:
    """Load an ONNX file; its external data stay on disk until they are used.

    Args:
        path: The file.
        in_memory: Read the external data at once, so that their file may go.

    Raises:
        ModelError: The file is missing, is no ONNX model, is truncated, points outside its
            folder, or holds what onnxq cannot keep (``sparse_initializer``,
            ``training_info``).
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ModelError(f"model '{path}' {what}", "give the path of an .onnx file")
    proto = _parse(path)
    _refuse(proto, path)
    try:
        _forget_negative_sizes(proto.graph)
        model = ir.serde.deserialize_model(proto)
        model.graph.sort()  # some converters append nodes out of order; the order is stable
    except (ir.serde.SerdeError, ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"model '{path}' holds an inconsistent graph: {_root(error)}",
            "check it with onnx.checker.check_model",
        ) from error
    loaded = Model(model, path)
    _check_inputs(loaded)
    _check_outputs(loaded)
    _check_external(loaded)
    if in_memory:
        ir.external_data.load_to_model(model)
    return loaded


def _parse(path: Path) -> onnx.ModelProto:
    try:
        proto = onnx.load(path, format="protobuf", load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise ModelError(
            f"'{path}' is not an ONNX model, or it is truncated ({path.stat().st_size} bytes)",
            "export or copy it again",
        ) from error
    except OSError as error:
        raise ModelError(f"model '{path}' cannot be read: {error.strerror}") from error
    if not proto.HasField("graph") or not proto.graph.output or not proto.opset_import:
        raise ModelError(
            f"'{path}' is not an ONNX model, or it is truncated: it has no complete graph",
            "export or copy it again",
        )
    return proto


def _forget_negative_sizes(graph: onnx.GraphProto) -> None:
    """Some exporters write -1 for an axis of any size, which ONNX says by leaving it empty."""
    for info in (*graph.input, *graph.output, *graph.value_info):
        for dim in info.type.tensor_type.shape.dim:
            if dim.dim_value < 0:
                dim.Clear()


def _refuse(proto: onnx.ModelProto, path: Path) -> None:
    if proto.training_info:
        raise ModelError(
            f"model '{path}' holds training_info, which would be lost",
            "export the model for inference",
        )
    sparse = _sparse(proto.graph)
    if sparse:
        raise ModelError(
            f"model '{path}' holds sparse initializers ({sparse}), which would be lost",
            "convert them to dense tensors",
        )


def _sparse(graph: onnx.GraphProto) -> str:
    if graph.sparse_initializer:
        return graph.sparse_initializer[0].values.name or "unnamed"
    for node in graph.node:
        for attr in node.attribute:
            for inner in [attr.g] if attr.HasField("g") else attr.graphs:
                if found := _sparse(inner):
                    return found
    return ""


def _root(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error) or type(error).__name__


def _check_inputs(model: Model) -> None:
    """Whatever a node reads is an input, an initializer, or made by a node."""
    for graph in model.graphs():
        for node in graph:
            for value in node.inputs:
                if value is None or value.producer() or value.is_graph_input():
                    continue
                if not value.is_initializer():
                    raise ModelError(
                        f"model '{model.path}': {described(node)} reads '{value.name}', "
                        "which nothing makes",
                        "export the model again",
                    )


def _check_outputs(model: Model) -> None:
    """Every graph makes its outputs itself: a branch must not name a tensor from outside."""
    names = [value.name for value in model.ir.graph.outputs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ModelError(
            f"model '{model.path}' lists its output '{twice}' twice", "list every output once"
        )
    for graph in model.graphs():
        for value in graph.outputs:
            made = value.producer() or value.is_graph_input() or value.is_initializer()
            if not made or value.graph is not graph:
                raise ModelError(
                    f"model '{model.path}': no node of graph '{graph.name}' makes its output "
                    f"'{value.name}'",
                    "put an Identity before it, or export the model again",
                )


def _check_external(model: Model) -> None:
    """Every external tensor lies inside the model's folder, and its file is long enough."""
    assert model.path is not None
    folder = model.path.resolve().parent
    for name, tensor in model.tensors():
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        tensor.base_dir = folder
        file = (folder / str(tensor.location)).resolve()
        where = f"external data of '{name}' in '{model.path}'"
        if not file.is_relative_to(folder):
            raise ModelError(f"{where} lie outside the model's folder: '{tensor.location}'")
        if not file.is_file():
            raise ModelError(f"{where} are missing: '{file}'", "copy them beside the model")
        if (tensor.offset or 0) + tensor.nbytes > file.stat().st_size:
            raise ModelError(f"{where} are truncated: '{file}'", "copy them again")


def save(model: Model, path: str | os.PathLike[str], *, external: bool = False) -> None:
    """Write a model whole or not at all: made in a folder beside, then renamed.

    It is one file, wherever its tensors came from, as long as one protobuf file can hold them;
    beyond that they go to ``NAME.data`` beside the model.

    Args:
        model: The model.
        path: The file.
        external: Whether tensors go to ``NAME.data`` in any case. They are written one by one then,
            while a single file is put together in memory.

    Raises:
        OutputError: The folder is missing, read-only or full.
    """
    path = Path(path)
    with staging(path) as part:
        if external or not model.fits_one_file:
            ir.save(mapped(model).ir, part, external_data=data_path(path).name)
        else:
            ir.save(internal(model).ir, part)
        move_model(part, path)


@contextmanager
def staging(path: Path) -> Iterator[Path]:
    """A place of the same name in a folder beside ``path``, to make a file in and rename it.

    Raises:
        OutputError: What happens inside fails for want of room or rights.
    """
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            yield Path(folder) / path.name
    except (OSError, EncodeError) as error:
        raise _cannot_write(path, error) from error
    except OutputError as error:  # of a file inside, whose name means nothing to the user
        raise _cannot_write(path, error.__cause__ or error) from error


def move_model(part: Path, path: Path) -> None:
    """Rename a model and its external data into place; a kill never leaves the wrong data.

    External data of the model that stood there go with it.
    """
    data, stale = data_path(part), _owned_data(path)
    if data.is_file() and data.stat().st_size:  # empty where all tensors are small
        path.unlink(missing_ok=True)
        data.replace(data_path(path))
        stale = None
    part.replace(path)
    if stale is not None:
        stale.unlink()


def _owned_data(path: Path) -> Path | None:
    """The data file of the model at a path, if there is one that this model reads."""
    data = data_path(path)
    if not data.is_file() or not path.is_file():
        return None
    try:
        return data if data.resolve() in files_of(load(path)) else None
    except ModelError:  # what stands there is none of ours
        return None


def data_path(path: Path) -> Path:
    """Where the external data of a saved model go: ``m.onnx.data`` for ``m.onnx``."""
    return path.with_name(f"{path.name}.data")


def copy_model(model: Model, target: Path) -> None:
    """Write a model that was not changed: the very bytes of its file where it has one.

    Raises:
        OutputError: The target cannot be written.
    """
    if model.path is None or model.has_external_data:
        save(model, target)
    else:
        write_bytes(model.path.read_bytes(), target)


def write_bytes(content: bytes, target: Path) -> None:
    """Write a file whole or not at all.

    Raises:
        OutputError: The target cannot be written.
    """
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        part.replace(target)
    except OSError as error:
        raise _cannot_write(target, error) from error
    finally:
        part.unlink(missing_ok=True)


def check_writable(target: Path, sources: Sequence[Path], *, force: bool) -> None:
    """Fail before the work, not after it, when an output cannot be written.

    Raises:
        OutputError: It exists already, is a folder or is read, or its folder cannot be
            written to.
    """
    if target.resolve() in [source.resolve() for source in sources]:
        raise OutputError(
            f"output '{target}' is one of the files that are read", "choose another with -o"
        )
    if target.is_dir():
        raise OutputError(f"output '{target}' is a folder", "name a file in it with -o")
    if target.exists() and not force:
        raise OutputError(f"output '{target}' exists already", "overwrite it with --force")
    try:
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise _cannot_write(target, error) from error


def _cannot_write(target: Path, error: BaseException) -> OutputError:
    reason = getattr(error, "strerror", None) or str(error)
    return OutputError(f"cannot write '{target}': {reason}", "choose another place with -o")


def files_of(model: Model) -> list[Path]:
    """The model's file and its external data files; none for a model made in memory."""
    if model.path is None:
        return []
    external = {Path(t.path) for _, t in model.tensors() if isinstance(t, ir.ExternalTensor)}
    return [model.path, *sorted(external)]


def files_at(path: Path) -> list[Path]:
    """The same for a model that is not loaded; the path alone where none can be."""
    try:
        return files_of(load(path))
    except ModelError:  # whoever loads it for its own sake tells why
        return [path]


def sha256(model: Model) -> str:
    """SHA-256 of a model's file and then of its external data files, sorted by name.

    For a model made in memory, of its serialised bytes.
    """
    files = files_of(model)
    digest = hashlib.sha256()
    if not files:
        digest.update(serialize(model))
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def read_tensor(path: str | os.PathLike[str]) -> Array:
    """The values of a serialised ``TensorProto`` (``input_0.pb`` of a test data set).

    Raises:
        ModelError: The file is no tensor.
    """
    try:
        proto = onnx.TensorProto.FromString(Path(path).read_bytes())
        if not proto.data_type:
            raise ValueError("it has no data type")
        return onnx.numpy_helper.to_array(proto)
    except (DecodeError, ValueError, TypeError) as error:
        raise ModelError(f"'{path}' is not an ONNX tensor: {error}") from error
