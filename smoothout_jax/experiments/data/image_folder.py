"""Folders of images, one folder for each class, as ImageNet has them.

photos/train/cat/1.jpg  photos/train/dog/2.png  …  photos/val/cat/3.webp  …
photos/cat/1.jpg  photos/dog/2.png  …                   (split by a fixed draw)
"""

import hashlib
import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from smoothout_jax.experiments.options import InputError
from smoothout_jax.experiments.progress import Progress

TEST_FOLDERS = "val", "valid", "validation", "test"
# Files that operating systems leave in folders; so are those that begin with a dot.
IGNORED = "Thumbs.db", "desktop.ini", "Icon\r"
MOST_PIXELS = 100_000_000
# Ratios of width to height of random crops.
RATIOS = 3 / 4, 4 / 3


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

    @property
    def digest(self) -> str:
        """A hash of the names and sizes of the files: it shows that some changed."""
        digest = hashlib.sha256()
        for path in self.paths:
            digest.update(f"{path}\0{os.stat(self.folder / path).st_size}\n".encode())
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


def open_image(path: Path) -> Image.Image:
    """Reads an image upright, in RGB; what is transparent becomes white.

    Raises:
        InputError: if it is no image, is damaged or empty, cannot be read, or has more
            than 100 million pixels.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MOST_PIXELS:
                raise Image.DecompressionBombError
            image.load()
            return _in_rgb(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{path} has more than {MOST_PIXELS // 10**6} million pixels"
        ) from error
    except Image.UnidentifiedImageError as error:
        empty = path.stat().st_size == 0
        raise InputError(f"{path} is {'empty' if empty else 'no image'}") from error
    except Exception as error:  # Pillow's formats raise errors of any kind
        reason = getattr(error, "strerror", None)
        raise InputError(
            f"{path} cannot be read: {reason}"
            if reason
            else f"{path} is damaged: {error}"
        ) from error


def _in_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    elif image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip
        image = Image.fromarray(
            (np.asarray(image) // 257).clip(0, 255).astype(np.uint8)
        )
    return image.convert("RGB")


def centre(image: Image.Image, size: int) -> np.ndarray:
    """The central square of an image, uint8, (size, size, 3)."""
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return _resized(image, size, (left, top, left + side, top + side))


def random_crop(
    image: Image.Image, size: int, least: float, draw: np.random.Generator
) -> np.ndarray:
    """A random part of an image, resized to uint8, (size, size, 3).

    Args:
        image: the image.
        size: sides of the result, in pixels.
        least: least part of the area, in (0, 1].
        draw: makes the random numbers.

    Reference:
        Szegedy et al., `Going Deeper with Convolutions
        <https://arxiv.org/abs/1409.4842>`_, 2015, section 6.
    """
    width, height = image.size
    for _ in range(10):
        area = width * height * draw.uniform(least, 1)
        ratio = np.exp(draw.uniform(*np.log(RATIOS)))
        across, down = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < across <= width and 0 < down <= height:
            left = draw.integers(width - across, endpoint=True)
            top = draw.integers(height - down, endpoint=True)
            return _resized(image, size, (left, top, left + across, top + down))
    return centre(image, size)


def _resized(image: Image.Image, size: int, box: Any) -> np.ndarray:
    bilinear = Image.Resampling.BILINEAR
    return np.asarray(image.resize((size, size), bilinear, box, reducing_gap=2.0))


def each_image(
    description: str, files: Files, function: Callable[[Path], Any]
) -> Iterable[tuple[str, Any]]:
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


def read_images(files: Files, size: int, *, skip: bool) -> tuple[np.ndarray, Files]:
    """Reads the central squares of images; bad files are an error, or are left out.

    Returns:
        The images, uint8, (images, size, size, 3), and their files.

    Raises:
        InputError: if a file is bad and none is to be skipped, or a class has no other.
    """
    images, kept = [], []
    read = each_image(
        "reading images", files, lambda path: centre(open_image(path), size)
    )
    for number, (_, found) in enumerate(read):
        if not isinstance(found, InputError):
            images.append(found)
            kept.append(number)
        elif not skip:
            raise InputError(f"{found}; --bad-images skip leaves such files out")
        else:
            warn_of(found)
    files = files.take(np.array(kept, int))
    counts = np.bincount(files.labels, minlength=len(files.classes))
    if not counts.all():
        empty = files.folder / files.classes[counts.argmin()]
        raise InputError(f"{empty} is a class without images that can be read")
    return np.stack(images), files


def warn_of(error: InputError) -> None:
    """Says which file is left out."""
    print(f"smoothout: warning: left out: {error}", file=sys.stderr)
