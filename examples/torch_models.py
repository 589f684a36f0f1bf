"""Small networks in PyTorch that examples train and export; nothing of onnxq is in here.

A detector, a streaming model for speech, and a language model.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def fit(
    make: Callable[[], Module],
    loss: Callable[[Module, Tensor], Tensor],
    samples: int,
    *,
    epochs: int,
    batch: int = 32,
) -> Module:
    """Train a small module of PyTorch by AdamW, with a learning rate that rises and falls.

    Args:
        make: Makes the module.
        loss: What to make small: of a module and the numbers of a batch's samples.
        samples: How many samples there are.
        epochs: Passes over them.
        batch: Samples per step.

    Returns:
        The trained module: on machines of one kind, the same weights in every run.
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)  # sums of several threads round in another order
    module = make()
    steps = epochs * -(-samples // batch)
    optimizer = torch.optim.AdamW(module.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.randperm(samples).split(batch):
            optimizer.zero_grad()
            loss(module, rows).backward()
            optimizer.step()
            schedule.step()
    return module


def export(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    path: str | Path,
    names: tuple[list[str], list[str]],
    *,
    batched: bool = True,
) -> None:
    """Write a PyTorch module as an ONNX model.

    Args:
        module: The module.
        inputs: What it is called with, to see its operators.
        path: Where to write the model.
        names: Of inputs and of outputs.
        batched: Whether the first axis of all of them may have any size.
    """
    axes = {name: {0: "batch"} for name in (*names[0], *names[1])} if batched else None
    with warnings.catch_warnings():
        # Of PyTorch's two exporters this one names nodes after the modules that they come from,
        # such as /head/Gemm, and needs no further package. It warns that it is the older one, and
        # of every LSTM, whatever its state.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(), inputs, str(path), input_names=names[0], output_names=names[1],
            dynamic_axes=axes, opset_version=17, dynamo=False,
        )  # fmt: skip


# The detector.
CANVAS, STRIDE, MOST = 48, 8, 4  # pixels, pixels per cell of the grid, digits on a canvas


def canvases(glyphs: np.ndarray, count: int, seed: int) -> dict[str, np.ndarray]:
    """Canvases [N, 1, 48, 48] with a digit in some of their quarters, and the boxes [N, 4, 4].

    A box is (x1, y1, x2, y2) in pixels, tight around the ink; where there is no digit, zeros.
    """
    rng = np.random.default_rng(seed)
    images = rng.uniform(0, 0.3, (count, 1, CANVAS, CANVAS)).astype(np.float32)
    boxes = np.zeros((count, MOST, 4), np.float32)
    half = CANVAS // 2
    for image, found in zip(images[:, 0], boxes, strict=True):
        for quarter in np.flatnonzero(rng.random(MOST) < 0.6):
            factor = rng.integers(1, 3)
            glyph = np.kron(glyphs[rng.integers(len(glyphs)), 0], np.ones((factor, factor)))
            corner = np.array(divmod(quarter, 2)) * half + rng.integers(0, half - len(glyph), 2)
            (top, left), (bottom, right) = corner, corner + len(glyph)
            image[top:bottom, left:right] = np.maximum(image[top:bottom, left:right], glyph)
            ys, xs = np.nonzero(glyph > 0.3)
            ink = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
            found[quarter] = ink + np.tile(corner[::-1], 2)
    return {"image": images, "labels": boxes}


class Detector(nn.Module):
    """One box and one score for each cell of a grid of 6x6, without anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, 2, 1)
        self.conv1 = nn.Conv2d(32, 48, 3, 2, 1)
        self.conv2 = nn.Conv2d(48, 64, 3, 2, 1)
        self.conv3 = nn.Conv2d(64, 64, 3, 1, 1)
        self.head = nn.Conv2d(64, 5, 1)
        rows, columns = torch.meshgrid(*[torch.arange(CANVAS // STRIDE)] * 2, indexing="ij")
        self.register_buffer("cells", torch.stack([columns, rows], -1).reshape(-1, 2) + 0.5)

    def raw(self, image: Tensor) -> Tensor:
        """Per cell: a score before its sigmoid, offset of the centre, logarithm of the size."""
        x = torch.relu(self.conv1(torch.relu(self.stem(image))))
        x = torch.relu(self.conv3(torch.relu(self.conv2(x))))
        return self.head(x).flatten(2).transpose(1, 2)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes [N, 36, 4] in pixels, and scores [N, 36]."""
        raw = self.raw(image)
        centre, half = raw[..., 1:3] + self.cells, raw[..., 3:5].exp() / 2
        boxes = torch.cat([centre - half, centre + half], -1) * STRIDE
        return boxes, raw[..., 0].sigmoid()


def train_detector(data: dict[str, np.ndarray], epochs: int) -> Detector:
    """Every box is for the cell that holds its centre to find."""
    images, boxes = (torch.from_numpy(data[key]) for key in ("image", "labels"))

    def loss(detector: Detector, rows: Tensor) -> Tensor:
        raw = detector.raw(images[rows])
        sample, number = (boxes[rows, :, 2] > 0).nonzero(as_tuple=True)
        wanted = boxes[rows][sample, number] / STRIDE
        centre, size = (wanted[:, :2] + wanted[:, 2:]) / 2, wanted[:, 2:] - wanted[:, :2]
        cell = centre[:, 1].long() * (CANVAS // STRIDE) + centre[:, 0].long()
        there = torch.zeros(raw.shape[:2]).index_put_((sample, cell), torch.tensor(1.0))
        target = torch.cat([centre - detector.cells[cell], size.log()], 1)
        found = nn.functional.binary_cross_entropy_with_logits(raw[..., 0], there)
        return found + nn.functional.smooth_l1_loss(raw[sample, cell, 1:], target)

    return fit(Detector, loss, len(images), epochs=epochs)


# The model for speech.
RATE, FRAME, BANDS, STATES = 8000, 160, 64, 128  # Hz, samples of 20 ms, features, units
SOUND = 15  # frames that every sound lasts


def audio(sounds: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features float32 [frames, 64] of noisy audio, and whether a frame is of a rising chirp."""
    rng = np.random.default_rng(seed)
    frames, labels = [], []
    for _ in range(sounds):
        kind = rng.integers(4)  # rising, falling, tone, nothing
        low, high = np.sort(rng.uniform(300, 3300, 2))
        ends = {0: (low, high + 300), 1: (high + 300, low), 2: (low, low)}.get(int(kind), (0, 0))
        phase = np.cumsum(np.linspace(*ends, SOUND * FRAME)) * 2 * np.pi / RATE
        samples = np.sin(phase) * rng.uniform(0.3, 1) + rng.normal(0, 0.2, phase.shape)
        spectrum = np.abs(np.fft.rfft(samples.reshape(SOUND, FRAME) * np.hanning(FRAME)))
        frames.append(np.log(spectrum[:, 1 : BANDS + 1] + 0.1))
        labels.append(np.full(SOUND, kind == 0))
    return np.concatenate(frames).astype(np.float32), np.concatenate(labels)


class Spotter(nn.Module):
    """A linear layer, an LSTM, and a score; one frame or many at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(BANDS, STATES)
        self.lstm = nn.LSTM(STATES, STATES, batch_first=True)
        self.head = nn.Linear(STATES, 1)

    def forward(self, frames: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Frames [1, T, 64] and the state [1, 1, 128] to scores [1, T] and the next state."""
        made, (h, c) = self.lstm(torch.relu(self.encode(frames)), (h, c))
        return self.head(made)[..., 0].sigmoid(), h, c


def train_spotter(frames: np.ndarray, labels: np.ndarray, epochs: int) -> Spotter:
    """Learn from sequences of four sounds."""
    x = torch.from_numpy(frames).reshape(-1, 4 * SOUND, BANDS)
    y = torch.from_numpy(labels.astype(np.float32)).reshape(-1, 4 * SOUND)

    def loss(spotter: Spotter, rows: Tensor) -> Tensor:
        state = torch.zeros(1, len(rows), STATES)
        return nn.functional.binary_cross_entropy(spotter(x[rows], state, state)[0], y[rows])

    return fit(Spotter, loss, len(x), epochs=epochs, batch=16)


# The language model.
CONTEXT, WIDTH, HEADS, CHARACTERS = 64, 128, 4, 128  # characters are ASCII


class Block(nn.Module):
    """Causal self-attention and a network of two layers, each behind its norm, with residuals."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        later = torch.triu(torch.full((CONTEXT, CONTEXT), -1e4), diagonal=1)
        self.register_buffer("later", later)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 64, width] to the same."""
        normed, split = self.norm1(x), (-1, CONTEXT, HEADS, WIDTH // HEADS)
        query, key, value = (
            layer(normed).reshape(split).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(2, 3) / math.sqrt(WIDTH // HEADS) + self.later
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(-1, CONTEXT, WIDTH)
        x = x + self.out(mixed)
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))


class LanguageModel(nn.Module):
    """Characters to scores of the next one, at every place."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(CHARACTERS, WIDTH)
        self.place = nn.Parameter(torch.randn(CONTEXT, WIDTH) * 0.02)
        self.blocks = nn.Sequential(Block(), Block())
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CHARACTERS)

    def forward(self, characters: Tensor) -> Tensor:
        """[batch, 64] to [batch, 64, 128]."""
        return self.head(self.norm(self.blocks(self.embed(characters) + self.place)))


def windows(text: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Characters int64 [N, 64], one row every ``step`` places, and the ones that follow each."""
    found = np.lib.stride_tricks.sliding_window_view(text, CONTEXT + 1)[::step]
    return found[:, :-1].copy(), found[:, 1:].copy()


def train_language_model(text: np.ndarray, epochs: int) -> LanguageModel:
    """Learn the next character at every place."""
    x, y = (torch.from_numpy(part) for part in windows(text, step=5))

    def loss(model: LanguageModel, rows: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(x[rows]).flatten(0, 1), y[rows].flatten())

    return fit(LanguageModel, loss, len(x), epochs=epochs, batch=16)
