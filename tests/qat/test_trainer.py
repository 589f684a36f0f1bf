"""The front door of training: ``QATTrainer``, its receipt, and what it says of what cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import onnxq
from onnxq.api import load_receipt
from onnxq.errors import DataError, UsageError
from onnxq.plan import QATSettings, Recipe, VerifySettings
from onnxq.rewrite import rewrite
from onnxq.runtime import Session

pytest.importorskip("torch", reason="torch is in the extra 'qat'")

MODEL = Path(__file__).parents[2] / "models" / "digits_cnn.onnx"


def test_the_trainer_of_the_library(digits) -> None:
    recipe = Recipe(precision="int4-weights", qat=QATSettings(epochs=2, batch_size=32))
    trainer = onnxq.QATTrainer(recipe)
    with pytest.raises(UsageError, match="nothing is prepared"):
        trainer.train()
    trainer.prepare(MODEL, digits)
    history = trainer.train()
    assert history.loss == "cross-entropy"
    assert history.samples + history.validation <= 597
    model, plan = trainer.convert()
    found = Session(rewrite(model, plan)).run({"image": digits["image"][:50]})["logits"]
    simulated = trainer.simulate({"image": digits["image"][:50]})["logits"]
    assert np.square(simulated - found).sum() < 1e-4 * np.square(found).sum()


@pytest.mark.parametrize("preset", ["default", "mobile", "int4-aggressive"])
def test_presets_train(digits, preset: str) -> None:
    trainer = onnxq.QATTrainer(preset)
    draft = trainer.prepare(MODEL, digits)
    assert not draft.plan.empty


def test_labels_are_needed_where_they_are_asked_for(digits) -> None:
    recipe = Recipe(precision="int8", qat=QATSettings(epochs=1, loss="cross-entropy"))
    trainer = onnxq.QATTrainer(recipe)
    trainer.prepare(MODEL, {"image": digits["image"]})
    with pytest.raises(DataError, match=r"needs labels, and the data have none.*--distill"):
        trainer.train()


def test_fewer_bits_are_for_weights_with_a_scale_per_channel(digits) -> None:
    recipe = Recipe(precision="int4-weights", qat=QATSettings(weight_bits=3))
    with pytest.raises(UsageError, match=r"'fc1.weight' is stored in blocks; leave it out"):
        onnxq.QATTrainer(recipe).prepare(MODEL, digits)


def test_what_rounds_nothing_is_not_trained_for(digits) -> None:
    with pytest.raises(UsageError, match="the plan stores nothing as integers"):
        onnxq.QATTrainer(Recipe(precision="fp16")).prepare(MODEL, digits)


def test_tensors_to_match_are_found_or_the_nearest_is_named(digits) -> None:
    recipe = Recipe(precision="int8", qat=QATSettings(epochs=1, match=("/Relu_9_output_0",)))
    trainer = onnxq.QATTrainer(recipe)
    trainer.prepare(MODEL, digits)
    with pytest.raises(UsageError, match="no tensor matches '/Relu_9_output_0'; did you mean"):
        trainer.train()


@pytest.mark.parametrize(
    ("loss", "labels", "told"),
    [
        ("cross-entropy", np.arange(597) % 11, "labels go from 0 to 10, and output 'logits' has"),
        ("auto", np.linspace(0, 1, 597).astype(np.float32), "needs a class for every row.*float32"),
        ("mse", np.arange(597), "mse needs a number for every value"),
    ],
)
def test_labels_that_do_not_fit_are_told(digits, loss, labels, told) -> None:
    trainer = onnxq.QATTrainer(Recipe(precision="int8", qat=QATSettings(epochs=1, loss=loss)))
    trainer.prepare(MODEL, {"image": digits["image"], "labels": labels})
    with pytest.raises(DataError, match=told):
        trainer.train()


def test_a_function_that_is_none_is_not_something_else(digits) -> None:
    trainer = onnxq.QATTrainer(Recipe(precision="int8", qat=QATSettings(epochs=1, loss="a b:c")))
    trainer.prepare(MODEL, digits)
    with pytest.raises(UsageError, match="'a b:c' names no function"):
        trainer.train()


def test_one_sample_is_too_few(digits) -> None:
    trainer = onnxq.QATTrainer(Recipe(precision="int4-weights"))
    trainer.prepare(MODEL, {name: array[:2] for name, array in digits.items()})
    with pytest.raises(UsageError, match="too few to train with"):
        trainer.train()


def test_the_receipt_tells_of_training_and_cannot_be_replayed(digits, tmp_path) -> None:
    recipe = Recipe(
        precision="int8", qat=QATSettings(epochs=1, batch_size=32),
        verify=VerifySettings(seconds=0),
    )  # fmt: skip
    job = onnxq.with_data(onnxq.make_job(None, recipe), digits)
    output = tmp_path / "made.onnx"
    made = onnxq.train_model(MODEL, job, output=output)
    receipt = load_receipt(output.with_suffix(".receipt.json"))
    assert receipt.training.history == made.history
    assert receipt.training.untrained.metric == made.untrained.measured.metric
    assert receipt.measured.metric.output >= receipt.training.untrained.metric.output - 0.02
    with pytest.raises(UsageError, match="trained weights, which it does not hold"):
        onnxq.replay(MODEL, receipt)
