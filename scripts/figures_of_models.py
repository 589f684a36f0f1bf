"""Figures of whole models: what they lose, how fast they are, how plans are made."""

from __future__ import annotations

import json
import re

import numpy as np
from charts import (
    BLUE,
    CARD,
    GOLD,
    GREEN,
    INK,
    LINE,
    ORANGE,
    PINK,
    SKY,
    SOFT,
    Axis,
    Card,
    Plot,
    numbers,
)
from figures_of_numbers import MODELS, ROOT, digits, prepared

import onnxq
from onnxq.ops import classify
from onnxq.plan import Budgets, Costs, Recipe, VerifySettings, cheapest
from onnxq.runtime import TappedSession
from onnxq.sensitivity.costs import PRICES
from onnxq.sensitivity.cuts import Steps
from onnxq.targets import Kernel, get_target

TIMES = ROOT / "docs/figures/times.json"


def samples() -> Card:
    """SQNR of the int8 digits model by the number of samples; five draws each."""
    counts = (1, 2, 4, 8, 16, 32, 64, 128, 200)
    with np.load(MODELS / "digits_test.npz") as arrays:
        test = {"image": arrays["image"]}
    recipe = Recipe(precision="int8", target="cpu-x86", verify=VerifySettings(seconds=0))
    images, found = digits(), {}
    for count in counts:
        draws = [np.random.default_rng(seed).permutation(len(images))[:count] for seed in range(5)]
        results = [
            onnxq.quantize(
                prepared("digits_cnn"), data={"image": images[draw]}, test_data=test, recipe=recipe
            )
            for draw in draws
        ]
        found[count] = [r.receipt.measured.outputs["logits"].sqnr_db for r in results]
    card = Card("How many samples: digits_cnn in int8", 400)
    x = Axis(0.9, 240, numbers(counts[:-1]), "calibration samples", log=True)
    plot = Plot(
        card, x, Axis(10, 45, numbers(range(10, 46, 10)), "SQNR of the outputs, dB"), top=60
    )
    plot.axes()
    plot.curve([(count, float(np.median(all_))) for count, all_ in found.items()], BLUE)
    for count, all_ in found.items():
        plot.dots([(count, one) for one in all_], ORANGE, 5)
    plot.label(60, 22, "line: median of the draws", BLUE, "middle")
    plot.label(60, 17.5, "dots: five draws each", ORANGE, "middle")
    return card


def growth() -> Card:
    """Where the error of the digits model enters, at 8 bits and with weights of 4."""
    test = str(MODELS / "digits_test.npz")
    data = {"data": str(MODELS / "digits_calibration.npz"), "test_data": test}
    lines = {}
    for words, precision, color in (
        ("int8", "int8", BLUE),
        ("4-bit weights", "int4-weights", ORANGE),
    ):
        recipe = Recipe(
            precision=precision,
            target="cpu-x86",
            budgets=Budgets(max_drop=0.5),
            verify=VerifySettings(seconds=0),
        )
        made = onnxq.quantize(MODELS / "digits_cnn.onnx", recipe=recipe, **data).model
        told = onnxq.compare_models(MODELS / "digits_cnn.onnx", made, test, seconds=0).growth
        by_layer = {layer.node: layer for layer in told.layers}
        lines[words] = color, by_layer, told
    layers = ("/conv1/Conv", "/conv2/Conv", "/conv3/Conv", "/fc1/Gemm", "/fc2/Gemm")
    card = Card("How the error grows through digits_cnn", 420)
    x = Axis(-0.5, 4.5, list(enumerate(name.split("/")[1] for name in layers)), "layer")
    plot = Plot(
        card, x, Axis(0, 60, numbers(range(0, 61, 10)), "SQNR behind it, dB"), top=86, bottom=345
    )
    plot.axes()
    card.legend([(words, color) for words, (color, _, _) in lines.items()])
    for color, by_layer, told in lines.values():
        points = [(at, by_layer[name].sqnr_db) for at, name in enumerate(layers)]
        plot.curve(points, color)
        plot.dots(points, color)
        for at, name in enumerate(layers):
            share = told.share(by_layer[name])
            plot.label(*points[at], f"{share:.0%}", color, "middle", dy=-14)
    card.text(576, 62, "percent: share of the noise at the end", SOFT, "end", 15)
    return card


# Trade-offs


def table(name: str) -> list[dict[str, str]]:
    """The first table of measurements in docs/precisions.md, of the shipped models."""
    text = (ROOT / "docs/precisions.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    head = next(row for row in rows if row[:2] == ["model", "precision"])
    shipped = {path.stem for path in MODELS.glob("*.onnx")}
    found = [dict(zip(head, row, strict=False)) for row in rows if row[0] in shipped]
    return [row for row in found if row["form"] == name and "nothing" not in row["size x"]]


# Microseconds of a kernel that does nothing, as in onnxq/sensitivity/costs.py.
LAUNCH = 2.0
PRECISIONS = {
    "int8": BLUE,
    "int8-dynamic": GREEN,
    "int8-weights": GOLD,
    "int4-weights": ORANGE,
    "fp16": PINK,
}


def precisions() -> Card:
    card = Card("Size against accuracy: the shipped models", 430)
    x = Axis(0.1, 1.05, numbers((0.1, 0.25, 0.5, 0.75, 1.0)), "bytes, of the float file")
    y = Axis(0, 85, numbers(range(0, 81, 20)), "SQNR, dB")
    plot = Plot(card, x, y, top=100, bottom=362).axes()
    names = list(PRECISIONS.items())
    card.legend(names[:3])
    card.legend(names[3:], y=86)
    for row in table("qdq"):
        if row["precision"] in PRECISIONS:
            at = float(row["size x"]), float(row["SQNR dB"])
            plot.dots([at], PRECISIONS[row["precision"]])
    return card


def speeds() -> Card:
    card = Card("Speed against the prepared float model", 430)
    x = Axis(
        0.25,
        4,
        numbers((0.25, 0.5, 1, 2, 4), "{:g}x"),
        "latency of float / latency of the output",
        log=True,
    )
    plot = Plot(card, x, Axis(0, 6), left=150, top=56, bottom=362)
    plot.axes(grid=False)
    plot.curve([(1, 0), (1, 6)], SOFT, 2, "5 5")
    rows = table("qdq")
    colors = PRECISIONS | {"int16": SOFT}
    for at, (name, color) in enumerate(colors.items()):
        y = 5.5 - at
        card.text(140, plot.at(1, y)[1] + 6, name, color, "end", 16, bold=True)
        plot.dots([(float(r["speed x"]), y) for r in rows if r["precision"] == name], color, 7)
    plot.label(1.05, 5.8, "faster", SOFT)
    plot.label(0.95, 5.8, "slower", SOFT, "end")
    return card


def front() -> Card:
    told = json.loads(TIMES.read_text(encoding="utf-8"))["front"]
    points = told["points"]
    card = Card(f"Latency against accuracy: {told['model']}", 420)
    most = max(p["predicted_ms"] for p in points)
    x = Axis(
        0,
        most * 1.08,
        numbers(range(0, int(most * 1.1), 10)),
        f"ms per run of {told['batch']} images, one thread",
    )
    y = Axis(30, 56, numbers(range(30, 51, 5)), "SQNR, dB")
    plot = Plot(card, x, y, top=86, bottom=345).axes()
    card.legend([("measured", BLUE), ("as the cost model said", ORANGE)])
    plot.curve([(p["ms"], min(p["sqnr_db"], 54)) for p in points], BLUE)
    for p in points:
        height = min(p["sqnr_db"], 54)
        plot.dots([(p["predicted_ms"], height)], ORANGE, 5, hollow=True)
        plot.dots([(p["ms"], height)], BLUE)
    first, last = points[0], points[-1]
    plot.label(first["ms"], first["sqnr_db"], "everything int8", BLUE, dx=4, dy=24)
    plot.label(last["ms"], 54, "all float: no error", BLUE, "end", dx=-14, dy=4)
    return card


# Training


def logs() -> dict[str, str]:
    return {p.stem: p.read_text("utf-8") for p in sorted((ROOT / "examples/qat").glob("*.log"))}


def qat() -> Card:
    card = Card("Points of top-1 lost: rounding alone, and trained", 430)
    plot = Plot(
        card,
        Axis(-0.05, 1.1, numbers((0, 0.25, 0.5, 0.75, 1.0))),
        Axis(0, 7),
        left=276,
        top=80,
        bottom=372,
    )
    plot.axes(grid=False)
    card.legend([("PTQ", ORANGE), ("QAT", BLUE)])
    kinds = ("int4", "int4-unlabelled", "int8")
    names = sorted(logs(), key=lambda name: (kinds.index(name.split(".")[1]), name))
    for row, name in enumerate(names):
        line = next(x for x in logs()[name].splitlines() if x.strip().startswith("top1"))
        floating, ptq, trained = (float(v) for v in re.findall(r"\d\.\d{4}", line))
        lost = [100 * (floating - v) for v in (ptq, trained)]
        y = 6.5 - row
        model, kind = name.split(".")
        words = f"{model}, {kind.replace('-unlabelled', ', no labels')}"
        card.text(264, plot.at(0, y)[1] + 5, words, INK, "end", 15)
        plot.curve([(lost[0], y), (lost[1], y)], LINE, 5)
        plot.dots([(lost[0], y)], ORANGE, 8)
        plot.dots([(lost[1], y)], BLUE, 6)
    plot.curve([(0, 0), (0, 7)], SOFT, 2, "5 5")
    card.text(plot.at(0, 0)[0], 417, "0: as float", SOFT, "middle", 15)
    return card


def epochs() -> Card:
    card = Card("Validation loss while training 4-bit weights", 400)
    plot = Plot(
        card,
        Axis(-0.1, 6.1, numbers(range(7)), "epoch (0: before training)"),
        Axis(0, 0.022, numbers((0, 0.005, 0.01, 0.015, 0.02)), ""),
        top=86,
        left=84,
    )
    plot.axes()
    colors = {"cifar10_mobilenet": BLUE, "cifar10_resnet": ORANGE}
    card.legend(list(colors.items()))
    for name, color in colors.items():
        text = logs()[f"{name}.int4-unlabelled"]
        rows = [re.split(r"\s{2,}", line.strip()) for line in re.findall(r"^ +\d .*$", text, re.M)]
        points = [(int(row[0]), float(row[1 if row[0] == "0" else 2])) for row in rows]
        plot.curve(points, color)
        plot.dots(points, color)
        best = min(points, key=lambda point: point[1])
        plot.dots([best], color, 10, hollow=True)
    plot.label(5.9, 0.0125, "ring: the epoch that is taken", SOFT, "end")
    return card


# How it works


def cut() -> Card:
    """The cheapest assignment of the digits model at several prices of a crossing."""
    told = json.loads(TIMES.read_text(encoding="utf-8"))["nodes"]
    view = prepared("digits_cnn").view()
    census = classify(view, get_target("cpu-x86"))
    nodes = [node.name for node in view.nodes]
    floating = {name: told.get(name, (0, 0))[0] for name in nodes}
    integer = {name: told.get(name, (0, 0))[1] for name in nodes}
    shown = list(told)
    card = Card("The cheapest plan, by the price of a crossing", 290 + 38 * (1 + len(PRICES)))
    most = max(max(pair) for pair in told.values())
    plot = Plot(
        card,
        Axis(-0.5, len(shown) - 0.5),
        Axis(1, most * 1.4, log=True),
        left=120,
        top=86,
        bottom=230,
    )
    card.legend([("µs in float", SOFT), ("µs as int8", BLUE)])
    for at, name in enumerate(shown):
        for shift, value, color in ((-0.2, told[name][0], SOFT), (0.2, told[name][1], BLUE)):
            plot.bar((at + shift - 0.17, 1), (at + shift + 0.17, max(value, 1)), color)
            card.text(
                *_above(plot.at(at + shift, max(value, 1))), f"{value:.0f}", color, "middle", 13
            )
        card.text(
            plot.at(at, 1)[0],
            252,
            name.split("/")[1].replace("MaxPool", "Pool"),
            SOFT,
            "middle",
            14,
        )
    made = [t for node in view.nodes for t in node.outputs]
    values = TappedSession(prepared("digits_cnn"), made).read({"image": digits()[:32]})
    elements = {"image": 32 * 64} | {tensor: values[tensor].size for tensor in made}
    for row, price in enumerate((0.0, *PRICES)):
        crossing = {tensor: LAUNCH + price * 1e-3 * size for tensor, size in elements.items()}
        plan = cheapest(view, census, Costs(floating, integer, crossing, crossing))
        y = 272 + 38 * row
        card.text(24, y + 20, f"{price:g} ns", INK, size=16)
        for at, name in enumerate(shown):
            left, right = plot.at(at - 0.44, 1)[0], plot.at(at + 0.44, 1)[0]
            integers = name in plan
            card.box(
                left,
                y,
                right - left,
                28,
                BLUE if integers else CARD,
                stroke=BLUE if integers else SOFT,
                round_=6,
            )
            words, color = ("int8", CARD) if integers else ("float", SOFT)
            card.text((left + right) / 2, y + 20, words, color, "middle", 15)
    return card


def _above(at: tuple[float, float]) -> tuple[float, float]:
    return at[0], at[1] - 4


def frontier() -> Card:
    """Which steps run for each layer: all of them, or those from the layer on."""
    view = prepared("digits_cnn").view()
    census = classify(view, get_target("cpu-x86"))
    clamps = {n.name for n in census.nodes if n.kernel is Kernel.CLAMP}
    followers = {n.name: view.producer(n.inputs[0]).name for n in view.nodes if n.name in clamps}
    steps = Steps.of(view, followers)
    layers = [node.name for node in view.nodes if node.op in ("Conv", "Gemm", "MaxPool", "Flatten")]
    count = steps.count
    card = Card("digits_cnn, each layer alone: what has to run", 400)
    size, left, top = 36, 150, 92
    ran = 0
    for row, name in enumerate(layers):
        y = top + row * (size - 6)
        card.text(left - 10, y + 20, name.split("/")[1], SOFT, "end", 15)
        place = steps.place[name]
        for step in range(count):
            color = ORANGE if step == place else SKY if step > place else LINE
            card.box(left + step * (size + 14), y, size + 8, size - 12, color, round_=4)
            ran += step >= place
    card.legend(
        [("not run: kept activations", LINE), ("quantized", ORANGE), ("float, run again", SKY)]
    )
    moved = steps.place[layers[-1]]
    whole = count * len(layers)
    words = f"{ran} steps, and {moved} to move the frontier, instead of {whole}"
    card.text(24, 372, words, INK)
    return card
