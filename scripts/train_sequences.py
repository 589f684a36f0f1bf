"""Train the recurrent and transformer models that the project ships in ``models/``.

Each reads an MNIST image as a sequence: an LSTM and a bidirectional GRU its 28 rows, a transformer
encoder its 16 patches. Trainings are run by hand, never in CI; the exported files are committed::

    pip install 'torch==2.13.0' onnxscript onnxruntime
    export ONNXQ_DATA=...            # holds mnist.npz, see onnxq/data/datasets.py
    python scripts/train_sequences.py mnist_lstm

Each run prints one line per epoch, holds the exported file against torch with ONNX Runtime, and
prints the row for ``models/README.md``. The optimiser is AdamW (Loshchilov, Hutter, "Decoupled
Weight Decay Regularization", 2019) with a one-cycle schedule (Smith, "Super-Convergence", 2018).
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from train_models import MODELS, accuracy, augment

from onnxq.data import load_dataset

SIDE, CLASSES = 28, 10
PATCH, TOKENS = 7, 16


class MnistLSTM(nn.Module):
    """One LSTM layer over the rows; the class is read from its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(SIDE, 128, batch_first=True)
        self.head = nn.Linear(128, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        _, (state, _) = self.lstm(image)
        return self.head(state[-1])


class MnistGRU(nn.Module):
    """A GRU over the rows in both directions; the class is read from the mean of all states."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(SIDE, 128, batch_first=True, bidirectional=True)
        self.head = nn.Linear(256, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        states, _ = self.gru(image)
        return self.head(states.mean(1))


class Attention(nn.Module):
    """Multi-head self-attention: Vaswani et al., "Attention Is All You Need" (2017), section 3.2.

    Written out, so that it exports as MatMul and Softmax, the projections with constant weights.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        """[batch, tokens, width] to [batch, heads, tokens, size]."""
        return x.reshape(-1, TOKENS, self.heads, self.size).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (self.split(f(x)) for f in (self.query, self.key, self.value))
        scores = query @ key.transpose(2, 3) / math.sqrt(self.size)
        mixed = (scores.softmax(-1) @ value).transpose(1, 2)
        return self.out(mixed.reshape(-1, TOKENS, self.heads * self.size))


class EncoderLayer(nn.Module):
    """Attention and a two-layer network, each behind its LayerNorm and with a residual.

    The norms come first: Xiong et al., "On Layer Normalization in the Transformer Architecture"
    (2020), figure 1b, which trains without a long warm-up.
    """

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class MnistTransformer(nn.Module):
    """Two encoder layers over 16 patches of 7x7 pixels; the class is read from the mean token.

    A small vision transformer: Dosovitskiy et al., "An Image is Worth 16x16 Words" (2021).
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(PATCH**2, 64)
        self.position = nn.Parameter(torch.randn(1, TOKENS, 64) * 0.02)
        self.layers = nn.Sequential(*(EncoderLayer(64, heads=4, hidden=256) for _ in range(2)))
        self.norm = nn.LayerNorm(64)
        self.head = nn.Linear(64, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        side = SIDE // PATCH
        pixels = image.reshape(-1, side, PATCH, side, PATCH).transpose(2, 3)
        patches = pixels.reshape(-1, TOKENS, PATCH**2)
        x = self.layers(self.embed(patches) + self.position)
        return self.head(self.norm(x).mean(1))


ARCHITECTURES = {
    "mnist_lstm": MnistLSTM,
    "mnist_gru": MnistGRU,
    "mnist_transformer": MnistTransformer,
}


def load_split(split: str) -> tuple[Tensor, Tensor]:
    """Images float32 [N, 28, 28] from 0 to 1, and int64 labels."""
    images, labels = load_dataset("mnist", split)
    return torch.from_numpy(images.astype(np.float32) / 255), torch.from_numpy(labels)


def train(name: str, epochs: int, peak_lr: float, batch: int, seed: int) -> tuple[nn.Module, float]:
    """Train one model; returns it in evaluation mode with its test accuracy."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    (x, y), (xt, yt) = load_split("train"), load_split("test")
    model = ARCHITECTURES[name]()
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    steps = epochs * math.ceil(len(x) / batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, peak_lr, steps, pct_start=0.25)
    started = time.time()
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.from_numpy(rng.permutation(len(x))).split(batch):
            images = augment(x[rows, None], 2, False, rng).squeeze(1)
            loss = F.cross_entropy(model(images), y[rows], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # a recurrent gradient may explode
            optimiser.step()
            schedule.step()
            total += loss.item() * len(rows)
        score = accuracy(model, xt, yt)
        print(
            f"{name} epoch {epoch + 1}/{epochs} loss {total / len(x):.4f} "
            f"top1 {score:.4f} {time.time() - started:.0f} s",
            flush=True,
        )
    return model.eval(), score


def export(name: str, model: nn.Module) -> Path:
    """Write ``models/NAME.onnx`` with a dynamic batch axis, nodes named after their modules."""
    path = MODELS / f"{name}.onnx"
    warnings.filterwarnings("ignore", "You are using the legacy TorchScript", DeprecationWarning)
    # Said of every recurrent export; here the states start as zeros of the batch that is fed.
    warnings.filterwarnings("ignore", "Exporting a model to ONNX with a batch_size other than 1")
    torch.onnx.export(
        model,
        (torch.zeros(1, SIDE, SIDE),),
        path,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        opset_version=17,
        dynamo=False,
    )
    return path


@torch.no_grad()
def compare(path: Path, model: nn.Module) -> float:
    """The largest difference of a logit between the exported file and torch, for three batches.

    Different sizes also show that states do not start with the batch of the export.
    """
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    images, _ = load_split("test")
    pairs = [
        (session.run(None, {"image": x.numpy()})[0], model(x).numpy())
        for x in (images[:1], images[:7], images[:500])
    ]
    return max(float(np.abs(ours - theirs).max()) for ours, theirs in pairs)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("name", choices=sorted(ARCHITECTURES))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--lr", type=float, default=3e-3, help="peak of the one-cycle schedule")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, score = train(args.name, args.epochs, args.lr, args.batch, args.seed)
    path = export(args.name, model)
    difference = compare(path, model)
    print(f"{path.name}: logits differ from torch by {difference:.1e} at most")
    if difference > 1e-3:  # float32 rounding is some 1e-5
        raise SystemExit("the exported model computes something else")
    count = sum(p.numel() for p in model.parameters())
    print(f"| {args.name} | {count:,} | {path.stat().st_size:,} | {score:.4f} | {vars(args)} |")


if __name__ == "__main__":
    main()
