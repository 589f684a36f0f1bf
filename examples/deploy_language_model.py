"""Deploy a language model with 4-bit weights: its size, and what that costs in perplexity.

Trains a small transformer in PyTorch that predicts the next character of the project's licence,
exports it, and stores its weights with 4 bits in blocks of 32, by rounding and by half-quadratic
optimisation. Needs PyTorch (``pip install 'onnxq[qat]'``). Takes 35 s on two cores, 13 s with
``--quick``, which ends before the model has learned much.

What it prints, where ``0.28~0.02`` may be off by 0.02, ``2.4~any`` depends on the machine, and
``...`` is any text::

    $ python examples/deploy_language_model.py --quick
    int4-rtn: 345~5 kB, size 0.194~0.003, perplexity 8.62~1 -> 8.63~1
    int4-hqq: 345~5 kB, size 0.194~0.003, perplexity 8.62~1 -> 8.66~1
    int4-nbits: 344~5 kB, size 0.193~0.003, perplexity 8.62~1 -> 8.63~1
    int8: 517~5 kB, size 0.290~0.003, perplexity 8.62~1 -> 8.62~1
    language.onnx: ...
    language.int4-hqq.onnx: ...

    $ python examples/deploy_language_model.py
    int4-rtn: 345~5 kB, size 0.194~0.003, perplexity 6.36~1 -> 6.58~1
    int4-hqq: 345~5 kB, size 0.194~0.003, perplexity 6.36~1 -> 6.44~1
    int4-nbits: 344~5 kB, size 0.193~0.003, perplexity 6.36~1 -> 6.58~1
    int8: 517~5 kB, size 0.290~0.003, perplexity 6.36~1 -> 6.35~1
    language.onnx: ...
    language.int4-hqq.onnx: ...
"""

from pathlib import Path

import numpy as np
import torch
from msgspec.structs import replace
from shipped_models import output, quick_asked
from torch_models import CONTEXT, export, train_language_model, windows

import onnxq
from onnxq.plan import Recipe, VerifySettings, WeightSettings
from onnxq.runtime import Session

LICENSE = Path(__file__).resolve().parent.parent / "LICENSE"


def minus_perplexity(outputs: dict[str, np.ndarray], labels: np.ndarray) -> float:
    """How many characters the model hesitates between; negative, as higher has to be better."""
    scores = outputs["scores"] - outputs["scores"].max(-1, keepdims=True)
    logs = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    return -float(np.exp(-np.take_along_axis(logs, labels[..., None], -1).mean()))


def write(model: str, start: str, count: int) -> str:
    """Let a model go on from a start, each time with the character that it thinks likeliest."""
    text = start.rjust(CONTEXT)
    with Session(onnxq.load(model)) as session:
        for _ in range(count):
            feed = {"characters": np.array([[ord(c) for c in text[-CONTEXT:]]])}
            text += chr(int(session.run(feed)["scores"][0, -1].argmax()))
    return text[-count:]


def main() -> None:
    """Run the example."""
    quick = quick_asked(__doc__)
    text = np.frombuffer(" ".join(LICENSE.read_text().split()).encode(), np.uint8).astype(np.int64)

    # 1. Train, and export. A tenth of the text is not trained with.
    first, last = len(text) * 4 // 10, len(text) * 5 // 10
    shown, held_back = np.concatenate([text[:first], text[last:]]), text[first:last]
    trained = train_language_model(shown, epochs=1 if quick else 4)
    example = torch.from_numpy(text[None, :CONTEXT])
    model = output("language.onnx")
    export(trained, (example,), model, (["characters"], ["scores"]))

    # 2. Test samples. Weights alone are quantized, so that nothing has to be calibrated.
    characters, following = windows(held_back, step=8)
    test = {"characters": characters, "labels": following}
    common = Recipe(verify=VerifySettings(metric=f"{__file__}:minus_perplexity", seconds=0))

    # 3. Four bits by rounding and by optimisation; then the same as MatMulNBits, ONNX Runtime's
    #    own operator, which reads 4-bit weights at every run; and eight bits for comparison.
    forms = {
        "int4-rtn": replace(common, precision="int4-weights"),
        "int4-hqq": replace(common, precision="int4-weights", weights=WeightSettings(method="hqq")),
        "int4-nbits": replace(common, precision="int4-weights", format="qoperator"),
        "int8": replace(common, precision="int8-weights"),
    }
    for name, recipe in forms.items():
        path = output(f"language.{name}.onnx")
        result = onnxq.quantize(model, test_data=test, recipe=recipe, output=path, force=True)
        measured = result.receipt.measured
        assert measured.metric is not None  # the test samples have labels
        before, after = -measured.metric.source, -measured.metric.output
        print(
            f"{name}: {result.receipt.output.bytes / 1000:.0f} kB, size "
            f"{measured.size_ratio:.3f}, perplexity {before:.2f} -> {after:.2f}"
        )

    # 4. Let the float model and the one of 4 bits write.
    for name in ("language.onnx", "language.int4-hqq.onnx"):
        print(f"{name}: {write(output(name), 'the Licensor shall be ', 40)}")


if __name__ == "__main__":
    main()
