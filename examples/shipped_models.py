"""Where the examples take models and samples from: what models/ ships, or MNIST and CIFAR-10."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from onnxq.data import load_dataset
from onnxq.errors import DataError
from onnxq.plan import Recipe, load_recipe


@dataclass(frozen=True)
class Subject:
    """A shipped model and its samples.

    Attributes:
        model: Path of the model.
        data: Samples to calibrate or train with.
        test: Labelled samples to test with.
        recipe: How samples are read, and what accuracy may be lost: the recipe that lies beside
            the model, but for the names of its samples, which are the two above.
    """

    model: str
    data: str
    test: str
    recipe: Recipe


def quick_asked(about: str | None) -> bool:
    """Whether the command line says ``--quick``; ``about`` is what ``--help`` tells."""
    parser = argparse.ArgumentParser(description=(about or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="the shipped digits, short settings")
    return bool(parser.parse_args().quick)


def output(name: str) -> str:
    """Where an example writes a file: build/examples, which git ignores."""
    folder = Path("build/examples")
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder / name)


def data_set(wanted: str, *, quick: bool) -> str:
    """``mnist`` or ``cifar10`` as wanted; ``digits`` if quick, or where that cannot be had."""
    if not quick:
        try:
            load_dataset(wanted, "test")  # from the folder ONNXQ_DATA, the cache, or the network
            return wanted
        except DataError as error:
            print(f"{wanted} cannot be had, so take the digits: {error}")
    return "digits"


def shipped(name: str, *, quick: bool) -> Subject:
    """A shipped model on MNIST or CIFAR-10; if quick, or where these cannot be had, the digits.

    Args:
        name: ``mnist_cnn``, ``cifar10_resnet`` or another model of models/README.md.
        quick: Take the digits at once: their samples are shipped, and they are small.
    """
    data = data_set(name.split("_", maxsplit=1)[0], quick=quick)
    if data == "digits":
        return _subject("digits_cnn", "models/digits_calibration.npz", "models/digits_test.npz")
    return _subject(name, f"dataset:{data}/train", f"dataset:{data}/test")


def _subject(name: str, data: str, test: str) -> Subject:
    recipe = load_recipe(Path(f"models/{name}.onnxq.toml"))
    unnamed = replace(recipe.data, calibration=None, test=None)
    return Subject(f"models/{name}.onnx", data, test, replace(recipe, data=unnamed))
