"""Data that cannot be trained on: the error names the file and what is wrong."""

import gzip
import re

import numpy as np
import pytest
from command_line import COMPARE, TRAIN, commands_on, refused, write

from smoothout_jax.experiments.data.datasets import load
from smoothout_jax.experiments.data.readers import read_cifar_folder, read_idx_folder
from smoothout_jax.experiments.options import InputError
from smoothout_jax.experiments.plans import EXPERIMENTS

pytestmark = pytest.mark.usefixtures("standard_promotion")


class Pickled:
    def __reduce__(self):
        return pytest.fail, ("it was unpickled",)


SHAPE = (24, 4, 4, 1)
GREY = np.random.default_rng(1).uniform(0, 1, SHAPE)
LABELS = np.arange(24) % 3


def with_values(value):
    """Images 3 and 5 have such a value."""
    images = GREY.copy()
    images[3, 1, 2] = images[5, 0, 0] = value
    return {"images": images}


NOT_FINITE = "has 2 images with values that are not finite in float32, .* image 3"
# Arrays of either part that no reader accepts.
ARRAYS = {
    "nan": (with_values(np.nan), NOT_FINITE),
    "inf": (with_values(-np.inf), NOT_FINITE),
    "infinite in float32": (with_values(1e39), NOT_FINITE),
    "0-d": ({"images": np.float32(1)}, r"must have shape \(images, …, channels\)"),
    "1-d": ({"images": np.zeros(24)}, r"must have shape \(images, …, channels\)"),
    "no channels": ({"images": GREY[..., 0]}, "have no axis of channels"),
    "channels first": ({"images": np.zeros((24, 3, 8, 8))}, "their channels first"),
    "no pixels": ({"images": np.zeros((24, 0, 4, 1))}, "have no pixels"),
    "zero channels": ({"images": np.zeros((24, 4, 4, 0))}, "have no pixels"),
    "no images": ({"images": GREY[:0], "labels": LABELS[:0]}, "has no images"),
    "integers": ({"images": np.ones(SHAPE, int)}, "uint8 or floating, not int64"),
    "objects": ({"images": np.array([Pickled()] * 24)}, "is damaged, or has no arrays"),
    "negative": ({"labels": LABELS - 1}, r"has a label -1, not one in \[0, 2³¹\)"),
    "wrapping": ({"labels": LABELS.astype(np.uint64) * (2**31 + 5)}, "a label 4294967"),
    "too few labels": ({"labels": LABELS[:5]}, "has 24 images, but 5 labels"),
    "floating labels": ({"labels": LABELS / 1}, "integers in one row, .* not float64"),
    "a column": ({"labels": LABELS[:, None]}, r"integers in one row, .*\(24, 1\)"),
}
# Training data that do not suit the test data, or that nothing can be learned from.
TRAINING = {
    "constant": ({"images": np.ones(SHAPE)}, "images that are all alike"),
    "huge": ({"labels": LABELS * 500_000}, "has a label 1000000, but only 24 training"),
    "from one": ({"labels": LABELS + 1}, "has no training image of class 0"),
    "with a gap": ({"labels": LABELS * 2}, "has no training image of class 1"),
    "one class": ({"labels": LABELS * 0}, "training images of one class only"),
    "other shape": ({"images": np.zeros((24, 5, 5, 1))}, r"shape \(5, 5, 1\), those"),
    "bytes": ({"images": (255 * GREY).astype(np.uint8)}, "scale them alike"),
    "signed": ({"images": 40 * GREY - 39}, "scale them alike"),
}


@pytest.mark.parametrize(
    ("part", "kind"),
    [*((part, kind) for part in ("train", "test") for kind in ARRAYS)]
    + [("train", kind) for kind in TRAINING],
)
def test_arrays_are_refused(part, kind, tmp_path):
    changed, message = (ARRAYS | TRAINING)[kind]
    for each in ("train", "test"):
        write(tmp_path, each, **changed if each == part else {})
    path = f"{part}.npz" if kind in ARRAYS else ""
    with pytest.raises(InputError, match=f"{path}.*{message}"):
        load("npz", tmp_path, None)


@pytest.mark.parametrize("kind", ["nan", "with a gap"])
def test_every_command_refuses_bad_data_before_it_writes(
    kind, checkpoint, tmp_path, capsys
):
    changed, message = (ARRAYS | TRAINING)[kind]
    folder = write(write(tmp_path / "data", **changed), "test")
    for command in commands_on(checkpoint, folder).values():
        line = refused(capsys, *command, output=tmp_path / "output")
        assert re.search(message, line)


def idx(array):
    sizes = np.array(array.shape, ">u4").tobytes()
    return bytes((0, 0, 8, array.ndim)) + sizes + array.tobytes()


def write_idx(folder, side=4):
    """30 images of 4 × 4 pixels for training, and 30 for testing."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, size in (("train", 4), ("t10k", side)):
        images = np.random.default_rng(0).integers(0, 256, (30, size, size), np.uint8)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        labels = (np.arange(30) % 10).astype(np.uint8)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    return folder


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("images-idx3", lambda old: old[:-1], "has 495 bytes, but .* says 496"),
        ("images-idx3", lambda old: old + b"0", "has 497 bytes, but .* says 496"),
        ("images-idx3", lambda old: b"", "3 axes: it begins with nothing"),
        (
            "images-idx3",
            lambda old: old[:3] + b"\1" + old[4:],
            "begins with 00 00 08 01",
        ),
        ("labels-idx1", lambda old: idx(np.zeros(29, np.uint8)), "30 images, but 29 l"),
    ],
    ids=["short", "long", "empty", "axes", "labels"],
)
def test_idx_files_are_checked(name, change, message, tmp_path):
    path = write_idx(tmp_path) / f"train-{name}-ubyte"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError, match=f"{tmp_path}/train.*{message}"):
        read_idx_folder(tmp_path)


@pytest.mark.parametrize(
    "change", [lambda old: gzip.compress(old)[:-20], lambda old: old]
)
def test_files_of_broken_compression_are_refused(change, tmp_path):
    plain = write_idx(tmp_path) / "train-images-idx3-ubyte"
    path = tmp_path / f"{plain.name}.gz"
    path.write_bytes(change(plain.read_bytes()))
    plain.unlink()
    with pytest.raises(InputError, match=f"{path} cannot be read"):
        read_idx_folder(tmp_path)


def test_idx_test_images_of_another_size_are_refused(tmp_path, capsys):
    folder = write_idx(tmp_path / "data" / "fashion-mnist", side=5).parent
    own = ["--data", "fashion-mnist", "--data-dir", folder]
    names = [case.name for case in EXPERIMENTS["batches"]["cpu"]]
    cases = ["--cases", *(name for name in names if "fashion-mnist" in name)]
    for command in (
        ["train", *TRAIN.split(), *own],
        ["compare", *COMPARE.split(), *own],
        ["evidence", "batches", *cases, "--data-dir", folder],
    ):
        line = refused(capsys, *command, output=tmp_path / "output")
        assert "of train have shape (4, 4, 1), those of t10k (5, 5, 1)" in line


@pytest.mark.parametrize(
    ("label", "length", "message"),
    [
        (0, 6145, "has 6145 bytes.*not whole records of 3073"),
        (10, 6146, "has a label 10, beyond the 10 classes"),
        (0, 0, "has 0 bytes"),
    ],
)
def test_cifar_files_are_checked(label, length, message, tmp_path):
    records = np.full((2, 3073), label, np.uint8).tobytes()
    (tmp_path / "data_batch_1.bin").write_bytes(records[:length])
    with pytest.raises(InputError, match=f"data_batch_1.bin {message}"):
        read_cifar_folder(tmp_path, 10)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("mnist", "mnist/train-images-idx3-ubyte"),
        ("cifar10", "cifar-10-batches-bin/data_batch_1.bin"),
        ("cifar100", "cifar-100-binary/train.bin"),
        ("npz", "train.npz"),
    ],
)
def test_a_missing_file_is_named(name, missing, tmp_path):
    with pytest.raises(InputError, match=re.escape(f"{tmp_path / missing} does not")):
        load(name, tmp_path, None)


@pytest.mark.parametrize(
    ("size", "message"), [(25, "more than the 24 im"), (23, "test_size")]
)
def test_a_draw_that_is_impossible_is_refused(size, message, tmp_path):
    """More images than there are, or fewer left over than classes."""
    write(write(tmp_path), "test")
    with pytest.raises(InputError, match=message):
        load("npz", tmp_path, size)
