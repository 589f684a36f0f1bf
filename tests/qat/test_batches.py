"""Batches of training: every sample once per epoch, whatever memory there is."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.data import open_data
from onnxq.errors import DataError
from onnxq.types import TensorSpec

pytest.importorskip("torch", reason="torch is in the extra 'qat'")

from onnxq.qat.batches import Batches, image_augment

ROW = TensorSpec("x", "float32", ("n", 2))
X = np.stack([np.arange(50), -np.arange(50)], 1).astype(np.float32)
LABELS = np.arange(50)


def reader(inputs=(ROW,), **arrays):
    return open_data(arrays or {"x": X, "labels": LABELS}, inputs)


@pytest.mark.parametrize("memory", [1 << 30, 80, 8])
def test_every_sample_comes_once_and_with_its_label(memory: int) -> None:
    """With memory for all samples, for ten, and for less than a batch."""
    batches = Batches(reader(), 8, seed=3, memory=memory)
    made = list(batches.epoch(1))
    assert len(made) == batches.steps
    assert batches.samples == 50
    labels = np.concatenate([step.labels for step in made])
    assert sorted(labels) == list(range(50))
    assert list(labels) != list(range(50))
    for step in made:
        np.testing.assert_array_equal(step.feed["x"][:, 0], step.labels)


def test_epochs_differ_and_can_be_made_again_from_any_step() -> None:
    orders = [[list(s.labels) for s in Batches(reader(), 8, 3).epoch(n)] for n in (1, 2)]
    assert orders[0] != orders[1]
    batches = Batches(reader(), 8, 3)
    list(batches.epoch(1))
    assert [list(s.labels) for s in batches.epoch(2, start=4)] == orders[1][4:]
    assert [list(s.labels) for s in Batches(reader(), 8, 4).epoch(1)] != orders[0]


def test_samples_are_drawn_from_all_over_where_memory_is_short() -> None:
    """The first part of an epoch is no stretch of the data."""
    first = next(Batches(reader(), 8, 0, memory=64).epoch(1)).labels
    assert max(first) - min(first) > 16


def test_a_model_with_a_fixed_batch_gets_it_whole() -> None:
    fixed = TensorSpec("x", "float32", (5, 2))
    batches = Batches(reader((fixed,)), 8, 0)
    made = list(batches.epoch(1))
    assert batches.steps == len(made) == 10
    assert all(step.feed["x"].shape == (5, 2) for step in made)
    assert sorted(np.concatenate([s.labels for s in made])) == list(range(50))


def test_feeds_of_different_shapes_come_one_by_one() -> None:
    feeds = [{"x": np.full((length, 2), length, np.float32)} for length in (3, 5, 2, 4)]
    made = list(Batches(open_data(feeds, (ROW,)), 8, 0).epoch(1))
    assert sorted(len(step.feed["x"]) for step in made) == [2, 3, 4, 5]


IMAGES = np.arange(2 * 1 * 8 * 8, dtype=np.float32).reshape(2, 1, 8, 8) + 1


def test_images_are_mirrored_half_of_the_time() -> None:
    flip = image_augment(flip=True, shift=False)
    rng, mirrored = np.random.default_rng(0), 0
    for _ in range(200):
        (made,) = flip({"x": IMAGES}, rng).values()
        for image, given in zip(made, IMAGES, strict=True):
            same, other = np.array_equal(image, given), np.array_equal(image, given[..., ::-1])
            assert same != other
            mirrored += other
    assert 140 < mirrored < 260  # 200 of 400, six standard deviations of 10


def test_images_are_moved_by_up_to_an_eighth_and_filled_with_zeros() -> None:
    shift = image_augment(flip=False, shift=True)
    rng, seen = np.random.default_rng(0), set()
    for _ in range(100):
        (made,) = shift({"x": IMAGES}, rng).values()
        padded = np.pad(IMAGES[0, 0], 1)
        fits = [
            (y, x) for y in range(3) for x in range(3)
            if np.array_equal(made[0, 0], padded[y : y + 8, x : x + 8])
        ]  # fmt: skip
        seen.update(fits)
        assert len(fits) == 1
    assert len(seen) == 9


def test_the_same_step_is_augmented_alike() -> None:
    spec = TensorSpec("x", "float32", ("n", 1, 8, 8))
    images = {"x": np.random.default_rng(1).normal(size=(20, 1, 8, 8)).astype(np.float32)}
    augment = image_augment(flip=True, shift=True)
    whole = list(Batches(open_data(images, (spec,)), 4, 0, augment).epoch(1))
    later = list(Batches(open_data(images, (spec,)), 4, 0, augment).epoch(1, start=3))
    for one, other in zip(whole[3:], later, strict=True):
        np.testing.assert_array_equal(one.feed["x"], other.feed["x"])


def test_what_is_no_image_is_not_augmented() -> None:
    batches = Batches(reader(), 8, 0, image_augment(flip=True, shift=True))
    with pytest.raises(DataError, match=r"no images to augment.*leave out augment"):
        next(batches.epoch(1))
