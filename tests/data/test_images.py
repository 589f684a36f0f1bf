"""Folders of image files, against pillow and NumPy by hand."""

import importlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from onnxq.data import Preprocess, open_data
from onnxq.errors import DataError
from onnxq.types import TensorSpec

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RAW = TensorSpec("image", "uint8", ("n", None, None, 3))
GREY = TensorSpec("image", "uint8", ("n", None, None, 1))
FLOAT = TensorSpec("image", "float32", ("n", 3, 16, 16))


def noise(height, width, channels=3, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture
def write(tmp_path):
    def save(name, pixels, **options):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
        image.save(path, **options)
        return path

    return save


def read(folder, spec=RAW, batch=8, **settings):
    """All images of a folder as one array."""
    preprocess = Preprocess(**settings) if settings else None
    batches = open_data(str(folder), [spec], preprocess=preprocess).batches(batch)
    return np.concatenate([b.feed["image"] for b in batches])


def refusal(folder, spec=RAW, **settings):
    with pytest.raises(DataError) as caught:
        read(folder, spec, **settings)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestFolder:
    @pytest.mark.parametrize("suffix", ["png", "PNG", "bmp", "tif", "tiff", "webp"])
    def test_each_file_is_a_sample(self, tmp_path, write, suffix):
        pixels = [noise(5, 4, seed=seed) for seed in range(3)]
        for index, image in zip((10, 2, 1), pixels, strict=True):
            write(f"{index}.{suffix}", image, **({"lossless": True} if suffix == "webp" else {}))
        (tmp_path / "notes.txt").write_text("ignored")
        (tmp_path / "._1.png").write_text("ignored")
        reader = open_data(str(tmp_path), [RAW])
        assert (reader.size, reader.has_labels, reader.fixed_batch) == (3, False, 1)
        batches = list(reader.batches(2))
        assert [batch.count for batch in batches] == [2, 1]
        found = np.concatenate([batch.feed["image"] for batch in batches])
        assert np.array_equal(found, pixels[::-1])  # 1, 2, 10
        assert np.array_equal(next(reader.select([1]).batches(8)).feed["image"][0], pixels[1])

    @pytest.mark.parametrize("suffix", ["jpg", "jpeg"])
    def test_jpeg(self, tmp_path, write, suffix):
        path = write(f"a.{suffix}", noise(9, 7))
        assert np.array_equal(read(tmp_path)[0], np.asarray(Image.open(path)))

    def test_fixed_batch(self, tmp_path, write):
        for index in range(5):
            write(f"{index}.png", noise(4, 4))
        fixed = TensorSpec("image", "uint8", (2, 4, 4, 3))
        assert [b.count for b in open_data(str(tmp_path), [fixed]).batches(8)] == [2, 2]

    def test_class_folders_give_labels(self, tmp_path, write):
        pixels = {}
        for seed, name in enumerate(("10/a.png", "2/b.png", "2/a.png", "1/z.png")):
            pixels[name] = noise(4, 4, seed=seed)
            write(name, pixels[name])
        (tmp_path / "README.md").write_text("ignored")
        (tmp_path / ".cache").mkdir()
        reader = open_data(str(tmp_path), [RAW])
        assert reader.has_labels
        batch = next(reader.batches(8))
        assert batch.labels.dtype == np.int64
        assert batch.labels.tolist() == [0, 1, 1, 2]
        order = ("1/z.png", "2/a.png", "2/b.png", "10/a.png")
        assert np.array_equal(batch.feed["image"], [pixels[name] for name in order])
        assert next(reader.select([1, 3]).batches(8)).labels.tolist() == [1, 2]

    def test_a_class_folder_without_images(self, tmp_path, write):
        write("cat/a.png", noise(4, 4))
        (tmp_path / "bird").mkdir()
        assert "bird: no image in this class folder" in refusal(tmp_path)

    def test_images_beside_class_folders(self, tmp_path, write):
        write("cat/a.png", noise(4, 4))
        write("a.png", noise(4, 4))
        assert "holds images and folders of images" in refusal(tmp_path)

    def test_images_beside_feeds(self, tmp_path, write):
        write("a.png", noise(4, 4))
        np.save(tmp_path / "a.npy", noise(4, 4))
        assert "holds both .npy and image files" in refusal(tmp_path)

    @pytest.mark.parametrize("inner", [None, "empty"])
    def test_an_empty_folder(self, tmp_path, inner):
        if inner:
            (tmp_path / inner).mkdir()
        assert "and no image; data are a FILE.npz" in refusal(tmp_path)

    def test_digest_covers_names_and_contents(self, tmp_path, write):
        def digest():
            return open_data(str(tmp_path), [RAW]).digest()

        write("cat/a.png", noise(4, 4))
        write("dog/a.png", noise(4, 4))
        first = digest()
        assert digest() == first
        (tmp_path / "dog").rename(tmp_path / "ape")
        renamed = digest()
        write("cat/a.png", noise(4, 4, seed=1))
        assert len({first, renamed, digest()}) == 3

    def test_several_inputs(self, tmp_path, write):
        write("a.png", noise(4, 4))
        with pytest.raises(DataError, match="a folder of images feeds a model with one input"):
            open_data(str(tmp_path), [RAW, TensorSpec("b", "float32", ("n",))])

    def test_an_input_called_labels(self, tmp_path, write):
        write("cat/a.png", noise(4, 4))
        with pytest.raises(DataError, match="input is called 'labels'"):
            open_data(str(tmp_path), [TensorSpec("labels", "uint8", ("n", 4, 4, 3))])

    def test_images_are_decoded_when_they_are_read(self, tmp_path, write):
        for index in range(6):
            write(f"{index}.png", noise(4, 4))
        (tmp_path / "4.png").write_bytes(b"damaged")
        batches = open_data(str(tmp_path), [RAW]).batches(2)
        assert [next(batches).count, next(batches).count] == [2, 2]
        with pytest.raises(DataError, match=r"4\.png cannot be decoded"):
            next(batches)

    def test_without_pillow(self, tmp_path, write, monkeypatch):
        def no_module(name):
            raise ImportError(name)

        write("a.png", noise(4, 4))
        monkeypatch.setattr(importlib, "import_module", no_module)
        assert "pip install 'onnxq[images]'" in refusal(tmp_path)


class TestResizeAndCrop:
    """Sizes worked out by hand, as torchvision rounds them."""

    @pytest.mark.parametrize(
        ("size", "resize", "width_height"),
        [
            ((30, 50), 16, (26, 16)),  # int(16 * 50 / 30) = int(26.67)
            ((50, 30), 16, (16, 26)),
            ((30, 30), 16, (16, 16)),
            ((10, 23), 20, (46, 20)),  # enlarged
            ((30, 50), [20, 12], (12, 20)),
        ],
    )
    @pytest.mark.parametrize("interpolation", ["bilinear", "nearest", "bicubic", "lanczos"])
    def test_resize(self, tmp_path, write, size, resize, width_height, interpolation):
        pixels = noise(*size)
        write("a.png", pixels)
        resize = tuple(resize) if isinstance(resize, list) else resize
        found = read(tmp_path, resize=resize, interpolation=interpolation)[0]
        by = Image.Resampling[interpolation.upper()]
        assert np.array_equal(found, Image.fromarray(pixels).resize(width_height, by))

    def test_resize_is_antialiased(self, tmp_path, write):
        stripes = np.zeros((64, 64, 3), np.uint8)
        stripes[:, ::2] = 200
        write("a.png", stripes)
        assert np.ptp(read(tmp_path, resize=8)[0, :, 1:-1].astype(int)) <= 20  # about 100 all over
        assert np.isin(read(tmp_path, resize=8, interpolation="nearest"), (0, 200)).all()

    @pytest.mark.parametrize(
        ("size", "crop", "rows", "columns"),
        [
            ((10, 10), 4, slice(3, 7), slice(3, 7)),
            ((9, 11), 4, slice(2, 6), slice(4, 8)),  # round(2.5) = 2, round(3.5) = 4
            ((9, 11), (4, 10), slice(2, 6), slice(0, 10)),  # round(0.5) = 0
            ((4, 4), 4, slice(0, 4), slice(0, 4)),
        ],
    )
    def test_crop(self, tmp_path, write, size, crop, rows, columns):
        pixels = noise(*size)
        write("a.png", pixels)
        assert np.array_equal(read(tmp_path, crop=crop)[0], pixels[rows, columns])

    def test_a_crop_of_what_is_too_small(self, tmp_path, write):
        write("a.png", noise(10, 8))
        message = refusal(tmp_path, crop=9)
        assert "a.png: 10x8 pixels are too few for the crop 9x9; set resize" in message

    def test_sizes_in_one_batch_must_agree(self, tmp_path, write):
        write("1.png", noise(4, 4))
        write("2.png", noise(4, 5))
        message = refusal(tmp_path)
        assert "2.png: 4x5 pixels, but 1.png in the same batch has 4x4" in message
        assert "set resize and crop in [data.preprocess]" in message
        assert read(tmp_path, crop=4).shape == (2, 4, 4, 3)
        batches = open_data(str(tmp_path), [RAW]).batches(1)
        assert [b.feed["image"].shape[2] for b in batches] == [4, 5]

    def test_the_models_size_is_named(self, tmp_path, write):
        write("a.png", noise(20, 30))
        message = refusal(tmp_path, FLOAT, scale=1.0, layout="NHWC->NCHW")
        assert "a.png: 20x30 pixels, but the model takes 16x16; set resize = [16, 16]" in message

    def test_a_resize_that_explodes(self, tmp_path, write):
        write("a.png", noise(1, 4000))
        assert "a.png: resize would make 500x2000000 pixels" in refusal(tmp_path, resize=500)


def test_the_usual_imagenet_preprocessing(tmp_path, write):
    """Resize, centre crop, normalise, NCHW: every step by hand, in float64."""
    images = [noise(30, 50, seed=1), noise(40, 25, seed=2)]
    for index, pixels in enumerate(images):
        write(f"{index}.png", pixels)
    found = read(
        tmp_path,
        FLOAT,
        resize=20,
        crop=16,
        scale=1 / 255,
        mean=MEAN,
        std=STD,
        layout="NHWC->NCHW",
    )
    wide = np.asarray(Image.fromarray(images[0]).resize((33, 20), Image.Resampling.BILINEAR))
    tall = np.asarray(Image.fromarray(images[1]).resize((20, 32), Image.Resampling.BILINEAR))
    # (33 - 16) / 2 = 8.5 rounds to 8
    cropped = np.stack([wide[2:18, 8:24], tall[8:24, 2:18]]) / 255
    expected = ((cropped - MEAN) / STD).transpose(0, 3, 1, 2)
    assert found.dtype == np.float32
    # float32 against float64 arithmetic on values up to 3
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


class TestColours:
    def test_bgr(self, tmp_path, write):
        pixels = noise(4, 4)
        write("a.png", pixels)
        assert np.array_equal(read(tmp_path, channels="BGR")[0], pixels[..., ::-1])
        scaled = {"scale": 1.0, "mean": (1, 2, 3), "layout": "NHWC->NCHW", "resize": (16, 16)}
        found = read(tmp_path, FLOAT, channels="BGR", **scaled)
        assert np.array_equal(found, read(tmp_path, FLOAT, scale=1.0, layout="NHWC->NCHW",
            resize=(16, 16))[:, ::-1] - np.float32([1, 2, 3]).reshape(1, 3, 1, 1))  # fmt: skip

    def test_grey_becomes_rgb(self, tmp_path, write):
        pixels = noise(4, 5, 1)
        write("a.png", pixels)
        assert np.array_equal(read(tmp_path)[0], np.stack([pixels] * 3, axis=-1))

    def test_rgb_becomes_grey(self, tmp_path, write):
        pixels = noise(4, 5)
        write("a.png", pixels)
        found = read(tmp_path, GREY)[0, ..., 0]
        # ITU-R BT.601 luma; pillow's fixed-point sum is within one step
        assert np.abs(found - pixels @ [0.299, 0.587, 0.114]).max() <= 1

    @pytest.mark.parametrize("mode", ["RGBA", "LA"])
    def test_alpha_is_dropped(self, tmp_path, write, mode):
        pixels = noise(4, 5, len(mode))
        write("a.png", Image.fromarray(pixels))
        colours = pixels[..., :3] if mode == "RGBA" else np.stack([pixels[..., 0]] * 3, -1)
        assert np.array_equal(read(tmp_path)[0], colours)

    @pytest.mark.parametrize("transparency", [None, 1, b"\x00\x80"])
    def test_palette(self, tmp_path, write, transparency):
        image = Image.new("P", (2, 2))
        image.putdata([0, 1, 1, 2])
        image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
        options = {} if transparency is None else {"transparency": transparency}
        write("a.png", image, **options)
        expected = [[[10, 20, 30], [40, 50, 60]], [[40, 50, 60], [70, 80, 90]]]
        assert read(tmp_path)[0].tolist() == expected
        luma = np.array(expected) @ [0.299, 0.587, 0.114]
        # as above
        assert np.abs(read(tmp_path, GREY)[0, ..., 0] - luma).max() <= 1

    def test_black_and_white(self, tmp_path, write):
        write("a.png", Image.fromarray(np.array([[True, False]])))
        assert read(tmp_path)[0].tolist() == [[[255] * 3, [0] * 3]]

    @pytest.mark.parametrize("suffix", ["png", "tif"])
    def test_16_bit_grey_keeps_its_upper_byte(self, tmp_path, write, suffix):
        pixels = np.array([[0, 255, 256, 65535], [1000, 32768, 40000, 65279]], np.uint16)
        write(f"a.{suffix}", pixels)
        assert np.array_equal(read(tmp_path, GREY)[0, ..., 0], pixels // 256)
        assert np.array_equal(read(tmp_path)[0], np.stack([pixels // 256] * 3, -1))

    def test_16_bit_colours_keep_their_upper_byte(self, tmp_path):
        pixels = np.random.default_rng(0).integers(0, 65536, (3, 4, 3), np.uint16)
        (tmp_path / "a.png").write_bytes(png(4, 3, 16, pixels.astype(">u2").tobytes()))
        assert np.array_equal(read(tmp_path)[0], pixels // 256)

    def test_numbers_without_a_white(self, tmp_path, write):
        write("a.tif", np.ones((2, 2), np.float32))
        assert "a.tif cannot be decoded (ValueError: mode F does not tell" in refusal(tmp_path)

    @pytest.mark.parametrize("spec", [RAW, GREY])
    def test_cmyk(self, tmp_path, write, spec):
        inks = np.zeros((8, 8, 4), np.uint8)
        inks[..., 0] = 255  # cyan
        path = write("a.jpg", Image.fromarray(inks, mode="CMYK"), quality=100)
        with Image.open(path) as image:
            assert image.mode == "CMYK"
        expected = [0, 255, 255] if spec is RAW else [255 * (0.587 + 0.114)]
        # lossy, and rounded
        assert np.abs(read(tmp_path, spec)[0] - np.array(expected)).max() <= 3

    @pytest.mark.parametrize(
        ("orientation", "upright"),
        [
            (1, lambda x: x),
            (3, lambda x: x[::-1, ::-1]),
            (6, lambda x: np.rot90(x, -1)),
            (8, lambda x: np.rot90(x, 1)),
        ],
    )
    def test_exif_orientation(self, tmp_path, write, orientation, upright):
        pixels = noise(4, 6)
        exif = Image.Exif()
        exif[0x0112] = orientation
        write("a.png", pixels, exif=exif)
        assert np.array_equal(read(tmp_path)[0], upright(pixels))

    def test_turned_before_it_is_resized(self, tmp_path, write):
        exif = Image.Exif()
        exif[0x0112] = 6
        write("a.png", noise(10, 20), exif=exif)
        assert read(tmp_path, resize=(8, 6)).shape == (1, 8, 6, 3)


class TestInput:
    @pytest.fixture
    def grey(self, tmp_path, write):
        pixels = noise(8, 6, 1)
        write("a.png", pixels)
        return tmp_path, pixels

    @pytest.mark.parametrize(
        ("shape", "settings", "axes"),
        [
            (("n", 8, 6, 1), {}, (0, 3)),
            (("n", 1, 8, 6), {"layout": "NHWC->NCHW"}, (0, 1)),
            (("n", 1, None, None), {"add_channel": True}, (0, 1)),
            (("n", "h", "w", 1), {"add_channel": True, "layout": "NCHW->NHWC"}, (0, 3)),
            (("n", 8, 6), {}, (0,)),
        ],
    )
    @pytest.mark.parametrize("dtype", ["float32", "uint8"])
    def test_grey(self, grey, shape, settings, axes, dtype):
        folder, pixels = grey
        if dtype == "float32":
            settings = settings | {"scale": 1.0}
        found = read(folder, TensorSpec("image", dtype, shape), **settings)
        assert found.dtype == dtype
        assert np.array_equal(found, np.expand_dims(pixels, axes))

    def test_colours_for_a_uint8_input_with_channels_first(self, tmp_path, write):
        pixels = noise(8, 6)
        write("a.png", pixels)
        spec = TensorSpec("image", "uint8", ("n", 3, 8, 6))
        found = read(tmp_path, spec, layout="NHWC->NCHW")
        assert np.array_equal(found[0], pixels.transpose(2, 0, 1))

    def test_a_model_that_tells_no_shape(self, tmp_path, write):
        write("a.png", noise(8, 6))
        assert read(tmp_path, TensorSpec("image", "uint8", None)).shape == (1, 8, 6, 3)
        grey = read(tmp_path, TensorSpec("image", "uint8", None), add_channel=True)
        assert grey.shape == (1, 1, 8, 6)

    @pytest.mark.parametrize(
        ("dtype", "shape", "settings", "message"),
        [
            ("float32", ("n", 8, 6, 3), {}, "nothing says how to scale an image's 0..255"),
            ("float32", ("n", 8, 6, 3), {"resize": 8}, "set scale, mean and std in"),
            ("uint8", ("n", 8, 6, 3), {"scale": 0.5}, "leave scale, mean and std out"),
            ("int64", ("n", 8, 6, 3), {}, "takes int64, but images are for float32 or uint8"),
            ("", ("n", 8, 6, 3), {}, "takes an unknown type"),
            ("uint8", ("n", 3, "h", "w"), {}, 'set [data.preprocess] layout = "NHWC->NCHW"'),
            ("uint8", ("n", 1, 8, 6), {}, 'set [data.preprocess] layout = "NHWC->NCHW"'),
            ("uint8", ("n", 8, 6, 3), {"layout": "NHWC->NCHW"}, "leave out layout"),
            ("uint8", ("n", 8, 6, 3), {"layout": "NCHW->NHWC"}, "images are N,H,W,C already"),
            ("uint8", ("n", 8, 6, 1), {"add_channel": True}, "leave out add_channel"),
            (
                "uint8",
                ("n", 1, 8, 6),
                {"add_channel": True, "layout": "NCHW->NHWC"},
                'leave out layout "NCHW->NHWC"',
            ),
            ("uint8", ("n", 8, 6, 4), {}, "takes 4 channels, but an image has 1 or 3"),
            ("uint8", ("n", 3, 8, 6), {"add_channel": True}, "add_channel is for grey images"),
            ("uint8", ("n", 8, 6, 1), {"channels": "BGR"}, "have no order of colours"),
            ("uint8", ("n", 144), {}, "takes arrays of rank 2, and an image has N,H,W,C"),
        ],
    )
    def test_images_that_do_not_suit_it(self, grey, dtype, shape, settings, message):
        with pytest.raises(DataError) as caught:  # before anything is decoded
            open_data(
                str(grey[0]),
                [TensorSpec("image", dtype, shape)],
                preprocess=Preprocess(**settings) if settings else None,
            )
        assert message in str(caught.value)
        assert "input 'image'" in str(caught.value)


def chunk(kind, data):
    check = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + check


def png(width, height, depth, rows):
    """A PNG of RGB, of which pillow cannot write 16 bits."""
    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    size = len(rows) // height
    lines = b"".join(b"\0" + rows[row * size : (row + 1) * size] for row in range(height))
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


class TestDamage:
    @pytest.mark.parametrize("form", ["png", "jpeg", "bmp", "tiff", "webp"])
    def test_files_cut_off(self, tmp_path, form):
        whole = io.BytesIO()
        Image.fromarray(noise(40, 40)).save(whole, form)
        for size in (0, 4, 20, len(whole.getvalue()) // 2):
            (tmp_path / f"a.{form}").write_bytes(whole.getvalue()[:size])
            message = refusal(tmp_path)
            assert f"a.{form} cannot be decoded" in message
            assert "repair or leave out that image" in message

    @pytest.mark.parametrize("side", [10_000, 40_000])  # pillow warns of the one, refuses the other
    def test_decompression_bombs(self, tmp_path, side):
        data = png(side, side, 8, b"")
        (tmp_path / "a.png").write_bytes(data)
        message = refusal(tmp_path)
        assert "a.png cannot be decoded (DecompressionBomb" in message

    def test_only_the_formats_of_the_suffixes_are_opened(self, tmp_path):
        """EPS, say, would start Ghostscript."""
        data = io.BytesIO()
        Image.fromarray(noise(4, 4)).save(data, "eps")
        (tmp_path / "a.png").write_bytes(data.getvalue())
        assert "a.png cannot be decoded (UnidentifiedImageError" in refusal(tmp_path)


class TestOtherData:
    @pytest.mark.parametrize(
        ("settings", "keys"),
        [
            ({"resize": 8}, "resize"),
            ({"crop": (4, 4), "channels": "BGR"}, "crop and channels"),
            ({"resize": 8, "interpolation": "nearest"}, "resize and interpolation"),
        ],
    )
    def test_settings_for_images_are_refused(self, tmp_path, settings, keys):
        np.savez(tmp_path / "x.npz", image=np.zeros((2, 4, 4, 3), np.uint8))
        for data in (str(tmp_path / "x.npz"), str(tmp_path), np.zeros((2, 4, 4, 3), np.uint8)):
            with pytest.raises(DataError) as caught:
                open_data(data, [RAW], preprocess=Preprocess(**settings))
            assert f"[data.preprocess] {keys} can only be done to a folder of images" in str(
                caught.value
            )
