"""What a comparison runs on: every setting, checked before anything is trained."""

import dataclasses
import tempfile
from pathlib import Path

from smoothout_jax import _checks

METHODS = ("sgd", "smoothout", "adasmoothout", "sam")
NUM_EXAMPLES = 1797
DEFAULT_OUTPUT = Path("smoothout-results")


def option(default, help, metavar=None):
    """A field of the settings, which is an option of the command too."""
    return dataclasses.field(
        default=default, metadata={"help": help, "metavar": metavar}
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of `smoothout compare`; each is an option of the command.

    Raises:
        TypeError, ValueError: when one is out of its range, or two do not fit.
    """

    methods: tuple[str, ...] = option(
        METHODS,
        "methods to compare; SGD, the baseline of the paired differences, always runs",
        "METHOD",
    )
    seeds: int = option(
        10, "number of seeds, at least 2; a seed fixes initial parameters and batches"
    )
    steps: int = option(1000, "updates of the parameters, the same for every method")
    batch_size: int = option(100, "training images in each batch")
    train_size: int = option(
        500, f"training images, of {NUM_EXAMPLES}; the others are for testing"
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
    noise_radius: float = option(
        0.5, "relative radius of the noise under which the rise of the loss is measured"
    )
    noise_samples: int = option(50, "samples of that noise for each network")
    output: Path = option(
        DEFAULT_OUTPUT, "folder for the results and pictures", "FOLDER"
    )

    def __post_init__(self):
        unknown = [method for method in self.methods if method not in METHODS]
        if unknown:
            raise ValueError(
                f"methods: unknown method {unknown[0]!r}; choose from"
                f" {', '.join(METHODS)}"
            )
        chosen = tuple(m for m in METHODS if m == "sgd" or m in self.methods)
        object.__setattr__(self, "methods", chosen)
        _checks.count(
            seeds=self.seeds,
            steps=self.steps,
            batch_size=self.batch_size,
            train_size=self.train_size,
            noise_samples=self.noise_samples,
        )
        for width in self.hidden_sizes:
            _checks.count(hidden_sizes=width)
        for name in ("learning_rate", "momentum", "weight_decay", "radius"):
            _checks.nonnegative(**{name: getattr(self, name)})
        for name in ("relative_radius", "rho", "noise_radius"):
            _checks.nonnegative(**{name: getattr(self, name)})
        if self.seeds < 2:
            raise ValueError(
                f"seeds must be at least 2 for a standard error, got {self.seeds}"
            )
        if self.train_size > NUM_EXAMPLES - 10:
            raise ValueError(
                f"train_size={self.train_size} leaves too few of the {NUM_EXAMPLES}"
                " images for testing"
            )
        if self.train_size < 10:
            raise ValueError(
                f"train_size must be at least 10, one image of each class, got"
                f" {self.train_size}"
            )
        if self.batch_size > self.train_size:
            raise ValueError(
                f"batch_size={self.batch_size} is larger than"
                f" train_size={self.train_size}"
            )

    def prepare_output(self) -> None:
        """Makes the output folder, and sees that files can be written there.

        Raises:
            OSError: if not.
        """
        self.output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.output):
            pass
