"""What every reader can do: batches, parts, digests; and finding the kind of data."""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from onnxq.data import open_data
from onnxq.errors import DataError, UsageError
from onnxq.types import TensorSpec

X = TensorSpec("x", "float32", ("n", 2))


@pytest.fixture
def make(tmp_path):
    def reader(n, spec=X):
        np.savez(tmp_path / "x.npz", x=np.repeat(np.arange(n, dtype=np.float32), 2).reshape(n, 2))
        return open_data("x.npz", [spec], base=tmp_path)

    return reader


def values(reader, batch=3):
    return [int(row[0]) for b in reader.batches(batch) for row in b.feed["x"]]


def test_parts_keep_the_order(make):
    reader = make(10)
    assert values(reader.take(3)) == [0, 1, 2]
    assert values(reader.select([7, 2, 2, 5])) == [2, 5, 7]
    assert values(reader.select([7, 2, 5]).select([0, 2])) == [2, 7]
    assert reader.take(10) is reader
    assert values(reader) == list(range(10))


def test_random_samples_are_reproducible(make):
    reader = make(100)
    drawn = values(reader.sample(10, seed=1))
    assert drawn == sorted(set(drawn))
    assert len(drawn) == 10
    assert drawn == values(reader.sample(10, seed=1)) != values(reader.sample(10, seed=2))
    assert reader.sample(100, seed=1) is reader


@pytest.mark.parametrize(
    ("n", "holdout", "kept", "held"),
    [(10, 0.2, 8, 2), (2, 0.2, 1, 1), (3, 0.9, 1, 2), (4, 0.01, 3, 1), (100, 0.25, 75, 25)],
)
def test_split_holds_back_the_tail(make, n, holdout, kept, held):
    calibration, test = make(n).split(holdout)
    assert (calibration.size, test.size) == (kept, held)
    assert not calibration.shared
    assert not test.shared
    assert values(calibration) + values(test) == list(range(n))
    assert calibration.digest() != test.digest()


def test_one_sample_serves_both(make):
    reader = make(1)
    calibration, test = reader.split()
    assert calibration.shared
    assert test.shared
    assert not reader.shared
    assert values(calibration) == values(test) == [0]
    assert calibration.digest() == reader.digest()


def test_split_respects_a_fixed_batch(make):
    fixed = TensorSpec("x", "float32", (4, 2))
    calibration, test = make(11, fixed).split(0.1)
    assert (values(calibration), values(test)) == (list(range(4)), [7, 8, 9, 10])
    calibration, test = make(7, fixed).split(0.1)
    assert calibration.shared
    assert values(calibration) == values(test) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "call",
    [
        lambda r: r.batches(0),
        lambda r: r.take(0),
        lambda r: r.sample(-1, seed=0),
        lambda r: r.select([]),
        lambda r: r.select([0, 10]),
        lambda r: r.select([-1]),
        lambda r: r.split(0),
        lambda r: r.split(1.0),
    ],
)
def test_impossible_parts(make, call):
    with pytest.raises(UsageError):
        call(make(10))


def test_memory_does_not_grow_with_the_data(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", x=np.zeros((4_000_000, 2), np.float32))
    reader = open_data(str(tmp_path / "x.npz"), [X])
    tracemalloc.start()
    count = sum(batch.count for batch in reader.batches(100_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 4_000_000
    assert peak < 8e6  # the array is 32 MB, a batch 0.8 MB, copied a few times


def test_paths_start_at_the_base_unless_absolute(make, tmp_path, monkeypatch):
    make(3)
    monkeypatch.chdir(tmp_path)
    assert open_data("x.npz", [X]).size == 3
    assert open_data(str(tmp_path / "x.npz"), [X], base=tmp_path / "elsewhere").size == 3


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "no data named"),
        ("nothing.npz", "nothing.npz: no such file or folder"),
        ("text.txt", "text.txt: not a kind of data that can be read"),
        ("a b:c d", "no such file or folder"),
    ],
)
def test_forms_are_listed(tmp_path, spec, message):
    (tmp_path / "text.txt").write_text("x")
    with pytest.raises(DataError) as caught:
        open_data(spec, [X], base=tmp_path)
    assert message in str(caught.value)
    assert "data are a FILE.npz, a FILE.npy, a folder of .npz" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_importing_brings_in_nothing_heavy():
    heavy = ("onnx", "onnxruntime", "click", "rich", "sklearn", "pooch", "PIL")
    code = f"import sys, onnxq.data; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
