"""Dynamic quantization: weights are int8 in the file, activations become it while the model runs.

No data are needed. Matrix products and LSTMs compute on integers; ranges are found anew for every
input, so that no input is clipped. Convolutions stay float: their dynamic kernels do not pay.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxq
from onnxq.types import Precision

# What ONNX Runtime runs the large layers as. It has no GRU on integers: that one stores int8, and
# computes in float.
KERNELS = {
    "mnist_transformer": {"DynamicQuantizeMatMul": 6, "MatMulIntegerToFloat": 6},
    "mnist_lstm": {"DynamicQuantizeLSTM": 1},
    "mnist_gru": {"GRU": 1},
}


@dataclass(frozen=True)
class Made:
    name: str
    source: Any
    output: Any
    result: onnxq.Result


@pytest.fixture(scope="module", params=KERNELS)
def made(request, shipped, opened, quick, tmp_path_factory) -> Made:
    """A shipped model, quantized in a folder that holds nothing else."""
    folder = tmp_path_factory.mktemp("dynamic")
    source = Path(shutil.copy(shipped / f"{request.param}.onnx", folder))
    output = folder / "made.onnx"
    result = onnxq.quantize(source, recipe=quick(precision="int8-dynamic"), output=output)
    return Made(request.param, opened(source), opened(output), result)


def test_no_data_are_needed(made) -> None:
    assert made.result.receipt.data == {}
    assert made.result.receipt.ranges == {}


def test_inputs_and_outputs_are_those_of_the_source(made) -> None:
    assert made.output.signature == made.source.signature


def test_weights_of_planned_layers_are_int8_in_the_file(made) -> None:
    planned = made.result.plan.named(Precision.INT8_DYNAMIC, Precision.INT8_WEIGHTS)
    assert {made.output.weight_types[name] for name in planned} == {"INT8"}
    # of these small files a tenth is names, scales, and layers too small to gain anything
    assert made.output.path.stat().st_size < 0.36 * made.source.path.stat().st_size


def test_layers_run_on_integers(made) -> None:
    expected = KERNELS[made.name]
    assert {kernel: made.output.kernels[kernel] for kernel in expected} == expected


def test_at_most_half_a_point_of_top1_is_lost_on_the_whole_test_set(made, mnist_test) -> None:
    assert made.output.top1(mnist_test) >= made.source.top1(mnist_test) - 0.005


def test_no_input_is_clipped(shipped, opened, quick, sqnr, digits, tmp_path) -> None:
    """Images ten times as bright as any that were calibrated with: only known ranges clip them."""
    source = opened(shipped / "digits_cnn.onnx")
    lost = {}
    for precision in ("int8-dynamic", "int8"):
        output = tmp_path / f"{precision}.onnx"
        onnxq.quantize(source.path, data=digits, recipe=quick(precision=precision), output=output)
        made = opened(output)
        for factor in (1, 10):
            images = digits * np.float32(factor)
            lost[precision, factor] = sqnr(source.scores(images), made.scores(images))
    assert lost["int8-dynamic", 10] > 40  # 1 % of the signal
    assert lost["int8", 1] > 35
    assert lost["int8", 10] < 10  # a third of the signal


def test_convolutions_stay_float_and_the_receipt_says_why(cli, bare, quick_file) -> None:
    source = bare("cifar10_resnet")
    run = cli("quantize", source, "--recipe", quick_file, "--precision", "int8-dynamic", "--json")
    assert run.code == 0
    assert run.json["output"]["sha256"] == run.json["source"]["sha256"]
    convolutions = [node for node in run.json["plan"]["nodes"] if node["op"] == "Conv"]
    assert len(convolutions) == 14
    for node in convolutions:
        assert node["precision"] == "float"
        assert "slower than its float kernel" in node["reason"]["sentence"]


@pytest.mark.parametrize(("name", "db"), [("dtln_1", 30.0), ("silero_vad_16k_op15", 40.0)])
def test_speech_models_of_others(name, db, real, opened, quick, sqnr, tmp_path) -> None:
    """Recurrent models on speech, one with its LSTM in the body of an If.

    dB are those of docs/precisions.md, with a margin for other samples.
    """
    model = real(name)
    output = tmp_path / "made.onnx"
    onnxq.quantize(model.path, recipe=quick(precision="int8-dynamic"), output=output)
    source, made = opened(model.path), opened(output)
    assert max(c.size for c in made.constants.values() if c.dtype == np.int8) > 60_000
    for tensor in source.run(model.test[0]):
        signal, found = (
            np.concatenate([one.run(feed)[tensor].ravel() for feed in model.test])
            for one in (source, made)
        )
        assert sqnr(signal, found) > db, tensor
