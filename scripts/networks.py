"""Networks of known shape with random weights, for measurements that need no trained model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

IMAGE, CLASSES = 224, 1000
# Blocks and width of each of the four levels: He et al., "Deep Residual Learning" (2015), table 1.
LEVELS = ((3, 64), (4, 128), (6, 256), (3, 512))
EXPANSION = 4
# Expansion, channels, blocks and first stride of each stage: Sandler et al., "MobileNetV2" (2018),
# table 2; the width is 1.0.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
          (6, 160, 3, 2), (6, 320, 1, 1))  # fmt: skip


class Builder:
    """Collects the nodes and weights of a network."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []
        self._rng = np.random.default_rng(0)

    def weight(self, name: str, array: np.ndarray) -> str:
        """Add an initializer."""
        self.weights.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def normal(self, name: str, shape: tuple[int, ...], fan_in: int) -> str:
        """Add a weight that keeps the variance behind a Relu (He et al., 2015, equation 10)."""
        deviation = np.float32(np.sqrt(2 / fan_in))
        return self.weight(name, self._rng.standard_normal(shape, np.float32) * deviation)

    def node(self, op: str, inputs: list[str], name: str, **attrs: object) -> str:
        """Add a node; its output has its name."""
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attrs))
        return name

    def conv(
        self, x: str, name: str, cin: int, cout: int, kernel: int, stride: int = 1, group: int = 1
    ) -> str:
        """A convolution without bias, and the BatchNorm behind it."""
        shape = (cout, cin // group, kernel, kernel)
        weight = self.normal(f"{name}.weight", shape, cin // group * kernel**2)
        x = self.node("Conv", [x, weight], name, kernel_shape=[kernel] * 2, group=group,
                      strides=[stride] * 2, pads=[kernel // 2] * 4)  # fmt: skip
        parameters = (("scale", 1.0), ("bias", 0.0), ("mean", 0.0), ("var", 1.0))
        names = [self.weight(f"{name}.{p}", np.full(cout, value)) for p, value in parameters]
        return self.node("BatchNormalization", [x, *names], f"{name}.norm")

    def relu6(self, x: str, name: str) -> str:
        """Clip to 0..6."""
        ends = (("zero", 0.0), ("six", 6.0))
        names = [self.weight(f"{name}.{end}", np.array(value)) for end, value in ends]
        return self.node("Clip", [x, *names], name)

    def bottleneck(self, x: str, name: str, cin: int, width: int, stride: int) -> str:
        """ResNet's 1x1, 3x3, 1x1, and the sum with the shortcut."""
        cout = width * EXPANSION
        y = self.node("Relu", [self.conv(x, f"{name}.a", cin, width, 1)], f"{name}.a.relu")
        y = self.conv(y, f"{name}.b", width, width, 3, stride)
        y = self.conv(self.node("Relu", [y], f"{name}.b.relu"), f"{name}.c", width, cout, 1)
        if cin != cout or stride != 1:
            x = self.conv(x, f"{name}.shortcut", cin, cout, 1, stride)
        return self.node("Relu", [self.node("Add", [y, x], f"{name}.sum")], f"{name}.relu")

    def inverted(self, x: str, name: str, cin: int, cout: int, expand: int, stride: int) -> str:
        """MobileNetV2's 1x1 that expands, depthwise 3x3, 1x1 that projects, and the shortcut."""
        hidden, y = cin * expand, x
        if expand != 1:
            y = self.relu6(self.conv(y, f"{name}.a", cin, hidden, 1), f"{name}.a.relu6")
        y = self.conv(y, f"{name}.b", hidden, hidden, 3, stride, hidden)
        y = self.conv(self.relu6(y, f"{name}.b.relu6"), f"{name}.c", hidden, cout, 1)
        return self.node("Add", [y, x], f"{name}.sum") if stride == 1 and cin == cout else y

    def head(self, x: str, channels: int) -> str:
        """The mean of every channel, and a score for every class."""
        x = self.node("Flatten", [self.node("GlobalAveragePool", [x], "mean")], "flat")
        weights = [self.normal("head.weight", (channels, CLASSES), channels),
                   self.weight("head.bias", np.zeros(CLASSES))]  # fmt: skip
        return self.node("Gemm", [x, *weights], "scores")

    def save(self, path: Path, name: str) -> int:
        """Write a network from ``image`` to ``scores``; returns how many parameters it has."""
        image = helper.make_tensor_value_info("image", 1, ["N", 3, IMAGE, IMAGE])
        scores = helper.make_tensor_value_info("scores", 1, ["N", CLASSES])
        graph = helper.make_graph(self.nodes, name, [image], [scores], self.weights)
        opset = helper.make_opsetid("", 17)
        onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
        return sum(int(np.prod(weight.dims)) for weight in self.weights)


def resnet50(path: Path) -> int:
    """Write a ResNet-50, its BatchNorm not folded; returns how many parameters it has."""
    net = Builder()
    x = net.node("Relu", [net.conv("image", "stem", 3, 64, 7, 2)], "stem.relu")
    x = net.node("MaxPool", [x], "pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = 64
    for level, (blocks, width) in enumerate(LEVELS):
        for block in range(blocks):
            stride = 2 if level and not block else 1
            x = net.bottleneck(x, f"level{level}.{block}", channels, width, stride)
            channels = width * EXPANSION
    net.head(x, channels)
    return net.save(path, "resnet50")


def mobilenet_v2(path: Path) -> int:
    """Write a MobileNetV2, its BatchNorm not folded; returns how many parameters it has."""
    net = Builder()
    x, channels = net.relu6(net.conv("image", "stem", 3, 32, 3, 2), "stem.relu6"), 32
    for stage, (expand, cout, blocks, first_stride) in enumerate(STAGES):
        for block in range(blocks):
            stride = 1 if block else first_stride
            x = net.inverted(x, f"stage{stage}.{block}", channels, cout, expand, stride)
            channels = cout
    x = net.relu6(net.conv(x, "last", channels, 1280, 1), "last.relu6")
    net.head(x, 1280)
    return net.save(path, "mobilenet_v2")


NETWORKS: dict[str, Callable[[Path], int]] = {"mobilenet_v2": mobilenet_v2, "resnet50": resnet50}
