"""The ratio of the fastest rounds, which load on a machine leaves alone."""

from __future__ import annotations

import pytest

from onnxq.runtime import Latency
from onnxq.verify.verify import _undisturbed


def latency(prepared: tuple[float, ...], output: tuple[float, ...], *openings: int) -> Latency:
    return Latency((1, 1, 1), len(output), (prepared, prepared, output), openings)


def test_load_is_no_part_of_it() -> None:
    """Most rounds of the float model were held up; the medians say 4, the fastest rounds 2."""
    found = latency((2, 8, 8, 8, 2, 8), (1, 1, 2, 2, 1, 2), 3, 3)
    assert _undisturbed(found) == (2.0, 0.0)


def test_noise_is_what_the_second_fastest_opening_differs_by() -> None:
    """2 and 2.2 of one model, 1 and 1.1 of the other; a held up opening does not count."""
    found = latency((2, 2.2, 9), (1.1, 7, 1), 1, 1, 1)
    ratio, noise = _undisturbed(found)
    assert ratio == 2.0
    assert noise == pytest.approx(0.2, rel=1e-12)


def test_one_opening_tells_no_noise() -> None:
    assert _undisturbed(latency((2, 3), (1, 4))) == (2.0, 0.0)
