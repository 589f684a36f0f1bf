"""Find out what kind of data a user named."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from onnxq.data.code import parse_code
from onnxq.data.datasets import NAMES, SPLITS, load_dataset
from onnxq.data.function import FunctionSource
from onnxq.data.preprocess import Preprocess
from onnxq.data.reader import Reader
from onnxq.data.sources import (
    LABELS,
    ArraySource,
    NpyFolder,
    NpzFolder,
    Source,
    TestDataSets,
    memory_source,
    npz_source,
)
from onnxq.data.validate import quoted, suggest
from onnxq.errors import DataError, UsageError
from onnxq.types import TensorSpec

FORMS = (
    "data are a FILE.npz, a folder of .npz or .npy files, an ONNX test_data_set_* folder, "
    "module:function, path/to/file.py:function, or dataset:digits|mnist|cifar10[/train|/test]"
)

_DATASET = "dataset:"


def open_data(
    spec: str,
    inputs: Sequence[TensorSpec],
    *,
    preprocess: Preprocess | None = None,
    base: Path | None = None,
    allow_code: bool = True,
) -> Reader:
    """Open calibration or test data.

    Args:
        spec: What to read, in one of the `FORMS`.
        inputs: The model's inputs.
        preprocess: What is done to the array of every float32 input.
        base: Folder that relative paths start from; the working directory when None.
        allow_code: Whether ``module:function`` may be imported and run.

    Returns:
        A reader. Names, counts and headers are checked here, values when they are read.

    Raises:
        DataError: There is nothing there, or it does not fit the model.
        UsageError: The data are code, and code is not allowed.
    """
    source = _source(spec, inputs, preprocess, base or Path(), allow_code)
    # the size of a function's data takes a pass to know: it says itself when it yields nothing
    if not isinstance(source, FunctionSource) and source.size == 0:
        raise DataError(f"{spec}: the data set is empty", "give at least one sample")
    return Reader(spec, source, inputs, preprocess)


def _source(
    spec: str,
    inputs: Sequence[TensorSpec],
    preprocess: Preprocess | None,
    base: Path,
    allow_code: bool,
) -> Source:
    if spec.startswith(_DATASET):
        return _dataset(spec, inputs)
    if not spec:
        raise DataError("no data named", FORMS)
    path = base / Path(spec).expanduser()
    if path.is_dir():
        return _folder(path, inputs, preprocess)
    if path.is_file():
        if path.suffix != ".npz":
            raise DataError(f"{path}: not a kind of data that can be read", FORMS)
        return npz_source(path, inputs)
    code = parse_code(spec, base)
    if code is None:
        raise DataError(f"{path}: no such file or folder", FORMS)
    if not allow_code:
        raise UsageError(
            f"a recipe that was merely found beside the model may not name Python code ('{spec}')",
            "pass it with --recipe or --data",
        )
    return FunctionSource(*code, inputs)


def _dataset(spec: str, inputs: Sequence[TensorSpec]) -> ArraySource:
    name, _, split = spec.removeprefix(_DATASET).partition("/")
    split = split or "test"
    if name not in NAMES:
        raise DataError(f"{spec}: no data set '{name}'", suggest(name, NAMES, "data sets"))
    if split not in SPLITS:
        raise DataError(f"{spec}: no split '{split}'", suggest(split, SPLITS, "splits"))
    if len(inputs) != 1:
        raise DataError(
            f"{spec} feeds a model with one input, but this model has {len(inputs)} "
            f"({quoted(item.name for item in inputs)})",
            "use module:function to feed several inputs",
        )
    if inputs[0].name == LABELS:
        raise DataError(f"{spec}: the model's input is called '{LABELS}'", "use module:function")
    images, labels = load_dataset(name, split)
    return memory_source({inputs[0].name: images, LABELS: labels}, inputs, spec)


def _folder(path: Path, inputs: Sequence[TensorSpec], preprocess: Preprocess | None) -> Source:
    try:
        entries = sorted((p for p in path.iterdir() if p.name[0] != "."), key=_natural)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error})") from error
    if any(re.fullmatch(r"input_\d+\.pb", entry.name) for entry in entries):
        return TestDataSets([path], inputs)
    sets = [p for p in entries if p.is_dir() and p.name.startswith("test_data_set_")]
    if sets:
        return TestDataSets(sets, inputs)
    npz = [entry for entry in entries if entry.suffix == ".npz"]
    npy = [entry for entry in entries if entry.suffix == ".npy"]
    if npz and npy:
        raise DataError(f"{path}: holds both .npz and .npy files", "keep one kind in a folder")
    if npz:
        return NpzFolder(npz, inputs)
    if npy:
        shape = inputs[0].shape if inputs else None
        added = 1 if preprocess is not None and preprocess.add_channel else 0
        return NpyFolder(npy, inputs, None if shape is None else len(shape) - added)
    raise DataError(f"{path}: no .npz, .npy or input_0.pb in this folder", FORMS)


def _natural(path: Path) -> tuple[list[tuple[int, int | str]], str]:
    """Sort key that puts item_2 before item_10."""
    parts = re.findall(r"\d+|\D+", path.name)
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts], path.name
