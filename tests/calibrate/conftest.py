"""Shared fixtures: calibrate a model in one call."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from onnxq.calibrate import Calibration, ObserverSpec, Setup, calibrate
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
