"""What the plots share: checks of their inputs, colours, scales and labels."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from smoothout_jax import _checks
from smoothout_jax._extras import require
from smoothout_jax._grid import Landscape

Units = Mapping[str, str]

# The colours of Okabe and Ito. A method has the same one in every plot; networks with
# other names take the free ones in turn.
METHOD_COLORS = {
    "SGD": "#000000",
    "SmoothOut": "#56b4e9",
    "AdaSmoothOut": "#0072b2",
    "SAM": "#d55e00",
    "MSAM": "#e69f00",
}
PALETTE = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
LINE_STYLES = ("-", "--", ":", "-.")
FIRST, SECOND = "first direction / its length", "second direction / its length"


def by_name(results) -> dict[str, Any]:
    named = dict(results) if isinstance(results, Mapping) else {"": results}
    if not named:
        raise ValueError("there is nothing to plot: the dict is empty")
    return named


def network_colors(networks, colors: Mapping[str, str] | None) -> dict[str, str]:
    """The colour of each network: the given one, its method's, or a free one."""
    known = METHOD_COLORS | dict(colors or {})
    taken = {known[name] for name in networks if name in known}
    free = [color for color in PALETTE if color not in taken] or PALETTE
    others = itertools.cycle(free)
    return {name: known.get(name) or next(others) for name in networks}


def check_kind(kind: Any, expected: str, **values: Any) -> None:
    for name, value in values.items():
        if not isinstance(value, kind):
            raise TypeError(f"{name} must be {expected}; got {_checks.describe(value)}")


def check_style(**options: Any) -> None:
    given = {name: value for name, value in options.items() if value is not None}
    check_kind(Mapping, "a dict of strings by name", **given)


def check_axes(**options: Any) -> None:
    given = {name: value for name, value in options.items() if value is not None}
    kind = require("matplotlib.axes", "sharpness").Axes
    check_kind(kind, "Matplotlib's axes", **given)


def check_landscape(landscape, num_axes: int, name: str) -> None:
    made_by = {1: "loss_curve", 2: "loss_surface"}[num_axes]
    check_kind(Landscape, f"what {made_by} returned", **{name: landscape})
    if len(landscape.points) != num_axes:
        raise ValueError(
            f"{name} must have {num_axes} axes of points, got {len(landscape.points)}"
        )


def new_axes(**options):
    figure = require("matplotlib.figure", "sharpness").Figure(layout="constrained")
    return figure.add_subplot(**options)


def quantity_of(name: str) -> str:
    """The quantity in a name, without the data set: `"loss"` in `"train loss"`."""
    return name.split()[-1]


def default_metric(names) -> str | None:
    return next(
        (quantity_of(name) for name in names if quantity_of(name) != "loss"), None
    )


def draw_quantity(ax, curve, quantity, network, color) -> None:
    """Draws a line for each data set, with markers if it shows a metric."""
    names = [name for name in curve.values if quantity_of(name) == quantity]
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


def surface_values(surface, quantity: str | None):
    """The name and the values of a quantity of a surface."""
    names = list(surface.values)
    losses = [name for name in names if quantity_of(name) == "loss"]
    quantity = (losses or names)[0] if quantity is None else quantity
    _checks.choice(tuple(names), quantity=quantity)
    values = surface.values[quantity]
    if np.isnan(values).all():
        raise ValueError(f"quantity={quantity!r} has no finite value on the surface")
    return quantity, values


def color_norm(values, norm=None):
    """The colour scale of all values, logarithmic if they span more than a decade."""
    colors = require("matplotlib.colors", "sharpness")
    if norm is not None:
        check_kind(colors.Normalize, "a norm of matplotlib.colors", norm=norm)
        return norm
    low = min(np.nanmin(array) for array in values)
    high = max(np.nanmax(array) for array in values)
    if high == low:
        high = low + (abs(low) or 1.0)
    kind = colors.LogNorm if 0 < 10 * low < high else colors.Normalize
    return kind(low, high)


def drawn_values(surface, quantity: str | None, rise: float | None):
    """The name of a quantity, and its values, or its rises above the minimum."""
    quantity, values = surface_values(surface, quantity)
    if rise is None:
        return quantity, values
    _checks.positive(rise=rise)
    return quantity, values - np.nanmin(values)


def drawn_norm(values, rise: float | None, norm=None):
    """The colour scale of all values; that of rises ends at ten times `rise`."""
    if rise is None or norm is not None:
        return color_norm(values, norm)
    highest = max(np.nanmax(array) for array in values)
    kind = require("matplotlib.colors", "sharpness").Normalize
    return kind(0.0, min(10 * rise, highest) or rise)


def drawn_label(quantity: str, units: Units | None, rise: float | None) -> str:
    return with_unit(quantity if rise is None else f"rise of the {quantity}", units)


def show_all(axes, landscapes) -> None:
    """Makes all axes show the same part of the plane."""
    for index, set_limits in enumerate(("set_xlim", "set_ylim")):
        points = np.concatenate([each.points[index] for each in landscapes])
        for ax in axes:
            getattr(ax, set_limits)(points.min(), points.max())


def share_of_plane(surface, inside) -> float:
    """The share of the plane that some points represent, in percent."""
    first, second = (_widths(points) for points in surface.points)
    areas = first[:, None] * second
    return 100 * float(np.sum(areas * inside) / np.sum(areas))


def _widths(points: np.ndarray) -> np.ndarray:
    """The length of the line that is nearest to each point."""
    middles = (points[1:] + points[:-1]) / 2
    return np.diff(np.concatenate([points[:1], middles, points[-1:]]))


def colorbar_ends(norm, values) -> str:
    """Which ends of the colour scale the values exceed, up to rounding."""
    slack = 1e-6 * (norm.vmax - norm.vmin)
    below = np.nanmin(values) < norm.vmin - slack
    above = np.nanmax(values) > norm.vmax + slack
    return {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[
        int(below), int(above)
    ]


def with_unit(name, units: Units | None) -> str:
    unit = (units or {}).get(quantity_of(name))
    return f"{name} ({unit})" if unit else name


def scale_of_colors(norm):
    """Maps values to colours."""
    mappable = require("matplotlib.cm", "sharpness").ScalarMappable
    return mappable(norm, "viridis")


def add_colorbar(filled, axes, label: str) -> None:
    ticker = require("matplotlib.ticker", "sharpness")
    colors = require("matplotlib.colors", "sharpness")
    logarithmic = isinstance(filled.norm, colors.LogNorm)
    ticks = ticker.LogLocator(subs=(1, 2, 5)) if logarithmic else ticker.MaxNLocator(6)
    bar = axes[0].figure.colorbar(
        filled, ax=axes, label=label, ticks=ticks, format="%g"
    )
    bar.ax.minorticks_off()


def label_x(ax, label: str, landscapes) -> None:
    """Labels the axis, with the notes of the landscapes below."""
    notes = dict.fromkeys(each.note for each in landscapes if each.note)
    ax.set_xlabel("\n".join((label, *notes)))
