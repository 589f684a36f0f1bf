"""End to end: a classifier is trained, exported, quantized, trained for it, and gated.

On MNIST where ``ONNXQ_DATA`` holds it, else on scikit-learn's digits. All figures are of the whole
test set, counted with plain ONNX Runtime.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

torch = pytest.importorskip("torch")

import onnxq  # noqa: E402
from onnxq.plan import QATSettings  # noqa: E402
from onnxq.rewrite import rewrite  # noqa: E402

TRAINING_IMAGES, SEED = 10_000, 0
QUICK = 'target = "cpu-x86"\n[verify]\nseconds = 0\n[qat]\nthreads = 1\n'


@dataclass(frozen=True)
class Task:
    """A folder with ``net.onnx``, ``train.npz`` and ``test.npz``, and the test set."""

    folder: Path
    images: np.ndarray
    labels: np.ndarray

    @property
    def source(self) -> Path:
        return self.folder / "net.onnx"


def load_images() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training images and labels, test images and labels; pixels from 0 to 1."""
    path = Path(os.environ.get("ONNXQ_DATA", "")) / "mnist.npz"
    if path.is_file():
        with np.load(path) as arrays:
            x, y, xt, yt = (arrays[key] for key in ("x_train", "y_train", "x_test", "y_test"))
        chosen = np.random.RandomState(SEED).permutation(len(x))[:TRAINING_IMAGES]
        x, y, largest = x[chosen], y[chosen], 255
    else:
        found = pytest.importorskip("sklearn.datasets").load_digits()
        order = np.random.RandomState(SEED).permutation(len(found.target))
        (x, xt), (y, yt) = (np.split(v[order], [1200]) for v in (found.images, found.target))
        largest = 16
    x, xt = (v[:, None].astype(np.float32) / largest for v in (x, xt))
    return x, y.astype(np.int64), xt, yt.astype(np.int64)


def train(images: np.ndarray, labels: np.ndarray) -> Any:
    """A small convolutional network, in as few steps as bring it beyond 95 %."""
    torch.manual_seed(SEED)
    layers, size = torch.nn, images.shape[-1] // 4
    net = layers.Sequential(
        layers.Conv2d(1, 16, 3, padding=1), layers.ReLU(), layers.MaxPool2d(2),
        layers.Conv2d(16, 32, 3, padding=1), layers.ReLU(), layers.MaxPool2d(2),
        layers.Flatten(), layers.Linear(32 * size * size, 64), layers.ReLU(),
        layers.Linear(64, 10),
    )  # fmt: skip
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    epochs = 2 if len(x) == TRAINING_IMAGES else 40
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    return net.eval()


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Task:
    folder = tmp_path_factory.mktemp("task")
    x, y, xt, yt = load_images()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    net = train(x, y)
    with warnings.catch_warnings():
        # PyTorch's own words: the exporter that needs no further package is the older one
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            net, (torch.from_numpy(x[:1]),), folder / "net.onnx", dynamo=False, opset_version=17,
            input_names=["image"], output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        )  # fmt: skip
    torch.set_num_threads(threads)
    np.savez(folder / "train.npz", image=x[:2000], labels=y[:2000])
    np.savez(folder / "test.npz", image=xt, labels=yt)
    (folder / "quick.toml").write_text(QUICK)
    return Task(folder, xt, yt)


@pytest.fixture(scope="module")
def top1(task, opened):
    """Share of the test set that a file gets right."""

    def count(path: Path) -> float:
        return float((opened(path).scores(task.images).argmax(axis=1) == task.labels).mean())

    return count


@pytest.fixture(scope="module")
def ptq(task, process) -> dict[str, Any]:
    """Receipts of post-training quantization by precision, with a budget of a point."""
    receipts = {}
    for precision in ("int8", "int4-weights"):
        data = ("--data", "train.npz", "--test-data", "test.npz", "--recipe", "quick.toml")
        said = ("--precision", precision, "--max-drop", "1%" if precision == "int8" else "50%")
        run = process("quantize", "net.onnx", *data, *said, "--json", cwd=task.folder)
        assert run.code == 0, run.err
        receipts[precision] = run.json
    return receipts


@pytest.fixture(scope="module")
def qat(task, quick) -> dict[str, Path]:
    """Files that quantization-aware training made, by precision: two epochs from labels."""
    made = {}
    for precision in ("int8", "int4-weights"):
        recipe = quick(precision=precision, qat=QATSettings(epochs=2, threads=1))
        trainer = onnxq.QATTrainer(recipe, seed=SEED)
        trainer.prepare(task.source, str(task.folder / "train.npz"))
        trainer.train()
        made[precision] = task.folder / f"net.qat.{precision}.onnx"
        onnxq.save(rewrite(*trainer.convert()), made[precision])
    return made


def test_the_classifier_has_learned(task, top1) -> None:
    assert top1(task.source) > 0.95


def test_quantizing_loses_less_than_a_point(task, ptq, top1) -> None:
    assert top1(task.folder / "net.int8.onnx") > top1(task.source) - 0.01


def test_the_loss_is_proven_and_not_luck(task, ptq) -> None:
    """The gate holds what the drop is at most, with 95 % confidence."""
    (gate,) = ptq["int8"]["gates"]
    assert (gate["name"], gate["limit"], gate["passed"]) == ("max_drop", 0.01, True)
    assert gate["value"] <= gate["bound"] <= 0.01
    assert ptq["int8"]["measured"]["metric"]["samples"] == len(task.labels)


def test_the_file_is_smaller_and_runs_on_integers(task, ptq, opened) -> None:
    source, made = opened(task.source), opened(task.folder / "net.int8.onnx")
    # a quarter, and the names and scales of pairs, which weigh in a network of 15,000 weights
    assert made.path.stat().st_size < 0.4 * source.path.stat().st_size
    assert set(made.weight_types.values()) == {"INT8"}
    assert (made.kernels["QLinearConv"], made.kernels["QGemm"]) == (2, 2)


def test_training_is_not_worse_than_quantizing_alone(task, ptq, qat, top1) -> None:
    """Two epochs more from labels than the float network had: 0.9712 against 0.9657 on MNIST."""
    assert top1(qat["int8"]) >= top1(task.folder / "net.int8.onnx")


def test_training_for_4_bits_is_not_worse_and_nearly_as_good_as_float(task, ptq, qat, top1) -> None:
    alone, trained = top1(task.folder / "net.int4-weights.onnx"), top1(qat["int4-weights"])
    assert trained >= alone
    assert trained > top1(task.source) - 0.005


def test_what_is_trained_is_what_is_written(task, qat, opened) -> None:
    """int8: a trained model is made of the same kernels and types as one that was not."""
    made = opened(qat["int8"])
    assert set(made.weight_types.values()) == {"INT8"}
    assert (made.kernels["QLinearConv"], made.kernels["QGemm"]) == (2, 2)


def test_the_command_trains_too_and_compares(task, ptq, process, top1) -> None:
    data = ("--data", "train.npz", "--test-data", "test.npz", "--recipe", "quick.toml")
    said = ("--precision", "int8", "--epochs", 1, "-o", "trained.onnx", "--json")
    run = process("qat", "net.onnx", *data, *said, cwd=task.folder)
    assert run.code == 0, run.err
    metric, untrained = run.json["measured"]["metric"], run.json["training"]["untrained"]["metric"]
    alone = ptq["int8"]["measured"]["metric"]
    assert [untrained[k] for k in ("source", "output")] == [alone[k] for k in ("source", "output")]
    assert metric["output"] == pytest.approx(top1(task.folder / "trained.onnx"))


def test_the_receipt_makes_the_same_bytes_without_data(task, ptq, process) -> None:
    said = ("--from", "net.int8.receipt.json", "-o", "again.onnx")
    assert process("quantize", "net.onnx", *said, cwd=task.folder).code == 0
    again, first = (task.folder / name for name in ("again.onnx", "net.int8.onnx"))
    assert again.read_bytes() == first.read_bytes()


def test_the_next_export_is_held_against_the_receipt(task, ptq, process) -> None:
    """The same network passes; one whose last layer was broken does not."""
    gate = ("--baseline", "net.int8.receipt.json", "--recipe", "quick.toml")
    gate += ("--data", "train.npz", "--test-data", "test.npz", "--skip", "latency")
    assert process("check", "net.onnx", *gate, cwd=task.folder).code == 0
    proto = onnx.load(task.source)
    bias = next(t for t in proto.graph.initializer if list(t.dims) == [10])
    broken = (
        numpy_helper.to_array(bias) + np.eye(10, dtype=np.float32)[3] * 100
    )  # every image is a 3
    bias.CopyFrom(numpy_helper.from_array(broken, bias.name))
    onnx.save(proto, task.folder / "broken.onnx")
    run = process("check", "broken.onnx", *gate, "--json", cwd=task.folder)
    assert run.code == 1
    assert "metric" in {g["name"] for g in run.json["gates"] if g["status"] == "failed"}
