"""Find out what kind of data a user named."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from onnxq.data.code import find_function, parse_code
from onnxq.data.datasets import NAMES, SPLITS, load_dataset
from onnxq.data.function import FunctionSource
from onnxq.data.images import ImageSource, find_images, images_in
from onnxq.data.objects import Data, describe, object_source
from onnxq.data.preprocess import Preprocess
from onnxq.data.reader import Reader
from onnxq.data.sources import (
    LABELS,
    ArraySource,
    NpyFolder,
    NpzFolder,
    Source,
    TestDataSets,
    entries_of,
    memory_source,
    npy_source,
    npz_source,
    required_inputs,
)
from onnxq.data.validate import only_input, suggest
from onnxq.errors import DataError, UsageError
from onnxq.types import TensorSpec

FORMS = (
    "data are a FILE.npz, a FILE.npy, a folder of .npz, .npy or image files, a folder of class "
    "folders of images, an ONNX test_data_set_* folder, module:function, "
    "path/to/file.py:function, or dataset:digits|mnist|cifar10[/train|/test]"
)

_DATASET = "dataset:"


def open_data(
    data: Data,
    inputs: Sequence[TensorSpec],
    *,
    preprocess: Preprocess | None = None,
    base: Path | None = None,
    allow_code: bool = True,
    optional: Collection[str] = (),
) -> Reader:
    """Open calibration or test data.

    Args:
        data: What to read, in one of the `FORMS`; or Python objects:

            * arrays by input name, the samples on their first axis, with ``labels`` if there
              are any, or one such array for a model with one input;
            * a list or other iterable of feeds (arrays by input name, as a session takes them)
              or of ``(feed, labels)``;
            * an iterator or generator of these: it is read to its end here, and its feeds are
              kept in temporary files as long as a reader of them lives;
            * a function that takes nothing and returns feeds, the same at every call.
        inputs: The model's inputs.
        preprocess: What is done to the array of every float32 input that is not optional.
        base: Folder that relative paths start from; the working directory when None.
        allow_code: Whether ``module:function`` may be imported and run.
        optional: Names of inputs that a feed may leave out, such as states that are fed back
            from outputs.

    Returns:
        A reader. Names, counts and headers are checked here, values when they are read.

    Raises:
        DataError: There is nothing there, or it does not fit the model.
        UsageError: The data are code, and code is not allowed; or ``optional`` names no input.
    """
    for name in optional:
        if all(spec.name != name for spec in inputs):
            hint = suggest(name, [spec.name for spec in inputs], "model's inputs")
            raise UsageError(f"'{name}' is to be optional, but the model has no such input", hint)
    if isinstance(data, str | os.PathLike):
        spec = os.fspath(data)
        source = _named(spec, inputs, preprocess, base or Path(), allow_code, optional)
    else:
        spec = describe(data)
        source = object_source(data, inputs, spec, optional)
    # the size of a function's data takes a pass to know: it says itself when it yields nothing
    if not isinstance(source, FunctionSource) and source.size == 0:
        raise DataError(f"{spec}: the data set is empty", "give at least one sample")
    if preprocess is not None and preprocess.for_images and not isinstance(source, ImageSource):
        raise DataError(
            f"{spec}: [data.preprocess] {' and '.join(preprocess.for_images)} can only be done to "
            "a folder of images, and these data are none",
            "leave it out, and prepare the arrays",
        )
    return Reader(spec, source, inputs, preprocess, optional=optional)


def _named(
    spec: str,
    inputs: Sequence[TensorSpec],
    preprocess: Preprocess | None,
    base: Path,
    allow_code: bool,
    optional: Collection[str],
) -> Source:
    if spec.startswith(_DATASET):
        return _dataset(spec, inputs, optional)
    if not spec:
        raise DataError("no data named", FORMS)
    path = base / Path(spec).expanduser()
    if path.is_dir():
        return _folder(path, inputs, preprocess, optional)
    if path.is_file():
        if path.suffix not in (".npz", ".npy"):
            raise DataError(f"{path}: not a kind of data that can be read", FORMS)
        open_file = npz_source if path.suffix == ".npz" else npy_source
        return open_file(path, inputs, optional)
    code = parse_code(spec, base)
    if code is None:
        raise DataError(f"{path}: no such file or folder", FORMS)
    if not allow_code:
        raise UsageError(
            f"a recipe that was merely found beside the model may not name Python code ('{spec}')",
            "pass it with --recipe or --data",
        )
    return FunctionSource(find_function(*code), inputs, f"{code[0]}:{code[1]}")


def _dataset(spec: str, inputs: Sequence[TensorSpec], optional: Collection[str]) -> ArraySource:
    name, _, split = spec.removeprefix(_DATASET).partition("/")
    split = split or "test"
    if name not in NAMES:
        raise DataError(f"{spec}: no data set '{name}'", suggest(name, NAMES, "data sets"))
    if split not in SPLITS:
        raise DataError(f"{spec}: no split '{split}'", suggest(split, SPLITS, "splits"))
    required = required_inputs(inputs, optional)
    image = only_input(required, spec, "use module:function to feed several inputs").name
    if any(item.name == LABELS for item in inputs):
        raise DataError(f"{spec}: the model's input is called '{LABELS}'", "use module:function")
    images, labels = load_dataset(name, split)
    return memory_source({image: images, LABELS: labels}, inputs, spec, optional)


def _folder(
    path: Path,
    inputs: Sequence[TensorSpec],
    preprocess: Preprocess | None,
    optional: Collection[str],
) -> Source:
    entries = entries_of(path)
    if any(re.fullmatch(r"input_\d+\.pb", entry.name) for entry in entries):
        return TestDataSets([path], inputs)
    sets = [p for p in entries if p.is_dir() and p.name.startswith("test_data_set_")]
    if sets:
        return TestDataSets(sets, inputs)
    kinds = {
        ".npz": [entry for entry in entries if entry.suffix == ".npz"],
        ".npy": [entry for entry in entries if entry.suffix == ".npy"],
        "image": images_in(entries),
    }
    there = [kind for kind, files in kinds.items() if files]
    if len(there) > 1:
        raise DataError(f"{path}: holds both {' and '.join(there)} files", "keep one kind")
    if kinds[".npz"]:
        return NpzFolder(kinds[".npz"], inputs)
    if kinds[".npy"]:
        add_channel = preprocess is not None and preprocess.add_channel
        return NpyFolder(kinds[".npy"], inputs, optional, add_channel=add_channel)
    images, labels = find_images(path, entries)
    if images:
        return ImageSource(path, images, labels, inputs, preprocess, optional)
    raise DataError(f"{path}: no .npz, .npy or input_0.pb in this folder, and no image", FORMS)
