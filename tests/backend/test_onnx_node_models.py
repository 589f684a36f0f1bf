"""The models of the onnx package's own backend tests: each is quantized, or refused clearly.

They hold every operator of ONNX in odd forms: empty tensors, scalars, strings, sequences, control
flow, bfloat16, operators and versions that no runtime has yet. Three kinds of end are allowed; a
failed self-check, an invalid model and any other exception are none of them.
"""

from __future__ import annotations

import pkgutil
import warnings
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from functools import cache
from importlib import import_module
from pathlib import Path

import numpy as np
import onnx
import onnx.backend.test.case.node as node_cases
import onnxruntime as ort
import pytest
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import DATA_DIR

from onnxq import quantize
from onnxq.errors import OnnxqError
from onnxq.graph import load
from onnxq.plan import Recipe, VerifySettings
from onnxq.runtime import synthetic_feed

UNTIMED = Recipe(verify=VerifySettings(seconds=0))
STATIC = Recipe(precision="int8", verify=VerifySettings(seconds=0))
# The one sample is also what calibration saw. Eight bits of a tensor that uses its whole range
# are about 50 dB; chains of a dozen nodes on a few dozen values have come down to 23 dB.
LEAST_DB = 20.0
# A masked-out row holds 1000 where the others end at 1: min-max ranges have to cover it.
OUTLIERS = "test_attention_4d_softcap_neginf_mask_poison_expanded"
# The newest form of the file that onnxruntime 1.20 reads; no case needs a newer one.
IR_VERSION = 10

PACKAGE = node_cases.__name__
FAMILIES = [
    module.name.removeprefix(f"{PACKAGE}.")
    for module in pkgutil.walk_packages(node_cases.__path__, f"{PACKAGE}.")
    if not module.ispkg and "._" not in module.name
]
# How many models of a family are at least quantized, so that "refused" cannot pass for all.
LEAST_QUANTIZED = {"attention": 100, "conv": 6, "gemm": 4, "matmul": 8}

KINDS = ("simple", "pytorch-operator", "pytorch-converted")
FOLDERS = sorted(f for kind in KINDS for f in Path(DATA_DIR, kind).glob("*/model.onnx"))
LIGHT = sorted(Path(DATA_DIR, "light").glob("*.onnx"))
# Of the three with hundreds of megabytes once their weights are unfolded, which are alike, one is
# taken, by one route.
HUGE = ("light_zfnet512",)
LIGHT = [model for model in LIGHT if model.stem not in ("light_vgg19", "light_bvlc_alexnet")]


class Outcome(StrEnum):
    """How a run may end."""

    QUANTIZED = "quantized"
    NOTHING = "nothing to quantize"
    REFUSED = "refused"


Feed = dict[str, np.ndarray]


def outcome(model: Path, data: Path | None, feed: Feed | None) -> Outcome:
    """Quantize a model, on data or without, and check whatever comes out."""
    output = model.with_suffix(".int8.onnx")
    try:
        result = quantize(
            model,
            data=str(data) if data else None,
            recipe=STATIC if data else UNTIMED,
            output=output,
            force=True,
        )
    except OnnxqError as error:
        assert error.exit_code == 3, error
        assert str(error), "an error without words"
        assert "\n" not in str(error)
        return Outcome.REFUSED
    if result.plan.empty:
        assert output.read_bytes() == model.read_bytes()
        assert all(node.reason and node.reason.sentence for node in result.plan.nodes)
        return Outcome.NOTHING
    onnx.checker.check_model(str(output))
    expected, found = (run(path, feed) for path in (model, output))
    assert describe(found) == describe(expected)
    if OUTLIERS not in str(model):
        decibels = {n: o.sqnr_db for n, o in result.receipt.measured.outputs.items()}
        assert all(db is None or db >= LEAST_DB for db in decibels.values()), decibels
    return Outcome.QUANTIZED


def run(model: Path, feed: Feed | None) -> list[np.ndarray]:
    """Load a model, and run it where there is a feed."""
    options = ort.SessionOptions()
    options.log_severity_level = 4  # some models are known to make it warn
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return session.run(None, feed) if feed is not None else []


def describe(outputs: list[np.ndarray]) -> list[tuple[str, tuple[int, ...]]]:
    return [(str(value.dtype), value.shape) for value in outputs]


def both_routes(folder: Path, made: Path) -> list[Outcome]:
    """What becomes of a folder's ``model.onnx`` without data, and on its ``test_data_set_0``."""
    model = made / "model.onnx"
    if not model.exists():
        model.write_bytes((folder / "model.onnx").read_bytes())
    data = folder / "test_data_set_0"
    feed = read_data_set(onnx.load(model), data) if data.is_dir() else None
    routes = [None, data] if any(data.glob("input_*.pb")) else [None]
    return [outcome(model, route, feed) for route in routes]


def read_data_set(model: onnx.ModelProto, folder: Path) -> Feed | None:
    """The feed of a data set; None when one of the inputs is no tensor."""
    if not all(value.type.HasField("tensor_type") for value in model.graph.input):
        return None
    files = sorted(folder.glob("input_*.pb"), key=lambda file: int(file.stem[6:]))
    protos = [onnx.TensorProto.FromString(file.read_bytes()) for file in files]
    pairs = zip(model.graph.input, protos, strict=False)  # initializers may follow the inputs
    return {value.name: onnx.numpy_helper.to_array(proto) for value, proto in pairs}


def write_case(folder: Path, model: onnx.ModelProto, inputs: Sequence[object]) -> Path:
    """Write a case that the onnx package makes up in memory, as its folders are written."""
    data = folder / "test_data_set_0"
    data.mkdir(parents=True)
    model.ir_version = min(model.ir_version, IR_VERSION)
    onnx.save(model, folder / "model.onnx")
    for index, value in enumerate(inputs):
        (data / f"input_{index}.pb").write_bytes(encode(value).SerializeToString())
    return folder


def encode(value: object) -> onnx.TensorProto | onnx.SequenceProto | onnx.OptionalProto:
    if isinstance(value, onnx.TensorProto):
        return value
    if isinstance(value, list):
        return onnx.numpy_helper.from_list(value)
    if value is None:
        return onnx.numpy_helper.from_optional(value)
    return onnx.numpy_helper.from_array(np.asarray(value))


@cache
def family(name: str) -> list[TestCase]:
    """The cases of one file of the onnx package, which makes them up while it is imported."""
    before = len(node_cases._NodeTestCases)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # expected values of log(0) and the like
        import_module(f"{PACKAGE}.{name}")
    return node_cases._NodeTestCases[before:]


def frozen(model: onnx.ModelProto, inputs: Sequence[object]) -> onnx.ModelProto | None:
    """The model with every input but the first turned into a constant, as weights are."""
    if len(inputs) < 2 or not all(isinstance(array, np.ndarray) for array in inputs):
        return None
    made = onnx.ModelProto.FromString(model.SerializeToString())
    for value, array in zip(model.graph.input[1:], inputs[1:], strict=True):
        made.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
        made.graph.input.remove(value)
    return made


@pytest.mark.parametrize("name", FAMILIES)
def test_node_models(name, tmp_path):
    ends, failures = Counter(), []
    for case in family(name):
        inputs, _ = case.data_sets[0]
        constant = frozen(case.model, inputs)
        variants = {case.name: (case.model, inputs)}
        if constant is not None:
            variants[f"{case.name}-constant"] = (constant, inputs[:1])
        for variant, (model, fed) in variants.items():
            try:
                folder = write_case(tmp_path / variant, model, fed)
                ends.update(both_routes(folder, folder))
            except Exception as error:  # noqa: BLE001 - all models are tried, then all told
                failures.append(f"{variant}: {type(error).__name__}: {error}")
    assert not failures, "\n".join(failures)
    assert ends, "the onnx package made no case of this family"
    assert ends[Outcome.QUANTIZED] >= LEAST_QUANTIZED.get(name, 0), ends


@pytest.mark.parametrize("model", FOLDERS, ids=lambda path: path.parent.name)
def test_folder_models(model, tmp_path):
    ends = both_routes(model.parent, tmp_path)
    assert ends[-1] is Outcome.QUANTIZED or not has_float_weights(model)


def has_float_weights(model: Path) -> bool:
    """True for a model with a convolution on constant float32 weights, which is never refused."""
    graph = onnx.load(model).graph
    floats = {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    return any(n.op_type == "Conv" and n.input[1] in floats for n in graph.node)


def test_many_of_the_folders_must_be_quantized():
    assert sum(map(has_float_weights, FOLDERS)) >= 15


@pytest.mark.parametrize("model", LIGHT, ids=lambda path: path.stem)
def test_light_models(model, tmp_path):
    """Whole networks; ConstantOfShape stands for their weights."""
    copied = tmp_path / "model.onnx"
    copied.write_bytes(model.read_bytes())
    feed = synthetic_feed(load(copied).view().inputs)
    data = tmp_path / "data.npz"
    np.savez(data, **feed)
    routes = [data] if model.stem in HUGE else [None, data]
    assert {outcome(copied, route, feed) for route in routes} == {Outcome.QUANTIZED}
