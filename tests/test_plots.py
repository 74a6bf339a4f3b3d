"""What pictures of landscapes and densities show, and what they refuse."""

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from numpy.testing import assert_allclose, assert_array_equal

from smoothout_jax._axes import METHOD_COLORS
from smoothout_jax.experiments.methods.table import METHODS
from smoothout_jax.landscape import Landscape
from smoothout_jax.plots import (
    plot_contour,
    plot_curve,
    plot_density,
    plot_side_by_side,
    plot_surface,
)
from smoothout_jax.sharpness import SpectralDensity

POINTS = np.array([-1.0, 0.0, 0.5, 2.0])
NATS = {"loss": "nats"}


def a_curve(*names, note=""):
    return Landscape((POINTS,), dict.fromkeys(names, POINTS**2), note)


def a_surface(scale=1.0):
    first, second = np.meshgrid(POINTS, POINTS[:3], indexing="ij")
    values = {"train loss": scale * (0.1 + first**2 + second**2), "accuracy": first}
    return Landscape((POINTS, POINTS[:3]), values)


def labels(lines):
    return [line.get_label() for line in lines]


def others(ax):
    """The other axes of a picture."""
    return [other for other in ax.figure.axes if other is not ax]


def test_a_curve_has_the_loss_on_the_left_and_a_metric_on_the_right():
    names = "train loss", "train accuracy", "test loss", "test accuracy"
    ax = plot_curve(a_curve(*names, note="anew"), units=NATS | {"accuracy": "%"})
    (right,) = others(ax)
    assert (ax.get_ylabel(), right.get_ylabel()) == ("loss (nats)", "accuracy (%)")
    assert ax.get_xlabel() == "distance / length of the direction\nanew"
    assert labels(ax.lines) == ["train loss", "test loss"]
    assert [line.get_linestyle() for line in right.lines] == ["-", "--"]
    shown = [text.get_text() for text in ax.get_legend().get_texts()]
    assert shown == ["train loss", "test loss", "train accuracy", "test accuracy"]


def test_networks_differ_in_colour_and_share_the_axes_given():
    given = Figure().subplots()
    curves = {"SGD": a_curve("loss"), "ours": a_curve("loss")}
    assert plot_curve(curves, ax=given, colors={"ours": "#123456"}) is given
    assert labels(given.lines) == ["SGD: loss", "ours: loss"]
    assert [line.get_color() for line in given.lines] == ["#000000", "#123456"]
    assert not others(given)


def test_a_method_has_the_colour_of_the_table_of_methods():
    table = {method.label: method.color for method in METHODS.values()}
    assert table | METHOD_COLORS == table
    curves = dict.fromkeys(("AdaSmoothOut", "mine", "SGD", "other"), a_curve("loss"))
    found = [line.get_color() for line in plot_curve(curves).lines]
    assert found[::2] == [table["AdaSmoothOut"], table["SGD"]]
    assert len(set(found)) == 4


def test_surfaces_side_by_side_share_one_scale_of_colours():
    axes = plot_side_by_side({"SGD": a_surface(30), "ours": a_surface()}, units=NATS)
    assert [ax.get_title() for ax in axes] == ["SGD", "ours"]
    for ax in axes:
        norm = ax.collections[0].norm
        assert isinstance(norm, LogNorm)
        assert_allclose((norm.vmin, norm.vmax), (0.1, 30 * 5.1))
    assert axes[0].figure.axes[-1].get_ylabel() == "train loss (nats)"
    given = Figure().subplots(1, 2)
    assert plot_side_by_side({"a": a_surface(), "b": a_surface()}, axes=given) is given


def thick_contours(ax):
    return [each for each in ax.collections if 2.5 in each.get_linewidths()]


def test_rises_are_compared_above_the_lowest_point_of_each_network():
    """A minimum that is deeper, but otherwise the same, looks the same."""
    line = np.linspace(-2, 2, 81)
    squares = line[:, None] ** 2 + line**2

    def bowl(curvature, depth):
        return Landscape((line, line), {"loss": depth + curvature * squares / 2})

    surfaces = {"SGD": bowl(2, 0.3), "ours": bowl(0.5, 0.3), "deeper": bowl(0.5, 1e-4)}
    axes = plot_side_by_side(surfaces, units=NATS, rise=0.25)
    for ax, name, radius in zip(axes, surfaces, (0.5, 1, 1), strict=True):
        (contour,) = thick_contours(ax)
        distances = np.linalg.norm(contour.get_paths()[0].vertices, axis=1)
        assert_allclose(distances, radius, rtol=0.02)
        norm = ax.collections[0].norm
        assert (type(norm), norm.vmin, norm.vmax) == (Normalize, 0, 2.5)
        title, found = ax.get_title().split("\n")
        assert title == name
        assert found.startswith("rise below 0.25 nats on ")
        assert abs(float(found.split()[-2]) - 100 * np.pi * radius**2 / 16) < 1
    assert axes[0].figure.axes[-1].get_ylabel() == "rise of the loss (nats)"


def test_the_share_below_a_rise_counts_the_plane_and_not_the_points():
    dense = np.array([-1.0, -0.1, -0.05, 0.0, 0.05, 0.1, 1.0])
    surface = Landscape((dense, dense), {"loss": np.abs(dense)[:, None] + 0 * dense})
    (ax,) = plot_side_by_side({"it": surface}, rise=0.5)
    assert ax.get_title() == "it\nrise below 0.5 on 55 %"


def test_a_rise_that_no_point_reaches_has_no_contour():
    surface = a_surface(0.01)
    ax = plot_contour(surface, rise=0.5)
    assert not thick_contours(ax)
    assert_allclose(ax.collections[0].norm.vmax, 0.05)
    constant = Landscape(surface.points, {"loss": np.full((4, 3), 2.0)})
    assert plot_contour(constant, rise=0.5).collections[0].norm.vmax == 0.5


def test_surfaces_side_by_side_show_the_same_part_of_the_plane():
    narrow = a_surface()
    wide = Landscape((3 * POINTS, 2 * POINTS[:3]), narrow.values)
    for ax in plot_side_by_side({"narrow": narrow, "wide": wide}):
        assert (ax.get_xlim(), ax.get_ylim()) == ((-3, 6), (-2, 1))


def test_contours_are_of_the_quantity_asked_for_with_gaps_in_grey():
    surface = a_surface()
    surface.values["accuracy"][0, 0] = np.nan
    ax = plot_contour(surface, quantity="accuracy")
    norm = ax.collections[0].norm
    assert (type(norm), norm.vmin, norm.vmax) == (Normalize, -1, 2)
    assert ax.get_facecolor()[:3] == (0.8, 0.8, 0.8)
    assert (ax.get_xlim(), ax.get_ylim()) == ((-1, 2), (-1, 0.5))


def test_a_surface_stands_in_three_dimensions():
    ax = plot_surface(a_surface(), units=NATS)
    assert ax.get_zlabel() == "log₁₀ train loss (nats)"
    assert ax.get_zlim()[0] < -0.9
    (bar,) = others(ax)
    assert bar.get_ylabel() == "train loss (nats)"
    assert not others(plot_surface(a_surface(), colorbar=False))
    given = Figure().add_subplot(projection="3d")
    assert plot_surface(a_surface(), quantity="accuracy", ax=given) is given
    assert given.get_zlabel() == "accuracy"


def test_a_surface_has_the_colours_of_its_scale():
    """Unshaded: all are colours of the scale, and both of its ends occur."""
    line = np.linspace(0, 1, 40)
    ax = plot_surface(Landscape((line, line), {"loss": line[:, None] + 0 * line}))
    faces = ax.collections[0].get_facecolor()
    scale = colormaps["viridis"](np.linspace(0, 1, 256))
    distances = np.abs(faces[:, None] - scale).max(-1)
    assert distances.min(axis=1).max() < 0.02
    assert distances.min(axis=0)[[0, -1]].max() < 0.1


def test_densities_are_drawn_with_their_errors_on_a_logarithmic_scale():
    density = SpectralDensity(POINTS, POINTS**2, 0.1 * POINTS**2, POINTS, POINTS)
    ax = plot_density({"SGD": density, "ours": density})
    assert ax.get_yscale() == "log"
    assert labels(ax.lines) == ["SGD", "ours"]
    assert_array_equal(ax.lines[0].get_xydata(), np.c_[POINTS, POINTS**2])
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    expected = np.outer([0.8, 1.2], POINTS**2)
    assert_allclose(np.unique(band.round(6)), np.unique(expected))
    assert plot_density(density, ax=ax) is ax


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plot_curve(a_curve("train loss", "accuracy", note="anew")),
        lambda: plot_side_by_side({"a": a_surface(), "b": a_surface(0)})[0],
        lambda: plot_side_by_side({"a": a_surface(), "b": a_surface(9)}, rise=0.5)[0],
        lambda: plot_surface(a_surface()),
    ],
)
def test_pictures_can_be_written(draw, tmp_path):
    draw().figure.savefig(tmp_path / "it.png")
    assert (tmp_path / "it.png").stat().st_size > 5000


PLOTS = {
    "curves": (plot_curve, a_curve("loss")),
    "surface": (plot_contour, a_surface()),
    "surfaces": (plot_side_by_side, {"SGD": a_surface()}),
    "surface in 3d": (plot_surface, a_surface()),
    "densities": (plot_density, SpectralDensity(*[POINTS] * 5)),
}
NO_VALUES = Landscape((POINTS, POINTS), {"loss": np.full((4, 4), np.nan)})


@pytest.mark.parametrize(
    ("name", "given", "options", "message"),
    [
        ("curves", a_surface(), {}, "curves must have 1 axes of points, got 2"),
        ("surface", a_curve("loss"), {}, "surface must have 2 axes of points"),
        ("curves", {}, {}, ".*nothing to plot"),
        ("surfaces", {}, {}, "surfaces is empty"),
        ("surface", NO_VALUES, {}, "quantity='loss' has no finite value"),
        ("curves", None, {"metric": "error"}, "metric must .* None, 'loss'; got 'err"),
        ("surface", None, {"quantity": "error"}, "quantity must be one"),
        ("surface", None, {"rise": 0}, "rise must be .* above 0, got 0"),
        ("surfaces", None, {"rise": -1}, "rise must be .* -1"),
        ("surfaces", None, {"axes": Figure().subplots(1, 2)}, "got 2 axes for 1 surf"),
        ("surface in 3d", None, {"ax": Figure().subplots()}, "ax must have project"),
        *(
            (name, value, {}, f"{name.split()[0]} must be .*; got ")
            for name in PLOTS
            for value in ([a_curve("loss")], "it.npz")
        ),
        *(
            (name, None, {option: value}, f"{option} must be ")
            for option, value, names in (
                ("ax", "it.png", PLOTS.keys() - {"surfaces"}),
                ("axes", ["it.png"], ["surfaces"]),
                ("axes", Figure().subplots(), ["surfaces"]),
                ("units", "nats", PLOTS.keys() - {"densities"}),
                ("colors", ["red"], ["curves", "densities"]),
                ("norm", "log", ["surface", "surface in 3d"]),
            )
            for name in sorted(names)
        ),
    ],
)
def test_bad_arguments_are_refused(name, given, options, message):
    plot, drawn = PLOTS[name]
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        plot(drawn if given is None else given, **options)
