"""Decide layer by layer: keep layers float, quantize them again, mix precisions.

Shows ``onnxq.PTQQuantizer``, and the same wishes as a recipe. A network on MNIST; handwritten
digits with ``--quick``, or where MNIST cannot be had. Takes 13 s on two cores, 3 s with
``--quick``.

What it prints, where ``0.28~0.02`` may be off by 0.02, ``2.4~any`` depends on the machine, and
``...`` is any text::

    $ python examples/per_layer_config.py --quick
    all int8: 12 int8; size 0.28~0.01, 41.8~6 dB, top1 0.9950~0.005
    layers: /conv1/Conv /conv2/Conv /conv3/Conv /fc1/Gemm /fc2/Gemm
    first layer float: 2 float, 10 int8; size 0.28~0.01, 42.3~6 dB, top1 0.9950~0.005
    linear layers float: 5 float, 7 int8; size 0.45~0.01, 44.9~6 dB, top1 0.9950~0.005
    mixed: 3 float, 7 int8, 1 int16, 1 int4-weights; size 0.26~0.01, 30.4~3 dB, top1 0.9933~0.005
    /conv1/Conv: int8, reads uint8 with a scale of 0.003922~0.00001
    /conv2/Conv: int8, reads uint8 with a scale of 0.006951~0.0002
    /conv3/Conv: int8, reads uint8 with a scale of 0.009956~0.0002
    /fc1/Gemm: int4-weights, reads float
    /fc2/Gemm: int16, reads uint16 with a scale of 0.000061~0.00001
    only convolutions: 8 float, 3 int8, 1 int8-weights; size 0.45~0.01, 38.0~6 dB, top1 0.9950~0.005

    $ python examples/per_layer_config.py
    all int8: 13 int8; size 0.32~0.01, 35.5~3 dB, top1 0.9921~0.002
    layers: /features/features.0/Conv /features/features.3/Conv /features/features.6/Conv ...
    first layer float: 2 float, 11 int8; size 0.31~0.01, 35.2~3 dB, top1 0.9920~0.002
    linear layers float: 5 float, 8 int8; size 0.40~0.01, 36.7~3 dB, top1 0.9921~0.002
    mixed: 3 float, 8 int8, 1 int16, 1 int4-weights; size 0.30~0.01, 28.3~3 dB, top1 0.9919~0.002
    /features/features.0/Conv: int8, reads uint8 with a scale of 0.003922~0.0003
    /features/features.3/Conv: int8, reads uint8 with a scale of 0.008259~0.0003
    /features/features.6/Conv: int8, reads uint8 with a scale of 0.011972~0.0003
    /features/features.9/Conv: int8, reads uint8 with a scale of 0.009286~0.0003
    /fc1/Gemm: int4-weights, reads float
    /fc2/Gemm: int16, reads uint16 with a scale of 0.000036~0.0003
    only convolutions: 8 float, 4 int8, 1 int8-weights; size 0.40~0.01, 29.8~3 dB, top1 0.9918~0.002
"""

from msgspec.structs import replace
from shipped_models import Subject, quick_asked, shipped

import onnxq
from onnxq.api import Result
from onnxq.plan import Budgets, LayerRule, VerifySettings
from onnxq.types import Precision


def tell(name: str, result: Result) -> None:
    """Print what a configuration made: nodes by precision, size and accuracy."""
    counts = {p: result.plan.count(p) for p in Precision if result.plan.count(p)}
    nodes = ", ".join(f"{count} {precision}" for precision, count in counts.items())
    measured = result.receipt.measured
    assert measured.metric is not None  # the test samples have labels
    print(
        f"{name}: {nodes}; size {measured.size_ratio:.2f}, "
        f"{measured.outputs['logits'].sqnr_db:.1f} dB, top1 {measured.metric.output:.4f}"
    )


def by_object(subject: Subject) -> None:
    """Set up a quantizer step by step."""
    # 1. A precision for all layers. Without a budget every layer gets what is said, whatever it
    #    costs; no time is spent on measuring speed.
    recipe = replace(
        subject.recipe, precision="int8", budgets=Budgets(), verify=VerifySettings(seconds=0)
    )
    quantizer = onnxq.PTQQuantizer(recipe)

    def quantize() -> Result:
        return quantizer.quantize(subject.model, subject.data, test_data=subject.test)

    result = quantize()
    tell("all int8", result)

    # 2. What there is to decide about: the nodes, by their names.
    layers = [node.name for node in result.plan.nodes if node.op in ("Conv", "Gemm")]
    print(f"layers: {' '.join(layers)}")

    # 3. Disable quantization of a layer, and enable it again.
    quantizer.set_per_layer_fallback(layers[0], True)
    tell("first layer float", quantize())
    quantizer.set_per_layer_fallback(layers[0], False)

    # 4. A pattern disables several: all linear layers compute in float, convolutions in int8.
    quantizer.set_per_layer_fallback("/fc*/Gemm", True)
    tell("linear layers float", quantize())
    quantizer.set_per_layer_fallback("/fc*/Gemm", False)

    # 5. Not only int8 and float: the large matrix is stored with 4 bits in blocks of 32, the last
    #    layer computes with 16 bits.
    quantizer.configure_layer("/fc1/Gemm", precision="int4-weights", block_size=32)
    quantizer.configure_layer("/fc2/Gemm", bits=16)
    tell("mixed", quantize())

    # 6. What every layer got.
    for name in layers:
        layer = quantizer.quantization_parameters[name]
        inputs = (f"{q.qtype} with a scale of {q.scale[0]:.6f}" for q in layer.inputs.values())
        print(f"{name}: {layer.precision}, reads {', '.join(inputs) or 'float'}")


def by_recipe(subject: Subject) -> None:
    """Say it once, as a value: what a recipe in TOML beside the model would hold."""
    # 7. Float unless said otherwise; operators, patterns and positions choose layers. Two rules
    #    that want different things of one layer are an error, and so is one that matches nothing.
    recipe = replace(
        subject.recipe,
        precision="float",
        layers=(
            LayerRule(op="Conv", precision="int8"),
            LayerRule(position="last", precision="int8-weights"),
        ),
        budgets=Budgets(),
        verify=VerifySettings(seconds=0),
    )
    result = onnxq.quantize(subject.model, data=subject.data, test_data=subject.test, recipe=recipe)
    tell("only convolutions", result)


def main() -> None:
    """Run the example."""
    subject = shipped("mnist_cnn", quick=quick_asked(__doc__))
    by_object(subject)
    by_recipe(subject)


if __name__ == "__main__":
    main()
