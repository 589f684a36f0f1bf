"""Quantize a trained model (post-training quantization, PTQ) in one call, and read what came out.

Shows ``onnxq.quantize``, the receipt that it returns and writes, and the quantized model at work. A
residual network on CIFAR-10; handwritten digits with ``--quick``, or where CIFAR-10 cannot be had.
Takes 1 min on two cores, 6 s with ``--quick``.

What it prints, where ``0.28~0.02`` may be off by 0.02, ``2.4~any`` depends on the machine, and
``...`` is any text::

    $ python examples/ptq_quickstart.py --quick
    models/digits_cnn.onnx: 293116 bytes
    build/examples/digits_cnn.int8.onnx: 82989~90000 bytes, 0.28~0.31 of the float file
    top1: 0.9950~0.002 -> 0.9950~0.005 on 597 test images
    logits: 41.8~12 dB over the noise of rounding
    speed: 2.43~any times that of the prepared float model
    int8: 11~any of 11~any planned nodes run as int8
    budget max_drop: kept
    budget not_slower: ...
    float: 0~any nodes...
    scores of one image: (1, 10)
    made again from the receipt: same plan

    $ python examples/ptq_quickstart.py
    models/cifar10_resnet.onnx: 3887364 bytes
    build/examples/cifar10_resnet.int8.onnx: 1007222~1200000 bytes, 0.26~0.31 of the float file
    top1: 0.8772 -> 0.8759~0.005 on 10000 test images
    logits: 36.6~12 dB over the noise of rounding
    speed: 3.31~any times that of the prepared float model
    int8: 33~any of 33~any planned nodes run as int8
    budget max_drop: kept
    budget not_slower: ...
    float: 0~any nodes...
    scores of one image: (1, 10)
    made again from the receipt: same plan
"""

from pathlib import Path

import numpy as np
from msgspec.structs import replace
from shipped_models import output, quick_asked, shipped

import onnxq
from onnxq.plan import VerifySettings
from onnxq.runtime import Session


def main() -> None:
    """Run the example."""
    quick = quick_asked(__doc__)
    subject = shipped("cifar10_resnet", quick=quick)

    # 1. Say what is wanted. The recipe beside the model tells how samples are read, and that half
    #    a point of accuracy may be lost. No precision is named: the fastest plan that is accurate
    #    enough is found by measurement, for about so many seconds at a time.
    recipe = replace(subject.recipe, verify=VerifySettings(seconds=0.5 if quick else 3.0))

    # 2. One call: calibrate, plan, rewrite, verify on samples that nothing has seen before.
    path = output(f"{Path(subject.model).stem}.int8.onnx")
    result = onnxq.quantize(
        subject.model, data=subject.data, test_data=subject.test, recipe=recipe, output=path,
        force=True,  # an earlier output may be overwritten
    )  # fmt: skip

    # 3. What was measured: size, accuracy, speed.
    receipt, measured = result.receipt, result.receipt.measured
    print(f"{subject.model}: {receipt.source.bytes} bytes")
    print(f"{path}: {receipt.output.bytes} bytes, {measured.size_ratio:.2f} of the float file")
    if (metric := measured.metric) is not None:
        change = f"{metric.source:.4f} -> {metric.output:.4f}"
        print(f"{metric.name}: {change} on {metric.samples} test images")
    print(f"logits: {measured.outputs['logits'].sqnr_db:.1f} dB over the noise of rounding")
    if (latency := measured.latency) is not None:
        print(f"speed: {latency.ratio_prepared:.2f} times that of the prepared float model")

    # 4. What really runs: the graph that ONNX Runtime executes was opened and counted.
    coverage = measured.int8_coverage  # None where the plan has no int8
    ran, wanted = (coverage.int8, coverage.wanted) if coverage is not None else (0, 0)
    print(f"int8: {ran} of {wanted} planned nodes run as int8")

    # 5. Every budget is a gate; a missed one would end the command line with exit code 1.
    for gate in receipt.gates:
        print(f"budget {gate.name}: {'kept' if gate.passed else 'missed'}")

    # 6. A node that stays float tells why: most often, that float was measured to be as fast.
    told = [f"; {node.name} {node.reason.sentence}" for node in result.plan.nodes if node.reason]
    print(f"float: {len(told)} nodes{''.join(told)}")

    # 7. The output is an ordinary ONNX model, with the same inputs and outputs. Any runtime will
    #    do; this is onnxq's own thin session of ONNX Runtime.
    model = onnxq.load(path)
    spec = model.view().inputs[0]
    image = np.zeros((1, *(int(size or 1) for size in (spec.shape or ())[1:])), np.float32)
    with Session(model) as session:
        print(f"scores of one image: {session.run({spec.name: image})['logits'].shape}")

    # 8. The receipt lies beside the model: for people, for CI, and to make the same again, without
    #    any data.
    again = onnxq.replay(subject.model, Path(path).with_suffix(".receipt.json"))
    print(f"made again from the receipt: {'same' if again.plan == result.plan else 'other'} plan")


if __name__ == "__main__":
    main()
