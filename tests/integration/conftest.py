"""Models, data and oracles of the integration tests.

What is checked here is what a user gets: files, exit codes, answers. The oracles know nothing of
onnxq: ``onnx`` reads a file, plain ONNX Runtime runs it, NumPy counts.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from onnx import TensorProto, numpy_helper

from onnxq.cli import main
from onnxq.plan import Recipe, VerifySettings

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "models"
Arrays = dict[str, np.ndarray]
# Operators that multiply with a stored weight, as they are exported and as onnxq may write them.
WEIGHTED = {
    "Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU",
    "ConvInteger", "MatMulInteger", "MatMulNBits", "DynamicQuantizeLSTM",
    "QLinearConv", "QLinearMatMul", "QGemm",
}  # fmt: skip


class Opened:
    """A model file as ``onnx`` and ONNX Runtime see it, without onnxq; it has to be valid."""

    def __init__(self, path: Path) -> None:
        onnx.checker.check_model(str(path), full_check=True)
        self.path = path
        self.proto = onnx.load(path)

    @property
    def operators(self) -> Counter[str]:
        """How often each operator stands in the main graph."""
        return Counter(node.op_type for node in self.proto.graph.node)

    @property
    def signature(self) -> list[tuple[str, int, list[str | int]]]:
        """Name, type and shape of every input and output; stored tensors are no inputs."""
        stored = {tensor.name for tensor in self.proto.graph.initializer}
        values = (*self.proto.graph.input, *self.proto.graph.output)
        return [
            (value.name, value.type.tensor_type.elem_type, _shape(value))
            for value in values
            if value.name not in stored
        ]

    @cached_property
    def constants(self) -> Arrays:
        """The stored tensors by name."""
        return {t.name: numpy_helper.to_array(t) for t in self.proto.graph.initializer}

    @cached_property
    def weight_types(self) -> dict[str, str]:
        """Type of the largest stored tensor that goes into each node with a weight, by node."""
        # What every constant is computed of; activations are not in it.
        sources = {"": [], **{t.name: [t] for t in self.proto.graph.initializer}}
        found = {}
        for node in self.proto.graph.node:
            if node.op_type in WEIGHTED:
                stored = [t for tensor in node.input for t in sources.get(tensor, [])]
                if stored:
                    largest = max(stored, key=lambda t: np.prod(t.dims))
                    found[node.name] = TensorProto.DataType.Name(largest.data_type)
            elif all(tensor in sources for tensor in node.input):
                made_of = [t for tensor in node.input for t in sources[tensor]]
                sources.update(dict.fromkeys(node.output, made_of))
        return found

    @cached_property
    def activations(self) -> dict[str, tuple[float, np.generic]]:
        """Scale and zero point of every tensor that a QuantizeLinear reads.

        What the first convolution makes may be laid out in cells of four pixels.
        """
        return {
            node.input[0].removesuffix("_cells"): (
                float(self.constants[node.input[1]]),
                self.constants[node.input[2]][()],
            )
            for node in self.proto.graph.node
            if node.op_type == "QuantizeLinear"
        }

    @cached_property
    def session(self) -> ort.InferenceSession:
        return _session(self.path)

    @cached_property
    def kernels(self) -> Counter[str]:
        """How often each kernel stands in the graph that ONNX Runtime really runs."""
        written = self.path.with_name(f"{self.path.name}.optimized")
        _session(self.path, written)
        graph = onnx.load(written).graph
        written.unlink()
        return Counter(node.op_type for node in graph.node)

    def run(self, feed: Arrays) -> Arrays:
        """The outputs by name."""
        names = [value.name for value in self.session.get_outputs()]
        return dict(zip(names, self.session.run(None, feed), strict=True))

    def scores(self, images: np.ndarray, batch: int = 500) -> np.ndarray:
        """The only output of a model with one input, over all images."""
        (given,), (made,) = self.session.get_inputs(), self.session.get_outputs()
        parts = np.split(images, range(batch, len(images), batch))
        return np.concatenate([self.session.run([made.name], {given.name: p})[0] for p in parts])

    def top1(self, samples: Labelled) -> float:
        """Share of the samples whose largest score is that of their label."""
        return float((self.scores(samples.images).argmax(axis=1) == samples.labels).mean())


def _shape(value: onnx.ValueInfoProto) -> list[str | int]:
    """Sizes and names of them; some exporters write -1 for what is not known."""
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_param or (dim.dim_value if dim.dim_value > 0 else "?") for dim in dims]


def _session(path: Path, optimized: Path | None = None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # that an optimised graph is not portable is known
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True)
class Labelled:
    """Images as the model takes them, and their labels."""

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Run:
    """What one call of the command line said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.out)


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fixtures that many tests share measure anew, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONNXQ_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def opened() -> Callable[[Path], Opened]:
    return Opened


@pytest.fixture(scope="session")
def sqnr() -> Callable[[np.ndarray, np.ndarray], float]:
    """Signal-to-quantization-noise ratio in dB: 20 is an error of 10 %, 40 of 1 %."""

    def ratio(signal: np.ndarray, found: np.ndarray) -> float:
        signal = signal.astype(np.float64)
        return float(10 * np.log10((signal**2).sum() / ((signal - found) ** 2).sum()))

    return ratio


@pytest.fixture
def cli() -> Callable[..., Run]:
    """Call the command line in this process; a traceback fails the test."""

    def call(*args: object) -> Run:
        done = CliRunner().invoke(main, [str(arg) for arg in args], prog_name="onnxq")
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
        return Run(done.exit_code, done.stdout, done.stderr)

    return call


@pytest.fixture(scope="session")
def process() -> Callable[..., Run]:
    """Call the command line as a shell does."""

    def call(*args: object, cwd: Path | None = None) -> Run:
        command = [sys.executable, "-m", "onnxq", *(str(arg) for arg in args)]
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
        return Run(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture(scope="session")
def quick() -> Callable[..., Recipe]:
    """A recipe for cpu-x86 that measures no latency."""

    def make(**settings: Any) -> Recipe:
        return Recipe(**{"target": "cpu-x86", "verify": VerifySettings(seconds=0.0), **settings})

    return make


@pytest.fixture
def quick_file(tmp_path: Path) -> Path:
    """The same, for the command line."""
    path = tmp_path / "quick.toml"
    path.write_text('target = "cpu-x86"\n[verify]\nseconds = 0\n')
    return path


@pytest.fixture
def bare(tmp_path: Path) -> Callable[[str], Path]:
    """A shipped model in a folder of its own, without the recipe that lies beside it."""

    def copy(name: str) -> Path:
        return Path(shutil.copy(MODELS / f"{name}.onnx", tmp_path))

    return copy


@pytest.fixture(scope="session")
def shipped() -> Path:
    """The folder of the shipped models."""
    return MODELS


@pytest.fixture(scope="session")
def digits() -> np.ndarray:
    """200 unlabelled 8x8 images to calibrate with."""
    with np.load(MODELS / "digits_calibration.npz") as arrays:
        return arrays["image"]


@pytest.fixture(scope="session")
def digits_test() -> Labelled:
    with np.load(MODELS / "digits_test.npz") as arrays:
        return Labelled(arrays["image"], arrays["labels"])


@pytest.fixture(scope="session")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits model with one channel behind ``/conv2/Conv`` 200 times as large.

    ``/conv3/Conv`` takes it back, and Relu and MaxPool do not mind: the float model computes the
    same. With one scale for all channels, 8 bits say little about the other 63.
    """
    proto = onnx.load(MODELS / "digits_cnn.onnx")
    factors = {
        "conv2.weight": ((0,), 200.0),
        "conv2.bias": ((0,), 200.0),
        "conv3.weight": ((slice(None), 0), 1 / 200),
    }
    for tensor in proto.graph.initializer:
        if tensor.name in factors:
            where, factor = factors[tensor.name]
            value = numpy_helper.to_array(tensor).copy()
            value[where] *= np.float32(factor)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    path = tmp_path_factory.mktemp("fragile") / "fragile.onnx"
    onnx.save(proto, path)
    return path


@pytest.fixture(scope="session")
def data_file() -> Callable[[str], Arrays]:
    """A data set of the folder that ``ONNXQ_DATA`` names; without it the test is skipped."""

    def load(name: str) -> Arrays:
        path = Path(os.environ.get("ONNXQ_DATA", "")) / f"{name}.npz"
        if not path.is_file():
            pytest.skip(f"ONNXQ_DATA names no folder that holds {name}.npz")
        with np.load(path) as arrays:
            return dict(arrays)

    return load


@pytest.fixture(scope="session")
def mnist(data_file: Callable[[str], Arrays]) -> Arrays:
    return data_file("mnist")


@pytest.fixture(scope="session")
def mnist_test(mnist: Arrays) -> Labelled:
    """All 10,000 test images, as the recurrent models and the transformer take them."""
    return Labelled(mnist["x_test"].astype(np.float32) / 255, mnist["y_test"].astype(np.int64))


@pytest.fixture(scope="session")
def mnist_images(mnist: Arrays) -> np.ndarray:
    """200 unlabelled training images to calibrate with, as the convolutional model takes them."""
    return mnist["x_train"][:200, None].astype(np.float32) / 255


@dataclass(frozen=True)
class RealModel:
    """A pretrained model of others, with feeds of its own data."""

    path: Path
    calibration: list[Arrays]
    test: list[Arrays]


@pytest.fixture(scope="session")
def real() -> Iterator[Callable[[str], RealModel]]:
    """A model of the folder that ``ONNXQ_MODELS`` names; without it the test is skipped.

    Which data are a model's tells ``scripts/sweep.py``, by the score modules in ``../score``.
    """
    folder = os.environ.get("ONNXQ_MODELS", "")
    path, before = list(sys.path), sys.dont_write_bytecode
    sys.dont_write_bytecode = True

    def load(name: str) -> RealModel:
        if not folder:
            pytest.skip("ONNXQ_MODELS names no folder of models")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the score modules leave files open
            module = sweep.score_modules(Path(folder).parent.resolve() / "score")[name]
            feeds = sweep.spread(sweep.load_feeds(module, "test"), 32)
            return RealModel(
                Path(folder) / f"{name}.onnx",
                [_as_arrays(feed) for feed in sweep.calibration_feeds(module)],
                [_as_arrays(feed) for feed in feeds],
            )

    sweep = _load_sweep()
    yield load
    sys.path[:], sys.dont_write_bytecode = path, before


def _as_arrays(feed: dict[str, Any]) -> Arrays:
    return {name: np.asarray(value) for name, value in feed.items()}


def _load_sweep() -> Any:
    spec = importlib.util.spec_from_file_location("integration_sweep", ROOT / "scripts/sweep.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module
