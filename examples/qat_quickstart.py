"""Train a model for quantization (QAT), where rounding alone (PTQ) loses too much.

Shows ``onnxq.train_model``: 4-bit weights, learned from the float model and samples without
labels. It trains the ONNX graph itself; no source of the model is needed. A network on MNIST;
handwritten digits with ``--quick``, or where MNIST cannot be had. Needs PyTorch
(``pip install 'onnxq[qat]'``). Takes 25 s on two cores, 7 s with ``--quick``.

What it prints, where ``0.28~0.02`` may be off by 0.02, ``2.4~any`` depends on the machine, and
``...`` is any text::

    $ python examples/qat_quickstart.py --quick
    trained 72842 weights and 160 scales on 180 samples
    epoch 0: validation loss 0.0014~0.002
    epoch 1: validation loss 0.0013~0.004
    epoch 2: validation loss 0.0036~0.004
    epoch 3: validation loss 0.0026~0.004
    epoch 4: validation loss 0.0009~0.002
    epoch 5: validation loss 0.0008~0.001
    epoch 6: validation loss 0.0007~0.001
    best: epoch 6~2
    PTQ: top1 0.9950~0.002 -> 0.9916~0.004, 21.5~1 dB, same class 0.9966~0.004
    QAT: top1 0.9950~0.002 -> 0.9933~0.004, 25.2~2 dB, same class 0.9983~0.003
    size: 0.148~0.005 of the float file

    $ python examples/qat_quickstart.py
    trained 37354 weights and 128 scales on 1800 samples
    epoch 0: validation loss 0.0156~0.003
    epoch 1: validation loss 0.0013~0.003
    epoch 2: validation loss 0.0011~0.003
    epoch 3: validation loss 0.0008~0.003
    epoch 4: validation loss 0.0007~0.003
    epoch 5: validation loss 0.0007~0.003
    epoch 6: validation loss 0.0006~0.003
    best: epoch 6~2
    PTQ: top1 0.9920 -> 0.9898~0.002, 13.8~2 dB, same class 0.9937~0.002
    QAT: top1 0.9920 -> 0.9916~0.002, 24.5~2 dB, same class 0.9986~0.002
    size: 0.165~0.005 of the float file
"""

from dataclasses import replace
from pathlib import Path

from msgspec.structs import replace as with_fields
from shipped_models import output, quick_asked, shipped

import onnxq
from onnxq.plan import QATSettings, VerifySettings


def main() -> None:
    """Run the example."""
    quick = quick_asked(__doc__)
    subject = shipped("mnist_cnn", quick=quick)

    # 1. What the layers shall compute in, and how to train. The float model is the teacher
    #    ("distill"), so that samples need no labels; a tenth of them is held back to choose the
    #    best epoch by. One thread and one seed: the same bytes in every run.
    recipe = with_fields(
        subject.recipe,
        precision="int4-weights",
        qat=QATSettings(
            loss="distill",
            samples=None if quick else 2000,
            epochs=6,
            batch_size=8 if quick else 32,
            learning_rate=3e-4 if quick else 1e-4,
            threads=1,
        ),
        verify=VerifySettings(seconds=0),  # 4-bit weights are about size, not about speed
    )

    # 2. A job is a recipe with its samples: those to train with, and others to test with, which
    #    neither training nor the choice of the epoch sees.
    job = onnxq.make_job(Path(subject.model), recipe)
    job = onnxq.with_test_data(onnxq.with_data(job, subject.data), subject.test)

    # 3. Quantize, train, and measure both. Kill it, and the same call goes on where it was.
    path = output(f"{Path(subject.model).stem}.int4.onnx")
    trained = onnxq.train_model(subject.model, replace(job, seed=0), output=path, force=True)

    # 4. What the training showed. Epoch 0 is the state before: PTQ.
    history = trained.history
    print(
        f"trained {history.values} weights and {history.scales} scales on {history.samples} samples"
    )
    for epoch in history.epochs:
        print(f"epoch {epoch.epoch}: validation loss {epoch.validation_loss:.4f}")
    print(f"best: epoch {history.best}")

    # 5. Float, PTQ and QAT side by side, on the test samples.
    ptq, qat = trained.untrained.measured, trained.result.receipt.measured
    for name, measured in (("PTQ", ptq), ("QAT", qat)):
        scores = measured.outputs["logits"]
        assert measured.metric is not None  # the test samples have labels
        print(
            f"{name}: top1 {measured.metric.source:.4f} -> {measured.metric.output:.4f}, "
            f"{scores.sqnr_db:.1f} dB, same class {scores.top1_agreement:.4f}"
        )
    print(f"size: {qat.size_ratio:.3f} of the float file")


if __name__ == "__main__":
    main()
