"""One .npy file: samples on the first axis, for a model with one input."""

import hashlib
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from onnxq.data import Preprocess, open_data
from onnxq.errors import DataError
from onnxq.types import TensorSpec

X = TensorSpec("x", "float32", ("n", 3))
ROWS = np.arange(21, dtype=np.float32).reshape(7, 3)


@pytest.fixture
def save(tmp_path):
    def write(array):
        np.save(tmp_path / "x.npy", array)
        return str(tmp_path / "x.npy")

    return write


def refusal(spec, inputs=(X,), **options):
    with pytest.raises(DataError) as caught:
        list(open_data(spec, inputs, **options).batches(4))
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    assert "x.npy" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "array",
    [ROWS, np.asfortranarray(ROWS), ROWS.astype(">f4")],
    ids=["C order", "Fortran order", "big-endian"],
)
def test_batches_are_slices(save, array):
    reader = open_data(save(array), [X])
    assert (reader.size, reader.has_labels, reader.fixed_batch) == (7, False, 1)
    for _ in range(2):
        batches = list(reader.batches(3))
        assert [batch.count for batch in batches] == [3, 3, 1]
        found = np.concatenate([batch.feed["x"] for batch in batches])
        assert all(batch.feed["x"].dtype.isnative for batch in batches)
        assert np.array_equal(found, ROWS)
    part = next(reader.select([1, 4, 5]).batches(8)).feed["x"]
    assert np.array_equal(part, ROWS[[1, 4, 5]])
    assert part.flags.c_contiguous
    assert part.flags.writeable
    assert type(part) is np.ndarray  # no map: the file may be replaced afterwards


def test_fixed_batch(save):
    reader = open_data(save(ROWS), [TensorSpec("x", "float32", (3, 3))])
    assert [batch.count for batch in reader.batches(8)] == [3, 3]


def test_one_sample(save):
    (batch,) = open_data(save(ROWS[:1]), [X]).batches(8)
    assert np.array_equal(batch.feed["x"], ROWS[:1])


def test_preprocessing(save):
    pixels = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4)
    reader = open_data(
        save(pixels),
        [TensorSpec("x", "float32", ("n", 1, 4, 4))],
        preprocess=Preprocess(scale=0.5, add_channel=True),
    )
    assert np.array_equal(next(reader.batches(2)).feed["x"], pixels[:, None] * np.float32(0.5))


def test_digest_is_the_files(save):
    path = save(ROWS)
    expected = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert open_data(path, [X]).digest() == expected


@pytest.mark.parametrize("fortran", [False, True])
def test_only_the_rows_of_a_batch_are_read(tmp_path, fortran):
    shape = (100_000, 256)  # 100 MB, all a hole
    file = tmp_path / "x.npy"
    np.lib.format.open_memmap(file, "w+", np.float32, shape, fortran).flush()
    tracemalloc.start()
    reader = open_data(str(file), [TensorSpec("x", "float32", ("n", 256))])
    batch = next(reader.select(range(0, 100_000, 2_000)).batches(50))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert batch.feed["x"].shape == (50, 256)
    assert peak < 2e6  # the batch is 51 KB; the rest is Python's


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (ROWS[:0], "the data set is empty"),
        (np.float32(1), "array 'x' has no axis of samples"),
        (np.array([{}], object), "pickled Python objects, which are never loaded"),
        (ROWS.astype(np.float64), "takes float32, found float64"),
        (ROWS[:, :2], "takes rank 2 shape [n, 3], found rank 2 shape [4, 2]"),
        (np.where(ROWS == 13, np.float32(np.nan), ROWS), "holds NaN in sample 4"),
    ],
)
def test_arrays_that_do_not_fit(save, array, message):
    assert message in refusal(save(array))


def test_several_inputs(save):
    message = refusal(save(ROWS), [X, TensorSpec("y", "float32", ("n",))])
    assert "this model has 2 ('x', 'y'); write an .npz file" in message


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_file_cut_off(tmp_path, save, order):
    path = save(np.array(ROWS, order=order))
    whole = (tmp_path / "x.npy").read_bytes()
    for size in (0, 5, 60, len(whole) - 1):
        (tmp_path / "x.npy").write_bytes(whole[:size])
        assert "cannot be read" in refusal(path)
    assert "it ends after 83 of 84 bytes" in refusal(path)


def test_a_file_cut_off_after_it_was_opened(tmp_path, save):
    reader = open_data(save(ROWS), [X])
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-40])
    with pytest.raises(DataError, match="it ends after 44 of 84 bytes"):
        list(reader.batches(2))


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999999, 3), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000000000000,), }",
        "{'descr': '<f4', 'fortran_order': True, 'shape': (-3, 3), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (2,), }",
        "{'descr': 'zz', 'fortran_order': False, 'shape': (2,), }",
        "((((",
    ],
)
def test_lying_headers(tmp_path, header):
    text = header.encode()
    data = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(32)
    (tmp_path / "x.npy").write_bytes(data)
    assert "cannot be read" in refusal(str(tmp_path / "x.npy"))
