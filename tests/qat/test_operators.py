"""The operators against the node tests of the onnx package, and against ONNX Runtime.

Every case whose operators are all known is computed in PyTorch. Two oracles tell what comes out:
the values of the case, and ONNX Runtime where it takes the model. Cases of functions come a second
time as the graphs that define them, which run many operators one after another.
"""

from __future__ import annotations

import pkgutil
import sys
import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module

import numpy as np
import onnx
import onnx.backend.test.case.node as node_cases
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx.backend.test.case.test_case import TestCase

torch = pytest.importorskip("torch")
Tensor = torch.Tensor

from onnxq.errors import ModelError  # noqa: E402
from onnxq.graph import Model  # noqa: E402
from onnxq.qat.evaluator import Evaluator  # noqa: E402
from onnxq.qat.operators import CONTROL, OPERATORS  # noqa: E402

PACKAGE = node_cases.__name__
FAMILIES = [
    module.name.removeprefix(f"{PACKAGE}.")
    for module in pkgutil.walk_packages(node_cases.__path__, f"{PACKAGE}.")
    if not module.ispkg and "._" not in module.name
]
KNOWN = {*OPERATORS, *CONTROL}
# Types that PyTorch calculates with: no strings, no bfloat16, nothing of 4 bits; of unsigned
# integers wider than 8 bits it can only hold the values.
TYPES = {"bool", "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8"}
# What cases with these words in their name compute differs from run to run, or trains.
TRAINING = "training"
# float32 sums in another order: seen up to 7e-6 of a value, or of 0.01 where it is smaller.
# float16 has a step of 1e-3: seen up to 1.2e-3, twice that where two sums meet in the middle.
TOLERANCES: Mapping[str, tuple[float, float]] = {"float16": (2.5e-3, 2.5e-5)}
RTOL, ATOL = 2e-5, 2e-7

INDICES = "Indices of MaxPool are refused"
OLDER = "models of that opset are raised to opset 13 before they are computed"
LEFT_OUT = {
    "test_loop11": OLDER,
    "test_scan_sum": OLDER,
    "test_maxpool_with_argmax_2d_precomputed_pads": INDICES,
    "test_maxpool_with_argmax_2d_precomputed_strides": INDICES,
}
FOUR_DIGITS = "its expected values are written with four digits"
FRACTION = "ONNX's reference counts a fraction of a value, ONNX Runtime and PyTorch whole ones"
NOT_AS_THE_CASE = {
    "test_averagepool_2d_ceil_last_window_starts_on_pad": FOUR_DIGITS,
    "test_resize_downsample_scales_cubic_align_corners": FRACTION,
    "test_resize_downsample_scales_linear_align_corners": FRACTION,
}
LOWEST = "ONNX Runtime shows the lowest float32 where the reference shows -inf"
NOT_AS_ONNX_RUNTIME = {
    "test_attention_4d_with_past_and_present_qk_matmul_bias_3d_mask_causal": LOWEST,
    "test_attention_4d_with_past_and_present_qk_matmul_bias_4d_mask_causal": LOWEST,
}
# Operators that read numbers out of float tensors: scales, limits, what padding holds.
READS_FLOATS = {"Loop", "OneHot", "Pad", "Range", "Resize"}
# Operators without a node test; they have one of their own beside this file.
ELSEWHERE = {"GlobalLpPool", "SimplifiedLayerNormalization"}


@cache
def family(name: str) -> list[TestCase]:
    """The cases of one file of the onnx package, which makes them up while it is imported.

    It leaves no trace of the import: others may make the same cases up in the same process.
    """
    made, module = node_cases._NodeTestCases, f"{PACKAGE}.{name}"
    before, names = len(made), dict(node_cases._existing_names)
    sys.modules.pop(module, None)
    node_cases._existing_names.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # expected values of log(0) and the like
        import_module(module)
    cases = made[before:]
    del made[before:], sys.modules[module]
    node_cases._existing_names.clear()
    node_cases._existing_names.update(names)
    return cases


def operators(graph: onnx.GraphProto) -> Iterator[str]:
    """All operators of a graph and its bodies, with their domains."""
    for node in graph.node:
        domain = "" if node.domain == "ai.onnx" else node.domain
        yield f"{domain}::{node.op_type}" if domain else node.op_type
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from operators(attribute.g)


def fits(case: TestCase) -> bool:
    """Whether a case is one that PyTorch has to get right."""
    values = [value for side in case.data_sets[0] for value in side]
    return (
        KNOWN.issuperset(operators(case.model.graph))
        and all(hasattr(value, "dtype") and str(value.dtype) in TYPES for value in values)
        and TRAINING not in case.name
        and case.name not in LEFT_OUT
    )


def run_torch(
    model: onnx.ModelProto, inputs: list[np.ndarray], floats: str = "cpu"
) -> list[Tensor]:
    """What PyTorch computes when float inputs are on a device, and integers on the CPU."""
    evaluator = Evaluator(Model(ir.serde.deserialize_model(model)).view())
    names = [value.name for value in model.graph.input]
    given = {n: torch.from_numpy(np.array(a)) for n, a in zip(names, inputs, strict=True)}
    feed = {n: t.to(floats) if t.is_floating_point() else t for n, t in given.items()}
    found = evaluator.run(feed, evaluator.constants())
    return [found[value.name] for value in model.graph.output]


def run_onnx_runtime(model: onnx.ModelProto, inputs: list[np.ndarray]) -> list[np.ndarray] | None:
    """What ONNX Runtime computes; None where it refuses the model or its input."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    names = [value.name for value in model.graph.input]
    feed = {name: np.asarray(value) for name, value in zip(names, inputs, strict=True)}
    try:
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return session.run(None, feed)
    except Exception:  # noqa: BLE001 - it raises a class of its own for every code
        return None


def differences(found: list[np.ndarray], expected: list[np.ndarray]) -> Iterator[str]:
    for index, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        wanted = np.asarray(theirs)
        if (mine.dtype, mine.shape) != (wanted.dtype, wanted.shape):
            yield f"output {index}: {mine.dtype}{mine.shape}, not {wanted.dtype}{wanted.shape}"
            continue
        rtol, atol = TOLERANCES.get(str(mine.dtype), (RTOL, ATOL))
        if mine.dtype.kind != "f":
            rtol = atol = 0
        if not np.allclose(mine, wanted, rtol, atol, equal_nan=True):
            yield f"output {index}: {mine.ravel()[:6]}, not {wanted.ravel()[:6]}"


def failures(case: TestCase) -> Iterator[str]:
    inputs, outputs = case.data_sets[0]
    try:
        found = [tensor.numpy() for tensor in run_torch(case.model, inputs)]
    except Exception as error:  # noqa: BLE001 - all cases are tried, then all told
        yield f"{case.name}: {error}"
        return
    if case.name not in NOT_AS_THE_CASE:
        yield from (f"{case.name}: {text}" for text in differences(found, outputs))
    if case.name not in NOT_AS_ONNX_RUNTIME:
        expected = run_onnx_runtime(case.model, inputs)
        yield from (
            f"{case.name}, ONNX Runtime: {text}"
            for text in differences(found, found if expected is None else expected)
        )


@pytest.mark.parametrize("name", FAMILIES)
def test_node_cases(name) -> None:
    cases = [case for case in family(name) if fits(case)]
    found = [text for case in cases for text in failures(case)]
    assert not found, "\n".join(found)


def test_numbers_and_floats_on_two_devices() -> None:
    """Integers stay on the CPU while floats lie elsewhere, here on a device that has no values."""
    wrong = []
    for case in (case for name in FAMILIES for case in family(name) if fits(case)):
        if READS_FLOATS.intersection(operators(case.model.graph)):
            continue
        inputs, outputs = case.data_sets[0]
        try:
            found = run_torch(case.model, inputs, floats="meta")
        except ModelError as error:
            wrong.append(f"{case.name}: {error}")
            continue
        if [tuple(x.shape) for x in found] != [np.shape(x) for x in outputs]:
            wrong.append(case.name)
    assert not wrong, "\n".join(wrong)


def test_every_operator_has_a_case() -> None:
    cases = [case for name in FAMILIES for case in family(name)]
    compared = {op for case in cases if fits(case) for op in operators(case.model.graph)}
    own = {op for op in KNOWN if "::" in op} | ELSEWHERE
    assert sorted(KNOWN - own - compared) == []
    assert sorted(own & compared) == []
    listed = {*LEFT_OUT, *NOT_AS_THE_CASE, *NOT_AS_ONNX_RUNTIME}
    assert sorted(listed - {case.name for case in cases}) == []


def test_an_operator_that_is_wrong_is_seen(monkeypatch) -> None:
    (case,) = (case for case in family("conv") if case.name == "test_conv_with_strides_padding")
    assert fits(case)
    assert not list(failures(case))
    true = OPERATORS["Conv"]
    monkeypatch.setitem(OPERATORS, "Conv", lambda *given: true(*given) * (1 + 1e-4))
    assert len(list(failures(case))) == 2


@pytest.mark.parametrize("rounds", [0, 3])
def test_a_loop_that_may_not_run_at_all(rounds) -> None:
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        g (int64 rounds, float[2] start, float[2] more) => (float[2] last, float[N,2] all)
        {
            last, all = Loop (rounds, , start) <
                body = b (int64 turn, bool going, float[2] x)
                    => (bool again, float[2] y, float[2] z)
                { again = Identity (going) y = Add (x, more) z = Mul (y, x) }
            >
        }""")
    inputs = [np.array(rounds), np.array([1, 2], np.float32), np.array([3, 4], np.float32)]
    found = [tensor.numpy() for tensor in run_torch(model, inputs)]
    expected = run_onnx_runtime(model, inputs)
    assert expected is not None
    assert not list(differences(found, expected))
