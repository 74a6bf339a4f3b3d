"""Data sets: what the readers make of their files, and refuse."""

import gzip
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn import datasets as sklearn

from smoothout_jax.experiments.data.datasets import load
from smoothout_jax.experiments.data.packaged import FEWEST, TEXTS, WINDOW
from smoothout_jax.experiments.data.parts import hold_out
from smoothout_jax.experiments.data.readers import (
    read_cifar_folder,
    read_idx_folder,
    read_npz_folder,
)
from smoothout_jax.experiments.options import InputError


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
def test_idx_files_are_read_as_they_are(compress, tmp_path):
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


def write_npz(folder, **changed):
    arrays = {"images": some_images(0, 6, 4, 4, 1), "labels": np.arange(6)}
    np.savez(folder / "test.npz", **arrays)
    np.savez(folder / "train.npz", **arrays | changed)
    return folder


def test_npz_files_are_read(tmp_path):
    features = np.random.default_rng(0).normal(size=(6, 3))
    write_npz(tmp_path)
    for part in ("train", "test"):
        np.savez(tmp_path / f"{part}.npz", images=features, labels=np.arange(6)[::-1])
    train, _ = read_npz_folder(tmp_path)
    np.testing.assert_allclose(train.images, features, rtol=1e-6)
    assert train.images.dtype == np.float32
    np.testing.assert_array_equal(train.labels, [5, 4, 3, 2, 1, 0])


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (IMAGES, idx(some_images(0, 20, 3, 5))[:-1], "has 315 bytes, but.*says 316"),
        (IMAGES, idx(some_images(0, 20, 3, 5)) + b"0", "has 317 bytes, but.*says 316"),
        (
            IMAGES,
            b"",
            "is not an IDX file of bytes with 3 axes: it begins with nothing",
        ),
        (
            IMAGES,
            idx(np.zeros(20, np.uint8)),
            "with 3 axes: it begins with 00 00 08 01",
        ),
        (LABELS, idx(np.zeros(19, np.uint8)), "has 20 images, but 19 labels"),
    ],
    ids=["short", "long", "empty", "axes", "labels"],
)
def test_foreign_idx_files_are_told_by_name(name, content, message, tmp_path):
    write_idx(tmp_path, **{name: content})
    with pytest.raises(InputError, match=f"{tmp_path}/train.*{message}"):
        read_idx_folder(tmp_path)


def test_broken_compression_is_told_by_name(tmp_path):
    write_idx(tmp_path, compress=True)
    path = tmp_path / f"{IMAGES}.gz"
    for content in (path.read_bytes()[:-20], b"no gzip"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"{path} cannot be read"):
            read_idx_folder(tmp_path)


@pytest.mark.parametrize(
    ("labels", "cut", "message"),
    [
        (np.zeros((2, 1), np.uint8), 1, "has 6145 bytes.*not whole records of 3073"),
        (np.full((2, 1), 10, np.uint8), 0, "has a label 10, beyond the 10 classes"),
        (np.zeros((0, 1), np.uint8), 0, "has 0 bytes"),
    ],
)
def test_foreign_cifar_files_are_told_by_name(labels, cut, message, tmp_path):
    content = cifar_records(labels, 0)[1]
    (tmp_path / "data_batch_1.bin").write_bytes(content[: len(content) - cut])
    with pytest.raises(InputError, match=f"data_batch_1.bin {message}"):
        read_cifar_folder(tmp_path, 10)


class Pickled:
    def __reduce__(self):
        return pytest.fail, ("it was unpickled",)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": np.zeros((5, 2))}, "has 5 images, but 6 labels"),
        (
            {"images": np.zeros((6, 2), int)},
            "images must be uint8 or floating, not int64",
        ),
        (
            {"labels": np.zeros(6)},
            "labels must be integers in one row, or names, not float64",
        ),
        ({"labels": np.zeros((6, 1), int)}, r"integers in one row.*\(6, 1\)"),
        ({"labels": np.arange(-1, 5)}, r"has a label -1, not one in \[0, 2³¹\)"),
        (
            {"labels": np.array([0, 1, 2, 3, 4, 2**32 + 5], np.uint64)},
            r"has a label 4294967301, not one in \[0, 2³¹\)",
        ),
        ({"images": np.zeros((6, 4, 4, 3))}, r"have shape \(4, 4, 3\), those of test"),
        ({"images": np.array([Pickled()] * 6)}, "is damaged, or has no arrays"),
        ({"images": np.zeros((0, 2)), "labels": np.zeros(0, int)}, "has no images"),
    ],
)
def test_foreign_npz_files_are_told_by_name(changed, message, tmp_path):
    write_npz(tmp_path, **changed)
    with pytest.raises(InputError, match=message) as told:
        read_npz_folder(tmp_path)
    assert "train.npz" in str(told.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
@pytest.mark.parametrize("part", ["train", "test"])
def test_images_that_are_not_finite_are_told_by_file_and_place(value, part, tmp_path):
    """1e39 is finite in the file, and infinite in the float32 of training."""
    write_npz(tmp_path)
    images = some_images(0, 6, 4, 4, 1).astype(float)
    images[2, 1, 1] = images[4, 0, 0] = value
    np.savez(tmp_path / f"{part}.npz", images=images, labels=np.arange(6))
    message = rf"{part}.npz has 2 images with values .* not finite .* image 2"
    with pytest.raises(InputError, match=message):
        load("npz", tmp_path, None)


def test_labels_beyond_what_the_images_can_show_are_told(tmp_path):
    write_npz(tmp_path, labels=np.array([0, 1, 2, 3, 4, 1_000_000]))
    message = "data npz has a label 1000000, but only 6 training images"
    with pytest.raises(InputError, match=message):
        load("npz", tmp_path, None)


def test_images_that_cannot_be_drawn_in_proportion_are_told(tmp_path):
    write_npz(tmp_path, labels=np.array([0, 0, 0, 1, 1, 1]))
    message = (
        "5 of 6 images cannot be drawn with the classes in proportion: .*test_size"
    )
    for draw in (lambda: load("npz", tmp_path, 5), lambda: held_out(tmp_path, 1)):
        with pytest.raises(InputError, match=message):
            draw()


def test_an_image_alone_in_its_class_is_drawn_like_others(tmp_path):
    write_npz(tmp_path, labels=np.array([0, 0, 0, 1, 1, 2]))
    data = held_out(tmp_path, 2)
    drawn = sorted([*data.train_labels, *data.test_labels])
    assert len(data.test_labels) == 2
    assert drawn == [0, 0, 0, 1, 1, 2]


def held_out(folder, size):
    return hold_out(load("npz", folder, None), validation_size=size)


def test_damaged_npz_files_are_told_by_name(tmp_path):
    path = write_npz(tmp_path) / "train.npz"
    for content in (path.read_bytes()[:-30], b"", b"text"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"train.npz is damaged"):
            read_npz_folder(tmp_path)
    np.savez(path, pictures=np.zeros(2))
    with pytest.raises(InputError, match=r"train.npz is damaged, or has no arrays"):
        read_npz_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("mnist", "mnist/train-images-idx3-ubyte"),
        ("cifar10", "cifar-10-batches-bin/data_batch_1.bin"),
        ("cifar100", "cifar-100-binary/train.bin"),
        ("npz", "train.npz"),
    ],
)
def test_missing_files_are_told_by_name(name, missing, tmp_path):
    with pytest.raises(InputError, match=re.escape(f"{tmp_path / missing} does not")):
        load(name, tmp_path, None)


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
    for part in ("train", "test"):
        np.savez(tmp_path / f"{part}.npz", images=images, labels=np.arange(50) % 4)
    data = load("npz", tmp_path, None)
    np.testing.assert_allclose(data.train_images.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(data.train_images.std((0, 1, 2)), [1, 1, 0], atol=1e-5)
    assert data.num_classes == 4


def test_fewer_images_keep_the_classes_in_proportion(tmp_path):
    write_idx(tmp_path / "mnist")
    few = load("mnist", tmp_path, 10)
    np.testing.assert_array_equal(np.bincount(few.train_labels), np.ones(10))
    np.testing.assert_array_equal(few.train_images, load("mnist", tmp_path, 10)[0])
    with pytest.raises(InputError, match="train_size=30 is more than the 20 images"):
        load("mnist", tmp_path, 30)


def test_mnist_1d_is_generated_alike_and_leaves_the_random_generators():
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
    right_of = dict(
        zip(
            (each.tobytes() for each in np.concatenate([digits[0], digits[2]])),
            np.concatenate([digits[1], digits[3]]),
            strict=True,
        )
    )
    seen = {"train": set(), "test": set()}
    for name, images, labels in (
        ("train", data.train_images, data.train_labels),
        ("test", data.test_images, data.test_labels),
    ):
        for image, label in zip(images, labels, strict=True):
            left, right = (half.tobytes() for half in (image[:, :8], image[:, 8:]))
            assert label == 10 * right_of[left] + right_of[right]
            seen[name] |= {left, right}
    assert not seen["train"] & seen["test"]


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
