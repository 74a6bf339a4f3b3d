"""`smoothout landscape`: the loss around the networks of checkpoints, or between."""

import re
from pathlib import Path
from typing import Any

import jax
from matplotlib.figure import Figure

from smoothout_jax import (
    Landscape,
    direction_between,
    exclude,
    filter_normalized_direction,
    hessian_eigenvalues,
    line_points,
    loss_curve,
    loss_surface,
    plot_curve,
    plot_side_by_side,
    plot_surface,
)
from smoothout_jax.experiments.checkpoints import labels, load_checkpoint, save_figure
from smoothout_jax.experiments.settings import InputError, LandscapeSettings
from smoothout_jax.experiments.task import UNITS, Task


def run(settings: LandscapeSettings) -> tuple[None, list[Path]]:
    """Runs `smoothout landscape`: nothing to print, and the paths written."""
    checkpoints = labels(
        [load_checkpoint(path, settings.data_dir) for path in settings.checkpoints]
    )
    for checkpoint in checkpoints.values():
        if settings.seed >= checkpoint.settings.seeds:
            raise InputError(
                f"seed={settings.seed}: checkpoint {checkpoint.path} holds the networks"
                f" of seeds 0 to {checkpoint.settings.seeds - 1}"
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
        params, task = checkpoint.network(settings.seed), Task(checkpoint.settings)
        directions = _directions(settings, task, params, num_directions)
        paths.append(settings.output / f"{settings.kind}-{_slug(label)}.npz")
        landscapes[label] = _evaluate(
            function,
            task.quantities,
            params,
            directions if num_directions > 1 else directions[0],
            points,
            path=paths[-1],
        )
    return landscapes, paths


def _between(settings, checkpoints) -> list[Path]:
    (one_label, one), (other_label, other) = checkpoints.items()
    try:
        direction = direction_between(
            one.network(settings.seed), other.network(settings.seed)
        )
    except ValueError as error:
        raise InputError(
            f"checkpoint {other.path} holds another network than {one.path}: {error}"
        ) from error
    path = settings.output / f"between-{_slug(one_label)}-{_slug(other_label)}.npz"
    landscape = _evaluate(
        loss_curve,
        Task(one.settings).quantities,
        one.network(settings.seed),
        direction,
        _points(settings, settings.points[0]),
        path=path,
    )
    ax = plot_curve(landscape, units=UNITS)
    ax.set_xlabel(f"from {one_label} (0) to {other_label} (1)")
    return [path, *save_figure(ax.figure, settings.output / "between")]


def _evaluate(function: Any, *args: Any, path: Path) -> Landscape:
    try:
        return function(*args, path=path)
    except ValueError as error:
        if str(path) not in str(error):
            raise
        raise InputError(str(error)) from error


def _points(settings: LandscapeSettings, number: int):
    low, high = settings.limits
    return line_points(low, high, number, spacing=settings.spacing)


def _directions(settings, task, params, number: int) -> list[Any]:
    if settings.directions == "eigenvectors":
        pairs = hessian_eigenvalues(task.train_loss, params, num_eigenvalues=number)
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
