"""Dask: the same bytes from its workers, and one line for what goes wrong."""

from __future__ import annotations

import os
import socket
import sys

import numpy as np
import pytest

from onnxq.calibrate import connect, encode
from onnxq.errors import DataError, RuntimeFailure

NET = "g (float[N,50] x) => (float[N,50] y) { t = Relu (x) y = Sqrt (x) }"
# Dask's own, when a cluster is closed
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:distributed"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def address():
    distributed = pytest.importorskip("distributed", reason="Dask (extra 'cluster') is not there")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=2, processes=True, dashboard_address=":0"
    ) as cluster:
        yield cluster.scheduler_address


def positive(samples: int = 320) -> np.ndarray:
    return np.abs(np.random.RandomState(0).standard_normal((samples, 50))).astype(np.float32)


@pytest.mark.parametrize("observer", ["mse", "moving-average"])
def test_a_cluster_makes_the_same_bytes(build, observe, address, observer) -> None:
    data = {"x": positive()}
    with connect(address) as workers:
        assert workers.jobs == 4
        found = observe(build(NET), data, "xty", observer, workers=workers)
    assert encode(found) == encode(observe(build(NET), data, "xty", observer))


def test_states_on_a_cluster(build, observe, address) -> None:
    model = build("""g (float[1,50] x, float[1,50] h) => (float[1,50] y, float[1,50] h_out)
        { y = Add (x, h) h_out = Identity (y) }""")
    data, state = {"x": positive(1100)}, {"h_out": "h"}
    with connect(address) as workers:
        found = observe(model, data, "y", "mse", state=state, workers=workers)
    assert encode(found) == encode(observe(model, data, "y", "mse", state=state))


def test_an_error_on_a_cluster_is_that_of_one(build, observe, address) -> None:
    x = positive()
    x[171, 3] = -1
    with (
        pytest.raises(DataError, match="tensor 'y' became NaN at sample 171;"),
        connect(address) as workers,
    ):
        observe(build(NET), {"x": x}, "ty", workers=workers)


def test_a_worker_that_dies_is_one_line(build, observe, tmp_path, address) -> None:
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
    with (
        pytest.raises(RuntimeFailure, match="worker") as caught,
        connect(address) as workers,
    ):
        observe(build(NET), {"x": positive()}, "ty", f"{file}:Mine", workers=workers)
    assert "\n" not in str(caught.value)


def test_a_scheduler_that_is_not_there() -> None:
    pytest.importorskip("distributed", reason="Dask (extra 'cluster') is not there")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for address in (f"tcp://127.0.0.1:{port}", "nonsense://1", "tcp://nowhere.invalid:1"):
        with (
            pytest.raises(RuntimeFailure, match="cannot be reached") as caught,
            connect(address, timeout=1),
        ):
            pass
        assert "\n" not in str(caught.value)


def test_a_cluster_without_workers() -> None:
    distributed = pytest.importorskip("distributed", reason="Dask (extra 'cluster') is not there")
    with (
        distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as cluster,
        pytest.raises(RuntimeFailure, match="has no worker; start one"),
        connect(cluster.scheduler_address),
    ):
        pass


def test_without_dask_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(RuntimeFailure, match=r"pip install 'onnxq\[cluster\]'") as caught,
        connect("tcp://127.0.0.1:1"),
    ):
        pass
    assert "\n" not in str(caught.value)
