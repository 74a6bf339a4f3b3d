"""Pictures of landscapes and spectra, in Matplotlib's axes.

Networks differ in colour, by a palette that readers of every colour vision can tell
apart, and data sets in the style of the line.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from smoothout_jax import _checks
from smoothout_jax._extras import require
from smoothout_jax._grid import Landscape
from smoothout_jax.sharpness import SpectralDensity

Units = Mapping[str, str]

# Okabe and Ito's.
PALETTE = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
LINE_STYLES = ("-", "--", ":", "-.")
FIRST, SECOND = "first direction / its length", "second direction / its length"


def plot_curve(
    curves: Landscape | Mapping[str, Landscape],
    *,
    metric: str | None = None,
    units: Units | None = None,
    colors: Mapping[str, str] | None = None,
    ax: Any = None,
) -> Any:
    """Draws the loss on a line on the left axis, and a metric on the right one.

    Args:
        curves: what `loss_curve` returned, or several of them by the network's name.
        metric: quantity for the right axis, such as `"accuracy"`; by default the one
            that is not the loss, if there is one.
        units: units of the quantities, such as `{"loss": "nats", "accuracy": "%"}`.
        colors: colours of the networks by name; by default from a palette.
        ax: Matplotlib's axes to draw on; by default those of a new figure.

    Returns:
        The axes, of the loss.

    Raises:
        ImportError: if Matplotlib is not installed (extra `sharpness`).
        TypeError: if an argument is of another type.
        ValueError: if a landscape has not one axis, or no such quantity.
    """
    _check_style(units=units, colors=colors)
    _check_axes(ax=ax)
    networks = _by_name(curves)
    for curve in networks.values():
        _check_landscape(curve, 1, "curves")
    names = list(next(iter(networks.values())).values)
    metric = _metric(names) if metric is None else metric
    _checks.choice((None, *map(_quantity, names)), metric=metric)
    ax = _new_axes() if ax is None else ax
    right = ax.twinx() if metric else None
    for index, (network, curve) in enumerate(networks.items()):
        for quantity, axis in (("loss", ax), (metric, right)):
            if axis is not None:
                color = (colors or {}).get(network, PALETTE[index % len(PALETTE)])
                alone = len(networks) == 1 and quantity == metric
                _draw_quantity(
                    axis, curve, quantity, network, PALETTE[2] if alone else color
                )
    ax.set_ylabel(_with_unit("loss", units))
    if right is not None:
        right.set_ylabel(_with_unit(metric, units))
    handles = [line for axis in (ax, right) if axis is not None for line in axis.lines]
    ax.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.5, 1),
        ncols=2,
        frameon=False,
        fontsize="small",
    )
    _label_x(ax, "distance / length of the direction", networks.values())
    ax.grid(alpha=0.3)
    return ax


def plot_contour(
    surface: Landscape,
    *,
    quantity: str | None = None,
    units: Units | None = None,
    norm: Any = None,
    colorbar: bool = True,
    ax: Any = None,
) -> Any:
    """Draws a surface as filled contours, with a cross at the parameters.

    Args:
        surface: what `loss_surface` returned.
        quantity: name of the values to draw; by default the first, which is the loss.
        units: units of the quantities, such as `{"loss": "nats"}`.
        norm: Matplotlib's norm of the colours; by default logarithmic for positive
            values of more than one order of magnitude, and linear otherwise.
        colorbar: whether to draw the scale of the colours.
        ax: Matplotlib's axes to draw on; by default those of a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: if Matplotlib is not installed (extra `sharpness`).
        TypeError: if an argument is of another type.
        ValueError: if the landscape has not two axes, no such quantity, or no value.
    """
    _check_style(units=units)
    _check_axes(ax=ax)
    _check_landscape(surface, 2, "surface")
    quantity, values = _values(surface, quantity)
    norm = _norm([values], norm)
    ax = _new_axes() if ax is None else ax
    grid = (*surface.points, values.T)
    levels = np.asarray(norm.inverse(np.linspace(0, 1, 21)))
    filled = ax.contourf(
        *grid, levels=levels, norm=norm, cmap="viridis", extend=_extend(norm, values)
    )
    ax.contour(*grid, levels=levels, norm=norm, colors="white", linewidths=0.4)
    ax.plot(0, 0, "x", color="white", ms=8, mew=2)
    ax.set_facecolor("0.8")  # where the loss overflowed
    ax.set_ylabel(SECOND)
    _label_x(ax, FIRST, [surface])
    if colorbar:
        _add_colorbar(filled, [ax], _with_unit(quantity, units))
    return ax


def plot_side_by_side(
    surfaces: Mapping[str, Landscape],
    *,
    quantity: str | None = None,
    units: Units | None = None,
    axes: Any = None,
) -> Sequence[Any] | np.ndarray:
    """Draws the surfaces of several networks beside each other on one colour scale.

    Args:
        surfaces: what `loss_surface` returned, by the network's name.
        quantity: as for `plot_contour`.
        units: as for `plot_contour`.
        axes: Matplotlib's axes, one for each network; by default those of a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: if Matplotlib is not installed (extra `sharpness`).
        TypeError: if an argument is of another type.
        ValueError: if there is no surface, not one of the axes for each, or as for
            `plot_contour`.
    """
    _check_style(units=units)
    _check_kind(Mapping, "a dict by the network's name", surfaces=surfaces)
    if not surfaces:
        raise ValueError("surfaces is empty")
    for surface in surfaces.values():
        _check_landscape(surface, 2, "surfaces")
    if axes is None:
        figure = require("matplotlib.figure", "sharpness").Figure(
            figsize=(1.2 + 3.2 * len(surfaces), 3.6), layout="constrained"
        )
        axes = figure.subplots(1, len(surfaces), sharey=True, squeeze=False)[0]
    _check_kind((Sequence, np.ndarray), "a sequence of Matplotlib's axes", axes=axes)
    for ax in axes:
        _check_axes(axes=ax)
    if len(axes) != len(surfaces):
        raise ValueError(f"got {len(axes)} axes for {len(surfaces)} surfaces")
    drawn = [_values(surface, quantity) for surface in surfaces.values()]
    norm = _norm([values for _, values in drawn])
    for ax, (network, surface) in zip(axes, surfaces.items(), strict=True):
        plot_contour(surface, quantity=quantity, norm=norm, colorbar=False, ax=ax)
        ax.set_title(network)
        ax.label_outer()
    label = _with_unit(drawn[0][0], units)
    _add_colorbar(axes[0].collections[0], list(axes), label)
    return axes


def plot_surface(
    surface: Landscape,
    *,
    quantity: str | None = None,
    units: Units | None = None,
    norm: Any = None,
    ax: Any = None,
) -> Any:
    """Draws a surface in three dimensions.

    Args:
        surface: what `loss_surface` returned.
        quantity: as for `plot_contour`.
        units: as for `plot_contour`.
        norm: as for `plot_contour`; the height is on the same scale as the colour.
        ax: Matplotlib's axes, of projection `"3d"`; by default those of a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: if Matplotlib is not installed (extra `sharpness`).
        TypeError: if an argument is of another type.
        ValueError: as for `plot_contour`, or if `ax` has no third dimension.
    """
    _check_style(units=units)
    _check_axes(ax=ax)
    _check_landscape(surface, 2, "surface")
    quantity, values = _values(surface, quantity)
    norm = _norm([values], norm)
    ax = _new_axes(projection="3d") if ax is None else ax
    if not hasattr(ax, "plot_surface"):
        raise ValueError(f'ax must have projection="3d"; got {ax!r}')
    logarithmic = isinstance(norm, require("matplotlib.colors", "sharpness").LogNorm)
    heights = np.log10(values) if logarithmic else values
    colormap = require("matplotlib", "sharpness").colormaps["viridis"]
    ax.plot_surface(
        *np.meshgrid(*surface.points, indexing="ij"),
        heights,
        facecolors=colormap(norm(values)),
        rcount=100,
        ccount=100,
        linewidth=0,
        antialiased=True,
    )
    ax.set_box_aspect(None, zoom=0.85)  # leaves room for the labels
    ax.set_ylabel(SECOND)
    label = _with_unit(quantity, units)
    ax.set_zlabel(f"log₁₀ {label}" if logarithmic else label)
    _label_x(ax, FIRST, [surface])
    return ax


def plot_density(
    densities: SpectralDensity | Mapping[str, SpectralDensity],
    *,
    colors: Mapping[str, str] | None = None,
    ax: Any = None,
) -> Any:
    """Draws the density of a Hessian's eigenvalues on a logarithmic scale.

    The band is the density plus and minus twice its standard error.

    Args:
        densities: what `hessian_density` returned, or several by the network's name.
        colors: colours of the networks by name; by default from a palette.
        ax: Matplotlib's axes to draw on; by default those of a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: if Matplotlib is not installed (extra `sharpness`).
        TypeError: if an argument is of another type.
        ValueError: if there is no density.
    """
    _check_style(colors=colors)
    _check_axes(ax=ax)
    networks = _by_name(densities)
    for density in networks.values():
        _check_kind(SpectralDensity, "what hessian_density returned", densities=density)
    ax = _new_axes() if ax is None else ax
    peak = 0.0
    for index, (network, density) in enumerate(networks.items()):
        color = (colors or {}).get(network, PALETTE[index % len(PALETTE)])
        ax.plot(density.eigenvalues, density.density, color=color, label=network)
        ax.fill_between(
            density.eigenvalues,
            density.density - 2 * density.standard_error,
            density.density + 2 * density.standard_error,
            color=color,
            alpha=0.2,
            lw=0,
        )
        peak = max(peak, density.density.max())
    ax.set_yscale("log")
    ax.set_ylim(1e-7 * peak, 2 * peak)
    ax.set_xlabel("eigenvalue of the Hessian (loss / weight²)")
    ax.set_ylabel("density (weight² / loss)")
    if isinstance(densities, Mapping):
        ax.legend(frameon=False)
    ax.grid(alpha=0.3)
    return ax


def _by_name(results) -> dict[str, Any]:
    named = dict(results) if isinstance(results, Mapping) else {"": results}
    if not named:
        raise ValueError("there is nothing to plot: the dict is empty")
    return named


def _check_kind(kind: Any, expected: str, **values: Any) -> None:
    for name, value in values.items():
        if not isinstance(value, kind):
            raise TypeError(f"{name} must be {expected}; got {_checks.describe(value)}")


def _check_style(**options: Any) -> None:
    given = {name: value for name, value in options.items() if value is not None}
    _check_kind(Mapping, "a dict of strings by name", **given)


def _check_axes(**options: Any) -> None:
    given = {name: value for name, value in options.items() if value is not None}
    kind = require("matplotlib.axes", "sharpness").Axes
    _check_kind(kind, "Matplotlib's axes", **given)


def _check_landscape(landscape, num_axes: int, name: str) -> None:
    made_by = {1: "loss_curve", 2: "loss_surface"}[num_axes]
    _check_kind(Landscape, f"what {made_by} returned", **{name: landscape})
    if len(landscape.points) != num_axes:
        raise ValueError(
            f"{name} must have {num_axes} axes of points, got {len(landscape.points)}"
        )


def _new_axes(**options):
    figure = require("matplotlib.figure", "sharpness").Figure(layout="constrained")
    return figure.add_subplot(**options)


def _quantity(name: str) -> str:
    """The quantity of a name, without the data set: `"loss"` of `"train loss"`."""
    return name.split()[-1]


def _metric(names) -> str | None:
    return next((_quantity(name) for name in names if _quantity(name) != "loss"), None)


def _draw_quantity(ax, curve, quantity, network, color) -> None:
    """One line for each data set; a metric's has markers."""
    names = [name for name in curve.values if _quantity(name) == quantity]
    for name, style in zip(names, LINE_STYLES, strict=False):
        ax.plot(
            curve.points[0],
            curve.values[name],
            style,
            color=color,
            marker=None if quantity == "loss" else "o",
            markevery=0.1,
            ms=4,
            label=f"{network}: {name}" if network else name,
        )


def _values(surface, quantity: str | None):
    """The name and the values of a quantity of a surface."""
    names = list(surface.values)
    losses = [name for name in names if _quantity(name) == "loss"]
    quantity = (losses or names)[0] if quantity is None else quantity
    _checks.choice(tuple(names), quantity=quantity)
    values = surface.values[quantity]
    if np.isnan(values).all():
        raise ValueError(f"quantity={quantity!r} has no finite value on the surface")
    return quantity, values


def _norm(values, norm=None):
    """Colours of all the values: on a logarithmic scale where they spread far."""
    colors = require("matplotlib.colors", "sharpness")
    if norm is not None:
        _check_kind(colors.Normalize, "one of matplotlib.colors", norm=norm)
        return norm
    low = min(np.nanmin(array) for array in values)
    high = max(np.nanmax(array) for array in values)
    if high == low:
        high = low + (abs(low) or 1.0)
    kind = colors.LogNorm if 0 < 10 * low < high else colors.Normalize
    return kind(low, high)


def _extend(norm, values) -> str:
    """Which end of the scale of colours some values lie beyond, up to rounding."""
    slack = 1e-6 * (norm.vmax - norm.vmin)
    below = np.nanmin(values) < norm.vmin - slack
    above = np.nanmax(values) > norm.vmax + slack
    return {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[
        int(below), int(above)
    ]


def _with_unit(name, units: Units | None) -> str:
    unit = (units or {}).get(_quantity(name))
    return f"{name} ({unit})" if unit else name


def _add_colorbar(filled, axes, label: str) -> None:
    ticker = require("matplotlib.ticker", "sharpness")
    colors = require("matplotlib.colors", "sharpness")
    logarithmic = isinstance(filled.norm, colors.LogNorm)
    ticks = ticker.LogLocator(subs=(1, 2, 5)) if logarithmic else ticker.MaxNLocator(6)
    bar = axes[0].figure.colorbar(
        filled, ax=axes, label=label, ticks=ticks, format="%g"
    )
    bar.ax.minorticks_off()


def _label_x(ax, label: str, landscapes) -> None:
    """Labels the axis, and says below it what the landscapes note."""
    notes = dict.fromkeys(each.note for each in landscapes if each.note)
    ax.set_xlabel("\n".join((label, *notes)))
