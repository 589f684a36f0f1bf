"""How models are fed and scored: by the recipe beside them, or by a score module.

Score modules are as ``sweep.py`` describes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
from sweep import Feeds, spread

import onnxq
from onnxq.api.stages import open_reader
from onnxq.data import Data
from onnxq.types import Array

# Samples that onnxq calibrates and judges with; feeds that other tools get.
SAMPLES, PEER_FEEDS = 200, 32
# How far a score may be from float: one point, a share of a score that is no fraction, and dB for
# the score modules that measure in dB.
POINT, RELATIVE, DECIBELS = 0.01, 0.01, 0.5
IN_DECIBELS = ("superres", "dtln1", "dtln2", "gtcrn")


@dataclass(frozen=True)
class Task:
    """How one model is fed and scored.

    Attributes:
        model: Its file.
        data: Unlabelled samples for onnxq.
        peer_feeds: Feeds for the other tools.
        test: Test feeds, in the batch that is timed.
        score: The score of outputs on them, in the order of feeds and of the model's outputs.
        rollout: The score with states fed back from the model under test, for streaming models.
        margin: How far a score may be from float's, given that one.
        lower_is_better: Whether the score is an error.
    """

    model: Path
    data: Data
    peer_feeds: Feeds
    test: Feeds
    score: Callable[[list[list[Array]]], float]
    rollout: Callable[[object], float] | None
    margin: Callable[[float], float]
    lower_is_better: bool = False

    @property
    def batch(self) -> int:
        """Rows of the first input."""
        shape = next(iter(self.test[0].values())).shape
        return shape[0] if shape else 1

    def within(self, found: float, wanted: float) -> bool:
        """Whether a score is as near to float's as is owed."""
        lost = found - wanted if self.lower_is_better else wanted - found
        return lost <= self.margin(wanted) + 1e-9


def module_task(model: Path, module: ModuleType) -> Task:
    """The task of a model that a score module knows."""
    test, labels = module.load()
    try:
        calibration, known = module.load(split="calib")
    except KeyError:  # it has no such split
        calibration, known = test, labels
    streaming = hasattr(module, "rollout")
    return Task(
        model,
        _samples(_arrays(calibration), known),
        spread(_arrays(calibration), PEER_FEEDS),
        _arrays(test),
        lambda outputs: float(module.score(outputs, labels)),
        (lambda session: float(module.score(*module.rollout(session)))) if streaming else None,
        _decibels if module.__name__ in IN_DECIBELS else _points,
        getattr(module, "LOWER_IS_BETTER", False),
    )


def shipped_task(model: Path) -> Task:
    """The task of a shipped model, from the recipe beside it."""
    job = onnxq.make_job(model, None)
    inputs, recipe = onnxq.load(model).view().inputs, job.recipe
    batch = recipe.data.batch_size
    drawn = open_reader(job.calibration_data, job.data_from, inputs, recipe).sample(SAMPLES, 0)
    calibration = [found.feed for found in drawn.batches(batch)]
    test = list(open_reader(job.testing_data, job.test_from, inputs, recipe).batches(batch))
    labels = np.concatenate([found.labels for found in test])
    return Task(
        model,
        _joined(calibration),
        spread(calibration, PEER_FEEDS),
        [found.feed for found in test],
        partial(_top1, labels=labels),
        None,
        _points,
    )


def _top1(outputs: list[list[Array]], labels: Array) -> float:
    return float((np.concatenate([found[0] for found in outputs]).argmax(1) == labels).mean())


def _decibels(_: float) -> float:
    return DECIBELS


def _points(wanted: float) -> float:
    return POINT if abs(wanted) <= 1 else RELATIVE * abs(wanted)


def _arrays(feeds: Feeds) -> Feeds:
    return [{name: np.asarray(value) for name, value in feed.items()} for feed in feeds]


def _samples(feeds: Feeds, labels: object) -> Data:
    """About ``SAMPLES`` samples: rows where feeds hold several, so that onnxq counts each."""
    rows = [{value.shape[0] if value.ndim else 0 for value in feed.values()} for feed in feeds]
    total = sum(map(max, rows))
    if all(len(found) == 1 for found in rows) and len(feeds) < total == _length(labels):
        chosen = np.unique(np.linspace(0, total - 1, SAMPLES).round().astype(int))
        return {name: values[chosen] for name, values in _joined(feeds).items()}
    return spread(feeds, SAMPLES)


def _length(labels: object) -> int | None:
    return len(labels) if hasattr(labels, "__len__") else None


def _joined(feeds: Feeds) -> dict[str, Array]:
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
