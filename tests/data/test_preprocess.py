import msgspec
import numpy as np
import pytest

from onnxq.data import Preprocess
from onnxq.errors import DataError

NHWC = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.1, 0.5)


def expected(nhwc):
    return ((nhwc / 255 - np.array(MEAN)) / np.array(STD)).astype(np.float32)


def test_only_casts_by_default():
    out = Preprocess().apply(NHWC)
    assert out.dtype == np.float32
    assert np.array_equal(out, NHWC)


def test_normalises_nhwc_images_into_nchw():
    out = Preprocess(scale=1 / 255, mean=MEAN, std=STD, layout="NHWC->NCHW").apply(NHWC)
    assert out.flags.c_contiguous
    # float32 against float64 arithmetic on values of about 5
    np.testing.assert_allclose(out, expected(NHWC).transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", [None, "NCHW->NHWC"])
def test_normalises_nchw_images_along_axis_1(layout):
    nchw = NHWC.transpose(0, 3, 1, 2)
    out = Preprocess(scale=1 / 255, mean=MEAN, std=STD, layout=layout).apply(nchw)
    want = expected(NHWC) if layout else expected(NHWC).transpose(0, 3, 1, 2)
    # as above
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-6)


def test_images_that_stay_nhwc_are_normalised_along_their_last_axis():
    out = Preprocess(scale=1 / 255, mean=MEAN, std=STD).apply(NHWC)
    # as above
    np.testing.assert_allclose(out, expected(NHWC), rtol=1e-5, atol=1e-6)


def test_one_value_serves_all_channels():
    out = Preprocess(mean=(2,), std=(4,)).apply(NHWC)
    assert np.array_equal(out, (NHWC.astype(np.float32) - 2) / 4)


def test_adds_a_channel():
    grey = NHWC[..., 0]
    assert np.array_equal(Preprocess(add_channel=True).apply(grey), grey[:, None])
    last = Preprocess(add_channel=True, layout="NCHW->NHWC").apply(grey)
    assert np.array_equal(last, grey[..., None])


def test_leaves_the_raw_array_alone():
    raw = np.ones((2, 3), np.float32)
    Preprocess(scale=2.0, mean=(1,)).apply(raw)
    assert np.all(raw == 1)


def test_is_decoded_strictly():
    decoded = msgspec.convert({"scale": 1, "mean": [1, 2, 3]}, Preprocess)
    assert decoded == Preprocess(scale=1.0, mean=(1.0, 2.0, 3.0))
    image = msgspec.convert({"resize": [8, 6], "crop": 4, "channels": "BGR"}, Preprocess)
    assert image == Preprocess(resize=(8, 6), crop=4, channels="BGR")
    assert image.for_images == ["resize", "crop", "channels"]
    assert decoded.for_images == []
    with pytest.raises(msgspec.ValidationError, match="unknown field `scal`"):
        msgspec.convert({"scal": 1}, Preprocess)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"std": [0.0]}, "none that is zero"),
        ({"mean": []}, "at least one value"),
        ({"scale": float("nan")}, "finite"),
        ({"add_channel": True, "layout": "NHWC->NCHW"}, "leave out layout"),
        ({"layout": "CHWN"}, "Invalid enum value"),
        ({"resize": 0}, "sizes of 1 or more"),
        ({"crop": [8, -1]}, "sizes of 1 or more"),
        ({"resize": [8, 8, 8]}, "length 2"),
        ({"resize": 8.5}, "Expected `int | array | null`"),
        ({"resize": 8, "interpolation": "cubic"}, "Invalid enum value"),
        ({"interpolation": "nearest"}, "resize is not set"),
        ({"channels": "GBR"}, "Invalid enum value"),
    ],
)
def test_refuses_settings_that_make_no_sense(fields, message):
    with pytest.raises(msgspec.ValidationError, match=message):
        msgspec.convert(fields, Preprocess)


@pytest.mark.parametrize(
    ("settings", "array", "message"),
    [
        ({"mean": (1, 2)}, NHWC, r"mean has 2 values, but axis 1 of \[2, 4, 5, 3\] has 4 channels"),
        ({"layout": "NHWC->NCHW"}, NHWC[0], "takes arrays of rank 4, found rank 3"),
        ({"add_channel": True}, NHWC, r"takes arrays of rank 3 \(N,H,W\), found rank 4"),
        ({"mean": (1, 2)}, NHWC[:, 0, 0, 0], "rank 2 or more, found rank 1"),
        ({}, np.array(["a"]), "cannot turn str"),
    ],
)
def test_says_what_does_not_fit(settings, array, message):
    with pytest.raises(DataError, match=message) as caught:
        Preprocess(**settings).apply(array, "input 'image'")
    assert str(caught.value).startswith("input 'image': ")
    assert "\n" not in str(caught.value)
