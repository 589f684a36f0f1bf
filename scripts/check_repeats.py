"""How often `onnxq check` passes on a model that did not change: it must be every time.

    python scripts/check_repeats.py --runs 50

And whether it sees a plan that is slower: in the last run every layer is float again.

Each run draws other calibration samples (half of them), and measures latency anew: what is random
from day to day. A copy of the shipped digits model is used, in a temporary folder.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from msgspec import structs

from onnxq.api import check_model
from onnxq.plan import CalibrationSettings, DataSettings, Recipe, VerifySettings

MODELS = Path(__file__).parents[1] / "models"
NAMES = ("digits_cnn.onnx", "digits_calibration.npz", "digits_test.npz")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=1.0, help="of latency per run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in NAMES:
            shutil.copy(MODELS / name, folder)
        sys.exit(repeat(Path(folder), options.runs, options.seconds))


def repeat(folder: Path, runs: int, seconds: float) -> int:
    """Make a baseline, check it again and again; the number of runs that went wrong."""
    model = folder / NAMES[0]
    recipe = Recipe(
        precision="int8",
        data=DataSettings(str(folder / NAMES[1]), str(folder / NAMES[2]), batch_size=32),
        calibration=CalibrationSettings(samples=100),
        verify=VerifySettings(seconds=seconds),
    )
    check_model(model, recipe=recipe, update=True)
    failed: Counter[str] = Counter()
    worst: dict[str, float] = {}
    passed = 0
    for seed in range(1, runs + 1):
        found = check_model(model, recipe=recipe, seed=seed).check
        passed += found.passed
        failed.update(gate.name for gate in found.gates if gate.status == "failed")
        for gate in found.gates:
            if gate.worse is not None:
                worst[gate.name] = max(worst.get(gate.name, -9.0), gate.worse / gate.limit)
        print(f"{seed:3} {'passed' if found.passed else 'FAILED'}", flush=True)
    slow = check_model(model, recipe=structs.replace(recipe, keep_float=("*",))).check
    seen = any(gate.name == "latency" and gate.status == "failed" for gate in slow.gates)
    print(f"all layers float again: {'seen to be slower' if seen else 'NOT SEEN TO BE SLOWER'}")
    print(f"{passed} of {runs} runs passed; gates that failed: {dict(failed) or 'none'}")
    print("worst of each gate, as a share of its tolerance:")
    for name, share in worst.items():
        print(f"  {name:10} {share:6.2f}")
    return runs - passed + (not seen)


if __name__ == "__main__":
    main()
