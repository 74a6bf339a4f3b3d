"""Pictures of landscapes and spectra, drawn with Matplotlib.

Networks differ in colour, data sets in line style. Networks named after a method, such
as `"SGD"` or `"AdaSmoothOut"`, have its colour in every picture. The palette is safe
for readers with colour blindness.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from smoothout_jax import _checks
from smoothout_jax._axes import (
    FIRST,
    PALETTE,
    SECOND,
    Units,
    add_colorbar,
    by_name,
    check_axes,
    check_kind,
    check_landscape,
    check_style,
    color_norm,
    colorbar_ends,
    default_metric,
    draw_quantity,
    drawn_label,
    drawn_norm,
    drawn_values,
    label_x,
    network_colors,
    new_axes,
    quantity_of,
    scale_of_colors,
    share_of_plane,
    show_all,
    surface_values,
    with_unit,
)
from smoothout_jax._extras import require
from smoothout_jax._grid import Landscape
from smoothout_jax.sharpness import SpectralDensity

__all__ = [
    "plot_contour",
    "plot_curve",
    "plot_density",
    "plot_side_by_side",
    "plot_surface",
]


def plot_curve(
    curves: Landscape | Mapping[str, Landscape],
    *,
    metric: str | None = None,
    units: Units | None = None,
    colors: Mapping[str, str] | None = None,
    ax: Any = None,
) -> Any:
    """Draws the loss along a line on the left axis, and a metric on the right axis.

    Args:
        curves: a result of `loss_curve`, or a dict of them by network name.
        metric: quantity for the right axis, such as `"accuracy"`; by default the first
            that is not the loss, if any.
        units: units of the quantities, such as `{"loss": "nats", "accuracy": "%"}`.
        colors: colours of the networks by name; by default those of the methods they
            are named after, or others of the palette.
        ax: Matplotlib axes to draw on; by default those of a new figure.

    Returns:
        The axes of the loss.

    Raises:
        ImportError: if Matplotlib is not installed (extra `sharpness`).
        TypeError: if an argument is of another type.
        ValueError: if a landscape does not have one axis, or lacks the quantity.
    """
    check_style(units=units, colors=colors)
    check_axes(ax=ax)
    networks = by_name(curves)
    for curve in networks.values():
        check_landscape(curve, 1, "curves")
    names = list(next(iter(networks.values())).values)
    metric = default_metric(names) if metric is None else metric
    _checks.choice((None, *map(quantity_of, names)), metric=metric)
    ax = new_axes() if ax is None else ax
    right = ax.twinx() if metric else None
    colors = network_colors(networks, colors)
    for network, curve in networks.items():
        for quantity, axis in (("loss", ax), (metric, right)):
            if axis is not None:
                alone = len(networks) == 1 and quantity == metric
                color = PALETTE[2] if alone else colors[network]
                draw_quantity(axis, curve, quantity, network, color)
    ax.set_ylabel(with_unit("loss", units))
    if right is not None:
        right.set_ylabel(with_unit(metric, units))
    handles = [line for axis in (ax, right) if axis is not None for line in axis.lines]
    ax.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.5, 1),
        ncols=2,
        frameon=False,
        fontsize="small",
    )
    label_x(ax, "distance / length of the direction", networks.values())
    ax.grid(alpha=0.3)
    return ax


def plot_contour(
    surface: Landscape,
    *,
    quantity: str | None = None,
    units: Units | None = None,
    rise: float | None = None,
    norm: Any = None,
    colorbar: bool = True,
    ax: Any = None,
) -> Any:
    """Draws a surface as filled contours, with a cross at the parameters.

    Args:
        surface: a result of `loss_surface`.
        quantity: name of the values to draw; by default the first, which is the loss.
        units: units of the quantities, such as `{"loss": "nats"}`.
        rise: draws the rise of the quantity above its lowest value, with a thick
            contour at this rise, say 0.1 nats: the wider the contour, the flatter the
            minimum. Colours are then linear by default, and end at ten times the rise.
            Without it, the quantity itself is drawn, and deeper minima look narrower
            than they are.
        norm: Matplotlib norm of the colours; by default, without `rise`, logarithmic
            for positive values that span more than one order of magnitude, and linear
            otherwise.
        colorbar: whether to draw a colour bar.
        ax: Matplotlib axes to draw on; by default those of a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: if Matplotlib is not installed (extra `sharpness`).
        TypeError: if an argument is of another type.
        ValueError: if the landscape does not have two axes, lacks the quantity, or has
            no finite value, or if the rise is not positive.
    """
    check_style(units=units)
    check_axes(ax=ax)
    check_landscape(surface, 2, "surface")
    quantity, values = drawn_values(surface, quantity, rise)
    norm = drawn_norm([values], rise, norm)
    ax = new_axes() if ax is None else ax
    grid = (*surface.points, values.T)
    levels = np.asarray(norm.inverse(np.linspace(0, 1, 21)))
    filled = ax.contourf(
        *grid,
        levels=levels,
        norm=norm,
        cmap="viridis",
        extend=colorbar_ends(norm, values),
    )
    ax.contour(*grid, levels=levels, norm=norm, colors="white", linewidths=0.4)
    if rise is not None and np.nanmax(values) > rise:
        line = ax.contour(*grid, levels=[rise], colors="white", linewidths=2.5)
        ax.clabel(line, fmt="%g", fontsize="small")
    ax.plot(0, 0, "x", color="white", ms=8, mew=2)
    ax.set_facecolor("0.8")  # where the loss overflowed
    ax.set_ylabel(SECOND)
    label_x(ax, FIRST, [surface])
    if colorbar:
        add_colorbar(filled, [ax], drawn_label(quantity, units, rise))
    return ax


def plot_side_by_side(
    surfaces: Mapping[str, Landscape],
    *,
    quantity: str | None = None,
    units: Units | None = None,
    rise: float | None = None,
    axes: Any = None,
) -> Sequence[Any] | np.ndarray:
    """Draws the surfaces of several networks side by side on one colour scale.

    Args:
        surfaces: results of `loss_surface`, by network name.
        quantity: as for `plot_contour`.
        units: as for `plot_contour`.
        rise: as for `plot_contour`, above each network's own lowest value. The titles
            say how much of the plane lies below it.
        axes: Matplotlib axes, one for each network; by default those of a new figure.

    Returns:
        The axes, which all show the same part of the plane.

    Raises:
        ImportError: if Matplotlib is not installed (extra `sharpness`).
        TypeError: if an argument is of another type.
        ValueError: if there is no surface, or not one of the axes for each; or as for
            `plot_contour`.
    """
    check_style(units=units)
    check_kind(Mapping, "a dict by the network's name", surfaces=surfaces)
    if not surfaces:
        raise ValueError("surfaces is empty")
    for surface in surfaces.values():
        check_landscape(surface, 2, "surfaces")
    if axes is None:
        figure = require("matplotlib.figure", "sharpness").Figure(
            figsize=(1.2 + 2.7 * len(surfaces), 3.4), layout="constrained"
        )
        axes = figure.subplots(1, len(surfaces), sharey=True, squeeze=False)[0]
    check_kind((Sequence, np.ndarray), "a sequence of Matplotlib's axes", axes=axes)
    for ax in axes:
        check_axes(axes=ax)
    if len(axes) != len(surfaces):
        raise ValueError(f"got {len(axes)} axes for {len(surfaces)} surfaces")
    drawn = [drawn_values(surface, quantity, rise) for surface in surfaces.values()]
    norm = drawn_norm([values for _, values in drawn], rise)
    for ax, (network, surface), (name, values) in zip(
        axes, surfaces.items(), drawn, strict=True
    ):
        plot_contour(
            surface, quantity=quantity, rise=rise, norm=norm, colorbar=False, ax=ax
        )
        ax.set_title(network)
        if rise is not None:
            unit = (units or {}).get(quantity_of(name), "")
            share = share_of_plane(surface, values <= rise)
            below = " ".join(("rise below", f"{rise:g}", *unit.split()))
            ax.set_title(f"{network}\n{below} on {share:.0f} %", fontsize="medium")
        ax.label_outer()
    show_all(axes, surfaces.values())
    label = drawn_label(drawn[0][0], units, rise)
    # From a panel whose colours are cut off, if those of any are.
    ends = [colorbar_ends(norm, values) for _, values in drawn]
    widest = max(range(len(ends)), key=lambda index: ends[index] != "neither")
    add_colorbar(axes[widest].collections[0], list(axes), label)
    return axes


def plot_surface(
    surface: Landscape,
    *,
    quantity: str | None = None,
    units: Units | None = None,
    norm: Any = None,
    colorbar: bool = True,
    ax: Any = None,
) -> Any:
    """Draws a surface in three dimensions.

    Args:
        surface: a result of `loss_surface`.
        quantity: as for `plot_contour`.
        units: as for `plot_contour`.
        norm: as for `plot_contour` without a rise; the height is on the same scale as
            the colour.
        colorbar: whether to draw a colour bar.
        ax: Matplotlib axes with projection `"3d"`; by default those of a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: if Matplotlib is not installed (extra `sharpness`).
        TypeError: if an argument is of another type.
        ValueError: as for `plot_contour`, or if `ax` has no third dimension.
    """
    check_style(units=units)
    check_axes(ax=ax)
    check_landscape(surface, 2, "surface")
    quantity, values = surface_values(surface, quantity)
    norm = color_norm([values], norm)
    ax = new_axes(projection="3d") if ax is None else ax
    if not hasattr(ax, "plot_surface"):
        raise ValueError(f'ax must have projection="3d"; got {ax!r}')
    logarithmic = isinstance(norm, require("matplotlib.colors", "sharpness").LogNorm)
    heights = np.log10(values) if logarithmic else values
    colors = scale_of_colors(norm)
    ax.plot_surface(
        *np.meshgrid(*surface.points, indexing="ij"),
        heights,
        facecolors=colors.to_rgba(values),
        rcount=100,
        ccount=100,
        linewidth=0,
        antialiased=True,
        shade=False,  # or colours would not be those of the scale
    )
    ax.set_box_aspect(None, zoom=0.85)  # leaves room for the labels
    ax.set_ylabel(SECOND)
    label = with_unit(quantity, units)
    ax.set_zlabel(f"log₁₀ {label}" if logarithmic else label)
    label_x(ax, FIRST, [surface])
    if colorbar:
        add_colorbar(colors, [ax], label)
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
        densities: a result of `hessian_density`, or a dict of them by network name.
        colors: colours of the networks by name; by default those of the methods they
            are named after, or others of the palette.
        ax: Matplotlib axes to draw on; by default those of a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: if Matplotlib is not installed (extra `sharpness`).
        TypeError: if an argument is of another type.
        ValueError: if there is no density.
    """
    check_style(colors=colors)
    check_axes(ax=ax)
    networks = by_name(densities)
    for density in networks.values():
        check_kind(SpectralDensity, "what hessian_density returned", densities=density)
    ax = new_axes() if ax is None else ax
    peak = 0.0
    colors = network_colors(networks, colors)
    for network, density in networks.items():
        color = colors[network]
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
