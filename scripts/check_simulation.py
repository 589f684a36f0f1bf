"""Whether training sees the int8 model as it will run: on whole test sets, through whole networks.

::

    python scripts/check_simulation.py                       # the shipped models, all test images
    python scripts/check_simulation.py --only mnist_transformer

What the simulation of quantization-aware training computes from a sample alone is compared with the
int8 model in ONNX Runtime: the answers, and the integers of every quantized tensor. Data sets are
found in ``ONNXQ_DATA``. The exit code is 1 when fewer than 99.5 % of the answers are the same, or a
tensor of some image is more than one step off.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from msgspec.structs import replace as with_fields

import onnxq
from onnxq.graph import Editor
from onnxq.qat.student import Student
from onnxq.rewrite.qdq import to_qdq
from onnxq.runtime import Session

MODELS = Path(__file__).resolve().parent.parent / "models"
NAMES = (
    "digits_cnn", "mnist_cnn", "mnist_lstm", "mnist_gru", "mnist_transformer", "cifar10_resnet",
    "cifar10_mobilenet",
)  # fmt: skip
BATCH, LEAST_SAME = 50, 0.995


def compared(name: str) -> tuple[int, int, int, int, int]:
    """Images; same answers; images with a tensor beyond one step; values that differ; values."""
    path = MODELS / f"{name}.onnx"
    job = onnxq.make_job(path, None)
    draft = onnxq.draft(path, replace(job, recipe=with_fields(job.recipe, precision="int8")))
    assert draft.test is not None
    student = Student(draft.prepared, draft.census, draft.plan, draft.recipe.qat)
    editor = Editor(to_qdq(draft.prepared, draft.plan))
    made = {n.outputs[0] for n in editor.finish().view().nodes if n.op == "QuantizeLinear"}
    activations = student.simulation.activations
    integers = {t: f"{t}_q" for t in activations if f"{t}_q" in made}
    for output in integers.values():
        editor.add_output(output)
    (answer,) = draft.prepared.view().output_names
    images = same = beyond = tipped = values = 0
    with Session(editor.finish()) as session, torch.no_grad():
        for batch in draft.test.batches(BATCH):
            ran = session.run(batch.feed)
            found = student.forward(student.tensors(batch.feed), keep=(*integers, answer))
            images += batch.count
            same += int((found[answer].numpy().argmax(1) == ran[answer].argmax(1)).sum())
            worst = np.zeros(batch.count)
            for tensor, output in integers.items():
                steps = activations[tensor].integers(found[tensor]).steps.numpy()
                whole = steps + draft.plan.tensors[tensor].zero_point[0]
                apart = np.abs(whole - ran[output].astype(np.float64)).reshape(batch.count, -1)
                worst = np.maximum(worst, apart.max(1))
                tipped, values = tipped + np.count_nonzero(apart), values + apart.size
            beyond += int((worst > 1).sum())
    return images, same, beyond, tipped, values


def main() -> int:
    """Compare, and print a line for each model."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    args = parser.parse_args()
    failed = False
    print(f"{'model':20}{'images':>8}{'same answer':>13}{'beyond a step':>15}{'values tipped':>20}")
    for name in args.only:
        images, same, beyond, tipped, values = compared(name)
        failed |= same < LEAST_SAME * images or beyond > 0
        print(f"{name:20}{images:8}{same / images:13.2%}{beyond:15}{tipped:11} of {values:.2g}",
              flush=True)  # fmt: skip
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
