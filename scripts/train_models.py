"""Train the models that the project ships in ``models/`` and export them with ``torch.onnx``.

Long trainings are run by hand, never in CI; the exported files are committed::

    pip install 'torch==2.13.0' onnxscript scikit-learn
    export ONNXQ_DATA=...            # holds mnist.npz and cifar10.npz, see onnxq/data/datasets.py
    python scripts/train_models.py cifar10_resnet --epochs 14

Each run prints one line per epoch and, at its end, the row for ``models/README.md``. The
optimiser is SGD with Nesterov momentum and a one-cycle schedule (Smith, "Super-Convergence",
2018), which reaches a good accuracy in few epochs on a CPU.
"""

from __future__ import annotations

import argparse
import math
import os
import time
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

MODELS = Path(__file__).resolve().parent.parent / "models"


def conv_bn(cin: int, cout: int, k: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution without bias and the BatchNorm behind it."""
    return [
        nn.Conv2d(cin, cout, k, stride, k // 2, groups=groups, bias=False),
        nn.BatchNorm2d(cout),
    ]


class DigitsCNN(nn.Module):
    """8x8 grey images to 10 classes: three convolutions and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.conv3 = nn.Conv2d(64, 64, 3, padding=1)
        self.fc1 = nn.Linear(256, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv2(F.relu(self.conv1(image)))), 2)
        x = F.max_pool2d(F.relu(self.conv3(x)), 2)
        return self.fc2(F.relu(self.fc1(torch.flatten(x, 1))))


class MnistCNN(nn.Module):
    """28x28 grey images to 10 classes, with BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *conv_bn(1, 16, 3), nn.ReLU(), *conv_bn(16, 32, 3, 2), nn.ReLU(),
            *conv_bn(32, 32, 3), nn.ReLU(), *conv_bn(32, 64, 3, 2), nn.ReLU(),
        )  # fmt: skip
        self.fc1 = nn.Linear(64, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.features(image).mean((2, 3))
        return self.fc2(F.relu(self.fc1(x)))


class Residual(nn.Module):
    """The basic block of He et al., "Deep Residual Learning" (2015), figure 2."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *conv_bn(cin, cout, 3, stride), nn.ReLU(), *conv_bn(cout, cout, 3)
        )
        same = stride == 1 and cin == cout
        self.skip = nn.Identity() if same else nn.Sequential(*conv_bn(cin, cout, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.skip(x))


class Cifar10ResNet(nn.Module):
    """32x32 colour images to 10 classes: a stem and five residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, 32, 3), nn.ReLU())
        self.blocks = nn.Sequential(
            Residual(32, 64, 2), Residual(64, 64, 1),
            Residual(64, 128, 2), Residual(128, 128, 1),
            Residual(128, 128, 2),
        )  # fmt: skip
        self.head = nn.Linear(128, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(image)).mean((2, 3)))


class InvertedResidual(nn.Module):
    """Expand, depthwise, project: Sandler et al., "MobileNetV2" (2018), section 3.3."""

    def __init__(self, cin: int, cout: int, stride: int, expand: int) -> None:
        super().__init__()
        mid = cin * expand
        self.body = nn.Sequential(
            *conv_bn(cin, mid, 1), nn.ReLU6(),
            *conv_bn(mid, mid, 3, stride, groups=mid), nn.ReLU6(),
            *conv_bn(mid, cout, 1),
        )  # fmt: skip
        self.same = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.same else y


class Cifar10MobileNet(nn.Module):
    """32x32 colour images to 10 classes: inverted residuals with ReLU6."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, 32, 3), nn.ReLU6())
        self.blocks = nn.Sequential(
            InvertedResidual(32, 32, 2, 2), InvertedResidual(32, 32, 1, 4),
            InvertedResidual(32, 64, 2, 4), InvertedResidual(64, 64, 1, 4),
            InvertedResidual(64, 64, 1, 4), InvertedResidual(64, 96, 1, 4),
            InvertedResidual(96, 96, 1, 4), InvertedResidual(96, 128, 2, 4),
            InvertedResidual(128, 128, 1, 4),
        )  # fmt: skip
        self.last = nn.Sequential(*conv_bn(128, 256, 1), nn.ReLU6())
        self.head = nn.Linear(256, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.last(self.blocks(self.stem(image))).mean((2, 3)))


ARCHITECTURES = {
    "digits_cnn": DigitsCNN,
    "mnist_cnn": MnistCNN,
    "cifar10_resnet": Cifar10ResNet,
    "cifar10_mobilenet": Cifar10MobileNet,
}
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def load_arrays(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Train and test arrays, normalised float32 NCHW, and int64 labels."""
    if name == "digits_cnn":
        from sklearn.datasets import load_digits

        digits = load_digits()
        x = (digits.images / 16.0).astype(np.float32)[:, None]
        order = np.random.default_rng(0).permutation(len(x))
        x, y = x[order], digits.target[order].astype(np.int64)
        return x[:1200], y[:1200], x[1200:], y[1200:]
    with np.load(Path(os.environ["ONNXQ_DATA"]) / f"{name.split('_', maxsplit=1)[0]}.npz") as z:
        arrays = [z[k] for k in ("x_train", "y_train", "x_test", "y_test")]
    xs = [a.astype(np.float32) / 255 for a in arrays[::2]]
    if name == "mnist_cnn":
        xs = [x[:, None] for x in xs]
    else:
        xs = [((x - CIFAR_MEAN) / CIFAR_STD).transpose(0, 3, 1, 2).astype(np.float32) for x in xs]
    ys = [a.astype(np.int64) for a in arrays[1::2]]
    return xs[0], ys[0], xs[1], ys[1]


def augment(batch: Tensor, pad: int, flip: bool, rng: np.random.Generator) -> Tensor:
    """Random crop out of a zero-padded image and, for photographs, a random mirror image."""
    n, _, h, w = batch.shape
    padded = F.pad(batch, (pad, pad, pad, pad))
    dy, dx = rng.integers(0, 2 * pad + 1, (2, n))
    mirrored = rng.random(n) < (0.5 if flip else 0.0)
    out = torch.empty_like(batch)
    for i in range(n):
        crop = padded[i, :, dy[i] : dy[i] + h, dx[i] : dx[i] + w]
        out[i] = crop.flip(2) if mirrored[i] else crop
    return out


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Top-1 accuracy in evaluation mode."""
    model.eval()
    hits = sum(
        int((model(a).argmax(1) == b).sum())
        for a, b in zip(x.split(500), y.split(500), strict=True)
    )
    model.train()
    return hits / len(y)


def train(name: str, epochs: int, peak_lr: float, batch: int, seed: int) -> tuple[nn.Module, float]:
    """Train one model; returns it in evaluation mode with its test accuracy."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    x, y, xt, yt = (torch.from_numpy(a) for a in load_arrays(name))
    model = ARCHITECTURES[name]().to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    steps = epochs * math.ceil(len(x) / batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, peak_lr, steps, pct_start=0.25)
    pad = {"digits_cnn": 1, "mnist_cnn": 2}.get(name, 4)
    started = time.time()
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.from_numpy(rng.permutation(len(x))).split(batch):
            images = augment(x[rows], pad, name.startswith("cifar"), rng)
            loss = F.cross_entropy(
                model(images.contiguous(memory_format=torch.channels_last)),
                y[rows],
                label_smoothing=0.05,
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item() * len(rows)
        last = epoch == epochs - 1
        score = accuracy(model, xt, yt) if last or epoch % 4 == 3 else float("nan")
        print(
            f"{name} epoch {epoch + 1}/{epochs} loss {total / len(x):.4f} "
            f"top1 {score:.4f} {time.time() - started:.0f} s",
            flush=True,
        )
    return model.eval(), score


def export(name: str, model: nn.Module) -> Path:
    """Write ``models/NAME.onnx`` with a dynamic batch axis.

    The TorchScript exporter names nodes after the modules they come from
    (``/blocks/blocks.0/body/body.0/Conv``), which is what people match patterns against.
    """
    shape = {"digits_cnn": (1, 8, 8), "mnist_cnn": (1, 28, 28)}.get(name, (3, 32, 32))
    path = MODELS / f"{name}.onnx"
    MODELS.mkdir(exist_ok=True)
    warnings.filterwarnings("ignore", "You are using the legacy TorchScript", DeprecationWarning)
    torch.onnx.export(
        model.to(memory_format=torch.contiguous_format),
        (torch.zeros(1, *shape),),
        path,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        opset_version=17,
        dynamo=False,
    )
    return path


def write_digits_arrays() -> None:
    """Ship the arrays of the digits model, so that it works without any download."""
    x, _, xt, yt = load_arrays("digits_cnn")
    np.savez_compressed(MODELS / "digits_calibration.npz", image=x[:200])
    np.savez_compressed(MODELS / "digits_test.npz", image=xt, labels=yt)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("name", choices=sorted(ARCHITECTURES))
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--lr", type=float, default=0.2, help="peak of the one-cycle schedule")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, score = train(args.name, args.epochs, args.lr, args.batch, args.seed)
    path = export(args.name, model)
    if args.name == "digits_cnn":
        write_digits_arrays()
    count = sum(p.numel() for p in model.parameters())
    print(f"| {args.name} | {count:,} | {path.stat().st_size:,} | {score:.4f} | {vars(args)} |")


if __name__ == "__main__":
    main()
