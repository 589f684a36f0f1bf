"""Operators in all their forms against ONNX Runtime: what the node tests of onnx do not reach."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

torch = pytest.importorskip("torch")

from onnxq.errors import ModelError  # noqa: E402
from onnxq.graph import Model  # noqa: E402
from onnxq.qat.evaluator import Evaluator  # noqa: E402
from onnxq.qat.operators import OPERATORS  # noqa: E402

MICROSOFT = "com.microsoft"
# Of a tensor's largest value: float32 sums in another order, seen up to 3.5e-6.
TOLERANCE = 1e-5
DRAW = np.random.RandomState(0)


def draw(*shape: int) -> np.ndarray:
    return DRAW.standard_normal(shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@dataclass
class Case:
    """One node: its inputs, None for one that is left out, and how many outputs it has."""

    op: str
    inputs: list[np.ndarray | None]
    attrs: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1
    opset: int = 21

    def model(self) -> onnx.ModelProto:
        domain, _, op = self.op.rpartition("::")
        names = [f"x{at}" if x is not None else "" for at, x in enumerate(self.inputs)]
        made = [f"y{at}" for at in range(self.outputs)]
        node = helper.make_node(op, names, made, "node", domain=domain, **self.attrs)
        given = [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
            for n, x in zip(names, self.inputs, strict=True)
            if x is not None
        ]
        wanted = [helper.make_empty_tensor_value_info(name) for name in made]
        graph = helper.make_graph([node], "g", given, wanted)
        imports = [helper.make_opsetid("", self.opset), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=imports, ir_version=10)

    @property
    def feed(self) -> dict[str, np.ndarray]:
        return {f"x{at}": np.asarray(x) for at, x in enumerate(self.inputs) if x is not None}


def run_torch(case: Case) -> list[np.ndarray]:
    evaluator = Evaluator(Model(ir.serde.deserialize_model(case.model())).view())
    feed = {name: torch.from_numpy(np.array(x)) for name, x in case.feed.items()}
    found = evaluator.run(feed, evaluator.constants())
    return [found[f"y{at}"].numpy() for at in range(case.outputs)]


def run_onnx_runtime(case: Case) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        case.model().SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, case.feed)


def check(case: Case, tolerance: float = TOLERANCE) -> None:
    expected, found = run_onnx_runtime(case), run_torch(case)
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape), case
        allowed = tolerance * np.abs(theirs).max(initial=0) if mine.dtype.kind == "f" else 0
        told = f"{case.op} {case.attrs}"
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=allowed, err_msg=told)


PADDINGS: list[dict[str, Any]] = [
    {},
    {"pads": (1, 1)},
    {"pads": (0, 1)},
    {"pads": (2, 1)},
    {"auto_pad": "SAME_UPPER"},
    {"auto_pad": "SAME_LOWER"},
    {"auto_pad": "VALID"},
]


def padding(given: dict[str, Any], rank: int) -> dict[str, Any]:
    """The same padding for every spatial axis."""
    begin, end = given.get("pads", (0, 0))
    return {**given, **({"pads": [begin] * rank + [end] * rank} if "pads" in given else {})}


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("pads", PADDINGS, ids=str)
def test_convolutions(rank, pads) -> None:
    shape = (9, 8, 7)[:rank]
    for stride, dilation, group, kernel in product((1, 2), (1, 2), (1, 2, 4), (2, 3)):
        if dilation > 1 and "SAME" in pads.get("auto_pad", ""):
            continue  # ONNX Runtime forgets the dilation there
        attrs = {"strides": [stride] * rank, "dilations": [dilation] * rank, "group": group}
        weight = draw(8, 4 // group, *[kernel] * rank)
        check(Case("Conv", [draw(2, 4, *shape), weight, draw(8)], attrs | padding(pads, rank)))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("pads", PADDINGS, ids=str)
def test_transposed_convolutions(rank, pads) -> None:
    shape = (5, 4, 3)[:rank]
    for stride, dilation, group, extra in product((1, 2, 3), (1, 2), (1, 2), (0, 1)):
        if extra and stride == 1:
            continue  # ONNX Runtime wants it smaller than the stride
        attrs = {
            "strides": [stride] * rank,
            "dilations": [dilation] * rank,
            "group": group,
            "output_padding": [extra] * rank,
        }
        weight = draw(4, 3, *[3] * rank)
        inputs = [draw(2, 4, *shape), weight, draw(3 * group)]
        check(Case("ConvTranspose", inputs, attrs | padding(pads, rank)))


@pytest.mark.parametrize("auto_pad", ["NOTSET", "SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("wanted", [7, 8, 9, 10])
def test_transposed_convolutions_of_a_given_size(auto_pad, wanted) -> None:
    attrs = {"strides": [2], "output_shape": [wanted], "auto_pad": auto_pad}
    if wanted > 9:
        attrs["output_padding"] = [1]
    check(Case("ConvTranspose", [draw(1, 2, 4), draw(2, 3, 3), draw(3)], attrs))


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("pads", PADDINGS, ids=str)
def test_pools(op, rank, pads) -> None:
    shape = (9, 8, 7)[:rank]
    counts = (0, 1) if op == "AveragePool" else (None,)
    for stride, up, dilation, kernel, count in product((1, 2, 3), (0, 1), (1, 2), (2, 3), counts):
        if max(pads.get("pads", (0,))) >= kernel:
            continue
        if "auto_pad" in pads and (dilation > 1 or stride > kernel):
            continue  # ONNX Runtime forgets the dilation there, and refuses such strides
        attrs = {
            "kernel_shape": [kernel] * rank,
            "strides": [stride] * rank,
            "dilations": [dilation] * rank,
            "ceil_mode": up,
        }
        if count is not None:
            attrs["count_include_pad"] = count
        # all below zero, so that a padding of zeros would be seen
        x = -1 - np.abs(draw(2, 3, *shape))
        check(Case(op, [x], attrs | padding(pads, rank)))


def test_pool_of_integers() -> None:
    x = DRAW.randint(-128, 128, (1, 2, 6, 6)).astype(np.int8)
    attrs = {"kernel_shape": [3, 3], "pads": [0, 0, 1, 1], "strides": [2, 2]}
    check(Case("MaxPool", [x], attrs, opset=12))


def resized(coordinates: str) -> Iterator[Case]:
    # sizes and regions for which no coordinate is a float32 step away from the middle of two values
    roi = np.array([0, 0, 0.15, 0.2, 1, 1, 0.9, 1.3], np.float32)
    region = roi if coordinates == "tf_crop_and_resize" else None
    x = draw(1, 2, 6, 7)
    targets: list[tuple[np.ndarray | None, np.ndarray | None]] = [
        (np.array([1, 1, 2, 3], np.float32), None),
        (np.array([1, 1, 0.6, 2.3], np.float32), None),
        (None, ints(1, 2, 9, 5)),
        (None, ints(1, 2, 1, 14)),
    ]
    for scales, sizes in targets:
        attrs = {"coordinate_transformation_mode": coordinates, "extrapolation_value": 5.0}
        inputs = [x, region, scales, sizes]
        for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"):
            yield Case("Resize", inputs, attrs | {"mode": "nearest", "nearest_mode": rounding})
        yield Case("Resize", inputs, attrs | {"mode": "linear"})
        for a, outside in product((-0.5, -0.75), (0, 1)):
            cubic = {"mode": "cubic", "cubic_coeff_a": a, "exclude_outside": outside}
            yield Case("Resize", inputs, attrs | cubic)
    if coordinates == "half_pixel":
        for mode in ("linear", "cubic"):
            smaller = [x, None, None, ints(1, 2, 3, 5)]
            yield Case("Resize", smaller, attrs | {"mode": mode, "antialias": 1})


@pytest.mark.parametrize(
    "coordinates",
    [
        "half_pixel",
        "half_pixel_symmetric",
        "pytorch_half_pixel",
        "align_corners",
        "asymmetric",
        "tf_crop_and_resize",
    ],
)
def test_resizes(coordinates) -> None:
    for case in resized(coordinates):
        check(case)


def recurrent(op: str, lengths: bool, initial: bool, two: bool, bias: bool) -> list[Any]:
    """The inputs of a recurrent operator: 5 time steps, batch 3, 4 inputs, 6 hidden values."""
    gates, directions = {"LSTM": 4, "GRU": 3, "RNN": 1}[op], 2 if two else 1
    return [
        draw(5, 3, 4),
        draw(directions, gates * 6, 4),
        draw(directions, gates * 6, 6),
        draw(directions, 2 * gates * 6) if bias else None,
        np.array([2, 5, 3], np.int32) if lengths else None,
        draw(directions, 3, 6) if initial else None,
    ]


ACTIVATED: dict[str, list[dict[str, Any]]] = {
    "LSTM": [
        {},
        {"input_forget": 1},
        {"clip": 0.4},
        {
            "activations": ["HardSigmoid", "Relu", "Softsign"],
            "activation_alpha": [0.3],
            "activation_beta": [0.4],
        },
    ],
    "GRU": [
        {},
        {"linear_before_reset": 1},
        {"clip": 0.4, "linear_before_reset": 1},
        {
            "activations": ["Sigmoid", "ScaledTanh"],
            "activation_alpha": [0.7],
            "activation_beta": [1.2],
        },
    ],
    "RNN": [
        {},
        {"clip": 0.4},
        {"activations": ["LeakyRelu"], "activation_alpha": [0.3]},
        {"activations": ["Affine"], "activation_alpha": [0.3], "activation_beta": [0.1]},
        {"activations": ["ThresholdedRelu"], "activation_alpha": [0.3]},
        {"activations": ["Elu"], "activation_alpha": [0.3]},
        {"activations": ["Softsign"]},
    ],
}


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_recurrent_layers(op, direction) -> None:
    two = direction == "bidirectional"
    for attrs, lengths, initial, bias in product(ACTIVATED[op], (0, 1), (0, 1), (0, 1)):
        inputs = recurrent(op, bool(lengths), bool(initial), two, bool(bias))
        given = attrs | {"direction": direction, "hidden_size": 6}
        if two and "activations" in attrs:
            given |= {name: value * 2 for name, value in attrs.items() if name.startswith("activ")}
        if op == "LSTM":
            inputs += [draw(*inputs[5].shape) if initial else None]
            inputs += [draw(inputs[1].shape[0], 18) if bias else None]
        check(Case(op, inputs, given, 3 if op == "LSTM" else 2, opset=14))


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_recurrent_layers_with_the_batch_first(op) -> None:
    """ONNX Runtime has no such kernel; the same without it, turned, is the oracle."""
    inputs = recurrent(op, True, True, True, True)
    outputs = 3 if op == "LSTM" else 2
    attrs = {"direction": "bidirectional", "hidden_size": 6}
    expected = run_onnx_runtime(Case(op, inputs, attrs, outputs, opset=14))
    turned = [inputs[0].swapaxes(0, 1), *inputs[1:5], inputs[5].swapaxes(0, 1)]
    y, *states = run_torch(Case(op, turned, attrs | {"layout": 1}, outputs, opset=14))
    np.testing.assert_allclose(y, expected[0].transpose(2, 0, 1, 3), rtol=0, atol=2e-6)
    for mine, theirs in zip(states, expected[1:], strict=True):
        np.testing.assert_allclose(mine, theirs.swapaxes(0, 1), rtol=0, atol=2e-6)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_pads(mode) -> None:
    x = draw(3, 4, 5)
    for pads in ((0, 1, 2, 2, 0, 3), (0, 0, 3, 0, 2, 0), (1, 2, 3, 1, 2, 3)):
        check(Case("Pad", [x, ints(*pads)], {"mode": mode}))
    check(Case("Pad", [x, ints(2, 1), None, ints(-1)], {"mode": mode}))
    if mode != "wrap":  # ONNX Runtime reads beyond the values there
        check(Case("Pad", [x, ints(0, -1, 2, 0, 1, -2)], {"mode": mode}))
    if mode == "constant":
        check(Case("Pad", [x, ints(1, 1), np.float32(7), ints(1)], {"mode": mode}))


def test_slices() -> None:
    x = draw(7, 5, 6)
    huge = np.iinfo(np.int64).max
    for start, end, step in product((-9, -2, 0, 3, huge), (-huge, -3, 0, 5, huge), (-2, -1, 1, 3)):
        if step < 0 and end == huge:
            continue  # ONNX Runtime keeps one value there, ONNX none
        ends = [ints(start, 0), ints(end, 4), ints(0, -1), ints(step, 2)]
        check(Case("Slice", [x, *ends]))


def quantized(dtype: Any, axis: int | None, block: int) -> Iterator[Case]:
    x = draw(4, 6, 8)
    shape = () if axis is None else (x.shape[axis],)
    if block:
        shape = tuple(-(-s // block) if a == axis else s for a, s in enumerate(x.shape))
    scale = np.float32(0.02) + DRAW.uniform(0, 0.02, shape).astype(np.float32)
    info = np.iinfo(dtype)
    zero = DRAW.randint(max(info.min, -9), 9, shape).astype(dtype)
    attrs = ({} if axis is None else {"axis": axis}) | ({"block_size": block} if block else {})
    stored = DRAW.randint(max(info.min, -999), min(info.max, 999), x.shape).astype(dtype)
    for point in (None, zero):
        if (point is not None or dtype == np.uint8) and dtype != np.int32:
            yield Case("QuantizeLinear", [x, scale, point], attrs)
        yield Case("DequantizeLinear", [stored, scale, None if dtype == np.int32 else point], attrs)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32], ids=str)
@pytest.mark.parametrize(("axis", "block"), [(None, 0), (1, 0), (-1, 0), (1, 2), (2, 3)])
def test_quantization(dtype, axis, block) -> None:
    for case in quantized(dtype, axis, block):
        check(case)


def fused() -> Iterator[Case]:
    """Operators of ONNX Runtime that have no node test, but for attention."""
    x, bias = draw(2, 5, 8), draw(8)
    ms = f"{MICROSOFT}::"
    yield Case(ms + "Gelu", [x])
    yield Case(ms + "BiasGelu", [x, bias])
    yield Case(ms + "FastGelu", [x])
    yield Case(ms + "FastGelu", [x, bias])
    yield Case(ms + "QuickGelu", [x])
    yield Case(ms + "QuickGelu", [x], {"alpha": 0.7})
    for shift, more in product((None, draw(8)), (None, draw(8))):
        inputs = [x, draw(2, 5, 8), draw(8), shift, more]
        yield Case(ms + "SkipLayerNormalization", inputs, {"epsilon": 1e-3})
    for more in (None, draw(8)):
        inputs = [x, draw(2, 5, 8), draw(8), more]
        yield Case(ms + "SkipSimplifiedLayerNormalization", inputs, {"epsilon": 1e-3})
    yield Case("SimplifiedLayerNormalization", [x, draw(8)], {"epsilon": 1e-3}, opset=17)
    yield Case("GlobalLpPool", [draw(2, 3, 4, 5)], {"p": 3})
    for a, b in product((0, 1), (0, 1)):
        attrs = {"transA": a, "transB": b, "alpha": 0.7}
        left, right = draw(2, 3, 4, 5), draw(2, 3, 5, 6)
        left, right = (
            (left.swapaxes(-1, -2) if a else left),
            (right.swapaxes(-1, -2) if b else right),
        )
        yield Case(ms + "FusedMatMul", [left.copy(), right.copy()], attrs)
    for a, b, ta, tb in product((0, 1), (0, 1), (0, 1), (0, 1)):
        # [batch, heads, rows, columns] with the batch moved behind the heads and rows
        attrs = {"transBatchA": a, "transBatchB": b, "transA": ta, "transB": tb}
        left, right = draw(2, 3, 4, 5), draw(2, 3, 5, 6)
        left, right = (x.swapaxes(-1, -2) if t else x for x, t in ((left, ta), (right, tb)))
        left, right = (np.moveaxis(x, -2, 0) if t else x for x, t in ((left, a), (right, b)))
        yield Case(ms + "FusedMatMul", [left.copy(), right.copy()], attrs)


FUSED = list(fused())


@pytest.mark.parametrize("op", sorted({case.op for case in FUSED}))
def test_fused_operators(op) -> None:
    for case in FUSED:
        if case.op == op:
            check(case)


def masks(op: str, batch: int, queries: int, keys: int) -> Iterator[np.ndarray | None]:
    """Masks of every rank that ONNX Runtime takes; each leaves a key to every query."""
    yield None
    raw = DRAW.randint(0, 2, (batch, keys)).astype(np.int32)
    raw[:, 0] = 1
    yield raw
    yield np.repeat(raw[:, None], queries, 1)
    ends = DRAW.randint(1, keys + 1, batch).astype(np.int32)
    if op == "Attention":
        yield ends
        yield np.concatenate([ends, np.zeros(batch, np.int32)])


def attentions() -> Iterator[Case]:
    """com.microsoft::Attention: 2 sequences of 4, 8 inputs, 2 heads of 3."""
    op, x, weight = f"{MICROSOFT}::Attention", draw(2, 4, 8), draw(8, 18)
    for causal, past in product((0, 1), (0, 1)):
        attrs = {"num_heads": 2, "unidirectional": causal}
        before = draw(2, 2, 2, 5, 3) if past else None
        for mask in masks("Attention", 2, 4, 4 + 5 * past):
            yield Case(op, [x, weight, draw(18), mask, before], attrs, 2 if past else 1)
    yield Case(
        op, [x, weight, draw(18), None, None, draw(2, 2, 4, 4)], {"num_heads": 2, "scale": 0.3}
    )
    yield Case(op, [x, weight, draw(18), None, None, draw(1, 1, 4, 4)], {"num_heads": 2})
    sizes = {"num_heads": 2, "qkv_hidden_sizes": [6, 6, 10]}
    yield Case(op, [x, draw(8, 22), draw(22)], sizes)


def multi_head_attentions() -> Iterator[Case]:
    """com.microsoft::MultiHeadAttention: 2 sequences, 4 queries, 5 keys, 2 heads of 3."""
    op = f"{MICROSOFT}::MultiHeadAttention"
    q, k, v = draw(2, 4, 6), draw(2, 5, 6), draw(2, 5, 6)
    for causal, bias in product((0, 1), (None, draw(18))):
        attrs, keys = {"num_heads": 2, "unidirectional": causal}, 4 if causal else 5
        for mask in masks("MultiHeadAttention", 2, 4, keys):
            yield Case(op, [q, k[:, :keys], v[:, :keys], bias, mask], attrs)
    attrs = {"num_heads": 2, "scale": 0.4, "mask_filter_value": -3.0}
    yield Case(op, [q, k, v, None, next(m for m in masks("", 2, 4, 5) if m is not None)], attrs)
    yield Case(op, [q, k, v, None, None, draw(2, 2, 4, 5)], {"num_heads": 2})
    yield Case(op, [q, k, draw(2, 5, 10)], {"num_heads": 2})
    yield Case(op, [q, draw(2, 2, 5, 3), draw(2, 2, 5, 3)], {"num_heads": 2})
    past = [draw(2, 2, 3, 3), draw(2, 2, 3, 3)]
    yield Case(op, [q, draw(2, 4, 6), draw(2, 4, 6), None, None, None, *past], {"num_heads": 2}, 3)


def embeddings() -> Iterator[Case]:
    """com.microsoft::EmbedLayerNormalization: 2 sequences of 4, 8 values per word."""
    op, ids = f"{MICROSOFT}::EmbedLayerNormalization", DRAW.randint(0, 9, (2, 4)).astype(np.int32)
    segments, mask = ids % 2, (ids > 2).astype(np.int32)
    tables, norm = [draw(9, 8), draw(6, 8), draw(2, 8)], [draw(8), draw(8)]
    yield Case(op, [ids, segments, *tables, *norm], outputs=2)
    yield Case(op, [ids, segments, *tables, *norm, mask], {"epsilon": 1e-3}, 3)
    yield Case(op, [ids, None, *tables[:2], None, *norm, mask, ids % 6], {"mask_index_type": 0}, 2)


@pytest.mark.parametrize("cases", [attentions, multi_head_attentions, embeddings])
def test_fused_attention(cases) -> None:
    for case in cases():
        check(case)


def test_packed_keys_and_values() -> None:
    """ONNX Runtime packs on GPUs only; the same unpacked is the oracle."""
    op, q, k, v = f"{MICROSOFT}::MultiHeadAttention", *(draw(2, 4, 6) for _ in range(3))
    (expected,) = run_onnx_runtime(Case(op, [q, k, v], {"num_heads": 2}))
    heads = [x.reshape(2, 4, 2, 3) for x in (q, k, v)]
    for packed in ([np.stack(heads, 3)], [q, np.stack(heads[1:], 3)]):
        (found,) = run_torch(Case(op, packed, {"num_heads": 2}))
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_every_operator_of_onnx_runtime_is_compared() -> None:
    compared = {
        case.op for case in (*FUSED, *attentions(), *multi_head_attentions(), *embeddings())
    }
    assert {op for op in OPERATORS if "::" in op} <= compared


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (Case("MaxPool", [draw(1, 1, 4, 4)], {"kernel_shape": [2, 2]}, 2), "Indices"),
        (Case("Conv", [draw(1, 1, *[2] * 4), draw(1, 1, *[1] * 4)]), "4 spatial axes"),
        (Case("Dropout", [draw(3), np.float32(0.5), np.array(True)]), "drops values at random"),
        (Case("Cast", [draw(3)], {"to": TensorProto.STRING}), "data type 8"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(case, words) -> None:
    with pytest.raises(ModelError, match=rf"node 'node' \({case.op}\).*{words}"):
        run_torch(case)
