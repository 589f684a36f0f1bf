"""The recipes and logs of examples/qat, and the table of docs/qat.md that is made of them."""

import re
from pathlib import Path

import pytest

from onnxq.plan import load_recipe

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "examples" / "qat").glob("*.toml"))
TOP1 = re.compile(r"^ top1 \(10000 samples\) +([\d.]+) +([\d.]+) +([\d.]+)$", re.M)


def top1(recipe: Path) -> tuple[float, float, float]:
    """What a log tells: float, without training, with."""
    found = TOP1.search(recipe.with_suffix(".log").read_text())
    assert found is not None
    return float(found[1]), float(found[2]), float(found[3])


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_log_is_of_the_recipe(recipe: Path) -> None:
    settings = load_recipe(recipe).qat
    log = recipe.with_suffix(".log").read_text()
    assert log.startswith(f"$ onnxq qat models/{recipe.name.split('.')[0]}.onnx --recipe ")
    assert settings.samples is not None
    trained = settings.samples - round(settings.samples * settings.validation)
    assert f"{trained} samples" in " ".join(log.split())
    assert re.findall(r"^ +(\d) ", log, re.M) == [str(n) for n in range(settings.epochs + 1)]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_training_keeps_what_is_promised(recipe: Path) -> None:
    given, untrained, trained = top1(recipe)
    if ".int8" in recipe.name:
        assert round(given - trained, 4) <= 0.001
    else:
        least = 0.5 if "unlabelled" in recipe.name else 2 / 3
        assert (trained - untrained) / (given - untrained) >= least


def test_table_of_the_docs_is_made_of_the_logs() -> None:
    rows = re.findall(
        r"^\| \w+ \|.*\| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|.*\|.*\|$",
        (ROOT / "docs" / "qat.md").read_text(),
        re.M,
    )
    assert sorted(tuple(map(float, row)) for row in rows) == sorted(map(top1, RECIPES))
