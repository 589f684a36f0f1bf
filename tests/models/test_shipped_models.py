"""The models that the project ships: as accurate as promised, and almost as accurate in int8."""

import os
import re
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

import onnxq

MODELS = Path(__file__).parents[2] / "models"
# Top-1 that each float model must reach on its test set, and the most bytes of the int8 file per
# byte of the float one (small models are mostly names and scales).
PROMISED = {
    "digits_cnn": (0.98, 0.30),
    "mnist_cnn": (0.985, 0.335),
    "mnist_lstm": (0.985, 0.30),
    "mnist_gru": (0.985, 0.30),
    "mnist_transformer": (0.985, 0.38),
    "cifar10_resnet": (0.84, 0.27),
    "cifar10_mobilenet": (0.82, 0.298),
}


def data_set_or_skip(name: str) -> None:
    data_set = name.split("_", maxsplit=1)[0]
    folder = os.environ.get("ONNXQ_DATA")
    if data_set != "digits" and not (folder and (Path(folder) / f"{data_set}.npz").is_file()):
        pytest.skip(f"ONNXQ_DATA names no folder that holds {data_set}.npz")


@pytest.mark.parametrize("name", PROMISED)
def test_int8_is_within_half_a_point_of_float(name: str) -> None:
    """200 unlabelled samples calibrate; the whole test set judges."""
    data_set_or_skip(name)
    model = MODELS / f"{name}.onnx"
    job = onnxq.make_job(model, None)
    assert job.recipe.calibration.samples == 200
    untimed = msgspec.structs.replace(job.recipe.verify, seconds=0.0)
    job = replace(job, recipe=msgspec.structs.replace(job.recipe, verify=untimed))

    measured = onnxq.run(model, job).receipt.measured

    float_accuracy, size = PROMISED[name]
    assert measured.metric is not None
    assert measured.metric.source >= float_accuracy
    assert measured.metric.output >= measured.metric.source - 0.005
    assert measured.size_ratio <= size
    if job.recipe.static:  # weights alone compute in float
        assert measured.int8_coverage is not None
        assert measured.int8_coverage.float_nodes == ()


@pytest.mark.parametrize("name", ["mnist_lstm", "mnist_gru", "mnist_transformer"])
def test_recurrent_models_and_transformers_quantize_while_they_run(name: str, tmp_path) -> None:
    """Within half a point; int8 weights in the file, float at its edges, no calibration."""
    data_set_or_skip(name)
    model, output = MODELS / f"{name}.onnx", tmp_path / "made.onnx"
    job = onnxq.make_job(model, None)
    untimed = msgspec.structs.replace(job.recipe.verify, seconds=0.0)
    recipe = msgspec.structs.replace(job.recipe, precision="int8-dynamic", verify=untimed)

    result = onnxq.run(model, replace(job, recipe=recipe), output=output)

    metric = result.receipt.measured.metric
    assert metric is not None
    assert metric.samples == 10_000
    assert metric.output >= metric.source - 0.005
    assert result.receipt.ranges == {}
    view = onnxq.load(output).view()
    assert {spec.dtype for spec in (*view.inputs, *view.outputs)} == {"float32"}
    stored = {tensor: view.dtype(tensor) for node in view.nodes for tensor in node.inputs if tensor}
    weights = {
        t: (kind, w.size)
        for t, kind in stored.items()
        if (w := view.constant(t)) is not None and w.size >= 4096
    }
    assert sum(size for _, size in weights.values()) >= 70_000
    assert {kind for kind, _ in weights.values()} == {"int8"}


@pytest.mark.parametrize("name", PROMISED)
def test_is_small_enough_to_ship(name: str) -> None:
    assert (MODELS / f"{name}.onnx").stat().st_size < 4_000_000


def test_each_model_has_its_recipe_and_its_row() -> None:
    table = (MODELS / "README.md").read_text(encoding="utf-8")
    shipped = {path.stem for path in MODELS.glob("*.onnx") if not path.stem.endswith(".int8")}
    assert shipped == set(PROMISED)
    for name in shipped:
        assert (MODELS / f"{name}.onnxq.toml").is_file()
        assert re.search(rf"^\| \[?`?{name}\b", table, re.MULTILINE), f"{name} has no row"
