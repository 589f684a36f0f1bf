"""One .npz file: arrays by input name, samples on the first axis."""

import hashlib
import zipfile
from pathlib import Path

import numpy as np
import pytest

from onnxq.data import Preprocess, open_data
from onnxq.errors import DataError
from onnxq.types import TensorSpec

IMAGE = TensorSpec("image", "float32", ("batch", 1, 2, 2))
MASK = TensorSpec("mask", "int64", ("batch", "length"))


def images(n=7):
    return np.arange(n * 4, dtype=np.float32).reshape(n, 1, 2, 2)


@pytest.fixture
def save(tmp_path):
    def write(compressed=False, **arrays):
        path = tmp_path / "calib.npz"
        (np.savez_compressed if compressed else np.savez)(path, **arrays)
        return str(path)

    return write


def refusal(spec, inputs=(IMAGE,), batch=4, **options):
    with pytest.raises(DataError) as caught:
        list(open_data(spec, inputs, **options).batches(batch))
    message = str(caught.value)
    assert caught.value.exit_code == 3
    assert "\n" not in message
    return message


@pytest.mark.parametrize("compressed", [False, True])
def test_batches_are_slices(save, compressed):
    reader = open_data(save(compressed, image=images(), labels=np.arange(7)), [IMAGE])
    for _ in range(2):  # restartable
        batches = list(reader.batches(3))
        assert [b.count for b in batches] == [3, 3, 1]
        assert np.array_equal(np.concatenate([b.feed["image"] for b in batches]), images())
        assert np.array_equal(np.concatenate([b.labels for b in batches]), np.arange(7))
    assert (reader.size, reader.has_labels, reader.fixed_batch) == (7, True, 1)
    assert batches[0].feed["image"].flags.writeable


def test_labels_are_optional(save):
    reader = open_data(save(image=images()), [IMAGE])
    assert not reader.has_labels
    assert next(reader.batches(2)).labels is None


def test_labels_may_be_an_input(save):
    spec = TensorSpec("labels", "float32", ("n",))
    reader = open_data(save(labels=np.ones(3, np.float32)), [spec])
    assert not reader.has_labels
    assert next(reader.batches(3)).feed["labels"].shape == (3,)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_part_reads_its_rows_only(save, compressed):
    reader = open_data(save(compressed, image=images(50)), [IMAGE])
    rows = [0, 1, 5, 17, 18, 49]
    got = np.concatenate([b.feed["image"] for b in reader.select(rows).batches(4)])
    assert np.array_equal(got, images(50)[rows])


@pytest.mark.parametrize(
    "array",
    [np.asfortranarray(images()), images().astype(">f4")],
    ids=["fortran order", "big endian"],
)
def test_any_memory_layout_is_read(save, array):
    batches = list(open_data(save(image=array), [IMAGE]).batches(3))
    assert np.array_equal(np.concatenate([b.feed["image"] for b in batches]), images())
    assert batches[0].feed["image"].dtype.isnative


def test_preprocessing_makes_raw_images_fit(save):
    raw = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    reader = open_data(
        save(image=raw, mask=np.ones((3, 5), np.int64)),
        [IMAGE, MASK],
        preprocess=Preprocess(scale=0.5, add_channel=True),
    )
    feed = next(reader.batches(3)).feed
    assert np.array_equal(feed["image"], raw[:, None] * np.float32(0.5))
    assert feed["mask"].dtype == np.int64


def test_a_fixed_batch_is_cut_exactly_and_the_rest_dropped(save):
    spec = TensorSpec("image", "float32", (3, 1, 2, 2))
    reader = open_data(save(image=images(8)), [spec])
    assert reader.fixed_batch == 3
    assert [b.count for b in reader.batches(64)] == [3, 3]


def test_fewer_samples_than_the_fixed_batch(save):
    spec = TensorSpec("image", "float32", (8, 1, 2, 2))
    message = refusal(save(image=images(7)), [spec])
    assert "calib.npz: 7 samples, but the model's batch is fixed at 8" in message


def test_unknown_shapes_and_types_take_anything(save):
    loose = TensorSpec("image", "", None)
    assert next(open_data(save(image=images()), [loose]).batches(2)).count == 2


def test_text_is_fed_to_text_inputs_only(save):
    path = save(image=np.array(["a", "b"]))
    reader = open_data(path, [TensorSpec("image", "object", ("n",))])
    assert next(reader.batches(2)).feed["image"].tolist() == ["a", "b"]
    assert "takes float32, found str" in refusal(path, [TensorSpec("image", "float32", ("n",))])


def test_digest_is_that_of_the_file(save):
    path = save(image=images())
    reader = open_data(path, [IMAGE])
    assert reader.digest() == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert reader.take(3).digest() != reader.digest()
    assert reader.take(3).digest() == open_data(path, [IMAGE]).take(3).digest()


def test_unknown_name(save):
    message = refusal(save(imge=images()))
    assert "calib.npz: the model has no input 'imge'; did you mean 'image'?" in message


def test_extra_array(save):
    message = refusal(save(image=images(), zebra=images()))
    assert "no input 'zebra'; the model's inputs are 'image'" in message


def test_missing_name(save):
    message = refusal(save(image=images()), [IMAGE, MASK])
    assert "nothing for the model's input 'mask'; found 'image'" in message


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            images().astype(np.float64),
            "input 'image' takes float32, found float64; convert it, for example with "
            ".astype(np.float32), or set [data.preprocess]",
        ),
        (
            np.ones((7, 2, 2), np.float32),
            "input 'image' takes rank 4 shape [batch, 1, 2, 2], found rank 3 shape [4, 2, 2]; "
            "[data.preprocess] add_channel",
        ),
        (
            np.ones((7, 2, 2, 1), np.float32),
            'found rank 4 shape [4, 2, 2, 1]; [data.preprocess] layout = "NHWC->NCHW"',
        ),
        (np.ones((7, 1, 3, 3), np.float32), "found rank 4 shape [4, 1, 3, 3]; reshape or crop"),
    ],
)
def test_wrong_type_or_shape(save, array, message):
    assert message in refusal(save(image=array))


def test_channels_first_data_for_a_channels_last_model(save):
    spec = TensorSpec("image", "float32", (None, 4, 4, 3))
    message = refusal(save(image=np.ones((2, 3, 4, 4), np.float32)), [spec])
    assert "takes rank 4 shape [?, 4, 4, 3]" in message
    assert 'layout = "NCHW->NHWC"' in message


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (np.inf, "Inf"), (-np.inf, "Inf")])
def test_values_that_are_not_finite(save, value, kind):
    array = images()
    array[5, 0, 1, 0] = value
    path = save(image=array)
    assert f"calib.npz: input 'image' holds {kind} in sample 5" in refusal(path)
    # a part of the data still tells the sample's place in the file
    with pytest.raises(DataError, match="in sample 5"):
        list(open_data(path, [IMAGE]).select([2, 5]).batches(1))


def test_float64_beyond_float32_is_infinite(save):
    path = save(image=np.full((1, 1, 2, 2), 1e300))
    assert "holds Inf in sample 0" in refusal(path, preprocess=Preprocess())


def test_inputs_that_share_an_axis_must_agree(save):
    ids = TensorSpec("ids", "int64", ("batch", "length"))
    path = save(ids=np.ones((2, 3), np.int64), mask=np.ones((2, 4), np.int64))
    message = refusal(path, [ids, MASK])
    assert "axis 'length' is 3 in input 'ids' but 4 in input 'mask'" in message


def test_sample_counts_must_agree(save):
    path = save(image=images(7), mask=np.ones((6, 2), np.int64))
    message = refusal(path, [IMAGE, MASK])
    assert "the arrays differ in their samples: 'image' 7, 'mask' 6" in message


def test_label_count_must_agree(save):
    message = refusal(save(image=images(7), labels=np.arange(6)))
    assert "'image' 7, 'labels' 6" in message


def test_no_samples(save):
    assert "the data set is empty" in refusal(save(image=images(0)))


def test_no_arrays(save):
    assert "nothing for the model's input 'image'; it holds no array" in refusal(save())


def test_scalars_are_not_samples(save):
    rate = TensorSpec("rate", "int64", ())
    message = refusal(save(image=images(), rate=np.array(16000)), [IMAGE, rate])
    assert "array 'rate' has no axis of samples" in message
    assert "folder of .npz" in message
    message = refusal(save(image=images(), rate=np.ones(7, np.int64)), [IMAGE, rate])
    assert "the model's input 'rate' is a scalar" in message


def test_inputs_with_different_fixed_first_axes(save):
    state = TensorSpec("state", "float32", (2, 8))
    image = TensorSpec("image", "float32", (1, 1, 2, 2))
    message = refusal(save(image=images(), state=np.ones((7, 8), np.float32)), [image, state])
    assert "first axes are fixed and differ: 'image' 1, 'state' 2" in message


def test_objects_are_never_unpickled(save):
    message = refusal(save(image=np.array([{"a": 1}], object)))
    assert "array 'image' cannot be read" in message
    assert "never loaded" in message


@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_files(save, tmp_path, compressed):
    whole = (tmp_path / save(compressed, image=images(200))).read_bytes()
    bad = tmp_path / "bad.npz"
    body = len(whole) // 2
    broken = [
        b"",
        b"no zip at all",
        whole[: len(whole) // 2],
        whole[: len(whole) - 10],
        whole[:body] + bytes(byte ^ 0xFF for byte in whole[body : body + 40]) + whole[body + 40 :],
    ]
    for data in broken:
        bad.write_bytes(data)
        assert "bad.npz" in refusal(str(bad))


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999999, 1, 2, 2), }",
        "{'descr': '<f4', 'fortran_order': True, 'shape': (-3, 1, 2, 2), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 9999999999999), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 10000000000000000000000), }",
        "{'descr': 'zz', 'fortran_order': False, 'shape': (2,), }",
        "{'descr': ",
        "((((",
        "'''",
    ],
)
def test_lying_headers(tmp_path, header):
    text = header.encode()
    member = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(32)
    with zipfile.ZipFile(tmp_path / "lies.npz", "w") as archive:
        archive.writestr("image.npy", member)
    message = refusal(str(tmp_path / "lies.npz"))
    assert "lies.npz" in message
