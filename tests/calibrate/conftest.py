"""Shared fixtures: calibrate a model in one call, and values of many distributions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from onnxq.calibrate import Calibration, ObserverSpec, Setup, calibrate
from onnxq.calibrate.histogram import Histogram
from onnxq.data import Reader, open_data
from onnxq.runtime import TappedSession


@pytest.fixture
def observe() -> Callable[..., Calibration]:
    """Show some tensors of a model to observers."""

    def run(
        model, data, taps, observer="minmax", *,
        options=None, keep_histogram=False, exact=False, state=None, start=None, **rest,
    ) -> Calibration:  # fmt: skip
        spec = ObserverSpec(observer, options or {}, keep_histogram)
        view = model.view()
        setup = Setup.of(view, taps, spec, exact=exact, state=state)
        if not isinstance(data, Reader):
            data = open_data(data, view.inputs, optional=tuple((state or {}).values()))
        start = start or Calibration.empty("the model", spec, tuple(taps), exact=exact)
        return calibrate(model, data, setup, start, **rest)

    return run


@pytest.fixture
def runs(monkeypatch) -> list[int]:
    """A list that gets the rows of every run of a tapped session."""
    seen: list[int] = []
    read = TappedSession.read

    def counted(self, feed):
        array = next(iter(feed.values()), None)
        seen.append(len(array) if array is not None and array.ndim else 1)
        return read(self, feed)

    monkeypatch.setattr(TappedSession, "read", counted)
    return seen


def draw(kind: str, n: int = 60_000, seed: int = 0) -> np.ndarray:
    """Values of a distribution."""
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=n)
    values = {
        "normal": lambda: normal,
        "laplace": lambda: rng.laplace(size=n),
        "exponential": lambda: rng.exponential(size=n),
        "relu": lambda: np.maximum(normal, 0),
        "negative": lambda: -rng.exponential(size=n) - 1,
        "shifted": lambda: normal + 3,
        "mixture": lambda: np.where(rng.random(n) < 0.99, normal, 10 * normal),
        "lopsided": lambda: np.where(rng.random(n) < 0.7, -0.3 * abs(normal), 2 * abs(normal)),
        "student t": lambda: rng.standard_t(3, n),
        "softmax": lambda: rng.dirichlet(np.full(100, 0.1), n // 100).ravel(),
        "uniform": lambda: rng.uniform(-1, 2, n),
        "constant": lambda: np.full(n, 2.7),
        "few": lambda: rng.choice([-1.5, 0, 0.25, 7], n),
    }[kind]()
    return values.astype(np.float32)


def see(values) -> tuple[Histogram, tuple[float, float]]:
    """A histogram of values, and their ends."""
    values = np.asarray(values, np.float32)
    histogram = Histogram()
    histogram.add(values)
    return histogram, (float(values.min()), float(values.max()))


@pytest.fixture(scope="session")
def drawn() -> Callable[..., np.ndarray]:
    return draw


@pytest.fixture(scope="session")
def seen() -> Callable[..., tuple[Histogram, tuple[float, float]]]:
    return see
