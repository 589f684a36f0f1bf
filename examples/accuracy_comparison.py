"""One network in many forms: float, int8 by PTQ and by QAT, 4 bits by both, float16, dynamic int8.

Trains the float baseline in PyTorch, exports it, quantizes it in every way, and measures all forms
on the same test images, each in turns with float. MNIST; handwritten digits with ``--quick``, or
where MNIST cannot be had. Needs PyTorch, and scikit-learn for the digits
(``pip install 'onnxq[qat,datasets]'``). Takes 3 min on two cores, 12 s with ``--quick``.

What it prints, where ``0.28~0.02`` may be off by 0.02, ``2.4~any`` depends on the machine, and
``...`` is any text::

    $ python examples/accuracy_comparison.py --quick
    form                     kB        size         top1     speed
    float                 213.5        1.00  0.9883~0.01  1.00
    int8 PTQ               65.7~3 0.31~0.01  0.9883~0.01  1.68~any
    int8-dynamic PTQ      116.5~3 0.55~0.01  0.9883~0.01  1.07~any
    int8-weights PTQ       57.5~3 0.27~0.01  0.9883~0.01  1.00~any
    int4-weights PTQ       34.7~3 0.16~0.01  0.9883~0.01  0.83~any
    fp16 PTQ              107.9~3 0.51~0.01  0.9883~0.01  1.03~any
    int8 QAT               65.7~3 0.31~0.01  0.9883~0.01  1.76~any
    int4-weights QAT       34.7~3 0.16~0.01  0.9883~0.01  0.84~any

    $ python examples/accuracy_comparison.py
    form                   kB      size       top1   speed
    float               1688.0~20 1.00  0.9932~0.002  1.00
    int8 PTQ             433.0~20 0.26  0.9932~0.002  2.32~any
    int8-dynamic PTQ     485.2~20 0.29  0.9932~0.002  1.12~any
    int8-weights PTQ     426.1~20 0.25  0.9931~0.002  1.03~any
    int4-weights PTQ     265.1~20 0.16  0.9932~0.002  0.86~any
    fp16 PTQ             845.2~20 0.50  0.9932~0.002  1.01~any
    int8 QAT             433.0~20 0.26  0.9932~0.002  2.34~any
    int4-weights QAT     265.1~20 0.16  0.9932~0.002  0.78~any
"""

import numpy as np
import torch
from msgspec.structs import replace
from shipped_models import data_set, output, quick_asked
from torch import Tensor, nn
from torch_models import export, fit

import onnxq
from onnxq.data import load_dataset
from onnxq.plan import DataSettings, QATSettings, Recipe, VerifySettings

Samples = dict[str, np.ndarray]


class Network(nn.Module):
    """Two convolutions and two linear layers, so that every precision has something to do."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.fc1 = nn.Linear(64 * (side // 4) ** 2, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Scores of the ten classes."""
        x = nn.functional.max_pool2d(torch.relu(self.conv1(image)), 2)
        x = nn.functional.max_pool2d(torch.relu(self.conv2(x)), 2)
        return self.fc2(torch.relu(self.fc1(torch.flatten(x, 1))))


def samples(name: str, split: str) -> Samples:
    """Images float32 [N, 1, side, side] from 0 to 1, by the input's name, and their classes."""
    pixels, labels = load_dataset(name, split)
    scale = 255 if pixels.dtype == np.uint8 else 1
    return {"image": pixels[:, None].astype(np.float32) / scale, "labels": labels}


def train_float(data: Samples, epochs: int) -> Network:
    """The float baseline."""
    images, labels = (torch.from_numpy(data[key]) for key in ("image", "labels"))

    def loss(network: Network, rows: Tensor) -> Tensor:
        return nn.functional.cross_entropy(network(images[rows]), labels[rows])

    return fit(lambda: Network(images.shape[-1]), loss, len(images), epochs=epochs, batch=64)


def main() -> None:
    """Run the example."""
    quick = quick_asked(__doc__)
    name = data_set("mnist", quick=quick)
    train, test = samples(name, "train"), samples(name, "test")

    # 1. The float baseline, trained and exported with a batch axis of any size.
    network = train_float(train, epochs=15 if quick else 2)
    example = torch.from_numpy(train["image"][:1])
    model = output("comparison.onnx")
    export(network, (example,), model, (["image"], ["logits"]))

    # 2. What all forms have in common: batches of 32, and so many seconds to measure each.
    common = Recipe(
        data=DataSettings(batch_size=32),
        verify=VerifySettings(seconds=0.3 if quick else 3.0),
        qat=QATSettings(
            epochs=3 if quick else 2,
            samples=None if quick else 6000,
            learning_rate=2e-4,
            teacher=0.5,  # learn half from the labels, half from the float model
            threads=1,
        ),
    )

    # 3. Post-training quantization, in every precision. Only int8 and int16 look at samples.
    receipts = {}
    for precision in ("int8", "int8-dynamic", "int8-weights", "int4-weights", "fp16"):
        recipe = replace(common, precision=precision)
        found = onnxq.quantize(model, data=train, test_data=test, recipe=recipe)
        receipts[f"{precision} PTQ"] = found.receipt

    # 4. Quantization-aware training, from the same exported graph.
    for precision in ("int8", "int4-weights"):
        job = onnxq.make_job(model, replace(common, precision=precision))
        job = onnxq.with_test_data(onnxq.with_data(job, train), test)
        receipts[f"{precision} QAT"] = onnxq.train_model(model, job).result.receipt

    # 5. One table. Speeds are against the float model with its constants folded.
    print(f"{'form':<18}{'kB':>8}{'size':>7}{'top1':>8}{'speed':>8}")
    row = "{:<18}{:8.1f}{:7.2f}{:8.4f}{:8.2f}"
    baseline = receipts["int8 PTQ"]
    assert baseline.measured.metric is not None  # the samples have labels
    print(row.format("float", baseline.source.bytes / 1000, 1, baseline.measured.metric.source, 1))
    for form, receipt in receipts.items():
        measured = receipt.measured
        assert measured.metric is not None
        assert measured.latency is not None  # it was measured
        speed = measured.latency.ratio_prepared
        kilobytes = receipt.output.bytes / 1000
        print(row.format(form, kilobytes, measured.size_ratio, measured.metric.output, speed))


if __name__ == "__main__":
    main()
