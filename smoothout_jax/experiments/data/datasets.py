"""Data sets: arrays of images and labels, split for training and testing.

`DATA_SETS` is the table of them: a new data set is a new row.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from smoothout_jax import _checks
from smoothout_jax.experiments.data import packaged
from smoothout_jax.experiments.data.checks import check_images, check_labels
from smoothout_jax.experiments.data.image_folder import (
    about_folder,
    read_folder,
)
from smoothout_jax.experiments.data.parts import (
    Dataset,
    divide,
    hold_out,
    with_wrong_labels,
)
from smoothout_jax.experiments.data.readers import (
    Split,
    npz_classes,
    read_cifar_folder,
    read_idx_folder,
    read_npz_folder,
)
from smoothout_jax.experiments.options import (
    InputError,
    Settings,
    check_not_negative,
    option,
)


class Source(NamedTuple):
    """A row of the table: where a data set comes from.

    Attributes:
        read: function of the folder of the data sets to the training and the test
            images; without test images, those that are not drawn for training serve.
        training_images: how many training images it has; `None` if only its files say.
        train_size: how many are drawn for training by default; `None` for all.
        standardize: whether to standardize images by those for training, or to take
            them as they are.
        about: function of the folder to the names of the classes, and a hash by which
            the files are recognised.
    """

    read: Callable[[Path], tuple[Split, Split | None]]
    training_images: int | None = None
    train_size: int | None = None
    standardize: bool = True
    about: Callable[[Path], tuple[tuple[str, ...], str]] = lambda data_dir: ((), "")


def _mnist(data_dir: Path) -> tuple[Split, Split]:
    return read_idx_folder(data_dir / "mnist")


def _fashion_mnist(data_dir: Path) -> tuple[Split, Split]:
    folder = data_dir / "fashion-mnist"
    debian = Path("/usr/share/datasets/fashion-mnist")
    return read_idx_folder(folder if folder.exists() else debian)


def _cifar10(data_dir: Path) -> tuple[Split, Split]:
    return read_cifar_folder(data_dir / "cifar-10-batches-bin", 10)


def _cifar100(data_dir: Path) -> tuple[Split, Split]:
    return read_cifar_folder(data_dir / "cifar-100-binary", 100)


DATA_SETS = {
    "digits": Source(packaged.digits, 1787, train_size=500, standardize=False),
    "digit-pairs": Source(packaged.digit_pairs, 4000, standardize=False),
    "text": Source(packaged.text, standardize=False),
    "mnist1d": Source(packaged.mnist1d, 4000, standardize=False),
    "mnist": Source(_mnist, 60_000),
    "fashion-mnist": Source(_fashion_mnist, 60_000),
    "cifar10": Source(_cifar10, 50_000),
    "cifar100": Source(_cifar100, 50_000),
    "npz": Source(read_npz_folder, about=lambda data_dir: (npz_classes(data_dir), "")),
}
# How many images of a folder show the mean and deviation of its channels.
SAMPLE = 500
# Settings that hold training images out, in this order.
HELD_OUT = "validation_size", "watch_size", "heldout_size"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings(Settings):
    """Settings that choose the data.

    Raises:
        TypeError, ValueError: if a value is out of its range, or two values conflict.
    """

    group: ClassVar[str] = "data"

    data: str = option(
        "digits",
        "data set: scikit-learn's digits; digit-pairs, with 100 classes; text, the next"
        " character of scikit-learn's descriptions; mnist1d, which is generated; mnist,"
        " fashion-mnist, cifar10 or cifar100, read from the data folder; npz, for the"
        " files train.npz and test.npz in it, each with arrays images and labels; or a"
        " folder of images, with train and val in it, or a folder for each class, for"
        " which the network is cnet of width 12, and sgd's learning rate 0.03, unless"
        " they are given",
        "NAME|FOLDER",
        common=True,
    )
    data_dir: Path = option(
        Path("data"),
        "folder of the data sets, with mnist and fashion-mnist (IDX files),"
        " cifar-10-batches-bin and cifar-100-binary in it, or npz files",
        "FOLDER",
        machine=True,
        common=True,
    )
    image_size: int = option(
        32,
        "pixels on each side to which images of a folder are resized, by the shorter"
        " side, and cropped, in the centre",
        common=True,
    )
    bad_images: Literal["refuse", "skip"] = option(
        "refuse", "what to do with files of a folder that are no images, or damaged"
    )
    train_size: int | None = option(
        None,
        "training images; by default 500 of the digits and all of other data",
        common=True,
    )
    validation_size: int = option(
        0,
        "training images to hold out, which take the place of the test images: to"
        " choose settings on",
    )
    label_noise: float = option(
        0.0,
        "fraction of the training labels of each class, held out or not, to make"
        " wrong; the test labels stay right",
    )
    label_noise_kind: Literal["symmetric", "pair"] = option(
        "symmetric",
        "what wrong labels become: any of the other classes, or the next one (pair"
        " flip)",
    )
    watch_size: int = option(
        0,
        "training images to hold out and watch, beside the test images: train logs the"
        " accuracy on them, and compare adds the test accuracy of the time at which it"
        " was highest",
    )
    heldout_size: int | None = option(
        None,
        "training images to hold out from all methods, to measure the gap of"
        " --loss-rise gap on, which by default is measured on those of --watch-size, or"
        " else on a tenth of the training images",
    )

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.label_noise < 1:
            raise ValueError(f"label_noise must be in [0, 1), got {self.label_noise}")
        _checks.count(image_size=self.image_size)
        if self.data not in DATA_SETS:
            if not Path(self.data).is_dir():
                raise ValueError(
                    f"data must be one of {', '.join(DATA_SETS)}, or a folder of"
                    f" images; got {self.data!r}"
                )
            self._set(data=str(Path(self.data).resolve()))
        source = self.source
        available = source.training_images
        if self.train_size is None:
            self._set(train_size=source.train_size or available)
        check_not_negative(
            validation_size=self.validation_size,
            watch_size=self.watch_size,
            **self._given("heldout_size"),
        )
        if self.train_size is None:
            return
        _checks.count(train_size=self.train_size)
        if self.train_size < 10:
            raise ValueError(
                f"train_size must be at least 10, one image of each class, got"
                f" {self.train_size}"
            )
        if available and self.train_size > available:
            raise ValueError(
                f"train_size={self.train_size} is more than the {available} images that"
                f" {self.data} has for training"
            )
        left = self.train_size
        for name in HELD_OUT:
            size = getattr(self, name)
            if size and not 10 <= size <= left - 10:
                raise ValueError(
                    f"{name}={size} must leave at least 10 of {left} training images"
                    " to either part"
                )
            left -= size or 0

    @property
    def source(self) -> Source:
        """Where the data come from."""
        if self.data in DATA_SETS:
            return DATA_SETS[self.data]
        folder, skip = Path(self.data), self.bad_images == "skip"
        return Source(
            lambda data_dir: read_folder(folder, self.image_size, skip=skip),
            about=lambda data_dir: about_folder(folder),
        )

    @property
    def needs_heldout(self) -> bool:
        """Whether images are held out to measure the gap to the training loss."""
        return False


def prepare(settings: DataSettings) -> Dataset:
    """Loads a data set, makes labels wrong and holds images out, as the settings say.

    Raises:
        InputError: if the data cannot be read, or do not suffice.
    """
    return held_out_for_gap(whole(settings), settings)


def whole(settings: DataSettings) -> Dataset:
    """The same with the images to measure the gap on among those for training."""
    data = load(settings.data, settings.data_dir, settings.train_size, settings.source)
    data = with_wrong_labels(data, settings.label_noise, settings.label_noise_kind)
    data = hold_out(data, validation_size=settings.validation_size)
    return hold_out(data, watch_size=settings.watch_size)


def held_out_for_gap(data: Dataset, settings: DataSettings) -> Dataset:
    """The data with the images held out to measure the gap on, if that is needed."""
    if not settings.needs_heldout:
        return data
    tenth = max(-(-len(data.train_labels) // 10), data.num_classes)
    return hold_out(data, heldout_size=settings.heldout_size or tenth)


def load(
    name: str, data_dir: Path, size: int | None, source: Source | None = None
) -> Dataset:
    """Loads a data set.

    Args:
        name: its name.
        data_dir: folder of the data sets that are read from files.
        size: number of training images, a fixed draw with the classes in proportion;
            `None` for all.
        source: where it comes from; by default as `DATA_SETS` has it.

    Returns:
        The data set. Where its source says so, images are standardized by the training
        images: mean 0 and variance 1 in each channel.

    Raises:
        InputError: if a file is missing, damaged or too small, if an image is not
            finite, if the labels do not count the classes from 0, or if training and
            test images differ in shape or scale.
    """
    source = source or DATA_SETS[name]
    train, test = source.read(data_dir)
    if test is None:
        train, test = divide(train, size or source.train_size or 0)
        size = None
    elif name in DATA_SETS:
        check_images(train.images, test.images, name)
    check_labels(train.labels, test.labels, name)
    if size is not None and size != len(train.labels):
        if size > len(train.labels):
            raise InputError(
                f"train_size={size} is more than the {len(train.labels)} images of"
                f" {name} for training"
            )
        train, _ = divide(train, size)
    if not source.standardize:
        data = _dataset(train, test)
    elif name in DATA_SETS:
        data = _standardized(train, test)
    else:
        sample = np.asarray(train.images[:: -(-len(train.labels) // SAMPLE)])
        data = _dataset(train, test)._replace(scaling=_scaling_of_bytes(sample))
    classes, digest = source.about(data_dir)
    return data._replace(classes=classes, digest=digest)


def _scaling(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each channel; 1 where it is constant."""
    axes = tuple(range(images.ndim - 1))
    mean = images.mean(axes, dtype=np.float64).astype(np.float32)
    deviation = images.std(axes, dtype=np.float64).astype(np.float32)
    return mean, np.where(deviation > 0, deviation, np.float32(1))


def _scaling_of_bytes(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same of bytes, in little memory, from how often each value is there."""
    counts = np.zeros((images.shape[-1], 256))
    for image in images:
        for channel, count in enumerate(counts):
            count += np.bincount(image[..., channel].ravel(), minlength=256)
    shares, values = counts / counts.sum(1, keepdims=True), np.arange(256.0)
    mean = shares @ values
    deviation = np.sqrt(shares @ values**2 - mean**2).astype(np.float32)
    return mean.astype(np.float32), np.where(deviation > 0, deviation, np.float32(1))


def _standardized(train: Split, test: Split) -> Dataset:
    """Scales each channel to mean 0 and variance 1 over the training images."""
    mean, deviation = _scaling(train.images)
    scaled = (
        each._replace(images=(each.images - mean) / deviation) for each in (train, test)
    )
    return _dataset(*scaled)._replace(scaling=(mean, deviation))


def _dataset(train: Split, test: Split) -> Dataset:
    labels = np.asarray(train.labels, np.int32)
    return Dataset(
        train_images=_as_float(train.images),
        train_labels=labels,
        test_images=_as_float(test.images),
        test_labels=np.asarray(test.labels, np.int32),
        true_labels=labels,
    )


def _as_float(images: Any) -> Any:
    """Images in float32, but those of bytes, which the task standardizes."""
    return images if images.dtype == np.uint8 else np.asarray(images, np.float32)
