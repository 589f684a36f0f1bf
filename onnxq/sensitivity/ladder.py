"""``ladder``: the best plans from the cheapest one to all float, as the price of noise rises."""

from __future__ import annotations

import numpy as np

from onnxq.sensitivity.options import Assignment, Noise, Options

# The rungs between the cheapest plan and one that is all float.
_RUNGS = 48
# Noise below 150 dB is what float32 itself rounds away: no price is aimed at it.
_SILENT = 1e-15


def ladder(options: Options, noise: Noise) -> list[Assignment]:
    """The distinct optima, the price of noise rising: each is exact for its price.

    Args:
        options: What may be chosen, and what it costs.
        noise: What every node makes alone. One that is missing is never chosen where noise has a
            price; what vanishes into another node is to be there with 0.

    Returns:
        Assignments, of which the first is the cheapest and the last one all float.
    """
    cheapest = options.assign(0.0, {})
    saved = options.cost({}) - options.cost(cheapest)
    alone = [value for by in noise.values() for value in by.values() if value > _SILENT]
    found = [cheapest]
    if alone and saved > 0:
        # From a price at which all noise together is worth a thousandth of what is saved to one at
        # which the least noise of any layer is worth all of it.
        prices = np.geomspace(1e-3 * saved / sum(alone), saved / min(alone), _RUNGS)
        found += [options.assign(float(price), noise) for price in prices]
    rungs: list[Assignment] = []
    for assignment in (*found, {}):
        if not rungs or assignment != rungs[-1]:
            rungs.append(assignment)
    return rungs
