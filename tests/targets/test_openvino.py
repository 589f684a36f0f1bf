"""What is made for OpenVINO loads, runs and agrees there.

OpenVINO's build of ONNX Runtime cannot stand beside another build in one environment.
``ONNXQ_OPENVINO_PYTHON`` names the Python of an environment that has it::

    python -m venv ov && ov/bin/pip install onnxruntime-openvino numpy
    ONNXQ_OPENVINO_PYTHON=ov/bin/python pytest tests/targets/test_openvino.py
"""

from __future__ import annotations

import json
import os
import subprocess

import numpy as np
import pytest
from msgspec.structs import replace as with_fields

from onnxq.graph import Model, save
from onnxq.numerics import sqnr_db
from onnxq.plan import Recipe
from onnxq.runtime import Session, synthetic_feed
from onnxq.targets import TARGETS, get_target

PYTHON = os.environ.get("ONNXQ_OPENVINO_PYTHON", "")
pytestmark = pytest.mark.skipif(
    not PYTHON, reason="ONNXQ_OPENVINO_PYTHON names no Python with onnxruntime-openvino"
)
NAMES = ("blocks", "digits_cnn", "cifar10_resnet", "cifar10_mobilenet")
# Every node must run on OpenVINO: the session fails otherwise. Rounds are interleaved.
SCRIPT = """
import json, sys, time
import numpy as np, onnxruntime as ort
folder, provider, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
feed = dict(np.load(f"{folder}/feed.npz"))
def session(name):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    settings = {"device_type": "CPU", "num_of_threads": "1"}
    return ort.InferenceSession(f"{folder}/{name}.onnx", options, providers=[(provider, settings)])
sessions = {name: session(name) for name in ("float", "int8")}
np.savez(f"{folder}/found.npz", **{n: s.run(None, feed)[0] for n, s in sessions.items()})
times = {name: [] for name in sessions}
end = time.perf_counter() + seconds
while time.perf_counter() < end:
    for name, one in sessions.items():
        start = time.perf_counter()
        one.run(None, feed)
        times[name].append(time.perf_counter() - start)
providers = [one.get_providers()[0] for one in sessions.values()]
medians = {n: float(np.median(t)) if t else 0.0 for n, t in times.items()}
print(json.dumps({"providers": providers, "medians": medians}))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run a float model and what became of it in the other environment."""

    def start(model: Model, quantized: Model, feed, seconds: float = 0.0):
        folder = tmp_path_factory.mktemp("openvino")
        save(model, folder / "float.onnx")
        save(quantized, folder / "int8.onnx")
        np.savez(folder / "feed.npz", **feed)
        provider = get_target("openvino").provider
        done = subprocess.run(
            [PYTHON, "-c", SCRIPT, str(folder), provider, str(seconds)],
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        told = json.loads(done.stdout.splitlines()[-1])
        assert told["providers"] == [provider, provider]
        return dict(np.load(folder / "found.npz")), told["medians"]

    return start


@pytest.mark.parametrize("name", NAMES)
def test_output_agrees_with_the_cpu_provider(run, made, subject, saturates, name) -> None:
    """Both providers stay within the same error of the float model, and near each other.

    They are not alike to the last bit: OpenVINO adds the branches of a sum in float inside the
    layer before it, where the CPU provider rounds the layer's output first. Each is off by the
    rounding of its own, so that the two may differ by twice the noise of one (3 dB).
    """
    if saturates:
        pytest.skip("the int8 kernels of this processor saturate")
    one, quantized = subject(name), made(name, "openvino").model
    found, _ = run(one.model, quantized, one.test)
    here = next(iter(Session(quantized).run(one.test).values()))
    on_cpu = sqnr_db(one.expected, here)
    assert sqnr_db(one.expected, found["float"]) > 100  # float there is float32
    assert sqnr_db(one.expected, found["int8"]) > on_cpu - 1
    assert sqnr_db(here, found["int8"]) > on_cpu - 3


@pytest.mark.parametrize("name", NAMES[2:])
def test_int8_is_faster_there(run, made, subject, name) -> None:
    """Measured: 3.6 and 2.6 times as fast; a busy machine may take some of that."""
    one = subject(name)
    _, medians = run(one.model, made(name, "openvino").model, one.test, seconds=3.0)
    assert medians["float"] / medians["int8"] > 1.5


# Input channel 0 of the float layer is always 0, and its weight is 100: with one scale for all
# weights, the others would be rounded to steps of 0.8. What comes out feeds an int8 layer, which
# is when ONNX Runtime quantizes a float layer's weights by itself.
KEPT = """g (float[1,2,4,4] x) => (float[1,2,4,4] y, float[1,2,4,4] b)
<float[2,2,1,1] w = {0, 0, 1, -0.5}, float[2,2,1,1] v = {100, 0.3, 0, -0.55},
 float[2,2,1,1] u = {1, 0.5, -0.25, 0.75}, float[2,2,1,1] t = {0.1, 0.2, 0.3, -0.4}>
{ [stem] c = Conv (x, w) [relu] r = Relu (c) [float_layer] f = Conv (r, v)
  [branch] b = Conv (r, t) [tail] y = Conv (f, u) }"""


@pytest.mark.parametrize("per_axis", [True, False])
def test_float_layer_needs_scales_per_channel_before_it(
    run, build, plan_and_rewrite, monkeypatch, per_axis
) -> None:
    """``requantizes_float_layers`` holds of this provider: with one scale it would be wrong."""
    monkeypatch.setitem(
        TARGETS,
        "openvino",
        with_fields(get_target("openvino"), requantizes_float_layers=per_axis),
    )
    model = build(KEPT)
    made = plan_and_rewrite(model, "openvino", Recipe(keep_float=("float_layer",)))
    feed = synthetic_feed(model.view().inputs)
    found, _ = run(model, made.model, feed)
    as_written = Session(made.model, level="none").run(feed)["y"]
    # 8 bits keep some 40 dB; steps of 0.8 for weights of 0.3 and 0.55 are as large as these.
    agreement = sqnr_db(as_written, found["int8"])
    assert agreement > 35 if per_axis else agreement < 15
