"""Folders whose files, or folders, hold one whole feed each."""

import numpy as np
import onnx
import pytest

from onnxq.data import Preprocess, open_data
from onnxq.errors import DataError
from onnxq.types import TensorSpec

AUDIO = TensorSpec("audio", "float32", ("batch", "time"))
STATE = TensorSpec("state", "float32", (2, None, 4))
RATE = TensorSpec("rate", "int64", ())
IMAGE = TensorSpec("image", "float32", ("batch", 1, 2, 2))


def feed(time, batch=1):
    return {
        "audio": np.full((batch, time), time, np.float32),
        "state": np.zeros((2, batch, 4), np.float32),
        "rate": np.array(16000, np.int64),
    }


def refusal(spec, inputs):
    with pytest.raises(DataError) as caught:
        list(open_data(str(spec), inputs).batches(4))
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestNpz:
    INPUTS = (AUDIO, STATE, RATE)

    @pytest.fixture
    def folder(self, tmp_path):
        for index in (10, 2, 1):
            np.savez(tmp_path / f"feed_{index}.npz", **feed(index))
        (tmp_path / "README.md").write_text("ignored")
        (tmp_path / "._feed_1.npz").write_text("ignored")
        return tmp_path

    def test_each_file_is_a_feed_whose_shape_may_differ(self, folder):
        reader = open_data(str(folder), self.INPUTS)
        assert (reader.size, reader.has_labels, reader.fixed_batch) == (3, False, 1)
        batches = list(reader.batches(8))
        assert [b.feed["audio"].shape[1] for b in batches] == [1, 2, 10]  # natural order
        assert [b.count for b in batches] == [1, 1, 1]
        assert batches[0].feed["rate"].shape == ()

    def test_a_part(self, folder):
        reader = open_data(str(folder), self.INPUTS).select([0, 2])
        assert [b.feed["audio"].shape[1] for b in reader.batches(1)] == [1, 10]

    def test_labels_tell_the_count(self, tmp_path):
        np.savez(tmp_path / "a.npz", **feed(3, batch=5), labels=np.arange(5))
        np.savez(tmp_path / "b.npz", **feed(3), labels=np.array(1))
        reader = open_data(str(tmp_path), self.INPUTS)
        assert reader.has_labels
        first, second = reader.batches(1)
        assert first.count == 5
        assert "labels" not in first.feed
        assert second.labels.tolist() == [1]

    def test_labels_must_belong_to_the_samples(self, tmp_path):
        image = TensorSpec("image", "float32", ("n", 2))
        np.savez(tmp_path / "a.npz", image=np.ones((4, 2), np.float32), labels=np.arange(3))
        assert "a.npz: 3 labels for 4 samples" in refusal(tmp_path, [image])

    def test_labels_in_some_files_only(self, folder):
        np.savez(folder / "feed_3.npz", **feed(3), labels=np.array([1]))
        assert "feed_3.npz: has labels, but what came before has none" in refusal(
            folder, self.INPUTS
        )

    def test_messages_name_the_file(self, folder):
        np.savez(folder / "feed_3.npz", **feed(3) | {"rate": np.array(1, np.int32)})
        message = refusal(folder, self.INPUTS)
        assert "feed_3.npz: input 'rate' takes int64, found int32" in message
        assert "preprocess" not in message

    def test_nan_names_the_feed(self, folder):
        bad = feed(4)
        bad["state"][1, 0, 2] = np.nan
        np.savez(folder / "feed_4.npz", **bad)
        message = refusal(folder, self.INPUTS)
        assert "feed_4.npz: input 'state' holds NaN in sample 2" in message

    def test_a_damaged_file(self, folder):
        (folder / "feed_2.npz").write_bytes(b"PK\x03\x04")
        assert "feed_2.npz cannot be read" in refusal(folder, self.INPUTS)

    def test_digest_covers_names_and_contents(self, folder):
        first = open_data(str(folder), self.INPUTS).digest()
        assert first == open_data(str(folder), self.INPUTS).digest()
        (folder / "feed_10.npz").rename(folder / "feed_0.npz")
        renamed = open_data(str(folder), self.INPUTS).digest()
        np.savez(folder / "feed_1.npz", **feed(7))
        assert len({first, renamed, open_data(str(folder), self.INPUTS).digest()}) == 3

    def test_mixed_kinds(self, folder):
        np.save(folder / "x.npy", np.ones(3))
        assert "holds both .npz and .npy files" in refusal(folder, self.INPUTS)

    def test_no_data(self, tmp_path):
        assert "no .npz, .npy or input_0.pb in this folder" in refusal(tmp_path, self.INPUTS)


class TestNpy:
    def test_a_file_is_a_feed_or_a_sample_without_batch_axis(self, tmp_path):
        np.save(tmp_path / "1.npy", np.ones((3, 1, 2, 2), np.float32))
        np.save(tmp_path / "2.npy", np.ones((1, 2, 2), np.float32))
        reader = open_data(str(tmp_path), [IMAGE])
        assert (reader.size, reader.has_labels) == (2, False)
        shapes = [b.feed["image"].shape for b in reader.batches(8)]
        assert shapes == [(3, 1, 2, 2), (1, 1, 2, 2)]

    def test_images_without_channel(self, tmp_path):
        np.save(tmp_path / "1.npy", np.ones((2, 2), np.uint8))
        reader = open_data(str(tmp_path), [IMAGE], preprocess=Preprocess(add_channel=True))
        assert next(reader.batches(1)).feed["image"].shape == (1, 1, 2, 2)

    def test_any_rank_is_fed_when_the_model_does_not_tell(self, tmp_path):
        np.save(tmp_path / "1.npy", np.ones(3, np.float32))
        loose = TensorSpec("image", "float32", None)
        assert next(open_data(str(tmp_path), [loose]).batches(1)).feed["image"].shape == (3,)

    def test_other_ranks(self, tmp_path):
        np.save(tmp_path / "1.npy", np.ones((2, 2), np.float32))
        message = refusal(tmp_path, [IMAGE])
        assert "1.npy: input 'image' takes rank 4" in message
        assert "found rank 2 shape [2, 2]" in message

    def test_several_inputs(self, tmp_path):
        np.save(tmp_path / "1.npy", np.ones(1))
        message = refusal(tmp_path, [AUDIO, RATE])
        assert "this model has 2 ('audio', 'rate')" in message
        assert "one .npz file per feed" in message

    def test_objects_and_damage(self, tmp_path):
        np.save(tmp_path / "1.npy", np.array([{}], object))
        assert "1.npy cannot be read" in refusal(tmp_path, [IMAGE])
        (tmp_path / "1.npy").write_bytes(b"\x93NUMPY")
        assert "1.npy cannot be read" in refusal(tmp_path, [IMAGE])


class TestOnnxTestData:
    INPUTS = (AUDIO, STATE, RATE)

    @staticmethod
    def write(folder, arrays):
        folder.mkdir()
        for index, array in enumerate(arrays):
            tensor = onnx.numpy_helper.from_array(array)
            (folder / f"input_{index}.pb").write_bytes(tensor.SerializeToString())
        (folder / "output_0.pb").write_bytes(b"ignored")

    def test_one_set(self, tmp_path):
        self.write(tmp_path / "test_data_set_0", feed(3).values())
        reader = open_data(str(tmp_path / "test_data_set_0"), self.INPUTS)
        assert (reader.size, reader.has_labels) == (1, False)
        (batch,) = reader.batches(4)
        assert batch.count == 1
        assert all(np.array_equal(batch.feed[name], array) for name, array in feed(3).items())

    def test_several_sets(self, tmp_path):
        for index in (0, 2, 10):
            self.write(tmp_path / f"test_data_set_{index}", feed(index + 1).values())
        (tmp_path / "model.onnx").write_bytes(b"ignored")
        reader = open_data(str(tmp_path), self.INPUTS)
        assert [b.feed["audio"].shape[1] for b in reader.batches(1)] == [1, 3, 11]
        first = reader.digest()
        (tmp_path / "test_data_set_0" / "output_0.pb").write_bytes(b"still ignored")
        assert reader.digest() == first

    def test_too_many_inputs(self, tmp_path):
        self.write(tmp_path / "test_data_set_0", feed(3).values())
        message = refusal(tmp_path, [AUDIO])
        assert "input_1.pb: the model has no input 1, only 'audio'" in message

    def test_too_few_inputs(self, tmp_path):
        self.write(tmp_path / "test_data_set_0", list(feed(3).values())[:2])
        message = refusal(tmp_path, self.INPUTS)
        assert "test_data_set_0: nothing for the model's input 'rate'" in message

    def test_an_empty_set(self, tmp_path):
        (tmp_path / "test_data_set_0").mkdir()
        assert "nothing for the model's input 'audio'" in refusal(tmp_path, [AUDIO])

    def test_damage(self, tmp_path):
        self.write(tmp_path / "test_data_set_0", feed(3).values())
        (tmp_path / "test_data_set_0" / "input_0.pb").write_bytes(b"\xff\xff\xff")
        message = refusal(tmp_path, self.INPUTS)
        assert "input_0.pb cannot be read as an ONNX tensor" in message
