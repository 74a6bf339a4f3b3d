"""Directions, curves, surfaces and their pictures."""

import subprocess
import sys
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.tree_util import Partial
from matplotlib import colormaps
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from smoothout_jax import exclude, gaussian, landscape
from smoothout_jax._axes import METHOD_COLORS
from smoothout_jax.experiments.methods.table import METHODS
from smoothout_jax.landscape import (
    Landscape,
    direction_between,
    filter_normalized_direction,
    interpolate,
    line_points,
    loss_curve,
    loss_surface,
)
from smoothout_jax.plots import (
    plot_contour,
    plot_curve,
    plot_density,
    plot_side_by_side,
    plot_surface,
)
from smoothout_jax.sharpness import (
    SpectralDensity,
    hessian_density,
    hessian_eigenvalues,
)

PARAMS = {
    "Dense_0": {
        "kernel": jnp.array([[3.0, 0.0, 1.0], [4.0, 2.0, 0.0]]),
        "bias": jnp.array([0.5, -1.0, 2.0]),
    },
    "BatchNorm_0": {"scale": jnp.array([1.5, 0.5, -2.0])},
}
POINTS = np.array([-1.0, 0.0, 0.5, 2.0])


def mean_square(params, batch=None):
    """A loss that tells every weight, and every example, from the others."""
    leaves = jax.tree.leaves(params)
    total = sum(k * jnp.sum((leaf - k) ** 2) for k, leaf in enumerate(leaves, 1))
    return total if batch is None else total * jnp.mean(batch)


def named(params, batch):
    return {"loss": mean_square(params, batch), "accuracy": jnp.mean(batch)}


def direction(seed=0, **options):
    return filter_normalized_direction(jax.random.key(seed), PARAMS, **options)


def moved(coordinate, along, params=PARAMS):
    return jax.tree.map(lambda p, d: p + coordinate * d, params, along)


def norms(tree, axis):
    return jax.tree.map(lambda leaf: jnp.linalg.norm(leaf, axis=axis), tree)


def test_directions_have_the_norm_of_each_filter_or_layer():
    kernel = PARAMS["Dense_0"]["kernel"]
    by_filter = direction()["Dense_0"]["kernel"]
    chex.assert_trees_all_close(norms(by_filter, 0), norms(kernel, 0), rtol=1e-6)
    assert not np.allclose(norms(by_filter, 1), norms(kernel, 1), rtol=0.01)
    by_row = direction(filter_axis=0, mask=exclude("bias", "Norm"))["Dense_0"]["kernel"]
    chex.assert_trees_all_close(norms(by_row, 1), norms(kernel, 1), rtol=1e-6)
    by_layer = direction(relative_to="layer")
    chex.assert_trees_all_close(norms(by_layer, None), norms(PARAMS, None), rtol=1e-6)


def test_directions_are_gaussian():
    weights = jnp.full(20_000, 2.0)
    key = jax.random.key(1)
    plain = filter_normalized_direction(key, weights, relative_to=None)
    chex.assert_trees_all_close(jnp.mean(plain**2), 1.0, rtol=0.05)
    chex.assert_trees_all_close(jnp.mean(plain**4), 3.0, rtol=0.1)
    by_weight = filter_normalized_direction(key, weights, relative_to="weight")
    chex.assert_trees_all_close(by_weight, 2 * plain, rtol=1e-6)


def test_masked_leaves_do_not_move():
    held = direction(mask=exclude("bias", "BatchNorm"))
    assert not held["Dense_0"]["bias"].any()
    assert not held["BatchNorm_0"]["scale"].any()
    assert held["Dense_0"]["kernel"].any()


def test_the_same_key_gives_two_networks_one_direction_but_for_scale():
    twice = jax.tree.map(lambda leaf: 2 * leaf, PARAMS)
    other = filter_normalized_direction(jax.random.key(0), twice)
    chex.assert_trees_all_close(
        other, jax.tree.map(lambda leaf: 2 * leaf, direction()), rtol=1e-6
    )


@pytest.mark.parametrize("coordinate", [-0.5, 0.0, 0.3, 1.0, 1.5])
def test_interpolation_is_linear_and_keeps_dtypes(coordinate):
    one = {"w": jnp.array([1.0, 2.0]), "n": jnp.array(3), "h": jnp.ones(2, "bfloat16")}
    other = {"w": jnp.array([3.0, 0.0]), "n": jnp.array(3), "h": one["h"] * 5}
    between = interpolate(one, other, coordinate)
    chex.assert_trees_all_close(
        between["w"], (1 - coordinate) * one["w"] + coordinate * other["w"], rtol=1e-6
    )
    chex.assert_trees_all_equal(between["n"], one["n"])
    chex.assert_trees_all_equal_dtypes(between, one)
    chex.assert_trees_all_close(
        between["h"].astype("float32"), np.full(2, 1 + 4 * coordinate), rtol=0.01
    )


def test_sine_spacing_is_dense_at_both_ends():
    points = line_points(-1, 3, 9, spacing="sine")
    gaps = np.diff(points)
    assert (points[0], points[-1]) == (-1, 3)
    np.testing.assert_allclose(gaps, gaps[::-1])
    assert gaps[0] < gaps[1] < gaps[2] < gaps[3]
    np.testing.assert_allclose(points[2], -1 + 2 * (1 - np.cos(np.pi / 4)))
    np.testing.assert_allclose(line_points(-1, 3, 9), np.linspace(-1, 3, 9))


def test_a_curve_is_the_loss_evaluated_point_by_point():
    along = direction()
    curve = loss_curve(mean_square, PARAMS, along, POINTS)
    expected = [mean_square(moved(point, along)) for point in POINTS]
    np.testing.assert_allclose(curve.values["loss"], expected, rtol=1e-5)
    np.testing.assert_array_equal(curve.points[0], POINTS)
    assert curve.values["loss"].shape == (4,)


def test_a_curve_between_two_networks_meets_both():
    other = moved(1.0, direction(3))
    along = direction_between(PARAMS, other)
    curve = loss_curve(mean_square, PARAMS, along, [0, 0.25, 1, 2])
    networks = [PARAMS, interpolate(PARAMS, other, 0.25), other]
    expected = [mean_square(params) for params in networks]
    np.testing.assert_allclose(curve.values["loss"][:3], expected, rtol=1e-5)


def test_a_surface_takes_the_first_direction_along_its_first_axis():
    first, second = direction(0), direction(1)
    points = POINTS, np.array([-0.5, 0.0, 1.0])
    surface = loss_surface(mean_square, PARAMS, (first, second), points)
    expected = [
        [mean_square(moved(y, second, moved(x, first))) for y in points[1]]
        for x in points[0]
    ]
    assert surface.values["loss"].shape == (4, 3)
    np.testing.assert_allclose(surface.values["loss"], expected, rtol=1e-5)


def test_a_curve_along_an_eigenvector_bends_by_its_eigenvalue():
    pairs = hessian_eigenvalues(mean_square, PARAMS, num_eigenvalues=2)
    curve = loss_curve(mean_square, PARAMS, pairs.vector(0), [-1, 0, 1])
    low, centre, high = curve.values["loss"]
    np.testing.assert_allclose(low - 2 * centre + high, pairs.values[0], rtol=1e-3)


def test_train_and_test_sets_and_metrics_come_together_weighted_by_examples():
    train, test = [jnp.array([1.0, 2.0, 6.0]), jnp.array([11.0])], [jnp.array([2.0])]
    batches = {"train": train, "test": test}
    curve = loss_curve(named, PARAMS, direction(), POINTS, batches=batches)
    assert list(curve.values) == [
        "train loss",
        "train accuracy",
        "test loss",
        "test accuracy",
    ]
    np.testing.assert_allclose(curve.values["train accuracy"], 5.0, rtol=1e-6)
    plain = loss_curve(mean_square, PARAMS, direction(), POINTS).values["loss"]
    np.testing.assert_allclose(curve.values["train loss"], 5 * plain, rtol=1e-5)
    np.testing.assert_allclose(curve.values["test loss"], 2 * plain, rtol=1e-5)
    alone = loss_curve(named, PARAMS, direction(), POINTS, batches=train)
    np.testing.assert_array_equal(alone.values["loss"], curve.values["train loss"])


def test_where_the_loss_overflows_there_is_nan():
    curve = loss_curve(jnp.exp, jnp.array(0.0), jnp.array(1.0), [0, 50, 100])
    np.testing.assert_array_equal(np.isnan(curve.values["loss"]), [False, False, True])


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, *, running):
        x = nn.BatchNorm(use_running_average=running, momentum=0.0)(nn.Dense(4)(x))
        return nn.Dense(1)(nn.relu(x))


def test_batch_norm_is_evaluated_with_statistics_estimated_anew():
    """At each point, over all the data: for one batch, as in training mode."""
    network = Normed()
    images = jax.random.normal(jax.random.key(0), (16, 3)) * 3 + 1
    init = jax.jit(partial(network.init, running=False))
    variables = init(jax.random.key(1), images)
    params = variables["params"]

    def loss(params, batch, statistics):
        variables = {"params": params, "batch_stats": statistics}
        return jnp.mean(network.apply(variables, batch, running=True) ** 2)

    def estimate(params, batch):
        variables = {"params": params}
        _, updated = network.apply(
            variables, batch, running=False, mutable=["batch_stats"]
        )
        return updated["batch_stats"]

    along = filter_normalized_direction(jax.random.key(2), params)
    curve = loss_curve(
        loss, params, along, POINTS, batches=[images], statistics=estimate
    )
    running = Partial(loss, statistics=variables["batch_stats"])
    kept = loss_curve(running, params, along, POINTS, batches=[images], note="kept")
    train = jax.jit(partial(network.apply, running=False, mutable=["batch_stats"]))
    for point, value in zip(POINTS, curve.values["loss"], strict=True):
        output, _ = train({"params": moved(point, along, params)}, images)
        np.testing.assert_allclose(value, jnp.mean(output**2), rtol=1e-4)
    assert not np.allclose(kept.values["loss"], curve.values["loss"], rtol=0.1)
    assert "statistics re-estimated at every point" in plot_curve(curve).get_xlabel()
    assert "kept" in plot_curve(kept).get_xlabel()


def test_statistics_are_averaged_over_the_batches():
    def loss(params, batch, statistics):
        return params * statistics

    batches = [jnp.array([1.0, 2.0, 6.0]), jnp.array([11.0])]
    curve = loss_curve(
        loss,
        jnp.array(1.0),
        jnp.array(1.0),
        [0, 1],
        batches=batches,
        statistics=lambda params, batch: jnp.mean(batch),
    )
    np.testing.assert_allclose(curve.values["loss"], [5, 10])


KILLED = """
import os, sys
import jax, jax.numpy as jnp
from smoothout_jax import _grid
from smoothout_jax.landscape import loss_surface
_grid.SECONDS_BETWEEN_SAVES = 0.0
calls = 0
def loss(params):
    return jax.pure_callback(count, jax.ShapeDtypeStruct((), "float32"), params)
def count(params):
    global calls
    calls += 1
    if calls == 9:
        os._exit(9)
    return (params ** 2).sum()
loss_surface(loss, jnp.ones(2), jnp.eye(2), ([0, 1, 2], [0, 1, 2, 3]), path=sys.argv[1])
"""


@pytest.fixture
def evaluated(monkeypatch):
    """The points that are evaluated."""
    points = []
    evaluate = landscape._Evaluator.__call__

    def noting(self, coordinates):
        points.append(tuple(coordinates))
        return evaluate(self, coordinates)

    monkeypatch.setattr(landscape._Evaluator, "__call__", noting)
    return points


def test_each_point_is_evaluated_once(evaluated):
    loss_curve(mean_square, PARAMS, direction(), POINTS)
    assert evaluated == [(point,) for point in POINTS]


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("missing/it.npz", FileNotFoundError, "there is no folder .*missing$"),
        ("", IsADirectoryError, "is a folder$"),
        (3, TypeError, "PathLike object, not .?int"),
    ],
)
def test_a_path_that_cannot_be_written_is_refused_at_once(
    path, error, message, tmp_path, evaluated
):
    path = tmp_path / path if isinstance(path, str) else path
    with pytest.raises(error, match=message):
        loss_curve(mean_square, PARAMS, direction(), POINTS, path=path)
    assert not evaluated


def test_a_killed_surface_goes_on_from_what_was_written(tmp_path, evaluated):
    path = tmp_path / "surface.npz"
    killed = subprocess.run([sys.executable, "-c", KILLED, path], check=False)
    assert killed.returncode == 9
    with pytest.raises(ValueError, match=r"surface.npz is unfinished: 8 of 12 points"):
        Landscape.load(path)
    grid = [0, 1, 2], [0, 1, 2, 3]

    def loss(params):
        return jnp.sum(params**2)

    surface = loss_surface(loss, jnp.ones(2), jnp.eye(2), grid, path=path)
    assert len(evaluated) == 1 + 12 - 8  # the first point tells whether it is the same
    first, second = np.meshgrid(*grid, indexing="ij")
    np.testing.assert_allclose(
        surface.values["loss"], (1 + first) ** 2 + (1 + second) ** 2
    )
    loaded = Landscape.load(path)
    np.testing.assert_array_equal(loaded.values["loss"], surface.values["loss"])
    np.testing.assert_array_equal(loaded.points[1], grid[1])
    assert [file.name for file in tmp_path.iterdir()] == ["surface.npz"]


@pytest.mark.parametrize(
    "change", ["params", "direction", "points", "loss", "quantities"]
)
def test_a_file_of_another_landscape_is_refused_and_kept(change, tmp_path):
    path = tmp_path / "curve.npz"
    options = {
        "loss": mean_square,
        "params": PARAMS,
        "direction": direction(),
        "points": POINTS,
    }
    loss_curve(**options, path=path)
    written = path.read_bytes()
    options |= {
        "params": {"params": moved(0.01, direction())},
        "direction": {"direction": direction(1)},
        "points": {"points": POINTS * 2},
        "loss": {"loss": lambda params: 2 * mean_square(params)},
        "quantities": {"loss": lambda params: {"other": mean_square(params)}},
    }[change]
    with pytest.raises(ValueError, match=r"curve.npz holds another landscape"):
        loss_curve(**options, path=path)
    assert path.read_bytes() == written


def test_a_landscape_is_saved_whole_and_read_again(tmp_path):
    values = {"test accuracy": np.array([[1.0, np.nan]])}
    saved = Landscape((np.array([0.0]), np.array([0.0, 1.0])), values, "anew")
    saved.save(tmp_path / "it.npz")
    loaded = Landscape.load(tmp_path / "it.npz")
    np.testing.assert_array_equal(loaded.values["test accuracy"], [[1, np.nan]])
    assert loaded.note == "anew"


@pytest.mark.parametrize("content", [b"", b"no landscape", None])
def test_a_damaged_file_is_told_by_name(content, tmp_path):
    path = tmp_path / "it.npz"
    if content is None:
        Landscape((POINTS,), {"loss": POINTS}).save(path)
        content = path.read_bytes()[:-40]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"it.npz is not a landscape, or is damaged"):
        Landscape.load(path)
    with pytest.raises(ValueError, match=r"it.npz is not a landscape, or is damaged"):
        loss_curve(mean_square, PARAMS, direction(), POINTS, path=path)
    assert path.read_bytes() == content


def test_a_file_that_is_no_landscape_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", weights=POINTS)
    with pytest.raises(ValueError, match=r"other.npz is not a landscape"):
        Landscape.load(tmp_path / "other.npz")
    with pytest.raises(FileNotFoundError):
        Landscape.load(tmp_path / "missing.npz")


def curve_with(**options):
    arguments = {
        "loss": mean_square,
        "params": PARAMS,
        "direction": direction(),
        "points": POINTS,
    }
    return loss_curve(**arguments | options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": []}, r"points must be one or more numbers in a row; got \[\]"),
        ({"points": [[0, 1]]}, "points must be one or more numbers in a row"),
        ({"points": [0, np.nan]}, "points must be finite and increasing"),
        ({"points": [1, 0]}, "points must be finite and increasing"),
        ({"direction": {"w": jnp.ones(2)}}, "direction must be a tree like params"),
        ({"batches": {}}, "batches is an empty dict"),
        ({"batches": {"train": []}}, "batches is empty"),
        ({"batches": {"a": iter([])}}, r"batches\['a'\] is an iterator"),
    ],
)
def test_bad_arguments_of_a_curve_are_told(options, message):
    with pytest.raises(ValueError, match=message):
        curve_with(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": lambda params: jnp.ones(3)}, r"^loss must be a real .* shape \(3,\)"),
        ({"loss": lambda params: {"error": jnp.array(1)}}, "^error must be a real"),
        ({"loss": named}, r"^loss must be a function of \(params\) without batches"),
        ({"loss": gaussian(0.1)}, r"got one of \(key, params, step\)$"),
        (
            {"batches": {"x": jnp.ones(3)}},
            r"^batches\['x'\] must be an iterable .*\[3\]$",
        ),
        ({"batches": (jnp.ones(3), jnp.ones(3))}, "^batches .* which is one batch"),
        ({"statistics": mean_square, "batches": [jnp.ones(2)]}, r"batch, statistics\)"),
        ({"statistics": "running"}, "^statistics must be a function; got 'running'$"),
        ({"params": named, "direction": named}, "^params must hold arrays"),
    ],
)
def test_arguments_of_other_types_are_told(options, message):
    with pytest.raises(TypeError, match=message):
        curve_with(**options)


@pytest.mark.parametrize(
    ("directions", "points", "error", "message"),
    [
        (
            [direction()],
            [POINTS] * 2,
            ValueError,
            "^directions must be a pair.* got 1$",
        ),
        ([direction()] * 2, [POINTS], ValueError, "^points must be a pair.* got 1$"),
        (
            PARAMS,
            [POINTS] * 2,
            TypeError,
            "^directions must be a pair, got a dict of 3 leaves$",
        ),
        ([direction()] * 2, 3, TypeError, "^points must be a pair, got 3$"),
    ],
)
def test_a_surface_needs_two_directions_with_points_along_each(
    directions, points, error, message
):
    with pytest.raises(error, match=message):
        loss_surface(mean_square, PARAMS, directions, points)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": 1}, "low < high and num of at least 2; got low=1, high=1"),
        ({"num": 1}, "num=1"),
        ({"spacing": "log"}, "spacing must be one of"),
    ],
)
def test_points_that_are_no_line_are_told(options, message):
    with pytest.raises(ValueError, match=message):
        line_points(**{"low": 0, "high": 1, "num": 5} | options)


def test_a_direction_takes_a_seed_and_names_what_it_refuses():
    chex.assert_trees_all_equal(
        filter_normalized_direction(0, PARAMS), direction(seed=0)
    )
    with pytest.raises(ValueError, match="relative_to must be one of"):
        direction(relative_to="filters")
    with pytest.raises(TypeError, match=r"^key must be a single .* got a dict of 3"):
        filter_normalized_direction(PARAMS, jax.random.key(0))


def a_curve(*names, note=""):
    return Landscape((POINTS,), dict.fromkeys(names, POINTS**2), note)


def a_surface(scale=1.0):
    first, second = np.meshgrid(POINTS, POINTS[:3], indexing="ij")
    values = {"train loss": scale * (0.1 + first**2 + second**2), "accuracy": first}
    return Landscape((POINTS, POINTS[:3]), values)


def test_a_curve_has_the_loss_on_the_left_and_a_metric_on_the_right():
    names = "train loss", "train accuracy", "test loss", "test accuracy"
    ax = plot_curve(a_curve(*names), units={"loss": "nats", "accuracy": "%"})
    (right,) = [other for other in ax.figure.axes if other is not ax]
    assert (ax.get_ylabel(), right.get_ylabel()) == ("loss (nats)", "accuracy (%)")
    assert "length of the direction" in ax.get_xlabel()
    assert [line.get_label() for line in ax.lines] == ["train loss", "test loss"]
    assert [line.get_linestyle() for line in right.lines] == ["-", "--"]
    shown = [text.get_text() for text in ax.get_legend().get_texts()]
    assert shown == ["train loss", "test loss", "train accuracy", "test accuracy"]


def test_networks_differ_in_colour_and_share_the_axes_given():
    given = Figure().subplots()
    curves = {"SGD": a_curve("loss"), "ours": a_curve("loss")}
    ax = plot_curve(curves, ax=given, colors={"ours": "#123456"})
    assert ax is given
    assert [line.get_label() for line in ax.lines] == ["SGD: loss", "ours: loss"]
    assert [line.get_color() for line in ax.lines] == ["#000000", "#123456"]
    assert given.figure.axes == [given]


def test_a_method_has_the_colour_of_the_table_of_methods():
    table = {method.label: method.color for method in METHODS.values()}
    assert table | METHOD_COLORS == table
    curves = dict.fromkeys(("AdaSmoothOut", "mine", "SGD", "other"), a_curve("loss"))
    found = [line.get_color() for line in plot_curve(curves).lines]
    assert found[::2] == [table["AdaSmoothOut"], table["SGD"]]
    assert len(set(found)) == 4


def test_surfaces_side_by_side_share_one_scale_of_colours():
    axes = plot_side_by_side(
        {"SGD": a_surface(30), "ours": a_surface()}, units={"loss": "nats"}
    )
    assert [ax.get_title() for ax in axes] == ["SGD", "ours"]
    norms = [ax.collections[0].norm for ax in axes]
    for norm in norms:
        assert isinstance(norm, LogNorm)
        np.testing.assert_allclose((norm.vmin, norm.vmax), (0.1, 30 * 5.1))
    (bar,) = [ax for ax in axes[0].figure.axes if ax not in list(axes)]
    assert bar.get_ylabel() == "train loss (nats)"
    given = Figure().subplots(1, 2)
    assert plot_side_by_side({"a": a_surface(), "b": a_surface()}, axes=given) is given


def white_line(ax):
    """The thick contour: where it runs."""
    (line,) = [each for each in ax.collections if 2.5 in each.get_linewidths()]
    (path,) = line.get_paths()
    return path.vertices


def test_rises_are_compared_above_the_lowest_point_of_each_network():
    """A minimum that is deeper, and else the same, is drawn the same."""
    line = np.linspace(-2, 2, 81)
    squares = line[:, None] ** 2 + line**2

    def bowl(curvature, depth):
        return Landscape((line, line), {"loss": depth + curvature * squares / 2})

    surfaces = {"SGD": bowl(2, 0.3), "ours": bowl(0.5, 0.3), "deeper": bowl(0.5, 1e-4)}
    axes = plot_side_by_side(surfaces, units={"loss": "nats"}, rise=0.25)
    for ax, radius in zip(axes, (0.5, 1, 1), strict=True):
        distances = np.linalg.norm(white_line(ax), axis=1)
        np.testing.assert_allclose(distances, radius, rtol=0.02)
        norm = ax.collections[0].norm
        assert type(norm) is Normalize
        assert (norm.vmin, norm.vmax) == (0, 2.5)
    below = [100 * np.pi * radius**2 / 16 for radius in (0.5, 1)]
    for ax, (name, share) in zip(
        axes, zip(surfaces, [*below, below[1]], strict=True), strict=True
    ):
        title, found = ax.get_title().split("\n")
        assert title == name
        assert found.startswith("rise below 0.25 nats on ")
        assert abs(float(found.split()[-2]) - share) < 1
    (bar,) = [ax for ax in axes[0].figure.axes if ax not in list(axes)]
    assert bar.get_ylabel() == "rise of the loss (nats)"


def test_the_share_below_a_rise_counts_the_plane_and_not_the_points():
    dense = np.array([-1.0, -0.1, -0.05, 0.0, 0.05, 0.1, 1.0])
    surface = Landscape((dense, dense), {"loss": np.abs(dense)[:, None] + 0 * dense})
    (ax,) = plot_side_by_side({"it": surface}, rise=0.5)
    assert ax.get_title() == "it\nrise below 0.5 on 55 %"


def test_a_rise_that_no_point_reaches_has_no_contour():
    surface = a_surface(0.01)
    ax = plot_contour(surface, rise=0.5)
    assert not [each for each in ax.collections if 2.5 in each.get_linewidths()]
    np.testing.assert_allclose(ax.collections[0].norm.vmax, 0.05)
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
    assert type(norm) is Normalize
    assert (norm.vmin, norm.vmax) == (-1, 2)
    assert ax.get_facecolor()[:3] == (0.8, 0.8, 0.8)
    assert ax.get_xlim() == (-1, 2)
    assert ax.get_ylim() == (-1, 0.5)


def test_a_surface_stands_in_three_dimensions():
    ax = plot_surface(a_surface(), units={"loss": "nats"})
    assert ax.get_zlabel() == "log₁₀ train loss (nats)"
    assert ax.get_zlim()[0] < -0.9
    (bar,) = [other for other in ax.figure.axes if other is not ax]
    assert bar.get_ylabel() == "train loss (nats)"
    alone = plot_surface(a_surface(), colorbar=False)
    assert alone.figure.axes == [alone]
    given = Figure().add_subplot(projection="3d")
    assert plot_surface(a_surface(), quantity="accuracy", ax=given) is given
    assert given.get_zlabel() == "accuracy"


def test_a_surface_has_the_colours_of_its_scale():
    """Unshaded: of both ends, and none that the scale has not."""
    line = np.linspace(0, 1, 40)
    ax = plot_surface(Landscape((line, line), {"loss": line[:, None] + 0 * line}))
    faces = ax.collections[0].get_facecolor()
    scale = colormaps["viridis"](np.linspace(0, 1, 256))
    distances = np.abs(faces[:, None] - scale).max(-1)
    assert distances.min(axis=1).max() < 0.02
    assert distances.min(axis=0)[[0, -1]].max() < 0.1


def test_densities_are_drawn_on_a_logarithmic_scale():
    density = hessian_density(
        mean_square, PARAMS, key=jax.random.key(0), num_samples=3, depth=3
    )
    ax = plot_density({"SGD": density, "ours": density})
    assert ax.get_yscale() == "log"
    assert [line.get_label() for line in ax.lines] == ["SGD", "ours"]
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), density.density)
    assert plot_density(density, ax=ax) is ax


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plot_curve(a_curve("train loss", "accuracy", note="anew")),
        lambda: plot_contour(a_surface()),
        lambda: plot_side_by_side({"a": a_surface(), "b": a_surface(0)})[0],
        lambda: plot_side_by_side({"a": a_surface(), "b": a_surface(9)}, rise=0.5)[0],
        lambda: plot_surface(a_surface()),
    ],
)
def test_pictures_can_be_written(draw, tmp_path):
    draw().figure.savefig(tmp_path / "it.png")
    assert (tmp_path / "it.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plot_curve(a_surface()), "curves must have 1 axes of points, got 2"),
        (lambda: plot_contour(a_curve("loss")), "surface must have 2 axes of points"),
        (lambda: plot_curve({}), "nothing to plot"),
        (lambda: plot_side_by_side({}), "surfaces is empty"),
        (
            lambda: plot_curve(a_curve("loss"), metric="error"),
            "metric must be one of None, 'loss'; got 'error'",
        ),
        (lambda: plot_contour(a_surface(), quantity="error"), "quantity must be one"),
        (lambda: plot_contour(a_surface(), rise=0), "rise must be .* above 0, got 0"),
        (lambda: plot_side_by_side({"a": a_surface()}, rise=-1), "rise must be .* -1"),
        (
            lambda: plot_contour(
                Landscape((POINTS, POINTS), {"loss": np.full((4, 4), np.nan)})
            ),
            "quantity='loss' has no finite value",
        ),
        (
            lambda: plot_surface(a_surface(), ax=Figure().subplots()),
            'ax must have projection="3d"',
        ),
        (
            lambda: plot_side_by_side({"a": a_surface()}, axes=Figure().subplots(1, 2)),
            "got 2 axes for 1 surfaces",
        ),
    ],
)
def test_what_cannot_be_drawn_is_told(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


PLOTS = {
    "curves": plot_curve,
    "surface": plot_contour,
    "surfaces": plot_side_by_side,
    "surface of three": plot_surface,
    "densities": plot_density,
}
DRAWN = {
    "curves": a_curve("loss"),
    "surface": a_surface(),
    "surfaces": {"SGD": a_surface()},
    "surface of three": a_surface(),
    "densities": SpectralDensity(*[POINTS] * 5),
}


@pytest.mark.parametrize("given", [[a_curve("loss")], POINTS, "it.npz"], ids=type)
@pytest.mark.parametrize("name", PLOTS)
def test_a_plot_of_something_else_names_the_argument(name, given):
    with pytest.raises(TypeError, match=f"^{name.split()[0]} must be .*; got "):
        PLOTS[name](given)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        *((name, "ax", "it.png") for name in PLOTS if name != "surfaces"),
        ("surfaces", "axes", "it.png"),
        ("surfaces", "axes", ["it.png"]),
        ("surfaces", "axes", Figure().subplots()),
        *((name, "units", "nats") for name in PLOTS if name != "densities"),
        ("curves", "colors", "red"),
        ("densities", "colors", ["red"]),
        ("surface", "norm", "log"),
        ("surface of three", "norm", "log"),
    ],
)
def test_an_option_of_another_type_is_named(name, option, value):
    with pytest.raises(TypeError, match=f"^{option} must be "):
        PLOTS[name](DRAWN[name], **{option: value})


def test_parameters_in_half_precision_are_moved_in_float32():
    params, along = jnp.ones(3, "bfloat16"), jnp.full(3, 0.5, "bfloat16")

    def total(params):
        assert params.dtype == jnp.bfloat16
        return jnp.sum(params.astype("float32"))

    curve = loss_curve(total, params, along, [0, 1])
    np.testing.assert_allclose(curve.values["loss"], [3, 4.5])
    assert optax.tree.norm(params.astype("float32")) > 1  # left alone
