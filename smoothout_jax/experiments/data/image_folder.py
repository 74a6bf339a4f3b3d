"""Folders of images, one folder for each class, as ImageNet has them.

photos/train/cat/1.jpg  photos/train/dog/2.png  …  photos/val/cat/3.webp  …
photos/cat/1.jpg  photos/dog/2.png  …                   (split by a fixed draw)
"""

import functools
import hashlib
import math
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from smoothout_jax.experiments.data.images import Crop, centre, open_image
from smoothout_jax.experiments.data.parts import divide
from smoothout_jax.experiments.data.readers import Split
from smoothout_jax.experiments.options import InputError
from smoothout_jax.experiments.progress import Progress

TEST_FOLDERS = "val", "valid", "validation", "test"
# Files that operating systems leave in folders; so are those that begin with a dot.
IGNORED = "Thumbs.db", "desktop.ini", "Icon\r"
# Folders whose images take as many bytes are read at once.
SMALL = 2**30
# The part of the images that is drawn for testing, where none are apart.
TEST_SHARE = 0.2
# How to go on where an image cannot be read.
SKIP = " (--bad-images skip leaves such files out)"


class Files(NamedTuple):
    """Image files and their classes.

    Attributes:
        folder: the folder of the class folders.
        paths: paths of the files from there, by class and name.
        labels: the class of each, int32, (files,).
        classes: names of the classes, in the order of their labels.
    """

    folder: Path
    paths: tuple[str, ...]
    labels: np.ndarray
    classes: tuple[str, ...]

    def take(self, chosen: np.ndarray) -> "Files":
        """Some of the files, by their numbers."""
        paths = tuple(self.paths[each] for each in chosen)
        return self._replace(paths=paths, labels=self.labels[chosen])

    def path(self, number: int) -> Path:
        """The path of a file."""
        return self.folder / self.paths[number]

    @property
    def digest(self) -> str:
        """A hash of the names and sizes of the files: it shows that some changed."""
        digest = hashlib.sha256()
        for path in self.paths:
            digest.update(f"{path}\0{os.lstat(self.folder / path).st_size}\n".encode())
        return digest.hexdigest()


def find_images(folder: Path) -> tuple[Files, Files | None]:
    """Finds the files for training, and those for testing if they are apart.

    Args:
        folder: holds `train` and one of `val`, `valid`, `validation` and `test`, or
            the class folders themselves.

    Raises:
        InputError: if there are no class folders, if one is empty or holds folders, or
            if a class for testing has no training images.
    """
    if not (folder / "train").is_dir():
        return _class_folders(folder), None
    train = _class_folders(folder / "train")
    found = [name for name in TEST_FOLDERS if (folder / name).is_dir()]
    if not found:
        return train, None
    test = _class_folders(folder / found[0])
    strange = sorted({*test.classes} - {*train.classes})
    if strange:
        raise InputError(
            f"{test.folder / strange[0]} is a class that {train.folder} does not have"
        )
    labels = np.array([train.classes.index(name) for name in test.classes], np.int32)
    return train, test._replace(labels=labels[test.labels], classes=train.classes)


def _class_folders(folder: Path) -> Files:
    classes = sorted(each.name for each in _entries(folder) if each.is_dir())
    if not classes:
        raise InputError(f"{folder} holds no folders: it needs one for each class")
    paths, labels = [], []
    for label, name in enumerate(classes):
        entries = _entries(folder / name)
        for each in entries:
            if each.is_dir():
                raise InputError(f"{each.path} is a folder inside a class folder")
        if not entries:
            raise InputError(f"{folder / name} is a class without images")
        paths += sorted(f"{name}/{each.name}" for each in entries)
        labels += [label] * len(entries)
    return Files(folder, tuple(paths), np.array(labels, np.int32), tuple(classes))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [
                each
                for each in entries
                if each.name not in IGNORED and not each.name.startswith(".")
            ]
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}") from error


def each_image(
    description: str, files: Files, function: Callable[[Path], Any]
) -> Iterator[tuple[str, Any]]:
    """A function of every file, in order, by as many threads as there are cores.

    Yields:
        The path of a file, and the function's result, or the `InputError` that it
        raised.
    """

    def attempt(path: str) -> Any:
        try:
            return function(files.folder / path)
        except InputError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = Progress(
            description, pool.map(attempt, files.paths), len(files.paths)
        )
        yield from zip(files.paths, results, strict=True)


class ImageFiles:
    """Images that are read when they are needed, as an array, (images, size, size, 3).

    A slice, or an array of numbers, takes some of them, and reads none;
    `numpy.asarray` reads them all, by threads.

    Args:
        files: their files.
        size: pixels on each side.
        skip: whether another image of the class takes the place of one that cannot be
            read, with a warning; otherwise that is an error.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, files: Files, size: int, *, skip: bool = False):
        self.files, self.size, self.skip = files, size, skip

    def __len__(self) -> int:
        return len(self.files.paths)

    @property
    def shape(self) -> tuple[int, ...]:
        """As of an array."""
        return len(self), self.size, self.size, 3

    def __getitem__(self, chosen: slice | np.ndarray) -> "ImageFiles":
        files = self.files.take(np.arange(len(self))[chosen])
        return ImageFiles(files, self.size, skip=self.skip)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        del dtype, copy
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return np.stack([*pool.map(self.read, range(len(self)))])

    def read(self, number: int, crop: Crop = centre) -> np.ndarray:
        """Reads one image, uint8, (size, size, 3).

        Args:
            number: its number.
            crop: function of an image and a size to the pixels.

        Raises:
            InputError: if it cannot be read.
        """
        for each in self._in_its_place(number):
            try:
                return crop(open_image(self.files.path(each)), self.size)
            except InputError as error:
                if not self.skip:
                    raise InputError(f"{error}{SKIP}") from error
                _warn_once(f"left out: {error}")
        name = self.files.classes[self.files.labels[number]]
        raise InputError(f"{self.files.folder / name} has no image that can be read")

    def _in_its_place(self, number: int) -> Iterator[int]:
        """An image, and the others of its class from there on."""
        yield number
        (alike,) = np.nonzero(self.files.labels == self.files.labels[number])
        yield from np.roll(alike, -np.searchsorted(alike, number))[1:]


def read_all(images: ImageFiles) -> tuple[np.ndarray, Files]:
    """Reads images at once, and leaves out those that cannot be read.

    Returns:
        The images, uint8, (images, size, size, 3), and their files.

    Raises:
        InputError: if one is bad and none is to be skipped, or a class has no other.
    """
    found, kept, files = [], [], images.files
    read = each_image(
        "reading images", files, lambda path: centre(open_image(path), images.size)
    )
    for number, (_, result) in enumerate(read):
        if not isinstance(result, InputError):
            found.append(result)
            kept.append(number)
        elif not images.skip:
            raise InputError(f"{result}{SKIP}")
        else:
            _warn_once(f"left out: {result}")
    lost = np.setdiff1d(files.labels, files.labels[kept])
    if len(lost):
        empty = files.folder / files.classes[lost[0]]
        raise InputError(f"{empty} has no image that can be read")
    return np.stack(found), files.take(np.array(kept))


def read_folder(folder: Path, size: int, *, skip: bool) -> tuple[Split, Split]:
    """The images for training and for testing; a fifth of them if none are apart.

    Those of a small folder are read at once, and others as `ImageFiles`.

    Args:
        folder: the folder, as `find_images` takes it.
        size: pixels on each side, to which the central squares are resized.
        skip: whether to leave out files that cannot be read.

    Raises:
        InputError: if the folder has not the form, or a file cannot be read.
    """
    found = [files for files in find_images(folder) if files is not None]
    images = [ImageFiles(files, size, skip=skip) for files in found]
    splits: list[Any] = [(each, each.files.labels) for each in images]
    if sum(math.prod(each.shape) for each in images) <= SMALL:
        read = [read_all(each) for each in images]
        splits = [(each, files.labels) for each, files in read]
    train, *test = (Split(*each) for each in splits)
    number = len(train.labels)
    if not test:
        return divide(train, number - max(round(TEST_SHARE * number), 1))
    order = np.random.default_rng(0).permutation(number)  # they come by class
    return Split(*(each[order] for each in train)), test[0]


def about_folder(folder: Path) -> tuple[tuple[str, ...], str]:
    """The names of the classes, and a hash of the names and sizes of all files."""
    found = [files for files in find_images(folder) if files is not None]
    return found[0].classes, "".join(files.digest for files in found)


@functools.cache
def _warn_once(message: str) -> None:
    print(f"smoothout: warning: {message}", file=sys.stderr)
