"""Traversal: every node is looked at, and either computes as wanted or says why not.

The graph stays what it was: names, edges, inputs, outputs. All that is added are pairs of
QuantizeLinear and DequantizeLinear, and only where ONNX Runtime fuses them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.types import Precision

LAYOUTS = ("Pad", "Reshape", "Transpose")  # the residual network has none of its own


@dataclass(frozen=True)
class Made:
    source: Any
    output: Any
    result: onnxq.Result


@pytest.fixture(scope="module")
def residual(shipped, opened, quick, data_file, tmp_path_factory) -> Made:
    """The residual network, whose branches meet in sums."""
    images = data_file("cifar10")["x_train"][:64].transpose(0, 3, 1, 2).astype(np.float32)
    images = (images / 255 - 0.45) / 0.25
    source, output = shipped / "cifar10_resnet.onnx", tmp_path_factory.mktemp("resnet") / "m.onnx"
    result = onnxq.quantize(source, data=images, recipe=quick(precision="int8"), output=output)
    return Made(opened(source), opened(output), result)


def without_pairs(proto: onnx.ModelProto) -> dict[str, tuple[str, list[str]]]:
    """Operator and activations of every node by name, as if there were no pairs.

    Nor other layouts: pixels of the first layer in cells, and back.
    """
    stands_for: dict[str, str] = {}
    constants = {tensor.name for tensor in proto.graph.initializer}
    found = {}
    for node in proto.graph.node:
        tensors = [t for t in node.input if t and t not in constants]
        read = [stands_for.get(t, t).removesuffix("_cells") for t in tensors]
        if node.op_type in ("QuantizeLinear", "DequantizeLinear", *LAYOUTS):
            if read:
                stands_for[node.output[0]] = read[0]
            else:  # a stored weight
                constants.add(node.output[0])
        elif read:
            found[node.name] = (node.op_type, read)
        else:
            constants.update(node.output)
    return found


def test_inspect_lists_every_node_once_in_the_graphs_order(cli, shipped, opened) -> None:
    run = cli("inspect", shipped / "digits_cnn.onnx", "--json", "--target", "cpu-x86")
    listed = [(node["name"], node["op"]) for node in run.json["nodes"]]
    graph = opened(shipped / "digits_cnn.onnx").proto.graph
    assert listed == [(node.name, node.op_type) for node in graph.node]


@pytest.mark.parametrize("name", ["mnist_transformer", "mnist_lstm"])
def test_every_node_that_stays_float_says_why(cli, shipped, name) -> None:
    nodes = cli("inspect", shipped / f"{name}.onnx", "--json", "--target", "cpu-x86").json["nodes"]
    floats = [node for node in nodes if node["kernel"] == "float"]
    assert floats
    for node in floats:
        assert node["reason"]["code"], node["name"]
        assert node["reason"]["node"] == node["name"]


class TestResidual:
    def test_without_the_pairs_it_is_the_source(self, residual) -> None:
        """But for the mean over an image, which is now a pooling that runs on integers."""
        source, output = without_pairs(residual.source.proto), without_pairs(residual.output.proto)
        assert (source.pop("/ReduceMean")[0], output["/ReduceMean"][0]) == (
            "ReduceMean", "GlobalAveragePool",
        )  # fmt: skip
        assert {name: output[name] for name in source} == source

    def test_branches_and_sums_run_on_integers(self, residual) -> None:
        source, kernels = residual.source.operators, residual.output.kernels
        assert kernels["QLinearConv"] == source["Conv"] == 14
        assert kernels["QLinearAdd"] == source["Add"] == 5
        assert set(kernels) & {"Conv", "FusedConv", "Add", "Relu", "ReduceMean"} == set()

    def test_nothing_is_converted_inside(self, residual) -> None:
        """The image is quantized once, and the last layer makes floats by itself."""
        kernels = residual.output.kernels
        assert (kernels["QuantizeLinear"], kernels["DequantizeLinear"]) == (1, 0)

    def test_the_source_of_every_sum_is_read_through_its_pair(self, residual) -> None:
        makers = {t: node for node in residual.output.proto.graph.node for t in node.output}
        sums = [node for node in residual.output.proto.graph.node if node.op_type == "Add"]
        assert {makers[t].op_type for node in sums for t in node.input} == {"DequantizeLinear"}


@pytest.mark.parametrize("name", ["yunet_n_dynamic", "ultraface_slim320", "ppocr_v2_cls"])
def test_planned_convolutions_of_others_are_those_that_run_on_integers(
    name, real, opened, quick, tmp_path
) -> None:
    """Detectors with many outputs, and a text classifier: pyramids, concatenations, attention."""
    model, output = real(name), tmp_path / "made.onnx"
    recipe = quick(precision="int8")
    result = onnxq.quantize(model.path, data=model.calibration, recipe=recipe, output=output)
    made = opened(output)
    planned = [node for node in result.plan.nodes if node.op == "Conv"]
    wanted = sum(node.precision is Precision.INT8 for node in planned)
    floats = [node for node in planned if node.precision is Precision.FLOAT]
    assert made.kernels["QLinearConv"] == wanted > 20
    assert made.kernels["Conv"] + made.kernels["FusedConv"] == len(floats)
    assert all(node.reason for node in floats)
    assert made.signature == opened(model.path).signature
