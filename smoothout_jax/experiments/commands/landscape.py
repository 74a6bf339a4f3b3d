"""`smoothout landscape`: draws the loss around networks, or between two."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from smoothout_jax import exclude, flax_filters
from smoothout_jax._axes import add_colorbar, scale_of_colors, with_unit
from smoothout_jax.experiments import interruptions
from smoothout_jax.experiments.commands import Report
from smoothout_jax.experiments.options import InputError, check_not_negative, option
from smoothout_jax.experiments.reporting.figures import save_figure
from smoothout_jax.experiments.trained_networks import (
    Checkpoint,
    Tasks,
    TrainedSettings,
    colors,
)
from smoothout_jax.experiments.training.task import UNITS
from smoothout_jax.landscape import (
    direction_between,
    filter_normalized_direction,
    line_points,
    loss_curve,
    loss_surface,
)
from smoothout_jax.plots import plot_curve, plot_side_by_side, plot_surface
from smoothout_jax.sharpness import hessian_eigenvalues

# Above the minimum of the training loss, in nats: where widths are compared.
RISE = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class LandscapeSettings(TrainedSettings):
    """Settings of `smoothout landscape`."""

    kind: Literal["auto", "surface", "curve", "between"] = option(
        "auto",
        "what to draw; auto draws the line between two networks, otherwise the surface"
        " of each, side by side",
    )
    directions: Literal["random", "eigenvectors"] = option(
        "random",
        "random directions, or the leading eigenvectors of the Hessian of the training"
        " loss",
    )
    exclude: tuple[str, ...] = option(
        (), "regular expressions of parameters to keep fixed, such as bias", "PATTERN"
    )
    seed: int | None = option(
        None, "which network of a checkpoint, by its seed; by default the first"
    )
    statistics: Literal["re-estimated", "kept"] = option(
        "re-estimated", "BatchNorm statistics: re-estimated at every point, or kept"
    )
    direction_seed: int = option(0, "seed of the random directions")
    points: tuple[int, ...] = option(
        (41,), "number of points, or one number for each direction", "NUMBER"
    )
    range: tuple[float, ...] = option(
        (),
        "first and last coordinate, in lengths of the direction; by default -1 1, and"
        " -0.5 1.5 between two networks",
        "END",
    )
    output: Path = option(
        Path("smoothout-landscape"),
        "folder for the pictures and arrays",
        "FOLDER",
        machine=True,
    )

    def __post_init__(self):
        super().__post_init__()
        if self.kind == "auto":
            pair = len(self.checkpoints) == 2
            self._set(kind="between" if pair else "surface")
        if self.kind == "between" and len(self.checkpoints) != 2:
            raise ValueError(
                f"kind='between' needs two checkpoints, got {len(self.checkpoints)}"
            )
        most, needed = (2, " or two") if self.kind == "surface" else (1, "")
        if not 1 <= len(self.points) <= most:
            raise ValueError(
                f"points: kind={self.kind!r} needs one number{needed}, got"
                f" {len(self.points)}"
            )
        if min(self.points) < 2:
            raise ValueError(f"points must be at least 2, got {min(self.points)}")
        if self.exclude:
            exclude(*self.exclude)  # raises if one is not a regular expression
            if self.kind == "between" or self.directions != "random":
                raise ValueError("exclude applies to random directions only")
        check_not_negative(**self._given("seed", "direction_seed"))
        if self.direction_seed >= 2**31:
            raise ValueError(
                f"direction_seed must be in [0, 2³¹), got {self.direction_seed}"
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


def run(settings: LandscapeSettings) -> Report:
    """Draws the landscapes: the paths written."""
    checkpoints = settings.load()
    interruptions.advise(
        "interrupted: the points that were done are kept; to continue, run the same"
        " command again"
    )
    for checkpoint in checkpoints.values():
        seeds = checkpoint.settings.all_seeds
        if settings.seed is not None and settings.seed not in seeds:
            raise InputError(
                f"seed={settings.seed}: checkpoint {checkpoint.path} holds the networks"
                f" of seeds {seeds[0]} to {seeds[-1]}"
            )
    draw = _between if settings.kind == "between" else _around
    return Report(None, draw(settings, checkpoints))


def _around(
    settings: LandscapeSettings, checkpoints: dict[str, Checkpoint]
) -> list[Path]:
    """Draws surfaces or curves around the networks."""
    landscapes, paths, tasks = {}, [], Tasks()
    for label, checkpoint in checkpoints.items():
        task = tasks.of(checkpoint)
        network = _network(settings, checkpoint)
        paths.append(settings.output / f"{settings.kind}-{_slug(label)}.npz")
        directions = _directions(settings, task, *network)
        landscapes[label] = _evaluate(settings, task, network, directions, paths[-1])
    if settings.kind == "curve":
        ax = plot_curve(landscapes, units=UNITS, colors=colors(checkpoints))
        return [*paths, *save_figure(ax.figure, settings.output / "curve")]
    contours = plot_side_by_side(
        landscapes, quantity="train loss", units=UNITS, rise=RISE
    )
    return [
        *paths,
        *save_figure(contours[0].figure, settings.output / "contours"),
        *save_figure(_solid(landscapes), settings.output / "surface"),
    ]


def _between(
    settings: LandscapeSettings, checkpoints: dict[str, Checkpoint]
) -> list[Path]:
    """Draws the line from one network to another."""
    (one_label, one), (other_label, other) = checkpoints.items()
    task = Tasks().of(one)
    params, stats = _network(settings, one)
    try:
        direction = direction_between(params, _network(settings, other)[0])
    except ValueError as error:
        raise InputError(
            f"checkpoint {other.path} holds another network than {one.path}: {error}"
        ) from error
    if task.batch_norm and settings.statistics == "kept":
        raise InputError(
            "between two networks with BatchNorm, statistics cannot be kept: give"
            " --statistics re-estimated"
        )
    path = settings.output / f"between-{_slug(one_label)}-{_slug(other_label)}.npz"
    landscape = _evaluate(settings, task, (params, stats), [direction], path)
    ax = plot_curve(landscape, units=UNITS)
    ax.set_xlabel(f"from {one_label} (0) to {other_label} (1)")
    return [path, *save_figure(ax.figure, settings.output / "between")]


def _network(settings, checkpoint) -> tuple[Any, Any]:
    """Parameters and statistics of the network to draw."""
    seeds = checkpoint.settings.all_seeds
    return checkpoint.network(seeds[0] if settings.seed is None else settings.seed)


def _evaluate(settings: LandscapeSettings, task, network, directions, path: Path):
    """Evaluates loss and accuracy, with BatchNorm statistics as the settings ask."""
    counts = settings.points[0], settings.points[-1]
    points = tuple(line_points(*settings.limits, number) for number in counts)
    params, stats = network
    options: dict[str, Any] = {}
    quantities = task.quantities_with(stats)
    if task.batch_norm:
        options["note"] = f"BatchNorm statistics {settings.statistics}"
        if settings.statistics == "re-estimated":
            quantities = task.quantities
            options["statistics"] = task.batch_statistics
    options |= {"batches": task.sets, "path": path}
    try:
        if len(directions) > 1:
            landscape = loss_surface(quantities, params, directions, points, **options)
        else:
            landscape = loss_curve(
                quantities, params, directions[0], points[0], **options
            )
    except ValueError as error:
        if str(path) not in str(error):
            raise
        raise InputError(str(error)) from error
    finite = np.isfinite(landscape.values["train loss"])
    if finite.sum() < 2:
        raise InputError(
            f"the loss is finite at {finite.sum()} of {finite.size} points: give a"
            " narrower --range"
        )
    return landscape


def _directions(settings: LandscapeSettings, task, params, stats) -> list[Any]:
    number = 2 if settings.kind == "surface" else 1
    if settings.directions == "eigenvectors":
        loss, batches = task.loss_with(stats), task.sets["train"]
        pairs = hessian_eigenvalues(
            loss, params, num_eigenvalues=number, batches=batches
        )
        return [pairs.vector(index) for index in range(number)]
    mask = exclude(*settings.exclude) if settings.exclude else None
    if mask is not None and not any(jax.tree.leaves(mask(params))):
        raise InputError(
            f"exclude {' '.join(settings.exclude)} leaves no parameter to move"
        )
    return [
        filter_normalized_direction(key, params, filter_axis=flax_filters, mask=mask)
        for key in jax.random.split(jax.random.key(settings.direction_seed), number)
    ]


def _solid(landscapes) -> Figure:
    """Draws the surfaces in three dimensions, side by side and on one scale."""
    figure = Figure(figsize=(1.2 + 4.2 * len(landscapes), 4), layout="constrained")
    values = [each.values["train loss"] for each in landscapes.values()]
    norm = Normalize(0, max(np.nanmax(each) for each in values))
    options: dict[str, Any] = {"projection": "3d"}
    for index, (label, landscape) in enumerate(landscapes.items(), start=1):
        ax: Any = figure.add_subplot(1, len(landscapes), index, **options)
        options["sharez"] = figure.axes[0]
        plot_surface(
            landscape,
            quantity="train loss",
            units=UNITS,
            norm=norm,
            colorbar=False,
            ax=ax,
        )
        ax.set_title(label)
        ax.set_zlim(norm.vmin, norm.vmax)
        ax.set_zlabel("")  # the scale of the colours has it
    label = with_unit("train loss", UNITS)
    add_colorbar(scale_of_colors(norm), figure.axes, label)
    return figure


def _slug(label: str) -> str:
    """A label, as part of the name of a file."""
    return re.sub(r"\W+", "-", label).strip("-").lower()
