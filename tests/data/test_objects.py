"""Data that are Python objects."""

import gc
import tempfile
import tracemalloc
from collections import UserDict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from onnxq.data import Preprocess, open_data
from onnxq.errors import DataError
from onnxq.types import TensorSpec

X = TensorSpec("x", "float32", ("n", 2))
IDS = TensorSpec("ids", "int64", ("batch", "length"))
MASK = TensorSpec("mask", "bool", ("batch", "length"))
ROWS = np.arange(14, dtype=np.float32).reshape(7, 2)


def feeds(n=5):
    return [{"x": np.full((1, 2), index, np.float32)} for index in range(n)]


def refusal(data, inputs=(X,), **options):
    with pytest.raises(DataError) as caught:
        list(open_data(data, inputs, **options).batches(4))
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    return str(caught.value)


def firsts(reader, batch=4):
    return [float(row[0]) for b in reader.batches(batch) for row in b.feed["x"]]


@pytest.fixture
def spool(tmp_path, monkeypatch):
    """The folder that temporary files go to."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


class TestArrays:
    def test_a_mapping_holds_samples(self):
        reader = open_data({"x": ROWS, "labels": list(range(7))}, [X])
        assert (reader.spec, reader.size, reader.has_labels) == ("a dict of 2 arrays", 7, True)
        batches = list(reader.batches(3))
        assert [b.count for b in batches] == [3, 3, 1]
        assert np.array_equal(np.concatenate([b.feed["x"] for b in batches]), ROWS)
        assert batches[1].labels.tolist() == [3, 4, 5]

    def test_any_mapping_will_do(self, tmp_path):
        np.savez(tmp_path / "x.npz", x=ROWS)
        assert open_data(UserDict(x=ROWS), [X]).size == 7
        with np.load(tmp_path / "x.npz") as arrays:
            reader = open_data(arrays, [X])
        assert firsts(reader) == ROWS[:, 0].tolist()

    def test_several_inputs(self):
        ids, mask = np.arange(6).reshape(2, 3), np.eye(2, 3, dtype=bool)
        (batch,) = open_data({"ids": ids, "mask": mask}, [IDS, MASK]).batches(8)
        assert np.array_equal(batch.feed["ids"], ids)
        assert np.array_equal(batch.feed["mask"], mask)
        assert batch.feed["mask"].dtype == bool

    def test_one_array_for_one_input(self):
        reader = open_data(ROWS, [X])
        assert (reader.spec, reader.size) == ("an array of shape [7, 2]", 7)
        assert firsts(reader) == ROWS[:, 0].tolist()
        message = refusal(ROWS, [IDS, MASK])
        assert "this model has 2 ('ids', 'mask'); give a dictionary" in message

    def test_one_sample(self):
        assert firsts(open_data(ROWS[3:4], [X])) == [6]

    def test_fixed_batch(self):
        reader = open_data(ROWS, [TensorSpec("x", "float32", (3, 2))])
        assert [b.count for b in reader.batches(1)] == [3, 3]

    def test_preprocessing(self):
        pixels = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
        spec = TensorSpec("x", "float32", ("n", 1, 2, 2))
        settings = Preprocess(scale=0.5, add_channel=True)
        (batch,) = open_data(pixels, [spec], preprocess=settings).batches(2)
        assert np.array_equal(batch.feed["x"], pixels[:, None] / np.float32(2))

    def test_digest_covers_the_values(self):
        first = open_data({"x": ROWS}, [X]).digest()
        assert open_data(ROWS, [X]).digest() == first
        assert open_data(ROWS + 1, [X]).digest() != first

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            ({}, "nothing for the model's input 'x'"),
            ({"y": ROWS}, "the model has no input 'y'"),
            ({1: ROWS}, "1 is no name of an input"),
            ({"x": ROWS.tolist()}, "input 'x' takes a NumPy array, found list"),
            ({"x": ROWS, "labels": [1]}, "differ in their samples: 'x' 7, 'labels' 1"),
            ({"x": ROWS[:0]}, "the data set is empty"),
            ({"x": ROWS.astype(np.float64)}, "takes float32, found float64"),
            (np.ones(()), "array 'x' has no axis of samples"),
        ],
    )
    def test_arrays_that_do_not_fit(self, data, message):
        assert message in refusal(data)


class TestFeeds:
    @pytest.mark.parametrize("kind", [list, tuple])
    def test_a_sequence(self, kind):
        reader = open_data(kind(feeds()), [X])
        assert (reader.spec, reader.size) == (f"a {kind.__name__} of 5 feeds", 5)
        assert firsts(reader.select([1, 3])) == [1, 3]
        assert firsts(reader) == firsts(reader) == [0, 1, 2, 3, 4]

    def test_labels(self):
        reader = open_data([(feed, index) for index, feed in enumerate(feeds())], [X])
        assert reader.has_labels
        assert [b.labels.tolist() for b in reader.batches(8)] == [[0], [1], [2], [3], [4]]

    def test_a_function_is_called_for_each_pass(self):
        calls = []

        def samples():
            calls.append(1)
            yield from feeds()

        reader = open_data(samples, [X], allow_code=False)  # a found recipe cannot hold it
        assert "the function TestFeeds" in reader.spec
        assert firsts(reader) == firsts(reader) == [0, 1, 2, 3, 4]
        assert len(calls) == 2

    def test_an_iterable_that_begins_anew(self):
        class Loader:
            def __iter__(self):
                return iter(feeds())

        reader = open_data(Loader(), [X])
        assert (reader.spec, reader.size) == ("an object of type Loader", 5)
        assert firsts(reader) == firsts(reader) == [0, 1, 2, 3, 4]

    @pytest.mark.parametrize("make", [list, iter, lambda f: lambda: f])
    def test_the_digest_is_that_of_the_feeds(self, make):
        labelled = [(feed, [1]) for feed in feeds()]
        expected = open_data(labelled, [X]).digest()
        assert open_data(make(labelled), [X]).digest() == expected
        assert open_data(make(feeds()), [X]).digest() != expected

    @pytest.mark.parametrize("make", [list, iter, lambda f: lambda: f])
    def test_each_feed_has_its_own_length(self, make):
        texts = [
            {"ids": np.arange(2 * n).reshape(2, n), "mask": np.ones((2, n), bool)}
            for n in (3, 1, 7)
        ]
        reader = open_data(make(texts), [IDS, MASK])
        for _ in range(2):
            for batch, text in zip(reader.batches(8), texts, strict=True):
                for name, array in text.items():
                    assert batch.feed[name].dtype == array.dtype
                    assert np.array_equal(batch.feed[name], array)

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            ([], "a list of 0 feeds: the data set is empty"),
            ([*feeds(2), 3], "a list of 3 feeds, feed 2: expected a dictionary"),
            ([ROWS], "feed 0: expected a dictionary of arrays or (feed, labels), found ndarray"),
            ([{1: ROWS}], "feed 0: 1 is no name of an input"),
            (lambda: [], "yields no feed; every call must start anew"),
            (lambda: 3, "failed: TypeError: 'int' object is not iterable"),
            (3, "an object of type int is no data; give a path"),
            (None, "an object of type NoneType is no data"),
        ],
    )
    def test_what_is_no_data(self, data, message):
        assert message in refusal(data)


class TestIterator:
    def test_is_read_once(self, spool):
        taken = []

        def samples():
            for index, feed in enumerate(feeds()):
                taken.append(index)
                yield feed, [index]

        reader = open_data(samples(), [X])
        assert taken == [0, 1, 2, 3, 4]
        assert reader.spec == "the generator samples"
        assert (reader.size, reader.has_labels, reader.fixed_batch) == (5, True, 1)
        assert firsts(reader) == firsts(reader) == [0, 1, 2, 3, 4]
        assert firsts(reader.select([1, 4])) == [1, 4]
        assert [b.labels.tolist() for b in reader.select([1, 4]).batches(1)] == [[1], [4]]
        assert len(taken) == 5

    def test_any_iterator_will_do(self, spool):
        reader = open_data(map(dict, feeds()), [X])
        assert reader.spec == "an object of type map"
        assert firsts(reader) == [0, 1, 2, 3, 4]

    def test_an_array_that_is_filled_again_and_again(self, spool):
        buffer = np.zeros((1, 2), np.float32)

        def samples():
            for index in range(3):
                buffer[:] = index
                yield {"x": buffer}

        assert firsts(open_data(samples(), [X])) == [0, 1, 2]

    def test_files_go_with_the_last_reader(self, spool):
        reader = open_data(iter(feeds()), [X])
        part = reader.take(2)
        assert len(list(spool.glob("*/*.npz"))) == 5
        del reader
        gc.collect()
        assert firsts(part) == [0, 1]
        del part
        gc.collect()
        assert not list(spool.iterdir())

    def test_memory_does_not_grow_with_the_feeds(self, spool):
        wide = TensorSpec("x", "float32", (1, 100_000))
        tracemalloc.start()
        reader = open_data(
            ({"x": np.full((1, 100_000), n, np.float32)} for n in range(100)), [wide]
        )
        count = sum(batch.count for batch in reader.batches(1))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == 100
        assert peak < 4e6  # all feeds are 40 MB, one is 0.4 MB, copied a few times

    def test_an_error_midway_names_the_feed_and_leaves_nothing(self, spool):
        def samples():
            yield from feeds(3)
            raise RuntimeError("no\nmore")

        message = refusal(samples())
        assert "the generator samples failed at feed 3: RuntimeError: no more (test_obj" in message
        assert not list(spool.iterdir())

    def test_an_interruption_leaves_nothing(self, spool):
        def samples():
            yield from feeds(3)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            open_data(samples(), [X])
        assert not list(spool.iterdir())

    def test_nothing(self, spool):
        message = refusal(iter(()))
        assert "tuple_iterator yields no feed; was it read to its end before?" in message
        assert not list(spool.iterdir())

    def test_messages_name_the_feed(self, spool):
        bad = [*feeds(3), {"x": np.ones((1, 3), np.float32)}]
        assert "feed 3: input 'x' takes rank 2 shape [n, 2]" in refusal(iter(bad))
        bad[3] = {"x": np.full((1, 2), np.nan, np.float32)}
        assert "feed 3: input 'x' holds NaN in sample 3" in refusal(iter(bad))

    def test_names_and_types_that_no_npz_takes(self, spool):
        feed = {
            "file": np.arange(4, dtype=ml_dtypes.bfloat16),
            "a/../b": np.array(7),
            "text": np.array(["a", "bc"], object),
            "turned": np.arange(6).reshape(2, 3).T,
            "none": np.zeros((0, 2), bool),
        }
        inputs = [TensorSpec(name, array.dtype.name, array.shape) for name, array in feed.items()]
        (batch,) = open_data(iter([(feed, [1])]), inputs).batches(1)
        assert batch.feed.keys() == feed.keys()
        for name, array in feed.items():
            assert np.array_equal(batch.feed[name], array)
            assert batch.feed[name].dtype == array.dtype or name == "text"
        assert batch.labels.tolist() == [1]

    def test_objects_are_not_written(self, spool):
        assert "feed 0: an array holds Python objects" in refusal(iter([{"x": np.array([{}])}]))

    def test_a_full_disk(self, spool, monkeypatch):
        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(np, "savez", full)
        message = refusal(iter(feeds()))
        assert "feed 0 cannot be kept" in message
        assert "No space left on device" in message
        assert "set TMPDIR" in message


def test_a_path_object(tmp_path):
    np.savez(tmp_path / "x.npz", x=ROWS)
    assert open_data(tmp_path / "x.npz", [X]).size == 7
    assert open_data(Path("x.npz"), [X], base=tmp_path).spec == "x.npz"
