"""Readers of the formats that data sets are distributed in.

They check files against the sizes that the format states, and never unpickle.
"""

import gzip
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from smoothout_jax._files import DAMAGED
from smoothout_jax.experiments.data.checks import check_shape
from smoothout_jax.experiments.options import InputError

CIFAR_SHAPE = (3, 32, 32)


class Split(NamedTuple):
    """Examples and their classes.

    Attributes:
        images: uint8 or float32, (images, …), channels last, with the values of the
            files.
        labels: int32, (images,).
    """

    images: np.ndarray
    labels: np.ndarray


def checked_split(images: np.ndarray, labels: np.ndarray, source: Any) -> Split:
    """Checks images and labels, and makes a split of them.

    Args:
        images: uint8 or floating, (images, …, channels).
        labels: integers, (images,).
        source: where they come from, such as a file, to name in errors.

    Raises:
        InputError: if there are no images or not one label for each, if their shape is
            not one of images, if a value is not finite in float32, or if a label is
            out of range.
    """
    if images.ndim < 2:
        raise InputError(
            f"{source}: images must have shape (images, …, channels), not"
            f" {images.shape}"
        )
    if len(images) != len(labels):
        raise InputError(f"{source} has {len(images)} images, but {len(labels)} labels")
    if not len(images):
        raise InputError(f"{source} has no images")
    check_shape(images.shape[1:], images.dtype, source)
    for label in (labels.min(), labels.max()):
        if not 0 <= label < 2**31:
            raise InputError(f"{source} has a label {label}, not one in [0, 2³¹)")
    if np.issubdtype(images.dtype, np.floating):
        with np.errstate(over="ignore"):
            images = images.astype(np.float32)
        finite = np.isfinite(images).reshape(len(images), -1).all(1)
        if not finite.all():
            raise InputError(
                f"{source} has {np.count_nonzero(~finite)} images with values that are"
                f" not finite in float32, the first of them image {finite.argmin()}"
            )
    return Split(np.ascontiguousarray(images), labels.astype(np.int32))


def read_idx_folder(folder: Path) -> tuple[Split, Split]:
    """Reads training and test set in MNIST's format, IDX, gzipped or not.

    Args:
        folder: holds `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and both with
            `t10k` instead of `train`, each with or without `.gz` appended.

    Returns:
        The splits, images of shape (images, height, width, 1).

    Raises:
        InputError: if a file is missing, or differs from what its header says.
    """
    splits = []
    for part in ("train", "t10k"):
        images = _read_idx(folder, f"{part}-images-idx3-ubyte", num_axes=3)
        labels = _read_idx(folder, f"{part}-labels-idx1-ubyte", num_axes=1)
        splits.append(checked_split(images[..., None], labels, folder / part))
    return _alike(folder, splits, "train", "t10k")


def read_cifar_folder(folder: Path, num_classes: int) -> tuple[Split, Split]:
    """Reads training and test set in CIFAR's binary format.

    Args:
        folder: holds `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin` of
            CIFAR-10, or `train.bin` and `test.bin` of CIFAR-100.
        num_classes: 10 or 100; 100 takes the fine labels.

    Returns:
        The splits, images of shape (images, 32, 32, 3).

    Raises:
        InputError: if a file is missing, or does not consist of whole records.
    """
    names, test_name, label_bytes = {
        10: ([f"data_batch_{i}.bin" for i in range(1, 6)], "test_batch.bin", 1),
        100: (["train.bin"], "test.bin", 2),
    }[num_classes]
    train = [_read_cifar(folder / name, label_bytes, num_classes) for name in names]
    return (
        Split(*map(np.concatenate, zip(*train, strict=True))),
        _read_cifar(folder / test_name, label_bytes, num_classes),
    )


def read_npz_folder(folder: Path) -> tuple[Split, Split]:
    """Reads `train.npz` and `test.npz`, each of arrays `images` and `labels`.

    Args:
        folder: holds both; images of any shape, uint8 or floating, and labels that
            are integers or names.

    Returns:
        The splits.

    Raises:
        InputError: if a file is missing or damaged, or if an array is missing or not
            of the stated kind.
    """
    names = "train.npz", "test.npz"
    read = [_read_npz(folder / name) for name in names]
    classes, splits = _names(read[0][1]), []
    for name, (images, labels) in zip(names, read, strict=True):
        if classes:
            labels = _numbered(labels, classes, folder / name)
        elif not np.issubdtype(labels.dtype, np.integer):
            raise InputError(
                f"{folder / name}: labels must be integers in one row, or names, not"
                f" {labels.dtype}"
            )
        splits.append(checked_split(images, labels, folder / name))
    return _alike(folder, splits, *names)


def npz_classes(folder: Path) -> tuple[str, ...]:
    """The names of the classes of such a folder; none where labels are integers."""
    with np.load(folder / "train.npz") as archive:  # it was read before
        return _names(archive["labels"])


def _names(labels: np.ndarray) -> tuple[str, ...]:
    return tuple(np.unique(labels).tolist()) if labels.dtype.kind == "U" else ()


def _alike(
    folder: Path, splits: list[Split], name: str, other_name: str
) -> tuple[Split, Split]:
    """Training and test set, if their images have the same shape."""
    train, test = splits
    if train.images.shape[1:] != test.images.shape[1:]:
        raise InputError(
            f"{folder}: images of {name} have shape {train.images.shape[1:]}, those of"
            f" {other_name} {test.images.shape[1:]}"
        )
    return train, test


def _read_idx(folder: Path, name: str, num_axes: int) -> np.ndarray:
    """Reads bytes: 0, 0, 8, the number of axes, big-endian sizes, then the content."""
    path = folder / name
    if not path.exists() and (folder / f"{name}.gz").exists():
        path = folder / f"{name}.gz"
    content = _read_bytes(path)
    header = 4 + 4 * num_axes
    if len(content) < header or content[:4] != bytes((0, 0, 8, num_axes)):
        raise InputError(
            f"{path} is not an IDX file of bytes with {num_axes} axes: it begins with"
            f" {content[:4].hex(' ') or 'nothing'}"
        )
    shape = np.frombuffer(content, ">u4", num_axes, offset=4).astype(int)
    _check_size(path, header + int(shape.prod()), len(content))
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _read_cifar(path: Path, label_bytes: int, num_classes: int) -> Split:
    content = _read_bytes(path)
    record = label_bytes + int(np.prod(CIFAR_SHAPE))
    if not content or len(content) % record:
        raise InputError(
            f"{path} has {len(content)} bytes, which are not whole records of {record}"
            f" bytes of CIFAR-{num_classes}"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    images = records[:, label_bytes:].reshape(-1, *CIFAR_SHAPE).transpose(0, 2, 3, 1)
    split = checked_split(images, records[:, label_bytes - 1], path)
    if split.labels.max() >= num_classes:
        raise InputError(
            f"{path} has a label {split.labels.max()}, beyond the {num_classes} classes"
            f" of CIFAR-{num_classes}"
        )
    return split


def _numbered(labels: np.ndarray, classes: tuple[str, ...], path: Path) -> np.ndarray:
    """Numbers names by their place among those of the training images."""
    unknown = np.setdiff1d(labels, classes)
    if len(unknown):
        raise InputError(
            f"{path} has a label {str(unknown[0])!r} that no training image has"
        )
    return np.searchsorted(classes, labels)


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise InputError(
                    f"{path} holds one array, as np.save writes it, not the arrays"
                    " `images` and `labels` of np.savez"
                )
            images, labels = archive["images"], archive["labels"]
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except InputError:
        raise
    except DAMAGED as error:
        raise InputError(
            f"{path} is damaged, or has no arrays `images` and `labels`: {error}"
        ) from error
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise InputError(
            f"{path}: images must be uint8 or floating, not {images.dtype}"
        )
    if labels.ndim != 1:
        raise InputError(
            f"{path}: labels must be integers in one row, not of shape {labels.shape}"
        )
    return images, labels


def _read_bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _check_size(path: Path, expected: int, actual: int) -> None:
    if actual != expected:
        raise InputError(f"{path} has {actual} bytes, but its header says {expected}")
