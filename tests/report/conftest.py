"""A report of a sensitivity analysis, made by hand: figures that anybody can check."""

from __future__ import annotations

import pytest

from onnxq.sensitivity import FrontPoint, Histogram, LayerSensitivity, Loss, SensitivityReport
from onnxq.types import Precision

# A name that would run as a script wherever it is not escaped.
EVIL = "</script><script>alert(1)</script>"


def layer(name: str, op: str, db: float, rest: float, **changes: object) -> LayerSensitivity:
    """A layer whose top1 falls by a hundredth of a point for every dB below 40."""
    figures = {
        "only": Loss(db, 10 ** (-db / 10), 1 - (60 - db) / 1000, 0.99 - max(40 - db, 0) / 10_000),
        "weights": Loss(db + 6),
        "activations": Loss(db + 1.5),
        "rest": Loss(rest, 0.01, 0.97, 0.97),
        "float_ms": 0.30,
        "quantized_ms": 0.10,
        "parameters": 1_500,
        "macs": 2_400_000,
    }
    return LayerSensitivity(name, op, Precision.INT8, **(figures | changes))  # type: ignore[arg-type]


@pytest.fixture
def evil() -> str:
    return EVIL


@pytest.fixture
def report() -> SensitivityReport:
    """Four layers: one that makes most of the noise, and one with an evil name."""
    return SensitivityReport(
        model="models/face.onnx",
        sha256="ab" * 32,
        data="cd" * 32,
        method="exact",
        samples=64,
        metric="top1",
        float_metric=0.99,
        layers=(
            layer("/stem/conv", "Conv", 20.0, 29.0, quantized_ms=0.35),
            layer(EVIL, "Gemm", 30.0, 19.0, parameters=3_000_000),
            layer("block[bold]/a|b[/]", "Conv", 40.0, 18.7, weights=None),
            layer("sum", "Add", 200.0, 18.6, weights=None, parameters=0, macs=None),
        ),
        everything={"int8": Loss(18.6, 0.02, 0.94, 0.92)},
        front=(
            FrontPoint((), 0.7, Loss(18.6, metric=0.92), 0.71),
            FrontPoint(("/stem/conv",), 0.8, Loss(29.0, metric=0.97)),
            FrontPoint(("/stem/conv", EVIL), 1.2),
        ),
        weight_histograms={"/stem/conv": Histogram(-1.0, 1.0, (1, 20, 300, 40, 0, 2))},
        activation_histograms={"/stem/conv": Histogram(0.0, 255.0, (900, 50, 10, 1))},
        environment={"onnxq": "0.1.0", "processor": "a <fast> one"},
        notes=("calibrated with 8 samples",),
    )
