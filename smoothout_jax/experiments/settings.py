"""What the commands run on: every setting, checked before any work is done."""

import dataclasses
import math
import tempfile
from pathlib import Path
from typing import Any

from smoothout_jax import _checks, exclude

MEASURES = ("expected", "keskar", "sam", "eigenvalue", "trace")
KINDS = ("auto", "surface", "curve", "between")
DEFAULT_METHODS = ("sgd", "smoothout", "adasmoothout", "sam")
METHODS = (*DEFAULT_METHODS, "split", "two-sided", "mix", "gaussian")
# Training images that there are, by data set; of a folder of npz files nobody knows.
TRAINING_IMAGES = {
    "digits": 1787,
    "mnist1d": 4000,
    "mnist": 60_000,
    "fashion-mnist": 60_000,
    "cifar10": 50_000,
    "cifar100": 50_000,
    "npz": None,
}
DEFAULT_OUTPUT = Path("smoothout-results")


class InputError(ValueError):
    """A file given to a command cannot be used: told in a line, without a traceback."""


def option(default, help, metavar=None, choices=None):
    """A field of the settings, which is an option of the command too."""
    metadata = {"help": help, "metavar": metavar, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


def argument(help, metavar):
    """A field of the settings that the command takes by its place."""
    return dataclasses.field(metadata={"help": help, "metavar": metavar})


def prepare_folder(path: Path) -> None:
    """Makes a folder, and sees that files can be written there.

    Raises:
        OSError: if not.
    """
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path):
        pass


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of `smoothout compare`; each is an option of the command.

    Raises:
        TypeError, ValueError: when one is out of its range, or two do not fit.
    """

    data: str = option(
        "digits",
        "data set: scikit-learn's digits; MNIST-1D, which is generated; those of the"
        " other names, read from the data folder; or npz, for the files train.npz and"
        " test.npz in it, each of arrays images and labels",
        choices=tuple(TRAINING_IMAGES),
    )
    data_dir: Path = option(
        Path("data"),
        "folder of the data sets: mnist and fashion-mnist (IDX files),"
        " cifar-10-batches-bin and cifar-100-binary in it, or npz files",
        "FOLDER",
    )
    methods: tuple[str, ...] = option(
        DEFAULT_METHODS,
        f"methods to compare, of {', '.join(METHODS)}; SGD, the baseline of the paired"
        " differences, always runs. Split: copies of AdaSmoothOut, each on its part of"
        " the batch. Two-sided: a pair at opposite noises. Mix: half the batch at clean"
        " weights. Gaussian: rising noise, LPF-SGD's",
        "METHOD",
    )
    seeds: int = option(
        10, "number of seeds, at least 2; a seed fixes initial parameters and batches"
    )
    steps: int = option(1000, "updates of the parameters, the same for every method")
    batch_size: int = option(100, "training images in each batch")
    train_size: int | None = option(
        None, "training images; by default 500 of the digits, and all of other data"
    )
    hidden_sizes: tuple[int, ...] = option(
        (100, 100), "widths of the hidden layers", "WIDTH"
    )
    learning_rate: float = option(
        0.1, "peak learning rate; it falls to zero along a cosine"
    )
    momentum: float = option(0.9, "momentum of SGD, which every method is built on")
    weight_decay: float = option(0.0, "weight decay, coupled with the gradient")
    radius: float = option(
        0.1, "radius of SmoothOut: half-width of the uniform noise in every weight"
    )
    relative_radius: float = option(
        0.5, "radius of AdaSmoothOut: noise norm over weight norm, in every filter"
    )
    rho: float = option(0.3, "radius ρ of SAM's ball")
    copies: int = option(4, "perturbed copies between which split divides the batch")
    std: float = option(
        0.05,
        "standard deviation of the Gaussian noise at the end of training, over the norm"
        " of each filter; it rises from a twentieth of that along a cosine",
    )
    noise_radius: float = option(
        0.5, "relative radius of the noise under which the rise of the loss is measured"
    )
    noise_samples: int = option(50, "samples of that noise for each network")
    output: Path = option(
        DEFAULT_OUTPUT, "folder for the results and pictures", "FOLDER"
    )

    def __post_init__(self):
        for method in self.methods:
            _checks.choice(METHODS, methods=method)
        chosen = tuple(m for m in METHODS if m == "sgd" or m in self.methods)
        object.__setattr__(self, "methods", chosen)
        _checks.count(
            seeds=self.seeds,
            steps=self.steps,
            batch_size=self.batch_size,
            copies=self.copies,
            noise_samples=self.noise_samples,
        )
        for width in self.hidden_sizes:
            _checks.count(hidden_sizes=width)
        for name in ("learning_rate", "momentum", "weight_decay", "radius"):
            _checks.nonnegative(**{name: getattr(self, name)})
        for name in ("relative_radius", "rho", "std", "noise_radius"):
            _checks.nonnegative(**{name: getattr(self, name)})
        if self.seeds < 2:
            raise ValueError(
                f"seeds must be at least 2 for a standard error, got {self.seeds}"
            )
        for method, parts in (("split", self.copies), ("mix", 2)):
            if method in chosen and self.batch_size % parts:
                raise ValueError(
                    f"batch_size={self.batch_size} does not divide into the {parts}"
                    f" parts of {method}"
                )
        self._check_sizes()

    def _check_sizes(self) -> None:
        """Sees that there are so many training images, where that is known."""
        _checks.choice(tuple(TRAINING_IMAGES), data=self.data)
        available = TRAINING_IMAGES[self.data]
        if self.train_size is None:
            object.__setattr__(
                self, "train_size", 500 if self.data == "digits" else available
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
        if self.batch_size > self.train_size:
            raise ValueError(
                f"batch_size={self.batch_size} is larger than"
                f" train_size={self.train_size}"
            )

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON holds them, but for the folders of one machine."""
        settings = dataclasses.asdict(self)
        del settings["output"], settings["data_dir"]
        return settings

    @classmethod
    def from_json(cls, settings: dict[str, Any], data_dir: Path) -> "Settings":
        """The settings that `to_json` gave, with the folder of data on this machine."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in settings.items()
        }
        return cls(**values, data_dir=data_dir)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharpnessSettings:
    """Settings of `smoothout sharpness`.

    Raises:
        TypeError, ValueError: when one is out of its range.
    """

    checkpoints: tuple[Path, ...] = argument(
        "checkpoints of smoothout compare", "CHECKPOINT"
    )
    measures: tuple[str, ...] = option(
        MEASURES,
        f"measures of sharpness, of the training loss: {', '.join(MEASURES)}",
        "MEASURE",
    )
    per_layer: bool = option(False, "measure each layer too")
    noise_radius: float = option(
        0.5, "expected sharpness: radius of uniform noise relative to filters"
    )
    noise_samples: int = option(100, "expected sharpness: samples of the noise")
    epsilon: float = option(5e-4, "Keskar's sharpness: size ε of the box")
    rho: float = option(0.3, "SAM's sharpness: radius ρ of the ball")
    repetitions: int = option(5, "Keskar's and SAM's sharpness: random starts")
    probes: int = option(100, "trace of the Hessian: random vectors")
    data_dir: Path = option(
        Path("data"), "folder of the data that the networks were trained on", "FOLDER"
    )
    output: Path = option(
        Path("smoothout-sharpness"), "folder for the table and pictures", "FOLDER"
    )

    def __post_init__(self):
        for measure in self.measures:
            _checks.choice(MEASURES, measures=measure)
        chosen = tuple(name for name in MEASURES if name in self.measures)
        object.__setattr__(self, "measures", chosen)
        _checks.count(
            noise_samples=self.noise_samples,
            repetitions=self.repetitions,
            probes=self.probes,
        )
        _checks.positive(
            noise_radius=self.noise_radius, epsilon=self.epsilon, rho=self.rho
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LandscapeSettings:
    """Settings of `smoothout landscape`.

    Raises:
        TypeError, ValueError: when one is out of its range, or two do not fit.
    """

    checkpoints: tuple[Path, ...] = argument(
        "checkpoints of smoothout compare", "CHECKPOINT"
    )
    kind: str = option(
        "auto",
        "what to draw; auto draws the line between two networks, and the surfaces of"
        " one, or of several beside each other",
        choices=KINDS,
    )
    directions: str = option(
        "random",
        "random directions, or the leading eigenvectors of the training loss's Hessian",
        choices=("random", "eigenvectors"),
    )
    relative_to: str = option(
        "filter",
        "what random directions are normalised to",
        choices=("filter", "layer", "weight", "none"),
    )
    exclude: tuple[str, ...] = option(
        (), "regular expressions of parameters that stay, such as bias", "PATTERN"
    )
    seed: int = option(0, "which of a checkpoint's networks")
    direction_seed: int = option(0, "seed of the random directions")
    points: tuple[int, ...] = option(
        (41,), "number of points, or numbers along either direction", "NUMBER"
    )
    range: tuple[float, ...] = option(
        (),
        "first and last coordinate, in lengths of the direction; by default -1 1, and"
        " -0.5 1.5 between two networks",
        "END",
    )
    spacing: str = option("linear", "spacing of the points", choices=("linear", "sine"))
    data_dir: Path = option(
        Path("data"), "folder of the data that the networks were trained on", "FOLDER"
    )
    output: Path = option(
        Path("smoothout-landscape"), "folder for the pictures and arrays", "FOLDER"
    )

    def __post_init__(self):
        _checks.choice(KINDS, kind=self.kind)
        kind = self.kind
        if kind == "auto":
            kind = "between" if len(self.checkpoints) == 2 else "surface"
            object.__setattr__(self, "kind", kind)
        if kind == "between" and len(self.checkpoints) != 2:
            raise ValueError(
                f"kind='between' needs two checkpoints, got {len(self.checkpoints)}"
            )
        most = 2 if kind == "surface" else 1
        if not 1 <= len(self.points) <= most:
            raise ValueError(
                f"points: kind={kind!r} needs one number{' or two' * (most == 2)}, got"
                f" {len(self.points)}"
            )
        for number in self.points:
            if number < 2:
                raise ValueError(f"points must be at least 2, got {number}")
        if self.exclude:
            exclude(*self.exclude)  # tells of patterns that are none
        for name in ("seed", "direction_seed"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"{name} must be at least 0, got {getattr(self, name)}"
                )
        low, high = self.limits
        if not -math.inf < low < high < math.inf:
            raise ValueError(f"range must increase, got {low} {high}")

    @property
    def limits(self) -> tuple[float, float]:
        """First and last coordinate on each axis."""
        if len(self.range) not in (0, 2):
            raise ValueError(f"range must be two numbers, got {len(self.range)}")
        default = (-0.5, 1.5) if self.kind == "between" else (-1.0, 1.0)
        low, high = self.range or default
        return low, high
