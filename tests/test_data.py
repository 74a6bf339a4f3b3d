"""Data sets: what the readers make of their files, and what training gets."""

import gzip
import random
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
from sklearn import datasets as sklearn

from smoothout_jax.experiments.data.batches import batch_indices
from smoothout_jax.experiments.data.datasets import load
from smoothout_jax.experiments.data.packaged import FEWEST, TEXTS, WINDOW
from smoothout_jax.experiments.data.parts import hold_out
from smoothout_jax.experiments.data.readers import (
    read_cifar_folder,
    read_idx_folder,
    read_npz_folder,
)


def some_images(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def idx(array):
    sizes = np.array(array.shape, ">u4").tobytes()
    return bytes((0, 0, 8, array.ndim)) + sizes + array.tobytes()


def write_idx(folder, *, compress=False, **changed):
    """MNIST's four files, of 20 and 12 images of 3 × 5 pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "train-images-idx3-ubyte": idx(some_images(0, 20, 3, 5)),
        "train-labels-idx1-ubyte": idx(np.arange(20, dtype=np.uint8) % 10),
        "t10k-images-idx3-ubyte": idx(some_images(1, 12, 3, 5)),
        "t10k-labels-idx1-ubyte": idx(np.arange(12, dtype=np.uint8) % 10),
    }
    for name, content in (contents | changed).items():
        if compress:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("compress", [False, True])
def test_idx_files_are_read(compress, tmp_path):
    train, test = read_idx_folder(write_idx(tmp_path, compress=compress))
    np.testing.assert_array_equal(train.images, some_images(0, 20, 3, 5)[..., None])
    np.testing.assert_array_equal(test.labels, np.arange(12) % 10)
    assert train.images.dtype == np.uint8
    assert train.labels.dtype == np.int32


def cifar_records(labels, seed):
    images = some_images(seed, len(labels), 3, 32, 32)
    return images, np.c_[labels, images.reshape(len(images), 3072)].tobytes()


def test_cifar_10_is_read_with_channels_last(tmp_path):
    batches = []
    for number in range(1, 6):
        images, content = cifar_records(np.full((2, 1), number, np.uint8), number)
        (tmp_path / f"data_batch_{number}.bin").write_bytes(content)
        batches.append(images)
    images, content = cifar_records(np.full((3, 1), 9, np.uint8), 6)
    (tmp_path / "test_batch.bin").write_bytes(content)
    train, test = read_cifar_folder(tmp_path, 10)
    np.testing.assert_array_equal(
        train.images, np.concatenate(batches).transpose(0, 2, 3, 1)
    )
    np.testing.assert_array_equal(train.labels, np.repeat(np.arange(1, 6), 2))
    np.testing.assert_array_equal(test.images[0, :, :, 2], images[0, 2])


def test_cifar_100_has_fine_labels(tmp_path):
    coarse_and_fine = np.array([[1, 99], [19, 42]], np.uint8)
    for name in ("train.bin", "test.bin"):
        (tmp_path / name).write_bytes(cifar_records(coarse_and_fine, 0)[1])
    train, _ = read_cifar_folder(tmp_path, 100)
    np.testing.assert_array_equal(train.labels, [99, 42])


def write_npz(folder, images, labels):
    for part in ("train", "test"):
        np.savez(folder / f"{part}.npz", images=images, labels=labels)


def test_npz_files_are_read(tmp_path):
    features = np.random.default_rng(0).normal(size=(6, 3))
    write_npz(tmp_path, features, np.arange(6)[::-1])
    train, _ = read_npz_folder(tmp_path)
    np.testing.assert_allclose(train.images, features, rtol=1e-6)
    assert train.images.dtype == np.float32
    np.testing.assert_array_equal(train.labels, [5, 4, 3, 2, 1, 0])


def test_an_image_alone_in_its_class_is_drawn_like_others(tmp_path):
    labels = np.array([0, 0, 0, 1, 1, 2])
    write_npz(tmp_path, some_images(0, 6, 4, 4, 1), labels)
    data = hold_out(load("npz", tmp_path, None), validation_size=2)
    assert len(data.test_labels) == 2
    assert sorted([*data.train_labels, *data.test_labels]) == labels.tolist()


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_images_are_standardized_by_those_for_training(name, tmp_path):
    write_idx(tmp_path / name)
    data = load(name, tmp_path, None)
    raw = some_images(0, 20, 3, 5)
    np.testing.assert_allclose(data.train_images.mean(), 0, atol=1e-6)
    np.testing.assert_allclose(data.train_images.std(), 1, rtol=1e-5)
    np.testing.assert_allclose(
        data.test_images[..., 0],
        (some_images(1, 12, 3, 5) - raw.mean()) / raw.std(),
        rtol=1e-4,
        atol=1e-6,
    )
    assert data.num_classes == 10


def test_each_channel_is_standardized_and_constant_ones_are_kept(tmp_path):
    images = np.random.default_rng(0).normal((1, 2, 3), (1, 5, 0), (50, 2, 2, 3))
    write_npz(tmp_path, images, np.arange(50) % 4)
    data = load("npz", tmp_path, None)
    np.testing.assert_allclose(data.train_images.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(data.train_images.std((0, 1, 2)), [1, 1, 0], atol=1e-5)
    assert data.num_classes == 4


def test_fewer_images_keep_the_classes_in_proportion(tmp_path):
    write_idx(tmp_path / "mnist")
    few = load("mnist", tmp_path, 10)
    np.testing.assert_array_equal(np.bincount(few.train_labels), np.ones(10))
    np.testing.assert_array_equal(few.train_images, load("mnist", tmp_path, 10)[0])


def test_mnist_1d_is_reproducible_and_leaves_the_random_generators():
    np.random.seed(5)
    random.seed(5)
    expected = np.random.rand(), random.random()
    np.random.seed(5)
    random.seed(5)
    data = load("mnist1d", Path(), None)
    assert (np.random.rand(), random.random()) == expected
    assert data.train_images.shape == (4000, 40, 1)
    assert data.test_images.shape == (1000, 40, 1)
    np.testing.assert_array_equal(data[2], load("mnist1d", Path(), None)[2])
    assert np.ptp(np.bincount(data.test_labels)) < 40


def test_pairs_of_digits_have_a_hundred_classes_and_share_no_digit():
    data, digits = load("digit-pairs", Path(), None), load("digits", Path(), 1787)
    assert data.num_classes == 100
    label_of = {
        image.tobytes(): label
        for images, labels in (digits[:2], digits[2:4])
        for image, label in zip(images, labels, strict=True)
    }
    seen = []
    for images, labels in (data[:2], data[2:4]):
        halves = [
            [image.tobytes() for image in half]
            for half in (images[:, :, :8], images[:, :, 8:])
        ]
        tens, ones = (np.array([label_of[each] for each in half]) for half in halves)
        np.testing.assert_array_equal(labels, 10 * tens + ones)
        seen.append({*halves[0], *halves[1]})
    assert not set.intersection(*seen)


def test_the_label_of_a_text_is_the_character_after_it():
    data = load("text", Path(), None)
    images, labels = data.train_images, data.train_labels
    loaders = [getattr(sklearn, f"load_{name}") for name in TEXTS]
    counts = Counter("".join(each().DESCR for each in loaders).lower())
    frequent = {each: count for each, count in counts.items() if count >= FEWEST}
    assert data.num_classes == images.shape[-1] == len(frequent) > 30
    # The first characters of both parts are in no label.
    everything = sum(frequent.values()) - 2 * WINDOW
    assert len(labels) + len(data.test_labels) == everything
    np.testing.assert_array_equal(images.sum(-1), 1)
    np.testing.assert_array_equal(images[1:, :-1], images[:-1, 1:])
    np.testing.assert_array_equal(images[1:, -1].argmax(-1), labels[:-1])


def test_the_split_is_fixed_disjoint_and_stratified():
    data, again = (load("digits", Path(), 500) for _ in range(2))
    assert data.train_images.shape == (500, 8, 8, 1)
    assert data.test_images.shape == (1297, 8, 8, 1)
    np.testing.assert_array_equal(data.train_images, again.train_images)
    train, test = (
        {image.tobytes() for image in part}
        for part in (data.train_images, data.test_images)
    )
    assert not train & test
    assert np.ptp(np.bincount(data.train_labels)) <= 4
    assert (data.train_images.min(), data.train_images.max()) == (0, 1)


@pytest.mark.parametrize(
    ("images", "size"), [(20, 1), (20, 7), (12, 4), (5, 5), (1, 1)]
)
def test_the_batches_of_an_epoch_are_disjoint_wherever_training_starts(images, size):
    key = jax.random.key(0)
    whole = np.asarray(batch_indices(key, images, size, start=0, steps=12))
    assert whole.min() >= 0
    assert whole.max() < images
    epoch = images // size
    for first in range(0, 12, epoch):
        shown = whole[first : first + epoch].ravel()
        assert len(set(shown.tolist())) == len(shown)
    starts = np.arange(10)
    parts = jax.vmap(lambda start: batch_indices(key, images, size, start, 3))(starts)
    np.testing.assert_array_equal(parts, whole[starts[:, None] + np.arange(3)])


def test_every_epoch_has_an_order_of_its_own():
    batches = batch_indices(jax.random.key(0), 12, batch_size=12, start=0, steps=3)
    assert len({tuple(batch.tolist()) for batch in batches}) == 3
