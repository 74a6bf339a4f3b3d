"""What the commands that look at trained networks run on, checked before any work."""

import dataclasses
import math
from pathlib import Path

from smoothout_jax import _checks, exclude
from smoothout_jax.experiments.options import argument, option

MEASURES = ("expected", "keskar", "sam", "eigenvalue", "trace")
KINDS = ("auto", "surface", "curve", "between")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharpnessSettings:
    """Settings of `smoothout sharpness`.

    Raises:
        TypeError, ValueError: when one is out of its range.
    """

    checkpoints: tuple[Path, ...] = argument(
        "checkpoints of smoothout compare, or folders of smoothout train", "CHECKPOINT"
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
        "checkpoints of smoothout compare, or folders of smoothout train", "CHECKPOINT"
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
    seed: int | None = option(
        None, "which of a checkpoint's networks; the first if not given"
    )
    statistics: str = option(
        "re-estimated",
        "BatchNorm statistics: re-estimated at every point, or kept",
        choices=("re-estimated", "kept"),
    )
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
            if (getattr(self, name) or 0) < 0:
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
