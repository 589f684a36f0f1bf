"""Deploy a detector: boxes and scores, judged by AP50, a metric of your own.

Trains a small detector in PyTorch that finds handwritten digits on a canvas, exports it, and
quantizes it: all int8, and then what a search finds. ``--model detector.onnx --data samples.npz``
quantizes a detector of your own by the same steps, where its outputs are called ``boxes`` (x1, y1,
x2, y2) and ``scores`` and the labels are boxes. Needs PyTorch (``pip install 'onnxq[qat]'``). Takes
1 min on two cores, 12 s with ``--quick``.

What it prints, where ``0.28~0.02`` may be off by 0.02, ``2.4~any`` depends on the machine, and
``...`` is any text::

    $ python examples/deploy_detector.py --quick
    int8: size 0.28~0.02, AP50 0.944~0.04 -> 0.935~0.05, speed 2.14~any
      boxes: 39.0~5 dB
      scores: 44.0~7 dB
      float: 0 of 5 Conv
    auto: size 0.28~0.4, AP50 0.944~0.04 -> 0.935~0.05, speed 2.06~any
      boxes: 39.0~20 dB
      scores: 44.0~20 dB
      float: 0~any of 5 Conv...

    $ python examples/deploy_detector.py
    int8: size 0.28~0.2, AP50 0.998~0.02 -> 0.963~0.04, speed 1.95~any
      boxes: 33.0~8 dB
      scores: 42.3~8 dB
      float: 0 of 5 Conv
    auto: size 0.28~0.4, AP50 0.998~0.02 -> 0.998~0.03, speed 2.15~any
      boxes: 49.2~20 dB
      scores: 45.0~20 dB
      float: 1~any of 5 Conv...
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from shipped_models import output
from torch_models import canvases, export, train_detector

import onnxq
from onnxq.data import Data
from onnxq.plan import DataSettings, Recipe, VerifySettings


def ap50(outputs: dict[str, np.ndarray], labels: np.ndarray) -> float:
    """Average precision of boxes that overlap a label's by half: the area under the curve."""
    boxes, scores = outputs["boxes"], outputs["scores"]
    left_top = np.maximum(boxes[:, :, None, :2], labels[:, None, :, :2])
    right_bottom = np.minimum(boxes[:, :, None, 2:], labels[:, None, :, 2:])
    shared = np.clip(right_bottom - left_top, 0, None).prod(-1)
    areas = [(b[..., 2:] - b[..., :2]).prod(-1) for b in (boxes, labels)]
    overlap = shared / (areas[0][:, :, None] + areas[1][:, None] - shared)
    matched, hits = np.zeros(labels.shape[:2], bool), []
    for place in np.argsort(-scores, axis=None, kind="stable"):  # the surest first
        sample, number = divmod(int(place), scores.shape[1])
        best = int(np.where(matched[sample], 0, overlap[sample, number]).argmax())
        hits.append(overlap[sample, number, best] >= 0.5 and not matched[sample, best])
        matched[sample, best] |= hits[-1]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precision[np.array(hits)].sum() / (labels[..., 2] > 0).sum())


def read(path: str) -> np.ndarray:
    """The images of a file of samples."""
    with np.load(path) as arrays:
        return arrays["image"]


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description="Quantize a detector.")
    parser.add_argument("--quick", action="store_true", help="train for a few seconds alone")
    parser.add_argument("--model", help="a detector of your own, instead of training one")
    parser.add_argument("--data", help="its samples: an .npz file with boxes as labels")
    arguments = parser.parse_args()
    quick, model = arguments.quick, arguments.model or output("detector.onnx")
    samples: dict[str, Data] = {"data": arguments.data}

    # 1. A float detector. Canvases to train with and those to test with show different digits. With
    #    labels in both, the search below judges plans by AP50, too, and not by noise alone.
    if arguments.model is None:
        shown, unseen = (read(f"models/digits_{part}.npz") for part in ("test", "calibration"))
        train = canvases(shown, 1500 if quick else 6000, seed=0)
        detector = train_detector(train, epochs=6 if quick else 12)
        example = torch.from_numpy(train["image"][:1])
        export(detector, (example,), model, (["image"], ["boxes", "scores"]))
        samples = {
            "data": {name: array[:300] for name, array in train.items()},
            "test_data": canvases(unseen, 300, seed=1),
        }

    # 2. All int8, and what a search finds that may lose a hundredth of AP50.
    for precision in ("int8", "auto"):
        recipe = Recipe(
            precision=precision,
            data=DataSettings(batch_size=8),
            verify=VerifySettings(metric=f"{__file__}:ap50", seconds=0.5 if quick else 3.0),
        )
        path = output(f"{Path(model).stem}.{precision}.onnx")
        result = onnxq.quantize(model, **samples, recipe=recipe, output=path, force=True)
        measured = result.receipt.measured
        assert measured.metric is not None  # the samples have labels
        assert measured.latency is not None  # it was measured
        print(
            f"{precision}: size {measured.size_ratio:.2f}, AP50 {measured.metric.source:.3f} -> "
            f"{measured.metric.output:.3f}, speed {measured.latency.ratio_prepared:.2f}"
        )
        for name, facts in measured.outputs.items():
            print(f"  {name}: {facts.sqnr_db:.1f} dB")
        layers = [node for node in result.plan.nodes if node.op == "Conv"]
        told = [f"; {node.name} {node.reason.sentence}" for node in layers if node.reason]
        print(f"  float: {len(told)} of {len(layers)} Conv{''.join(told)}")


if __name__ == "__main__":
    main()
