"""Inputs that a feed may leave out, such as the states of recurrent models."""

import numpy as np
import onnx
import pytest
from PIL import Image

from onnxq.data import Preprocess, open_data
from onnxq.errors import DataError, UsageError
from onnxq.types import TensorSpec

X = TensorSpec("x", "float32", (1, "t"))
STATE = TensorSpec("state", "float32", (2, 1, 4))
INPUTS = (STATE, X)  # the optional one first: it may not be taken for the only one
ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)
ZEROS = np.zeros((2, 1, 4), np.float32)


def batches(data, **options):
    return list(open_data(data, INPUTS, optional=("state",), **options).batches(2))


def check(data):
    found = batches(data)
    assert [b.feed.keys() for b in found] == [{"x"}] * 3  # one at a time: x fixes its batch
    assert np.array_equal(np.concatenate([b.feed["x"] for b in found]), ROWS)


def test_arrays(tmp_path):
    np.savez(tmp_path / "x.npz", x=ROWS)
    np.save(tmp_path / "x.npy", ROWS)
    for data in (ROWS, {"x": ROWS}, tmp_path / "x.npz", tmp_path / "x.npy"):
        check(data)


def test_feeds(tmp_path):
    feeds = [{"x": row[np.newaxis]} for row in ROWS]
    for data in (feeds, iter(feeds), lambda: feeds):
        check(data)
    for index, feed in enumerate(feeds):
        (tmp_path / "npz").mkdir(exist_ok=True)
        np.savez(tmp_path / "npz" / f"{index}.npz", **feed)
    check(tmp_path / "npz")


def test_npy_folder_adds_the_batch_axis_of_the_required_input(tmp_path):
    for index, row in enumerate(ROWS):
        np.save(tmp_path / f"{index}.npy", row)
    check(tmp_path)


def test_onnx_test_data(tmp_path):
    folder = tmp_path / "test_data_set_0"
    folder.mkdir()
    tensor = onnx.numpy_helper.from_array(ROWS[:1])
    (folder / "input_1.pb").write_bytes(tensor.SerializeToString())  # x is the second input
    (batch,) = batches(folder)
    assert batch.feed.keys() == {"x"}


def test_images(tmp_path):
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "a.png")
    inputs = (STATE, TensorSpec("x", "uint8", ("n", 4, 4, 3)))
    (batch,) = open_data(tmp_path, inputs, optional=["state"]).batches(2)
    assert batch.feed["x"][0, 0, 0].tolist() == [1, 2, 3]


def test_data_sets():
    inputs = (STATE, TensorSpec("x", "float32", ("n", 8, 8)))
    reader = open_data("dataset:digits", inputs, optional=["state"])
    assert next(reader.batches(2)).feed.keys() == {"x"}


def test_one_that_is_given_is_checked_and_not_preprocessed():
    given = {"x": ROWS[:1], "state": np.ones_like(ZEROS)}
    (batch,) = batches([given], preprocess=Preprocess(scale=2.0))
    assert np.array_equal(batch.feed["x"], ROWS[:1] * 2)
    assert np.array_equal(batch.feed["state"], given["state"])
    for bad, message in (
        (ZEROS[0], "input 'state' takes rank 3"),
        (ZEROS.astype(np.float64), "input 'state' takes float32, found float64"),
        (ZEROS + np.inf, "input 'state' holds Inf"),
    ):
        with pytest.raises(DataError, match=message):
            batches([{"x": ROWS[:1], "state": bad}])


def test_some_feeds_may_hold_it():
    found = batches([{"x": ROWS[:1], "state": ZEROS}, {"x": ROWS[:1]}])
    assert ["state" in batch.feed for batch in found] == [True, False]


def test_the_required_one_is_still_required():
    with pytest.raises(DataError, match="nothing for the model's input 'x'"):
        batches([{"state": ZEROS}])


def test_parts_keep_it():
    part = open_data(ROWS, INPUTS, optional=("state",)).select([1])
    assert next(part.batches(1)).feed.keys() == {"x"}


def test_a_name_that_the_model_does_not_have():
    with pytest.raises(UsageError, match=r"'stat' is to be optional.*did you mean 'state'"):
        open_data(ROWS, INPUTS, optional=("stat",))
