"""`smoothout landscape`: the loss around the networks of checkpoints, or between."""

import re
from pathlib import Path
from typing import Any

import jax
from matplotlib.figure import Figure

from smoothout_jax import exclude
from smoothout_jax.experiments.measure_settings import LandscapeSettings
from smoothout_jax.experiments.options import InputError
from smoothout_jax.experiments.training.checkpoints import (
    labels,
    load_checkpoint,
    save_figure,
)
from smoothout_jax.experiments.training.task import UNITS, Task
from smoothout_jax.landscape import (
    direction_between,
    filter_normalized_direction,
    line_points,
    loss_curve,
    loss_surface,
)
from smoothout_jax.plots import plot_curve, plot_side_by_side, plot_surface
from smoothout_jax.sharpness import hessian_eigenvalues


def run(settings: LandscapeSettings) -> tuple[None, list[Path]]:
    """Runs `smoothout landscape`: nothing to print, and the paths written."""
    checkpoints = labels(
        [load_checkpoint(path, settings.data_dir) for path in settings.checkpoints]
    )
    for checkpoint in checkpoints.values():
        seeds = checkpoint.settings.all_seeds
        if settings.seed is not None and settings.seed not in seeds:
            raise InputError(
                f"seed={settings.seed}: checkpoint {checkpoint.path} holds the networks"
                f" of seeds {seeds[0]} to {seeds[-1]}"
            )
    draw = {"surface": _surface, "curve": _curve, "between": _between}
    return None, draw[settings.kind](settings, checkpoints)


def _surface(settings, checkpoints) -> list[Path]:
    counts = settings.points
    points = _points(settings, counts[0]), _points(settings, counts[-1])
    landscapes, paths = _around(settings, checkpoints, 2, loss_surface, points)
    contours = plot_side_by_side(landscapes, quantity="train loss", units=UNITS)
    return [
        *paths,
        *save_figure(contours[0].figure, settings.output / "contours"),
        *save_figure(_solid(landscapes), settings.output / "surface"),
    ]


def _curve(settings, checkpoints) -> list[Path]:
    points = _points(settings, settings.points[0])
    landscapes, paths = _around(settings, checkpoints, 1, loss_curve, points)
    ax = plot_curve(landscapes, units=UNITS)
    return [*paths, *save_figure(ax.figure, settings.output / "curve")]


def _around(settings, checkpoints, num_directions: int, function, points):
    """The landscape around each network, by its label, and the files of them."""
    landscapes, paths = {}, []
    for label, checkpoint in checkpoints.items():
        task, (params, stats) = (
            Task(checkpoint.settings),
            _network(settings, checkpoint),
        )
        directions = _directions(settings, task, params, stats, num_directions)
        paths.append(settings.output / f"{settings.kind}-{_slug(label)}.npz")
        landscapes[label] = _evaluate(
            function,
            settings,
            task,
            (params, stats),
            directions if num_directions > 1 else directions[0],
            points,
            paths[-1],
        )
    return landscapes, paths


def _between(settings, checkpoints) -> list[Path]:
    (one_label, one), (other_label, other) = checkpoints.items()
    params, stats = _network(settings, one)
    try:
        direction = direction_between(params, _network(settings, other)[0])
    except ValueError as error:
        raise InputError(
            f"checkpoint {other.path} holds another network than {one.path}: {error}"
        ) from error
    task = Task(one.settings)
    if task.batch_norm and settings.statistics == "kept":
        raise InputError(
            "between two networks with BatchNorm statistics cannot be kept: give"
            " --statistics re-estimated"
        )
    path = settings.output / f"between-{_slug(one_label)}-{_slug(other_label)}.npz"
    landscape = _evaluate(
        loss_curve,
        settings,
        task,
        (params, stats),
        direction,
        _points(settings, settings.points[0]),
        path,
    )
    ax = plot_curve(landscape, units=UNITS)
    ax.set_xlabel(f"from {one_label} (0) to {other_label} (1)")
    return [path, *save_figure(ax.figure, settings.output / "between")]


def _network(settings, checkpoint) -> tuple[Any, Any]:
    """Parameters and statistics of the network that is drawn."""
    seeds = checkpoint.settings.all_seeds
    return checkpoint.network(seeds[0] if settings.seed is None else settings.seed)


def _evaluate(function: Any, settings, task, network, direction, points, path):
    """A landscape of loss and accuracy, with BatchNorm's statistics as was asked."""
    params, stats = network
    quantities, options = task.quantities_with(stats), {}
    if task.batch_norm:
        options["note"] = f"BatchNorm statistics {settings.statistics}"
        if settings.statistics == "re-estimated":
            quantities = task.quantities
            options["statistics"] = task.batch_statistics
    try:
        return function(
            quantities,
            params,
            direction,
            points,
            batches=task.sets,
            path=path,
            **options,
        )
    except ValueError as error:
        if str(path) not in str(error):
            raise
        raise InputError(str(error)) from error


def _points(settings: LandscapeSettings, number: int):
    low, high = settings.limits
    return line_points(low, high, number, spacing=settings.spacing)


def _directions(settings, task, params, stats, number: int) -> list[Any]:
    if settings.directions == "eigenvectors":
        pairs = hessian_eigenvalues(
            task.loss_with(stats),
            params,
            num_eigenvalues=number,
            batches=task.sets["train"],
        )
        return [pairs.vector(index) for index in range(number)]
    keys = jax.random.split(jax.random.key(settings.direction_seed), number)
    relative_to = None if settings.relative_to == "none" else settings.relative_to
    mask = exclude(*settings.exclude) if settings.exclude else None
    return [
        filter_normalized_direction(key, params, relative_to=relative_to, mask=mask)
        for key in keys
    ]


def _solid(landscapes) -> Figure:
    """The surfaces in three dimensions, beside each other."""
    figure = Figure(figsize=(4.5 * len(landscapes), 4), layout="constrained")
    options: dict[str, Any] = {"projection": "3d"}
    for index, (label, landscape) in enumerate(landscapes.items(), start=1):
        ax = figure.add_subplot(1, len(landscapes), index, **options)
        options["sharez"] = figure.axes[0]
        plot_surface(landscape, quantity="train loss", units=UNITS, ax=ax)
        ax.set_title(label)
    return figure


def _slug(label: str) -> str:
    """A label as a part of a file's name."""
    return re.sub(r"\W+", "-", label).strip("-").lower()
