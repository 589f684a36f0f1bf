"""Deploy a speech model that carries a state from frame to frame.

Trains a small streaming model in PyTorch that spots a rising chirp among falling ones, tones and
noise, exports one step of it with its state as input and output, and quantizes it. The recipe says
which output goes back to which input, so that calibration and judging run through the frames in
order, as the model will. Needs PyTorch (``pip install 'onnxq[qat]'``). Takes 1 min on two cores,
17 s with ``--quick``.

What it prints, where ``0.28~0.02`` may be off by 0.02, ``2.4~any`` depends on the machine, and
``...`` is any text::

    $ python examples/deploy_speech.py --quick
    int8-dynamic: size 0.27~0.01, right 0.8913~0.04 -> 0.8913~0.04, 41.6~12 dB, speed 1.06~any
    int8-weights: size 0.27~0.01, right 0.8913~0.04 -> 0.8920~0.04, 44.2~13 dB, speed 1.01~any
    int4-weights: size 0.17~0.01, right 0.8913~0.04 -> 0.8887~0.05, 21.0~6 dB, speed 0.91~any
    auto: size 0.27~any, right 0.8913~0.04 -> 0.8913~0.04, 41.6~any dB, speed 1.12~any
    336~80 of 1500 frames rise; 672~any times real time

    $ python examples/deploy_speech.py
    int8-dynamic: size 0.27~0.02, right 0.9427~0.03 -> 0.9427~0.03, 44.0~12 dB, speed 1.10~any
    int8-weights: size 0.27~0.02, right 0.9427~0.03 -> 0.9427~0.03, 47.4~13 dB, speed 1.00~any
    int4-weights: size 0.17~0.02, right 0.9427~0.03 -> 0.9393~0.03, 19.1~6 dB, speed 0.93~any
    auto: size 0.27~any, right 0.9427~0.03 -> 0.9427~0.03, 44.0~any dB, speed 1.10~any
    321~60 of 1500 frames rise; 584~any times real time
"""

import time

import numpy as np
import torch
from msgspec.structs import replace
from shipped_models import output, quick_asked
from torch_models import FRAME, RATE, STATES, audio, export, train_spotter

import onnxq
from onnxq.plan import DataSettings, Recipe, VerifySettings
from onnxq.runtime import Session


def right(outputs: dict[str, np.ndarray], labels: np.ndarray) -> float:
    """The share of frames that are judged rightly."""
    return float(((outputs["score"].ravel() > 0.5) == labels).mean())


def main() -> None:
    """Run the example."""
    quick = quick_asked(__doc__)

    # 1. Train on whole sequences, export one step: a frame and the state in, a score and the next
    #    state out.
    frames, labels = audio(1200 if quick else 6000, seed=0)
    spotter = train_spotter(frames, labels, epochs=25)
    state = torch.zeros(1, 1, STATES)
    names = (["frame", "h_in", "c_in"], ["score", "h_out", "c_out"])
    step = (torch.from_numpy(frames[None, :1]), state, state)
    model = output("spotter.onnx")
    export(spotter, step, model, names, batched=False)

    # 2. Samples are the steps of a sequence, in order. They need not hold the state: it starts
    #    with zeros, and goes from output to input.
    data = {"frame": frames[:600, None]}
    frames, labels = audio(100, seed=1)
    test = {"frame": frames[:, None], "labels": labels}
    recipe = Recipe(
        data=DataSettings(state={"h_out": "h_in", "c_out": "c_in"}),
        verify=VerifySettings(metric=f"{__file__}:right", seconds=0.5 if quick else 3.0),
    )

    # 3. An LSTM computes on integers with dynamic int8; weights alone need no runtime support.
    for precision in ("int8-dynamic", "int8-weights", "int4-weights", "auto"):
        wanted, path = replace(recipe, precision=precision), output(f"spotter.{precision}.onnx")
        result = onnxq.quantize(
            model, data=data, test_data=test, recipe=wanted, output=path, force=True
        )
        measured = result.receipt.measured
        assert measured.metric is not None  # the test frames have labels
        assert measured.latency is not None  # it was measured
        print(
            f"{precision}: size {measured.size_ratio:.2f}, right {measured.metric.source:.4f} -> "
            f"{measured.metric.output:.4f}, {measured.outputs['score'].sqnr_db:.1f} dB, "
            f"speed {measured.latency.ratio_prepared:.2f}"
        )

    # 4. Streaming, as an application does it: the state of a frame goes into the next one.
    with Session(onnxq.load(output("spotter.int8-dynamic.onnx"))) as session:
        feed = {name: np.zeros((1, 1, STATES), np.float32) for name in ("h_in", "c_in")}
        heard, started = 0, time.perf_counter()
        for frame in frames:
            found = session.run({"frame": frame[None, None], **feed})
            feed = {"h_in": found["h_out"], "c_in": found["c_out"]}
            heard += int(found["score"].item() > 0.5)
        seconds = time.perf_counter() - started
    played = len(frames) * FRAME / RATE
    print(f"{heard} of {len(frames)} frames rise; {played / seconds:.0f} times real time")


if __name__ == "__main__":
    main()
