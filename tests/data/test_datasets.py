"""The public data sets, and the parsing of the archives they come in."""

import gzip
import importlib
import io
import os
import tarfile

import numpy as np
import pytest

from onnxq.data import Preprocess, datasets, load_dataset, open_data
from onnxq.errors import DataError
from onnxq.types import TensorSpec

DIGIT = TensorSpec("image", "float32", ("n", 1, 8, 8))
needs_files = pytest.mark.skipif(
    "ONNXQ_DATA" not in os.environ, reason="ONNXQ_DATA names no folder with the data sets"
)


def idx(array):
    header = b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.tobytes()


def write_mnist(folder):
    """Four tiny files, and what they should become."""
    rng = np.random.default_rng(0)
    arrays = {
        key: rng.integers(0, 256, (n, 28, 28) if key[0] == "x" else (n,), np.uint8)
        for key, n in (("x_train", 3), ("y_train", 3), ("x_test", 2), ("y_test", 2))
    }
    files = {}
    for key, array in arrays.items():
        files[key] = folder / f"{key}.gz"
        files[key].write_bytes(gzip.compress(idx(array)))
    return files, arrays


def write_cifar10(folder, change=lambda records: records):
    """A tiny archive of two records per file, and its records."""
    rng = np.random.default_rng(0)
    path = folder / "cifar.tar.gz"
    names = [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]
    records = {name: rng.integers(0, 256, (2, 3073), np.uint8) for name in names}
    with tarfile.open(path, "w:gz") as archive:
        for name, data in change(records).items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            content = data.tobytes()
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path, records


class TestDigits:
    def test_content(self):
        (train, train_labels), (test, test_labels) = (
            load_dataset("digits", split) for split in ("train", "test")
        )
        assert train.shape == (1200, 8, 8)
        assert test.shape == (597, 8, 8)
        assert train.dtype == np.float32
        assert test_labels.dtype == np.int64
        assert (train.min(), train.max()) == (0, 1)
        assert set(train_labels) == set(test_labels) == set(range(10))

    def test_is_bound_to_the_only_input(self):
        reader = open_data("dataset:digits", [DIGIT], preprocess=Preprocess(add_channel=True))
        assert (reader.size, reader.has_labels) == (597, True)
        batch = next(reader.batches(32))
        images, labels = load_dataset("digits", "test")
        assert np.array_equal(batch.feed["image"], images[:32, None])
        assert np.array_equal(batch.labels, labels[:32])
        assert reader.digest() == open_data("dataset:digits/test", [DIGIT]).digest()
        assert reader.digest() != open_data("dataset:digits/train", [DIGIT]).digest()

    def test_a_missing_channel_is_explained(self):
        with pytest.raises(DataError, match="add_channel = true turns N,H,W into N,1,H,W"):
            next(open_data("dataset:digits", [DIGIT]).batches(1))


@pytest.mark.parametrize(
    ("spec", "inputs", "message"),
    [
        ("dataset:digit", [DIGIT], "no data set 'digit'; did you mean 'digits'?"),
        ("dataset:digits/tset", [DIGIT], "no split 'tset'; did you mean 'test'?"),
        ("dataset:digits", [DIGIT, DIGIT], "this model has 2"),
        ("dataset:digits", [TensorSpec("labels", "float32", None)], "is called 'labels'"),
    ],
)
def test_impossible_specs(spec, inputs, message):
    with pytest.raises(DataError) as caught:
        open_data(spec, inputs)
    assert message in str(caught.value)
    assert caught.value.exit_code == 3


def test_unknown_names():
    with pytest.raises(DataError, match="no data set digits/val"):
        load_dataset("digits", "val")


@pytest.mark.parametrize("module", ["sklearn.datasets", "pooch"])
def test_missing_extras_are_explained(module, monkeypatch):
    def no_module(name):
        raise ImportError(name)

    monkeypatch.delenv("ONNXQ_DATA", raising=False)
    monkeypatch.setattr(importlib, "import_module", no_module)
    with pytest.raises(DataError, match=f"needs {module}") as caught:
        load_dataset("digits" if module != "pooch" else "mnist", "test")
    assert "pip install 'onnxq[datasets]'" in str(caught.value)


@needs_files
@pytest.mark.parametrize(("name", "shape"), [("mnist", (28, 28)), ("cifar10", (32, 32, 3))])
def test_real_files(name, shape):
    images, labels = load_dataset(name, "test")
    assert (images.shape, images.dtype) == ((10_000, *shape), np.uint8)
    assert (labels.shape, labels.dtype) == ((10_000,), np.int64)
    assert set(labels) == set(range(10))


def test_mnist_files(tmp_path):
    files, arrays = write_mnist(tmp_path)
    converted = datasets.convert_mnist(files)
    assert converted.keys() == arrays.keys()
    assert all(np.array_equal(converted[key], arrays[key]) for key in arrays)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no gzip", "cannot be read"),
        (gzip.compress(idx(np.zeros(9, np.uint8)))[:-12], "cannot be read"),
        (gzip.compress(b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0"), "is not an idx file"),
        (gzip.compress(b"\0\0\x08\x03\0\0"), "is not an idx file"),
        (gzip.compress(b""), "is not an idx file"),
        (gzip.compress(idx(np.zeros(9, np.uint8))[:-1]), "8 bytes of values, expected shape [9]"),
    ],
    ids=["no gzip", "cut off", "floats", "short header", "empty", "short values"],
)
def test_damaged_mnist_files(tmp_path, data, message):
    (tmp_path / "images.gz").write_bytes(data)
    with pytest.raises(DataError) as caught:
        datasets.read_idx(tmp_path / "images.gz")
    assert message in str(caught.value)
    assert "images.gz" in str(caught.value)


def test_cifar10_archive(tmp_path):
    path, records = write_cifar10(tmp_path)
    arrays = datasets.convert_cifar10({"archive": path})
    assert arrays["x_train"].shape == (10, 32, 32, 3)
    assert np.array_equal(arrays["y_test"], records["test_batch.bin"][:, 0])
    # record 1 of batch 3 is training image 5; its bytes are planes of rows
    image = records["data_batch_3.bin"][1, 1:].reshape(3, 32, 32)
    assert np.array_equal(arrays["x_train"][5], image.transpose(1, 2, 0))


@pytest.mark.parametrize(
    "change",
    [
        lambda r: {k: v for k, v in r.items() if k != "test_batch.bin"},
        lambda r: r | {"test_batch.bin": np.zeros(100, np.uint8)},
        lambda r: r | {"test_batch.bin": np.zeros(0, np.uint8)},
    ],
)
def test_damaged_cifar10_archives(tmp_path, change):
    path, _ = write_cifar10(tmp_path, change)
    with pytest.raises(DataError, match="test_batch"):
        datasets.convert_cifar10({"archive": path})
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="cannot be read"):
        datasets.convert_cifar10({"archive": path})


class TestDownload:
    @pytest.fixture
    def folder(self, tmp_path, monkeypatch):
        folder = tmp_path / "data"
        monkeypatch.setenv("ONNXQ_DATA", str(folder))
        return folder

    def test_is_converted_once(self, folder, tmp_path, monkeypatch):
        pooch = pytest.importorskip("pooch", reason="pooch is an extra")
        files, arrays = write_mnist(tmp_path)
        by_url = {datasets._SOURCES["mnist"][key][0]: file for key, file in files.items()}
        asked = []

        def retrieve(url, known_hash, path):
            asked.append((url, known_hash))
            return str(by_url[url])

        monkeypatch.setattr(pooch, "retrieve", retrieve)
        images, labels = load_dataset("mnist", "train")
        assert np.array_equal(images, arrays["x_train"])
        assert np.array_equal(labels, arrays["y_train"])
        assert [path.name for path in folder.iterdir()] == ["mnist.npz"]  # nothing left behind
        load_dataset("mnist", "test")
        assert len(asked) == 4
        assert all(known.startswith("md5:") for _, known in asked)

    @pytest.mark.parametrize("error", [OSError("no route"), ValueError("hash does not match")])
    def test_failures_leave_nothing_and_say_what_to_do(self, folder, monkeypatch, error):
        pooch = pytest.importorskip("pooch", reason="pooch is an extra")

        def retrieve(url, known_hash, path):
            raise error

        monkeypatch.setattr(pooch, "retrieve", retrieve)
        with pytest.raises(DataError) as caught:
            load_dataset("cifar10", "test")
        assert "cifar10.npz is not there and cannot be downloaded" in str(caught.value)
        assert "set ONNXQ_DATA to a folder that holds cifar10.npz" in str(caught.value)
        assert not list(folder.iterdir())

    def test_files_of_another_layout(self, folder):
        folder.mkdir()
        np.savez(folder / "mnist.npz", images=np.zeros(1))
        with pytest.raises(DataError, match="no array"):
            load_dataset("mnist", "test")
