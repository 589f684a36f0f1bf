"""Figures of the introduction and of calibration: numbers and ranges (``docs_figures.py``)."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from charts import BLUE, GOLD, GREEN, INK, LINE, ORANGE, PINK, SOFT, Axis, Card, Plot, numbers

from onnxq.calibrate import ObserverSpec, Setup, calibrate
from onnxq.calibrate.histogram import Histogram
from onnxq.data import open_data
from onnxq.graph import load
from onnxq.numerics import choose_qparams, fake_quantize, sqnr_db
from onnxq.plan import load_recipe
from onnxq.runtime import TappedSession, prepare
from onnxq.types import Grid, QType

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "models"
METHODS = ("minmax", "mse", "percentile", "entropy", "sigma", "moving-average")
COLORS = dict(zip(METHODS, (INK, BLUE, ORANGE, GREEN, PINK, GOLD), strict=True))


# What is drawn


@cache
def prepared(name: str):
    """A shipped model, prepared."""
    return prepare(load(MODELS / f"{name}.onnx"))


def digits() -> np.ndarray:
    with np.load(MODELS / "digits_calibration.npz") as arrays:
        return arrays["image"]


def cifar(count: int) -> np.ndarray:
    """Training images of CIFAR-10, as the recipes of the shipped models read them."""
    name, inputs = "cifar10_resnet", prepared("cifar10_resnet").view().inputs
    settings = load_recipe(MODELS / f"{name}.onnxq.toml").data
    reader = open_data(settings.calibration, inputs, preprocess=settings.preprocess)
    batches = reader.batches(count)
    return next(iter(batches)).feed["image"]


@cache
def activation(tensor: str) -> np.ndarray:
    """What a tensor of the digits model holds on all calibration samples, flat."""
    return TappedSession(prepared("digits_cnn"), [tensor]).read({"image": digits()})[tensor].ravel()


def rounded(values: np.ndarray, lo: float, hi: float, bits: int = 8, *, symmetric: bool = False):
    """Values as an integer grid of any width holds them, for a range."""
    grid = Grid(bits, symmetric)
    if symmetric:
        step = max(-lo, hi) / grid.steps
        return np.clip(np.rint(values / step), -grid.steps, grid.steps) * step
    step = (hi - lo) / grid.steps
    zero = np.rint(-lo / step)
    return (np.clip(np.rint(values / step) + zero, 0, grid.steps) - zero) * step


def ends_by(
    method: str, tensor: str, name: str = "digits_cnn", images: np.ndarray | None = None
) -> tuple[float, float]:
    """The range that calibration chooses for a tensor, for 8 bits."""
    model = prepared(name)
    reader = open_data({"image": digits() if images is None else images}, model.view().inputs)
    setup = Setup.of(model.view(), [tensor], ObserverSpec(method))
    found = calibrate(model, reader, setup).ranges(Grid(8, False)).tensors[tensor]
    return found.lo, found.hi


def bars(plot: Plot, values: np.ndarray, count: int, ends: tuple[float, float]) -> None:
    """A histogram, the square root of each share, so that tails can be seen."""
    counts, edges = np.histogram(values, count, ends)
    for number, left, right in zip(counts, edges, edges[1:], strict=False):
        plot.bar((left, 0), (right, float(np.sqrt(number / counts.max())) * 0.95), LINE)


# Introduction


def affine() -> Card:
    card = Card("Affine quantization: 16 levels for -1 … 3", 390)
    plot = Plot(
        card,
        Axis(-2, 4, numbers(range(-2, 5)), "x"),
        Axis(-1.6, 3.6, numbers((-1, 0, 1, 2, 3)), "what it is read as"),
        top=56,
    )
    x = np.linspace(-2, 4, 2401)
    lo, hi, step = -1.0, 3.0, 4 / 15
    for ends in ((-2, lo), (hi, 4)):
        plot.bar((ends[0], -1.6), (ends[1], 3.6), ORANGE, 0.1)
    plot.axes()
    plot.curve([(-1.6, -1.6), (3.6, 3.6)], SOFT, 2, "5 5")
    plot.curve(zip(x, rounded(x, lo, hi, 4), strict=True), BLUE)
    plot.dots([(0, 0)], ORANGE)
    plot.label(0, 0, "0 is a level: exact", ORANGE, dx=12, dy=18)
    plot.label(-1.93, 2.9, "clipped", ORANGE)
    plot.label(3.93, -1.3, "clipped", ORANGE, "end")
    plot.label(0.55, 2.2, f"step = scale = 4 / 15 = {step:.3f}", BLUE, "middle")
    return card


def symmetric() -> Card:
    tensor = "/Relu_2_output_0"
    values = activation(tensor)
    lo, hi = ends_by("minmax", tensor)
    card = Card("Behind a Relu, half of a symmetric grid is wasted", 410)
    name = "value (digits_cnn, third Relu); grids drawn with 4 bits"
    plot = Plot(card, Axis(-3.4, 3.4, [], name), Axis(0, 1), left=24, top=56, bottom=200)
    bars(plot, values[values > 0], 60, (0, hi))
    card.line([(24, 200), (576, 200)], SOFT, 1.5)
    card.text(32, 84, "nothing is below 0", SOFT)
    for words, even, color, y in (
        ("asymmetric", False, BLUE, 218),
        ("symmetric", True, ORANGE, 286),
    ):
        grid = Grid(4, even)
        found = sqnr_db(values, rounded(values, lo, hi, symmetric=even))
        card.text(24, y + 18, f"{words}: {found:.1f} dB with 8 bits", color, bold=True)
        for level in range(-grid.steps if even else 0, grid.steps + 1):
            at = plot.at(level * hi / grid.steps, 0)[0]
            card.line([(at, y + 26), (at, y + 44)], color, 3)
    for value, words in numbers((-3, -2, -1, 0, 1, 2, 3)):
        card.text(plot.at(value, 0)[0], 360, words, SOFT, "middle", 15)
    card.text(300, 390, name, SOFT, "middle", 16)
    return card


def per_channel() -> Card:
    name = "/blocks/blocks.0/body/body.3/Conv"
    view = prepared("cifar10_mobilenet").view()
    weight = view.constant(view.by_name[name].inputs[1])
    flat = weight.reshape(len(weight), -1)
    flat = flat[np.argsort(np.abs(flat).max(1))[::-1]]
    most = float(np.abs(flat).max())
    tensor = choose_qparams(-most, most, QType.INT8, symmetric=True)
    ends = np.abs(flat).max(1)
    channel = choose_qparams(-ends, ends, QType.INT8, symmetric=True, axis=0)
    found = [sqnr_db(flat, fake_quantize(flat, params)) for params in (tensor, channel)]
    card = Card("64 channels of one depthwise weight", 404)
    top = np.ceil(most)
    plot = Plot(
        card,
        Axis(-1, 64, [], "channels, widest first (cifar10_mobilenet, /blocks/blocks.0)"),
        Axis(-top, top, numbers(np.linspace(-top, top, 5))),
        top=90,
        bottom=336,
        left=56,
    )
    plot.axes()
    plot.bar((-1, -most), (64, most), ORANGE, 0.13)
    for at, row in enumerate(flat):
        plot.bar((at - 0.35, float(row.min())), (at + 0.35, float(row.max())), BLUE)
    card.legend(
        [
            (f"one scale for all: {found[0]:.1f} dB", "#f6ccae"),
            (f"one per channel: {found[1]:.1f} dB", BLUE),
        ]
    )
    return card


def bits() -> Card:
    rng = np.random.default_rng(0)
    view = prepared("digits_cnn").view()
    weight = view.constant("conv3.weight")
    flat = weight.reshape(len(weight), -1)
    relu = activation("/Relu_2_output_0")
    ramp = rng.uniform(-1, 1, 200_000)
    widths = range(2, 9)

    def of_rows(width: int) -> float:
        made = [rounded(row, row.min(), row.max(), width, symmetric=True) for row in flat]
        return sqnr_db(flat, np.array(made))

    lines = {
        "even spread": (SOFT, [sqnr_db(ramp, rounded(ramp, -1, 1, b)) for b in widths]),
        "activation": (BLUE, [sqnr_db(relu, rounded(relu, 0, relu.max(), b)) for b in widths]),
        "weight, per channel": (ORANGE, [of_rows(b) for b in widths]),
    }
    card = Card("Each bit is worth about 6 dB", 390)
    plot = Plot(
        card,
        Axis(1.8, 8.2, numbers(widths), "bits"),
        Axis(0, 55, numbers(range(0, 51, 10)), "SQNR, dB"),
    ).axes()
    card.legend([(words, color) for words, (color, _) in lines.items()])
    for words, (color, found) in lines.items():
        points = list(zip(widths, found, strict=True))
        plot.curve(points, color, dash="6 5" if words == "even spread" else "")
        plot.dots(points, color, 5)
    return card


def straight_through() -> Card:
    import torch

    from onnxq.qat.fake_quant import fake_quantize as learned

    x = torch.linspace(-2, 4, 1201, requires_grad=True)
    made = learned(x, torch.tensor(4 / 7), torch.tensor(2.0), 0, 7)
    made.sum().backward()
    xs = x.detach().numpy()
    card = Card("Fake quantization, forwards and backwards", 470)
    axis = Axis(-2, 4, [], "")
    plot = Plot(card, axis, Axis(-1.6, 3.4, numbers((-1, 0, 1, 2, 3))), top=56, bottom=260).axes()
    plot.curve(zip(xs, made.detach().numpy(), strict=True), BLUE)
    plot.label(-1.9, 2.6, "forwards: round and clip (3 bits)", BLUE)
    under = Plot(
        card,
        Axis(-2, 4, numbers(range(-2, 5)), "x"),
        Axis(-0.15, 1.5, numbers((0, 1))),
        top=290,
        bottom=400,
    ).axes()
    under.curve(zip(xs, x.grad.numpy(), strict=True), ORANGE)
    under.label(-1.9, 1.2, "backwards: slope 1 inside, 0 where it was clipped", ORANGE)
    return card


# Calibration


def ranges() -> Card:
    name, tensor = "cifar10_resnet", "/blocks/blocks.0/body/body.3/Conv_output_0"
    model, images = prepared(name), cifar(200)
    values = TappedSession(model, [tensor]).read({"image": images})[tensor].ravel()
    least, most = float(values.min()), float(values.max())
    card = Card("One activation, six ways to choose its range", 570)
    words = "value (cifar10_resnet, a Conv; bars: square root of the share)"
    axis = Axis(least * 1.02, most * 1.02, numbers(range(-4, 6)), words)
    plot = Plot(card, axis, Axis(0, 1), left=24, top=56, bottom=200)
    bars(plot, values, 90, (least, most))
    plot.axes(grid=False)
    for row, method in enumerate(METHODS):
        lo, hi = ends_by(method, tensor, name, images)
        y = 282 + 47 * row
        found = [sqnr_db(values, rounded(values, lo, hi, b)) for b in (8, 4)]
        left, right = plot.at(lo, 0)[0], plot.at(hi, 0)[0]
        card.line([(left, y + 14), (right, y + 14)], COLORS[method], 7)
        for end in (left, right):
            card.line([(end, y + 6), (end, y + 22)], COLORS[method], 3)
        card.text(24, y + 1, method, COLORS[method], bold=True)
        card.text(196, y + 1, f"{lo:.2f} … {hi:.2f}", SOFT)
        card.text(576, y + 1, f"8 bits {found[0]:.1f} dB, 4 bits {found[1]:.1f} dB", SOFT, "end")
    return card


def bins() -> Card:
    """How wide a bin is beside the values that it holds."""
    card = Card("How wide a histogram's bins are beside their values", 410)
    ticks = [(1e-3, "0.001"), (1e-2, "0.01"), (0.1, "0.1"), (1, "1"), (10, "10"), (100, "100")]
    heights = [(1e-4, "0.01 %"), (1e-3, "0.1 %"), (1e-2, "1 %"), (0.1, "10 %"), (1, "100 %")]
    plot = Plot(
        card,
        Axis(1e-3, 100, ticks, "value, where the largest is 100", log=True),
        Axis(1e-4, 3, heights, log=True),
        left=84,
        top=86,
        bottom=336,
    )
    plot.axes()
    card.legend([("2,048 bins of equal width", ORANGE), ("bins named by a float's bits", BLUE)])
    values = np.geomspace(1.0001e-3, 99.9, 1500).astype(np.float32)
    equal = 100 / 2048
    plot.curve([(float(v), min(equal / float(v), 3)) for v in values if equal / v < 3], ORANGE)
    histogram = Histogram()
    histogram.add(np.array([100.0], np.float32))
    histogram.add(values)
    held = histogram.bins()
    plot.curve(
        [
            (float(c), float(w / c))
            for c, w in zip(held.center, held.right - held.left, strict=True)
            if c > 2e-3
        ],
        BLUE,
    )
    return card
