"""What training simulates, against what ONNX Runtime computes with the rewritten model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace as with_fields

import onnxq
from onnxq.graph import Editor, Model
from onnxq.rewrite import rewrite
from onnxq.rewrite.qdq import to_qdq
from onnxq.runtime import Session
from onnxq.types import Feed, Precision

torch = pytest.importorskip("torch", reason="torch is in the extra 'qat'")

from onnxq.qat.evaluator import Evaluator  # noqa: E402
from onnxq.qat.student import Student  # noqa: E402

MODELS = Path(__file__).parents[2] / "models"
NAMES = [
    "digits_cnn", "mnist_cnn", "mnist_lstm", "mnist_gru", "mnist_transformer", "cifar10_resnet",
    "cifar10_mobilenet",
]  # fmt: skip
# Of the models on CIFAR-10; a run of the int8 model and of PyTorch takes a minute for 10,000.
SAMPLES = 1000


def drafted(name: str, precision: str) -> onnxq.Draft:
    """A shipped model up to its plan; skips without its data."""
    folder, data_set = os.environ.get("ONNXQ_DATA"), name.split("_", maxsplit=1)[0]
    if data_set != "digits" and not (folder and (Path(folder) / f"{data_set}.npz").is_file()):
        pytest.skip(f"ONNXQ_DATA names no folder that holds {data_set}.npz")
    job = onnxq.make_job(MODELS / f"{name}.onnx", None)
    job = replace(job, recipe=with_fields(job.recipe, precision=precision))
    return onnxq.draft(MODELS / f"{name}.onnx", job)


def student_of(draft: onnxq.Draft) -> Student:
    return Student(draft.prepared, draft.census, draft.plan, draft.recipe.qat)


def feeds(draft: onnxq.Draft, samples: int) -> Iterator[Feed]:
    assert draft.test is not None
    for batch in draft.test.take(samples).batches(50):
        yield batch.feed


@pytest.mark.parametrize("name", NAMES)
def test_the_float_graph_computes_what_onnx_runtime_does(name: str) -> None:
    draft = drafted(name, "int8")
    evaluator = Evaluator(draft.prepared.view())
    feed = next(feeds(draft, 50))
    tensors = {n: torch.from_numpy(a) for n, a in feed.items()}
    found = evaluator.run(tensors, evaluator.constants())
    for output, expected in Session(draft.prepared).run(feed).items():
        # sums of some hundred float32 products, in another order
        np.testing.assert_allclose(found[output].numpy(), expected, rtol=1e-4, atol=2e-5)


CASES = [(name, "int8") for name in NAMES] + [
    ("mnist_lstm", "int8-weights"), ("mnist_gru", "int4-weights"),
    ("mnist_transformer", "int8-dynamic"), ("mnist_transformer", "int4-weights"),
    ("cifar10_resnet", "int4-weights"), ("digits_cnn", "int16"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_answers_are_those_of_the_rewritten_model(name: str, precision: str) -> None:
    """At least 99.5 % of the answers are the same: a rounding may tip what is undecided."""
    draft = drafted(name, precision)
    student, session = student_of(draft), Session(rewrite(draft.prepared, draft.plan))
    same = count = 0
    for feed in feeds(draft, SAMPLES):
        (found,) = student.simulate(feed).values()
        (expected,) = session.run(feed).values()
        same += int((found.numpy().argmax(1) == expected.argmax(1)).sum())
        count += len(expected)
    assert same >= 0.995 * count


# Of other models 200. Float kernels were compared with those of one kind of processor: on others
# this model has no more images either.
IMAGES = {"mnist_transformer": 1000 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 200}


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_is_within_one_step_of_the_rewritten_model(name: str) -> None:
    """Through the whole network: the simulation gets the inputs, and nothing else.

    What int8 kernels compute is the same to the bit, as is what float kernels between them do. Were
    it not for onnxq/qat/floats.py, values beside the middle of two steps would tip in one of 200
    images of mnist_transformer, and be up to 6 steps off behind that.
    """
    draft = drafted(name, "int8")
    student = student_of(draft)
    model, integers = with_integers(draft, tuple(student.simulation.activations))
    assert integers
    session, tipped, count = Session(model), 0, 0
    for feed in feeds(draft, IMAGES.get(name, 200)):
        made = session.run(feed)
        with torch.no_grad():
            found = student.forward(student.tensors(feed), keep=tuple(integers))
        for tensor, output in integers.items():
            steps = student.simulation.activations[tensor].integers(found[tensor]).steps.detach()
            whole = steps.numpy() + draft.plan.tensors[tensor].zero_point[0]
            apart = np.abs(whole - made[output].astype(np.float64))
            assert apart.max() <= 1, tensor
            tipped, count = tipped + np.count_nonzero(apart), count + apart.size
    # seen: 4e-5 behind the GRU (6e-6 of all 10,000 images, as behind the LSTM), else none; sums of
    # float32 values tip 1e-3 and more in most models
    assert tipped <= 1e-4 * count


def with_integers(draft: onnxq.Draft, tensors: tuple[str, ...]) -> tuple[Model, dict[str, str]]:
    """The int8 model with the integers of tensors as further outputs, and what these are called."""
    model = to_qdq(draft.prepared, draft.plan)
    made = {node.outputs[0] for node in model.view().nodes if node.op == "QuantizeLinear"}
    names = {t: f"{t}_q" for t in tensors if f"{t}_q" in made}
    editor = Editor(model)
    for name in names.values():
        editor.add_output(name)
    return editor.finish(), names


def test_layers_that_stay_float_read_the_exact_values() -> None:
    draft = drafted("digits_cnn", "int8")
    kept = draft.census.nodes[0].name
    nodes = tuple(
        with_fields(n, precision=Precision.FLOAT) if n.name == kept else n for n in draft.plan.nodes
    )
    plan = with_fields(draft.plan, nodes=nodes)
    student = Student(draft.prepared, draft.census, plan, draft.recipe.qat)
    read = draft.prepared.view().by_name[kept].inputs[0]
    assert (kept, 0) not in student.simulation.places[read]


def test_weights_and_activations_are_switched_apart() -> None:
    draft = drafted("digits_cnn", "int8")
    feed = next(feeds(draft, 50))
    exact = Session(draft.prepared).run(feed)["logits"]
    errors = {}
    for weights, activations in ((False, False), (True, False), (False, True), (True, True)):
        settings = with_fields(
            draft.recipe.qat, quantize_weights=weights, quantize_activations=activations
        )
        student = Student(draft.prepared, draft.census, draft.plan, settings)
        found = student.simulate(feed)["logits"].numpy()
        errors[weights, activations] = float(np.square(found - exact).mean())
    assert errors[False, False] < 1e-10
    assert 1e-6 < errors[True, False] < errors[True, True] * 1.5
    assert 1e-6 < errors[False, True] < errors[True, True] * 1.5
