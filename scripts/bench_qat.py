"""What a step of quantization-aware training costs beside a step of plain PyTorch training.

::

    python scripts/bench_qat.py --steps 10            # the shipped CNNs, one thread

Plain is the network as it was trained: a ``torch.nn.Module`` with its BatchNorm, channels last,
with the same optimizer. ``folded`` is the same with BatchNorm folded into the convolutions, which
is the graph that onnxq trains. The three take turns in one run; a ratio is the median of the ratios
of neighbours. Made-up images and labels do: time does not depend on them.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from train_models import ARCHITECTURES

import onnxq
from onnxq.plan import QATSettings, Recipe
from onnxq.qat.batches import Step
from onnxq.qat.losses import choose_loss
from onnxq.qat.steps import Stepper
from onnxq.qat.student import Student

MODELS = Path(__file__).resolve().parent.parent / "models"
SHAPES = {"digits_cnn": (1, 8, 8), "mnist_cnn": (1, 28, 28)}
CASES = {
    "int8": Recipe(precision="int8"),
    "int8, fixed scales": Recipe(precision="int8", qat=QATSettings(learn_scales=False)),
    "int4-weights": Recipe(precision="int4-weights"),
}


def plain_step(model: nn.Module, image: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    """A step of training a module with AdamW."""
    model = model.to(memory_format=torch.channels_last)
    image = image.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(image), labels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def folded(model: nn.Module) -> nn.Module:
    """The module with every BatchNorm folded into the convolution before it."""
    model.eval()
    for module in model.modules():
        for children in [m for m in (module,) if isinstance(m, nn.Sequential)]:
            names = list(children._modules)
            for first, second in itertools.pairwise(names):
                conv, norm = children._modules[first], children._modules[second]
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    children._modules[first] = fuse_conv_bn_eval(conv, norm)
                    children._modules[second] = nn.Identity()
    for parameter in model.parameters():
        parameter.requires_grad_()
    return model.train()


def qat_step(
    path: Path, recipe: Recipe, image: np.ndarray, labels: np.ndarray
) -> Callable[[], float]:
    """A step of training the graph."""
    source = onnxq.load(path)
    drafted = onnxq.draft(source, onnxq.with_data(onnxq.make_job(None, recipe), {"image": image}))
    student = Student(drafted.prepared, drafted.census, drafted.plan, recipe.qat)
    loss = choose_loss(drafted.prepared.view(), drafted.plan, recipe.qat, labelled=True)
    stepper, made = Stepper(student, recipe.qat, loss, 100), Step({"image": image}, labels)
    return lambda: stepper.step(made, 0)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--models", nargs="+", default=["cifar10_resnet", "cifar10_mobilenet"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rng = np.random.default_rng(0)
    print(f"{'model':<20}{'step':<22}{'ms':>8}{'of plain':>10}{'of folded':>11}")
    for name in args.models:
        image = rng.normal(size=(args.batch, *SHAPES.get(name, (3, 32, 32)))).astype(np.float32)
        labels = rng.integers(0, 10, args.batch)
        tensors = torch.from_numpy(image), torch.from_numpy(labels)
        steps: dict[str, Callable[[], object]] = {
            "plain": plain_step(ARCHITECTURES[name](), *tensors),
            "folded": plain_step(folded(ARCHITECTURES[name]()), *tensors),
        }
        for case, recipe in CASES.items():
            steps[case] = qat_step(MODELS / f"{name}.onnx", recipe, image, labels)
        times: dict[str, list[float]] = {case: [] for case in steps}
        for turn in range(args.steps + 2):
            for case, step in steps.items():
                started = time.perf_counter()
                step()
                if turn >= 2:  # the first two warm up
                    times[case].append(time.perf_counter() - started)
        for case, taken in times.items():
            ratios = [
                statistics.median(a / b for a, b in zip(taken, times[base], strict=True))
                for base in ("plain", "folded")
            ]
            ms = 1000 * statistics.median(taken)
            print(f"{name:<20}{case:<22}{ms:>8.0f}{ratios[0]:>10.2f}{ratios[1]:>11.2f}", flush=True)


if __name__ == "__main__":
    main()
