"""What all training, and a comparison, run on: settings, checked before any work."""

import dataclasses
from pathlib import Path
from typing import Any

from smoothout_jax import _checks
from smoothout_jax.experiments.options import option

DEFAULT_METHODS = ("sgd", "smoothout", "adasmoothout", "sam")
METHODS = (
    *DEFAULT_METHODS,
    "msam",
    "smoothout-split",
    "adasmoothout-split",
    "two-sided",
    "mix",
    "gaussian",
    "no-denoising",
    "sgd-split",
)
METHODS_HELP = (
    f"of {', '.join(METHODS)}. Split: each copy takes its part of the batch, and"
    " BatchNorm its statistics there (ghost batches). Two-sided: a pair at opposite"
    " noises. Mix: half the batch at clean weights. Gaussian: LPF-SGD, split, its noise"
    " rising, and in BatchNorm too. No-denoising: the noise stays in the weights"
)
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
NETWORKS = ("mlp", "f1", "cnet", "resnet", "wide-resnet", "vit")
LEARNING_RATES = {"sgd": 0.1, "adam": 1e-3, "adamw": 1e-3}
# What is of one machine, and does not change what is trained.
MACHINE = (
    "output",
    "data_dir",
    "mesh",
    "distributed",
    "coordinator_address",
    "num_processes",
    "process_id",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Settings of training, whatever the method; each is an option of the commands.

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
    train_size: int | None = option(
        None, "training images; 500 of the digits and all of other data if not given"
    )
    validation_size: int = option(
        0,
        "training images that are held out, and take the place of the test images:"
        " to choose settings on",
    )
    network: str = option(
        "mlp",
        "network: a multilayer perceptron; F1, the paper's, with BatchNorm; the shallow"
        " convolutional C net; a residual network; a wide one; or a vision transformer",
        choices=NETWORKS,
    )
    hidden_sizes: tuple[int, ...] = option(
        (), "widths of the hidden layers: 100 100 of mlp, 5 of 512 of f1", "WIDTH"
    )
    depth: int | None = option(
        None, "layers: 6n + 2 of resnet (44), 6n + 4 of wide-resnet (28), of vit (6)"
    )
    width: int | None = option(
        None,
        "channels of the first stage: of cnet (64), resnet (16), wide-resnet (160),"
        " vit (192)",
    )
    steps: int | None = option(
        None, "updates of the parameters; 1000 unless epochs are given"
    )
    epochs: float | None = option(None, "passes over the training images, for steps")
    batch_size: int = option(100, "training images in each batch")
    base_batch_size: int | None = option(
        None, "batch size b that the learning rate and epochs are meant for"
    )
    learning_rate_rule: str = option(
        "none",
        "what multiplies the learning rate at batch size B: sqrt(B/b), or B/b",
        choices=("none", "sqrt", "linear"),
    )
    adapt_epochs: bool = option(
        False, "multiply the epochs by B/b, so that every batch size takes equal steps"
    )
    optimizer: str = option(
        "sgd",
        "optimizer that every method is built on; sgd has momentum",
        choices=tuple(LEARNING_RATES),
    )
    learning_rate: float | None = option(
        None, "peak learning rate; 0.1 of sgd and 0.001 of others if not given"
    )
    schedule: str = option(
        "cosine",
        "learning rate: falls to zero along a cosine, is divided by ten at each"
        " milestone, or stays",
        choices=("cosine", "multistep", "constant"),
    )
    milestones: tuple[float, ...] = option(
        (0.5, 0.75), "milestones of multistep, as fractions of training", "FRACTION"
    )
    warmup: float = option(
        0.0, "fraction of training in which the learning rate rises from zero"
    )
    momentum: float = option(0.9, "momentum of sgd, and first decay of the others")
    weight_decay: float = option(
        0.0, "weight decay; coupled with the gradient but in adamw"
    )
    clip_norm: float | None = option(
        None, "global norm that gradients are clipped at, after averaging copies"
    )
    shift: int = option(0, "augmentation: most pixels by which images are moved")
    flip: bool = option(False, "augmentation: mirror images, each with probability 1/2")
    radius: float = option(
        0.1, "radius of SmoothOut: half-width of the uniform noise in every weight"
    )
    relative_radius: float = option(
        0.5, "radius of AdaSmoothOut: noise norm over weight norm, in every filter"
    )
    radius_schedule: str = option(
        "constant",
        "how the radius of uniform noise changes over training: falls slowly (anneal)"
        " or rises (tanh; cosine, from a twentieth)",
        choices=("constant", "anneal", "tanh", "cosine"),
    )
    rho: float = option(0.3, "radius ρ of SAM's ball")
    msam_rho: float = option(0.3, "length ρ of MSAM's step along the momentum")
    copies: int = option(4, "copies between which the split methods divide the batch")
    std: float = option(
        0.05,
        "standard deviation of the Gaussian noise at the end of training, over the norm"
        " of each filter, or of a whole bias; it rises from a twentieth of that along a"
        " cosine",
    )
    statistics: str = option(
        "re-estimated",
        "BatchNorm statistics that networks are evaluated with: re-estimated at the"
        " clean weights, or the running ones of training",
        choices=("re-estimated", "running"),
    )

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if field.metadata["choices"]:
                value = getattr(self, field.name)
                _checks.choice(field.metadata["choices"], **{field.name: value})
        if self.train_size is None:
            available = TRAINING_IMAGES[self.data]
            self._set(train_size=500 if self.data == "digits" else available)
        if self.learning_rate is None:
            self._set(learning_rate=LEARNING_RATES[self.optimizer])
        if self.steps is not None and self.epochs is not None:
            raise ValueError(
                f"steps={self.steps} and epochs={self.epochs} exclude each other"
            )
        if self.steps is None and self.epochs is None:
            self._set(steps=1000)
        self._check_numbers()
        self._check_sizes()
        self._check_regime()

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _check_numbers(self) -> None:
        for name in ("steps", "batch_size", "copies", "base_batch_size", "depth"):
            if (value := getattr(self, name)) is not None:
                _checks.count(**{name: value})
        for size in self.hidden_sizes:
            _checks.count(hidden_sizes=size)
        if self.width is not None:
            _checks.count(width=self.width)
        names = (
            "learning_rate momentum weight_decay radius relative_radius rho msam_rho"
        )
        for name in (*names.split(), "std"):
            _checks.nonnegative(**{name: getattr(self, name)})
        for name in ("epochs", "clip_norm"):
            if getattr(self, name) is not None:
                _checks.positive(**{name: getattr(self, name)})
        for name in ("shift", "validation_size"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"{name} must be at least 0, got {getattr(self, name)}"
                )
        for name, values in (
            ("warmup", (self.warmup,)),
            ("milestones", self.milestones),
        ):
            for value in values:
                if not 0 <= value < 1:
                    raise ValueError(f"{name} must be in [0, 1), got {value}")

    def _check_sizes(self) -> None:
        """Sees that there are so many training images, where that is known."""
        if self.train_size is None:
            return
        _checks.count(train_size=self.train_size)
        if self.train_size < 10:
            raise ValueError(
                f"train_size must be at least 10, one image of each class, got"
                f" {self.train_size}"
            )
        available = TRAINING_IMAGES[self.data]
        if available and self.train_size > available:
            raise ValueError(
                f"train_size={self.train_size} is more than the {available} images that"
                f" {self.data} has for training"
            )
        if self.validation_size and not (
            10 <= self.validation_size <= self.train_size - 10
        ):
            raise ValueError(
                f"validation_size={self.validation_size} must leave at least 10 of"
                f" train_size={self.train_size} images to either part"
            )
        if self.batch_size > self.train_size - self.validation_size:
            held_out = ""
            if self.validation_size:
                held_out = f" less validation_size={self.validation_size}"
            raise ValueError(
                f"batch_size={self.batch_size} is larger than"
                f" train_size={self.train_size}{held_out}"
            )

    def _check_regime(self) -> None:
        """Sees that settings which only mean something together come together."""
        adapted = self.learning_rate_rule != "none" or self.adapt_epochs
        if adapted and self.base_batch_size is None:
            raise ValueError(
                "learning_rate_rule and adapt_epochs need base_batch_size, the batch"
                " size that the learning rate and epochs are meant for"
            )
        if self.adapt_epochs and self.epochs is None:
            raise ValueError("adapt_epochs needs epochs")
        if self.hidden_sizes and self.network not in ("mlp", "f1"):
            raise ValueError(f"hidden_sizes are of mlp and f1, not of {self.network}")
        if self.depth is not None and self.network in ("mlp", "f1", "cnet"):
            raise ValueError(f"depth: {self.network} has none to choose")
        if self.width is not None and self.network in ("mlp", "f1"):
            raise ValueError(f"width: give hidden_sizes of {self.network}")

    def check_parts(self, method: str) -> None:
        """Sees that the batch divides between a method's copies."""
        split = method.endswith("-split") or method == "gaussian"
        parts = self.copies if split else 2 if method == "mix" else 1
        if self.batch_size % parts:
            raise ValueError(
                f"batch_size={self.batch_size} does not divide into the {parts}"
                f" parts of {method}"
            )

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON holds them, but for those of one machine."""
        settings = dataclasses.asdict(self)
        return {name: value for name, value in settings.items() if name not in MACHINE}

    @classmethod
    def from_json(cls, settings: dict[str, Any], data_dir: Path) -> Any:
        """The settings that `to_json` gave, with the folder of data on this machine."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in settings.items()
        }
        return cls(**values, data_dir=data_dir)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(TrainingSettings):
    """Settings of `smoothout compare`; each is an option of the command.

    Raises:
        TypeError, ValueError: when one is out of its range, or two do not fit.
    """

    methods: tuple[str, ...] = option(
        DEFAULT_METHODS,
        "methods to compare; SGD, the baseline of the paired differences, always runs:"
        f" {METHODS_HELP}",
        "METHOD",
    )
    seeds: int = option(
        10, "number of seeds, at least 2; a seed fixes initial parameters and batches"
    )
    equal_gradients: bool = option(
        False,
        "give methods that take two gradients a step half the steps, so that all take"
        " about the same time",
    )
    noise_radius: float = option(
        0.5, "relative radius of the noise under which the rise of the loss is measured"
    )
    noise_samples: int = option(50, "samples of that noise for each network")
    output: Path = option(
        Path("smoothout-results"), "folder for the results and pictures", "FOLDER"
    )

    def __post_init__(self):
        for method in self.methods:
            _checks.choice(METHODS, methods=method)
        chosen = tuple(m for m in METHODS if m == "sgd" or m in self.methods)
        self._set(methods=chosen)
        _checks.count(seeds=self.seeds, noise_samples=self.noise_samples)
        _checks.nonnegative(noise_radius=self.noise_radius)
        if self.seeds < 2:
            raise ValueError(
                f"seeds must be at least 2 for a standard error, got {self.seeds}"
            )
        super().__post_init__()
        for method in chosen:
            self.check_parts(method)

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """The seeds that networks are trained from."""
        return tuple(range(self.seeds))
