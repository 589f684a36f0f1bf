"""``calibrate``: batches, going on, workers and states. Whoever runs it: the same bytes."""

from __future__ import annotations

import json
import os
import threading
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from onnxq.calibrate import OBSERVERS, ObserverSpec, Setup, Workers, collect, encode
from onnxq.calibrate.run import PORTION, STATEFUL_PORTION
from onnxq.errors import DataError, RuntimeFailure, UsageError
from onnxq.graph import load
from onnxq.runtime import TappedSession
from onnxq.types import Grid

EACH_OBSERVER = pytest.mark.parametrize("observer", OBSERVERS)
NET = "g (float[N,50] x) => (float[N,50] y) { t = Relu (x) y = Sqrt (t) }"
TAPS = ("x", "t", "y")
BATCH_SIZES = (1, 3, 8, 50, 64, 1000)
# Four portions of 64, one of 32, and a tail of 32: at batches of 8.
SAMPLES = 320


def normal(samples: int, seed: int, size: int = 50) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal((samples, size)).astype(np.float32)


@EACH_OBSERVER
def test_the_batch_size_does_not_matter(build, observe, observer) -> None:
    """Neither to ranges nor to what the last tenth of the samples tells: the same bytes."""
    data = {"x": normal(205, 0)}
    found = {encode(observe(build(NET), data, TAPS, observer, batch_size=n)) for n in BATCH_SIZES}
    assert len(found) == 1


@pytest.mark.parametrize("samples", [1, 9, 10, 64, 65, 71, 72, 141, 640])
def test_the_tail_is_the_last_tenth(build, observe, samples) -> None:
    x = np.zeros((samples, 50), np.float32)
    x[samples - samples // 10 :] = 1
    for n in BATCH_SIZES:
        pair = observe(build(NET), {"x": x}, TAPS, batch_size=n).tensors["x"]
        assert pair.body.ends.ends == (0, 0)
        assert pair.tail.seen == (samples >= 10)
        assert pair.tail.ends.ends == (1, 1) or samples < 10


# Going on.


@EACH_OBSERVER
def test_going_on_is_merging(build, observe, observer) -> None:
    model, a, b = build(NET), {"x": normal(150, 0)}, {"x": 3 * normal(99, 1)}
    one, other = (observe(model, data, TAPS, observer) for data in (a, b))
    merged = encode(one.merge(other))
    assert encode(observe(model, b, TAPS, observer, start=one)) == merged
    assert encode(observe(model, a, TAPS, observer, start=other)) == merged
    assert encode(one) != merged  # where it went on from is as it was


@EACH_OBSERVER
def test_what_was_seen_is_not_run_again(build, observe, runs, observer) -> None:
    data = {"x": normal(150, 0)}
    one = observe(build(NET), data, TAPS, observer)
    runs.clear()
    again = observe(build(NET), data, TAPS, observer, start=one)
    assert encode(again) == encode(one)
    assert sum(runs) <= 1  # the one that tells the size of a batch


def test_progress_counts_every_sample_once(build, observe) -> None:
    told: list[tuple[int, int]] = []
    observe(build(NET), {"x": normal(150, 0)}, TAPS, progress=lambda *n: told.append(n))
    assert told[-1] == (150, 150)
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert len(told) == 20  # 8 runs, 8 runs, 7 samples; one sample of that run, 8, and 6


def test_no_taps(build, observe, runs) -> None:
    assert observe(build(NET), {"x": normal(9, 0)}, []).samples == 0
    assert not runs


# Data that fail.


def test_a_source_that_yields_less_in_a_later_pass(build, observe) -> None:
    class Fading:
        def __init__(self):
            self.passes = 0

        def __call__(self):
            self.passes += 1
            yield from ({"x": row[None]} for row in normal(90 if self.passes == 1 else 70, 0))

    with pytest.raises(DataError, match="ends at sample 70 of 90"):
        observe(build(NET), Fading(), TAPS)


def test_a_generator_that_raises_midway(build, observe) -> None:
    def feeds():
        yield {"x": normal(1, 0)}
        raise OSError("the network is gone")

    for data in (feeds, feeds()):
        with pytest.raises(DataError, match="the network is gone") as caught:
            observe(build(NET), data, TAPS)
        assert "\n" not in str(caught.value)


# Runs at a time.


@pytest.fixture
def at_once(monkeypatch) -> list[int]:
    """A list that gets how many runs are under way at each; the first two wait for one another."""
    under_way, seen, guard, read = set(), [], threading.Lock(), TappedSession.read
    second = threading.Event()

    def counted(self, feed):
        with guard:
            under_way.add(threading.get_ident())
            seen.append(len(under_way))
            first = len(seen) == 1
        if not first:
            second.set()
        elif patient:
            assert second.wait(60)
        try:
            return read(self, feed)
        finally:
            with guard:
                under_way.discard(threading.get_ident())

    patient = collect._cores() > 1
    monkeypatch.setattr(collect, "_PATIENCE", 0)
    monkeypatch.setattr(TappedSession, "read", counted)
    return seen


@pytest.mark.skipif(collect._cores() < 2, reason="there is one core")
def test_two_runs_at_a_time(build, observe, at_once) -> None:
    """As many as there are cores for, and no more; the same bytes as by one after the other."""
    data = {"x": normal(100, 0)}
    found = observe(build(NET), data, TAPS, "mse", batch_size=8)
    assert max(at_once) == 2
    assert encode(found) == encode(observe(build(NET), data, TAPS, "mse", batch_size=100))


@pytest.mark.parametrize(
    ("cores", "threads", "state", "at_once"),
    [(1, 1, None, 1), (2, 1, None, 2), (64, 1, None, 2), (2, 2, None, 1), (64, 4, None, 2),
     (4, 0, None, 1), (64, 1, {"y": "x"}, 1)],
)  # fmt: skip
def test_runs_at_a_time(build, monkeypatch, cores, threads, state, at_once) -> None:
    monkeypatch.setattr("onnxq.calibrate.collect._cores", lambda: cores)
    view = build(NET).view()
    setup = Setup.of(view, TAPS, ObserverSpec("minmax"), state=state, threads=threads)
    assert setup.at_once == at_once


# Workers.


class Scattered(Executor):
    """Runs what it is given on threads, later tasks sooner."""

    def __init__(self) -> None:
        self.pool, self.number = ThreadPoolExecutor(4), 0

    def submit(self, function, /, *args, **kwargs):
        self.number += 1
        wait = 0.03 * (-self.number % 3)

        def later():
            time.sleep(wait)
            return function(*args, **kwargs)

        return self.pool.submit(later)

    def shutdown(self, wait=True, *, cancel_futures=False):
        self.pool.shutdown(wait, cancel_futures=cancel_futures)


@pytest.fixture(scope="module")
def processes():
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        yield pool


@pytest.fixture(params=["threads", "scattered", "processes"])
def workers(request):
    if request.param == "processes":
        yield Workers(2, request.getfixturevalue("processes"))
        return
    with ThreadPoolExecutor(2) if request.param == "threads" else Scattered() as executor:
        yield Workers(2, executor)


@EACH_OBSERVER
def test_workers_make_the_same_bytes(build, observe, workers, observer) -> None:
    data = {"x": normal(SAMPLES + 5, 0)}
    told: list[int] = []
    found = observe(
        build(NET), data, TAPS, observer, workers=workers, progress=lambda n, _: told.append(n)
    )
    assert encode(found) == encode(observe(build(NET), data, TAPS, observer))
    assert told == [64, 128, 192, 256, 293, 325]


def test_errors_of_workers_are_those_of_one(build, observe, workers) -> None:
    x = np.abs(normal(SAMPLES, 0))
    x[171, 3] = -1
    model = build("g (float[N,50] x) => (float[N,50] y) { t = Sqrt (x) y = Neg (t) }")
    messages = []
    for who in (None, workers):
        with pytest.raises(DataError, match="tensor 't' became NaN at sample 171;") as caught:
            observe(model, {"x": x}, TAPS, workers=who)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def interrupt(at: int):
    def progress(done: int, _: int) -> None:
        if done >= at:
            raise KeyboardInterrupt

    return progress


def test_what_workers_finished_is_kept(build, observe, workers, tmp_path) -> None:
    data, journal = {"x": normal(SAMPLES, 0)}, tmp_path / "j"
    with pytest.raises(KeyboardInterrupt):
        observe(
            build(NET), data, TAPS, "mse", workers=workers, journal=journal, progress=interrupt(190)
        )
    told: list[int] = []
    found = observe(
        build(NET), data, TAPS, "mse", journal=journal, progress=lambda n, _: told.append(n)
    )
    assert encode(found) == encode(observe(build(NET), data, TAPS, "mse"))
    assert told[0] == 128


def test_no_more_portions_are_sent_than_workers_can_hold(build, observe) -> None:
    under_way, most, lock = 0, 0, threading.Lock()

    class Counting(ThreadPoolExecutor):
        def submit(self, *args):
            nonlocal under_way, most
            with lock:
                under_way += 1
                most = max(most, under_way)
            future = super().submit(*args)
            future.add_done_callback(done)
            return future

    def done(_):
        nonlocal under_way
        with lock:
            under_way -= 1

    with Counting(1) as executor:
        observe(build(NET), {"x": normal(20 * PORTION, 0)}, TAPS, workers=Workers(1, executor))
    assert most <= 3


def test_the_model_is_sent_to_each_worker_once(build, observe) -> None:
    sent = []

    class Listening(ThreadPoolExecutor):
        def submit(self, function, errand):
            sent.append(errand.model is not None)
            return super().submit(function, errand)

    data = {"x": normal(SAMPLES, 0)}
    with Listening(1) as executor:
        found = observe(build(NET), data, TAPS, workers=Workers(1, executor))
    assert sent == [True, False, False, False, False, False]
    assert encode(found) == encode(observe(build(NET), data, TAPS))


def test_a_worker_that_was_not_sent_the_model_gets_it(build, observe, monkeypatch) -> None:
    """Such as one that joins later: here every portion comes to a new one."""

    class Forgetful(Executor):
        def submit(self, function, errand):
            monkeypatch.setattr("onnxq.calibrate.collect._sessions", {})
            future = Future()
            future.set_result(function(errand))
            return future

    data = {"x": normal(SAMPLES, 0)}
    found = observe(build(NET), data, TAPS, "mse", workers=Workers(2, Forgetful()))
    assert encode(found) == encode(observe(build(NET), data, TAPS, "mse"))


def test_own_processes_make_the_same_bytes(build, observe) -> None:
    data = {"x": normal(SAMPLES, 0)}
    found = observe(build(NET), data, TAPS, "mse", workers=Workers(2))
    assert encode(found) == encode(observe(build(NET), data, TAPS, "mse"))


def test_a_process_that_dies_is_one_line(build, observe, tmp_path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f"""
import os
class Mine:
    def __init__(self):
        self.count = 0
    def observe(self, tap):
        if os.getpid() != {os.getpid()}:
            os._exit(9)
    def merge(self, other):
        pass
    def range(self, grid):
        return 0, 1
""")
    with pytest.raises(RuntimeFailure, match="a worker process died") as caught:
        observe(build(NET), {"x": normal(SAMPLES, 0)}, TAPS, f"{file}:Mine", workers=Workers(2))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("jobs", [0, -1])
def test_no_workers_at_all(jobs) -> None:
    with pytest.raises(UsageError, match=f"{jobs} workers"):
        Workers(jobs)


# States.

RUNNING = """g (float[1,3] x, float[1,3] h) => (float[1,3] y, float[1,3] h_out)
    { y = Add (x, h) h_out = Identity (y) }"""
STATE = {"h_out": "h"}


def running_sums(x: np.ndarray, starts: list[int]) -> np.ndarray:
    """Sums from each start on, added one by one in float32 as the model does."""
    parts = np.split(x, starts)
    return np.concatenate([np.cumsum(part, axis=0, dtype=np.float32) for part in parts])


def test_ranges_are_those_of_the_running_sums(build, observe) -> None:
    """Every portion of 256 steps begins with zeros, and nothing else does."""
    x = np.abs(normal(700, 0, 3))
    found = observe(build(RUNNING), {"x": x}, ("x", "h", "y"), state=STATE).ranges(Grid())
    y = running_sums(x, [256, 512])
    h = np.concatenate([np.zeros((1, 3)), y[:-1]])
    h[[256, 512]] = 0
    for tensor, values in {"x": x, "y": y, "h": h}.items():
        range_ = found.tensors[tensor]
        assert (range_.min, range_.max) == (values.min(), values.max())
    assert STATEFUL_PORTION == 256


def test_the_histogram_is_that_of_the_running_sums(build, observe) -> None:
    x = normal(300, 0, 3)
    found = observe(build(RUNNING), {"x": x}, ("y",), "percentile", state=STATE,
                    options={"percentile": 90.0})  # fmt: skip
    range_ = found.ranges(Grid()).tensors["y"]
    true = np.percentile(running_sums(x, [256]), [10, 90])
    np.testing.assert_allclose([range_.lo, range_.hi], true, rtol=2e-3)  # the width of a bin, twice


def test_a_feed_that_holds_the_state_starts_from_it(build, observe) -> None:
    one = np.ones((1, 3), np.float32)
    feeds = [{"x": one}, {"x": one}, {"x": one, "h": 100 * one}, {"x": one}, {"x": one}]
    found = observe(build(RUNNING), feeds, ("y", "h"), state=STATE).ranges(Grid()).tensors
    assert (found["y"].min, found["y"].max) == (1, 103)
    assert (found["h"].min, found["h"].max) == (0, 102)


def test_states_of_workers_that_share_a_session(build, observe, workers) -> None:
    data = {"x": np.abs(normal(1100, 0, 3))}
    found = observe(build(RUNNING), data, ("y", "h"), "mse", state=STATE, workers=workers)
    assert encode(found) == encode(observe(build(RUNNING), data, ("y", "h"), "mse", state=STATE))


@pytest.mark.parametrize("state", [{"nothing": "h"}, {"h_out": "x", "y": "x"}])
def test_unknown_states_are_refused(build, observe, state) -> None:
    data = [{"x": normal(1, 0, 3), "h": normal(1, 0, 3)}]
    with pytest.raises(UsageError, match="state: ") as caught:
        observe(build(RUNNING), data, ("y",), state=state)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif("ONNXQ_MODELS" not in os.environ, reason="ONNXQ_MODELS is not set")
def test_a_streaming_model(observe) -> None:
    """Ranges of a speech enhancer's closed loop are those of a loop written by hand."""
    path = Path(os.environ["ONNXQ_MODELS"]) / "dtln_1.onnx"
    state = {"tf_op_layer_stack_2": "input_3"}
    taps = ("input_2", "input_3", "activation_2", "tf_op_layer_stack_2")
    x = np.abs(normal(280, 0, 257)).reshape(280, 1, 257)
    found = observe(load(path), [{"input_2": row[None]} for row in x], taps, state=state)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    seen: dict[str, list[np.ndarray]] = {tap: [] for tap in taps}
    for number, row in enumerate(x):
        if number in (0, 256):
            h = np.zeros((1, 2, 128, 2), np.float32)
        feed = {"input_2": row[None], "input_3": h}
        out = session.run(["activation_2", "tf_op_layer_stack_2"], feed)
        for tap, value in zip(taps, (row, h, *out), strict=True):
            seen[tap].append(value)
        h = out[1]
    for tap, range_ in found.ranges(Grid()).tensors.items():
        values = np.concatenate([value.ravel() for value in seen[tap]])
        # the same kernels; threads may add in another order
        np.testing.assert_allclose(
            [range_.min, range_.max], [values.min(), values.max()], rtol=1e-5, atol=1e-6
        )
    assert json.loads(encode(found))["samples"] == 280
