"""How much a share of samples fell at least, from one model to another."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from onnxq.verify.bootstrap import score_limit

Flags = NDArray[np.bool_]


def paired_fall(before: Flags, after: Flags) -> float:
    """Lower bound of the fall of a share, both on the same samples.

    The score limit of the paired difference (Tango 1998), of which ``score_limit`` is the upper
    end: samples where both models agree tell nothing of a difference, so that few that differ
    prove it.

    Args:
        before: Whether each sample counted, of shape (samples,).
        after: Whether it counts now, of the same shape.
    """
    lost, won = int((before & ~after).sum()), int((after & ~before).sum())
    return -score_limit(won, lost, len(before))


def unpaired_fall(before: float, samples_before: int, after: float, samples_after: int) -> float:
    """Lower bound of the fall of a share between different samples, from their numbers alone.

    By Newcombe's hybrid score interval (1998, method 10), from a Wilson limit of each share.

    Args:
        before: The share.
        samples_before: What it was taken of.
        after: The share now.
        samples_after: What that was taken of.
    """
    least = 1 - _most(1 - before, samples_before)
    most = _most(after, samples_after)
    return before - after - math.hypot(before - least, most - after)


def _most(share: float, samples: int) -> float:
    """The upper limit of Wilson of a share."""
    return score_limit(share * samples, 0, samples)
