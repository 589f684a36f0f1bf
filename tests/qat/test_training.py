"""Training: plain where nothing is quantized, better where it is, and the same after a kill."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace as with_fields

import onnxq
from onnxq.data import open_data
from onnxq.errors import DataError, OutputError, UnusableError, UsageError
from onnxq.graph import with_constants
from onnxq.plan import QATSettings, Recipe
from onnxq.rewrite import rewrite
from onnxq.runtime import Session
from onnxq.types import Form, QType

torch = pytest.importorskip("torch", reason="torch is in the extra 'qat'")

from onnxq.qat.batches import Batches, Step  # noqa: E402
from onnxq.qat.losses import choose_loss, layer_outputs  # noqa: E402
from onnxq.qat.run import Samples, Watch, train  # noqa: E402
from onnxq.qat.steps import Stepper  # noqa: E402
from onnxq.qat.student import Student  # noqa: E402

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models" / "digits_cnn.onnx"


def drafted(digits: dict[str, np.ndarray], recipe: Recipe) -> onnxq.Draft:
    job = onnxq.with_data(onnxq.make_job(None, recipe), {"image": digits["image"][:64]})
    return onnxq.draft(MODEL, job)


def student_of(draft: onnxq.Draft, settings: QATSettings) -> Student:
    return Student(draft.prepared, draft.census, draft.plan, settings)


def samples_of(draft: onnxq.Draft, digits: dict[str, np.ndarray], count: int = 320) -> Samples:
    inputs = draft.source.view().inputs
    parts = [slice(0, count), slice(count, count + 100)]
    readers = [open_data({n: a[part] for n, a in digits.items()}, inputs) for part in parts]
    return Samples(*readers)


def trained(draft, settings, digits, **others):
    """A student after its training, and the history."""
    student = student_of(draft, settings)
    view = draft.prepared.view()
    loss = choose_loss(view, draft.plan, settings, labelled=True)
    history = train(student, settings, loss, samples_of(draft, digits), **others)
    return student, history


FLOAT = QATSettings(
    epochs=1, batch_size=32, quantize_weights=False, quantize_activations=False,
    learn_scales=False, learning_rate=1e-3, clip_norm=0.0,
)  # fmt: skip
INT4 = Recipe(precision="int4-weights")


class Plain(torch.nn.Module):
    """The network of digits_cnn.onnx, written by hand."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        super().__init__()
        values = [torch.nn.Parameter(w.detach().clone()) for w in weights.values()]
        self.values = torch.nn.ParameterList(values)
        self.names = list(weights)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w = dict(zip(self.names, self.values, strict=True))
        f = torch.nn.functional
        x = f.relu(f.conv2d(x, w["conv1.weight"], w["conv1.bias"], padding=1))
        x = f.relu(f.conv2d(x, w["conv2.weight"], w["conv2.bias"], padding=1))
        x = f.max_pool2d(x, 2)
        x = f.max_pool2d(f.relu(f.conv2d(x, w["conv3.weight"], w["conv3.bias"], padding=1)), 2)
        x = f.relu(f.linear(x.flatten(1), w["fc1.weight"], w["fc1.bias"]))
        return f.linear(x, w["fc2.weight"], w["fc2.bias"])


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_without_quantization_it_is_plain_training(digits, optimizer: str) -> None:
    draft = drafted(digits, Recipe(precision="int8"))
    settings = with_fields(FLOAT, optimizer=optimizer, schedule="constant")
    student = student_of(draft, settings)
    plain = Plain(student.weights)
    loss = choose_loss(draft.prepared.view(), draft.plan, settings, labelled=True)
    stepper = Stepper(student, settings, loss, 10)
    theirs: torch.optim.Optimizer = (
        torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=1e-4)
        if optimizer == "adamw"
        else torch.optim.SGD(plain.parameters(), 1e-3, 0.9, weight_decay=1e-4, nesterov=True)
    )
    for index in range(10):
        rows = slice(32 * index, 32 * index + 32)
        image, labels = digits["image"][rows], digits["labels"][rows]
        found = stepper.step(Step({"image": image}, labels), index)
        theirs.zero_grad()
        expected = torch.nn.functional.cross_entropy(
            plain(torch.from_numpy(image)), torch.from_numpy(labels).long()
        )
        expected.backward()
        theirs.step()
        # the same sums in another order of memory
        assert found == pytest.approx(float(expected.detach()), rel=1e-3, abs=1e-6)
    for name, weight in zip(plain.names, plain.values, strict=True):
        # Adam divides by the gradient's own size: where that is nothing but rounding it may
        # turn a step of 1e-3 round
        close = torch.isclose(student.weights[name], weight, rtol=1e-3, atol=1e-4)
        assert close.float().mean() > 0.999, name


@pytest.mark.parametrize("loss", ["cross-entropy", "distill"])
def test_training_recovers_what_four_bits_lose(digits, loss: str) -> None:
    """Three bits, to be exact: four lose nothing on digits."""
    draft = drafted(digits, Recipe(precision="int8-weights"))
    settings = QATSettings(epochs=4, batch_size=32, learning_rate=5e-4, weight_bits=3, loss=loss)
    student, history = trained(draft, settings, digits)
    first, best = history.epochs[0], history.epochs[history.best]
    assert best.validation_loss < 0.5 * first.validation_loss
    # and what was trained is what is written
    model, plan = student.convert()
    session = Session(rewrite(model, plan))
    image = digits["image"][:100]
    expected = session.run({"image": image})["logits"]
    found = student.simulate({"image": image})["logits"].numpy()
    # ONNX Runtime's kernel for 4-bit weights rounds what it multiplies them with to 8 bits
    assert np.square(found - expected).sum() < 1e-4 * np.square(expected).sum()


@pytest.mark.parametrize("precision", ["int8", "int4-weights", "int8-weights", "int8-dynamic"])
@pytest.mark.parametrize("learned", [True, False])
def test_every_form_of_rewriting_takes_what_was_trained(digits, precision, learned) -> None:
    draft = drafted(digits, Recipe(precision=precision))
    settings = QATSettings(epochs=1, batch_size=32, learn_scales=learned, learning_rate=3e-4)
    student, history = trained(draft, settings, digits)
    model, plan = student.convert()
    assert [n.precision for n in plan.nodes] == [n.precision for n in draft.plan.nodes]
    # dynamic layers quantize activations over a whole batch: the same batch for both
    image = digits["image"][:200]
    found = student.simulate({"image": image})["logits"].numpy().argmax(1)
    for form in ("qdq", "qoperator"):
        expected = Session(rewrite(model, plan, Form(form))).run({"image": image})["logits"]
        assert (found == expected.argmax(1)).mean() >= 0.995
    assert history.scales == 0 or learned


def test_scales_move_only_where_they_are_learned(digits) -> None:
    draft = drafted(digits, Recipe(precision="int8"))
    for learned in (True, False):
        settings = QATSettings(epochs=1, batch_size=32, learn_scales=learned, learning_rate=1e-3)
        student, _ = trained(draft, settings, digits)
        _, plan = student.convert()
        moved = [
            t for t, p in plan.tensors.items()
            if not draft.prepared.view().is_constant(t) and p != draft.plan.tensors[t]
        ]  # fmt: skip
        assert bool(moved) == learned


def test_pruned_weights_stay_zero(digits) -> None:
    draft = drafted(digits, INT4)
    settings = QATSettings(
        epochs=1, batch_size=32, learning_rate=1e-4, keep_zeros=True, loss="distill"
    )
    name = "fc1.weight"
    weight = draft.prepared.view().constant(name).copy()
    pruned = np.abs(weight) < np.median(np.abs(weight))
    weight[pruned] = 0
    source = with_constants(draft.prepared, {name: weight})
    student = Student(source, draft.census, draft.plan, settings)
    loss = choose_loss(source.view(), draft.plan, settings, labelled=True)
    train(student, settings, loss, samples_of(draft, digits))
    kept = student.convert()[0].view().constant(name)
    assert (kept[pruned] == 0).all()
    assert not np.array_equal(kept, weight)


def test_the_best_epoch_is_kept_even_if_it_is_none(digits) -> None:
    draft = drafted(digits, Recipe(precision="int8"))
    wild = QATSettings(epochs=2, batch_size=32, learning_rate=1.0, clip_norm=0)
    student, history = trained(draft, wild, digits)
    assert history.best == 0
    for name, weight in student.weights.items():
        np.testing.assert_array_equal(weight.detach().numpy(), draft.prepared.view().constant(name))


def test_patience_ends_training(digits) -> None:
    draft = drafted(digits, Recipe(precision="int8"))
    wild = QATSettings(epochs=9, batch_size=32, learning_rate=1.0, patience=2)
    _, history = trained(draft, wild, digits)
    assert [facts.epoch for facts in history.epochs] == [0, 1, 2]
    assert history.stopped == "no better result in 2 epochs"


def test_a_loss_that_is_no_number_ends_the_run(digits) -> None:
    draft = drafted(digits, Recipe(precision="int8"))
    settings = QATSettings(epochs=3, batch_size=32, loss="x:y")
    student = student_of(draft, settings)
    loss = choose_loss(
        draft.prepared.view(), draft.plan, settings, labelled=True,
        function=lambda outputs, labels: (outputs["logits"] * float("nan")).sum(),
    )  # fmt: skip
    with pytest.raises(UnusableError, match="the loss became nan in step 1; lower learning_rate"):
        train(student, settings, loss, samples_of(draft, digits))


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda o, y: 1.0, "returned float; return a tensor"),
        (lambda o, y: o["logits"].detach().sum(), "does not depend on the outputs"),
        (lambda o, y: o["nothing"], "loss 'a:b' failed"),
    ],
)
def test_losses_that_do_not_work_are_told(digits, made, told) -> None:
    draft = drafted(digits, Recipe(precision="int8"))
    settings = QATSettings(epochs=1, batch_size=32, loss="a:b")
    student = student_of(draft, settings)
    view = draft.prepared.view()
    loss = choose_loss(view, draft.plan, settings, labelled=True, function=made)
    with pytest.raises(DataError, match=told):
        train(student, settings, loss, samples_of(draft, digits))


def test_layers_are_trained_for_their_own_match_alone(digits) -> None:
    """With gradients cut between layers, the first one's is that of its own error."""
    draft = drafted(digits, INT4)
    settings = QATSettings(layerwise=True, loss="distill")
    view, step = draft.prepared.view(), Step({"image": digits["image"][:32]}, None)
    layers = layer_outputs(view, draft.plan)
    assert len(layers) >= 4
    gradients = {}
    for cut in (layers, layers[:1]):
        student = student_of(draft, settings)
        feed = student.tensors(step.feed)
        taught, found = student.teach(feed, cut), student.forward(feed, cut, layers)
        errors = [((found[t] - taught[t]) ** 2).sum() / (taught[t] ** 2).sum() for t in cut]
        torch.stack(errors).sum().backward()
        gradients[cut] = student.weights["conv1.weight"].grad.clone()
    torch.testing.assert_close(gradients[layers], gradients[layers[:1]])


def test_layerwise_training_brings_layers_nearer(digits) -> None:
    draft = drafted(digits, Recipe(precision="int8-weights"))
    settings = QATSettings(
        epochs=5, batch_size=32, learning_rate=5e-4, weight_bits=3, layerwise=True, loss="distill"
    )
    _, history = trained(draft, settings, digits)
    best = history.epochs[history.best]
    assert best.validation_loss < 0.7 * history.epochs[0].validation_loss


@pytest.mark.parametrize("learned", [True, False])
def test_the_best_epoch_is_kept_with_the_ranges_that_it_had(digits, learned) -> None:
    draft = drafted(digits, Recipe(precision="int8"))
    wild = QATSettings(
        epochs=1, batch_size=32, learning_rate=1.0, observer="minmax", warmup=3,
        learn_scales=learned,
    )  # fmt: skip
    student, history = trained(draft, wild, digits)
    assert history.best == 0
    _, plan = student.convert()
    for tensor, params in draft.plan.tensors.items():
        assert plan.tensors[tensor].zero_point == params.zero_point
        np.testing.assert_allclose(plan.tensors[tensor].scale, params.scale, rtol=1e-5)


def test_a_bias_that_outgrows_its_weights_still_fits(digits) -> None:
    """A channel that is almost dead: its scale leaves room for the bias that it learns."""
    draft = drafted(digits, Recipe(precision="int8"))
    view = draft.prepared.view()
    weight, bias = view.constant("conv2.weight").copy(), view.constant("conv2.bias").copy()
    weight[3], bias[3] = 1e-20, 1e-6
    source = with_constants(draft.source, {"conv2.weight": weight, "conv2.bias": bias})
    job = onnxq.with_data(
        onnxq.make_job(None, Recipe(precision="int8")), {"image": digits["image"][:64]}
    )
    again = onnxq.draft(source, job)
    for learned in (True, False):
        settings = QATSettings(
            epochs=1, batch_size=32, learning_rate=1e-3, learn_scales=learned, weight_decay=0
        )
        student = student_of(again, settings)
        loss = choose_loss(again.prepared.view(), again.plan, settings, labelled=True)
        train(student, settings, loss, samples_of(again, digits))
        with torch.no_grad():
            student.weights["conv2.bias"][3] = 0.5
        student.project()
        model, plan = student.convert()
        session = Session(rewrite(model, plan))  # which checks the bias
        image = digits["image"][:100]
        found = student.simulate({"image": image})["logits"].numpy().argmax(1)
        assert (found == session.run({"image": image})["logits"].argmax(1)).mean() >= 0.99


@pytest.mark.parametrize("observer", ["minmax", "moving-average"])
def test_ranges_are_observed_in_the_warm_up_and_then_frozen(digits, observer: str) -> None:
    draft = drafted(digits, Recipe(precision="int8"))
    settings = QATSettings(
        epochs=1, batch_size=32, observer=observer, warmup=3, learn_scales=False,
        learning_rate=1e-12,
    )  # fmt: skip
    plans = []
    student, _ = trained(draft, settings, digits, watch=Watch(warm=plans.append))
    (plan,) = plans
    ends = []
    reader = samples_of(draft, digits).training
    for made, _ in zip(Batches(reader, 32, 0).epoch(1), range(3), strict=False):
        ends.append((made.feed["image"].min(), made.feed["image"].max()))
    lo, hi = ends[0]
    for low, high in ends[1:]:
        if observer == "minmax":
            lo, hi = min(lo, low), max(hi, high)
        else:
            lo, hi = 0.9 * lo + 0.1 * low, 0.9 * hi + 0.1 * high
    params = plan.tensors["image"]
    assert params.qtype is QType.UINT8
    assert params.scale[0] == pytest.approx((max(hi, 0) - min(lo, 0)) / 255, rel=1e-6)
    assert student.convert()[1].tensors["image"] == params


# --- the same after a kill ---

SCRIPT = """
import sys
import onnxq, onnxq.qat.run
from onnxq.api import train_model
from onnxq.graph import with_constants
from onnxq.plan import QATSettings, Recipe, VerifySettings
import numpy as np
onnxq.qat.run.KEEP_EVERY = 0.0  # after every step
arrays = dict(np.load(sys.argv[2]))
recipe = Recipe(
    precision="int8", verify=VerifySettings(seconds=0),
    qat=QATSettings(epochs=3, batch_size=16, threads=1, observer="moving-average", warmup=40,
                    augment="shift"),
)
job = onnxq.with_data(onnxq.make_job(None, recipe), arrays)
made = train_model(sys.argv[1], job, output=sys.argv[3], force=True)
print(made.history.best, [round(e.validation_loss, 9) for e in made.history.epochs])
"""


def start(tmp_path: Path, output: Path) -> subprocess.Popen[str]:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    command = [sys.executable, script, MODEL, ROOT / "models" / "digits_test.npz", output]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def weights_of(path: Path) -> dict[str, bytes]:
    view = onnxq.load(path).view()
    return {name: view.constant(name).tobytes() for name in view.constant_names}


def test_a_killed_training_ends_with_the_same_weights(tmp_path) -> None:
    """Killed four times, at moments that depend on the machine, and gone on with each time."""
    whole, killed = tmp_path / "whole.onnx", tmp_path / "killed.onnx"
    run = start(tmp_path, whole)
    told, _ = run.communicate(timeout=300)
    assert run.returncode == 0
    checkpoint, sizes = tmp_path / "killed.checkpoint.npz", []
    for turn in range(4):
        run = start(tmp_path, killed)
        deadline = time.monotonic() + 120
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        while time.monotonic() < deadline and run.poll() is None:
            now = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
            if now != before:  # it has done a step of its own
                break
            time.sleep(0.005)
        time.sleep(0.05 * turn)
        run.send_signal(signal.SIGKILL)
        run.communicate()
        assert run.returncode == -signal.SIGKILL
        assert not killed.exists()
        with np.load(checkpoint, allow_pickle=False) as arrays:  # whole, at any moment
            sizes.append(len(arrays.files))
    run = start(tmp_path, killed)
    again, errors = run.communicate(timeout=300)
    assert run.returncode == 0, errors
    assert again == told
    assert weights_of(killed) == weights_of(whole)
    assert not checkpoint.exists()


def test_a_checkpoint_of_another_run_is_refused(digits, tmp_path) -> None:
    draft = drafted(digits, INT4)
    settings = QATSettings(epochs=1, batch_size=32)
    path = tmp_path / "state.npz"
    trained(draft, settings, digits, checkpoint=path, run="one")
    assert path.is_file()
    with pytest.raises(UsageError, match=r"checkpoint of another run.*--fresh"):
        trained(draft, settings, digits, checkpoint=path, run="two")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(OutputError, match=r"no checkpoint that can be gone on from.*delete it"):
        trained(draft, settings, digits, checkpoint=path, run="one")


def test_a_finished_checkpoint_trains_no_more(digits, tmp_path) -> None:
    draft = drafted(digits, INT4)
    settings = QATSettings(epochs=2, batch_size=32)
    path, steps = tmp_path / "state.npz", []
    _, first = trained(draft, settings, digits, checkpoint=path, run="r")
    watch = Watch(step=steps.append)
    _, second = trained(draft, settings, digits, checkpoint=path, run="r", watch=watch)
    assert steps == []
    assert second.epochs == first.epochs


def test_a_hostile_checkpoint_is_refused(digits, tmp_path) -> None:
    draft = drafted(digits, INT4)
    settings = QATSettings(epochs=1, batch_size=32)
    path = tmp_path / "state.npz"
    trained(draft, settings, digits, checkpoint=path, run="one")
    with np.load(path) as arrays:
        kept = dict(arrays)
    deep = np.frombuffer(b'{"zzz":' + b"[" * 100_000, np.uint8)
    bad = [
        {**kept, "header": deep},
        {n: a for n, a in kept.items() if n != "now:0"},
        {**kept, "now:0": np.zeros(3, np.float32)},
        {**kept, "now:1": np.array(["text"])},
        {**kept, "optimizer:x": np.zeros(1, np.float32)},
    ]
    for arrays in bad:
        np.savez(path, **arrays)
        with pytest.raises(OutputError, match=r"no checkpoint that can be gone on from.*delete it"):
            trained(draft, settings, digits, checkpoint=path, run="one")
