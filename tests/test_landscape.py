"""Directions, curves, surfaces, and the files that keep them."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from smoothout_jax import _grid, exclude, gaussian, landscape
from smoothout_jax.landscape import (
    Landscape,
    direction_between,
    filter_normalized_direction,
    interpolate,
    line_points,
    loss_curve,
    loss_surface,
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
    """A loss that distinguishes all weights, and all examples."""
    leaves = jax.tree.leaves(params)
    total = sum(k * jnp.sum((leaf - k) ** 2) for k, leaf in enumerate(leaves, 1))
    return total if batch is None else total * jnp.mean(batch)


def named(params, batch):
    return {"loss": mean_square(params, batch), "accuracy": jnp.mean(batch)}


def direction(seed=0, **options):
    return filter_normalized_direction(jax.random.key(seed), PARAMS, **options)


def moved(coordinate, along, params=PARAMS):
    return jax.tree.map(lambda p, d: p + coordinate * d, params, along)


def curve_with(loss=mean_square, **options):
    options = {"params": PARAMS, "direction": direction(), "points": POINTS} | options
    return loss_curve(loss, **options)


def surface_with(**options):
    options = {"directions": [direction()] * 2, "points": [POINTS] * 2} | options
    return loss_surface(mean_square, PARAMS, **options)


@pytest.mark.parametrize(
    ("relative_to", "options", "axis"),
    [
        ("filter", {}, 0),
        ("filter", {"filter_axis": 0, "mask": exclude("bias", "Norm")}, 1),
        ("layer", {}, None),
    ],
)
def test_directions_have_the_norm_of_each_filter_or_layer(relative_to, options, axis):
    kernel = PARAMS["Dense_0"]["kernel"]
    found = direction(relative_to=relative_to, **options)
    norms = [
        jnp.linalg.norm(each, axis=axis)
        for each in (found["Dense_0"]["kernel"], kernel)
    ]
    assert_allclose(*norms, rtol=1e-6)
    assert found["Dense_0"]["bias"].any() == ("mask" not in options)
    twice = jax.tree.map(lambda leaf: 2 * leaf, (PARAMS, found))
    other = filter_normalized_direction(0, twice[0], relative_to=relative_to, **options)
    chex.assert_trees_all_close(other, twice[1], rtol=1e-6)


@pytest.mark.parametrize("relative_to", [None, "weight"])
def test_directions_are_gaussian_without_norms(relative_to):
    found = direction(relative_to=relative_to)
    noise = gaussian(1.0, relative_to=relative_to)(jax.random.key(0), PARAMS)
    chex.assert_trees_all_equal(found, noise)


@pytest.mark.parametrize("coordinate", [-0.5, 0.3])
def test_interpolation_is_linear_and_keeps_dtypes(coordinate):
    one = {"w": jnp.array([1.0, 2.0]), "n": jnp.array(3), "h": jnp.ones(2, "bfloat16")}
    other = {"w": jnp.array([3.0, 0.0]), "n": jnp.array(5), "h": one["h"] * 5}
    between = interpolate(one, other, coordinate)
    exact = (1 - coordinate) * one["w"] + coordinate * other["w"]
    assert_allclose(between["w"], exact, rtol=1e-6)
    assert between["n"] == 3
    assert direction_between(one, other)["n"] == 0
    chex.assert_trees_all_equal_dtypes(between, one)
    half = between["h"].astype("float32")
    assert_allclose(half, np.full(2, 1 + 4 * coordinate), rtol=0.01)


def test_parameters_in_half_precision_are_moved_in_float32():
    params, half_a_step = jnp.ones(3, "bfloat16"), jnp.full(3, 2.0**-8, "bfloat16")

    def total(params):
        assert params.dtype == jnp.bfloat16
        return jnp.sum(params.astype("float32"))

    surface = loss_surface(total, params, [half_a_step] * 2, [[0, 1]] * 2)
    assert_allclose(surface.values["loss"], [[3, 3], [3, 3 + 3 * 2.0**-7]])


def test_points_on_a_line_are_spaced_evenly_or_by_a_sine():
    assert_allclose(line_points(-1, 3, 9), np.linspace(-1, 3, 9))
    sine = 1 - 2 * np.cos(np.linspace(0, np.pi, 9))
    assert_allclose(line_points(-1, 3, 9, spacing="sine"), sine)


def test_a_curve_between_two_networks_meets_both():
    other = moved(1.0, direction(3))
    along = direction_between(PARAMS, other)
    curve = curve_with(direction=along, points=[0, 0.25, 1, 2])
    expected = [mean_square(interpolate(PARAMS, other, c)) for c in (0, 0.25, 1, 2)]
    assert_allclose(curve.values["loss"], expected, rtol=1e-5)
    assert_allclose(expected[2], mean_square(other), rtol=1e-6)
    assert_array_equal(curve.points[0], [0, 0.25, 1, 2])


def test_a_surface_takes_the_first_direction_along_its_first_axis():
    first, second = direction(0), direction(1)
    points = POINTS, np.array([-0.5, 0.0, 1.0])
    surface = surface_with(directions=(first, second), points=points)
    expected = [
        [mean_square(moved(y, second, moved(x, first))) for y in points[1]]
        for x in points[0]
    ]
    assert_allclose(surface.values["loss"], expected, rtol=1e-5)


def test_train_and_test_sets_and_metrics_come_together_weighted_by_examples():
    train, test = [jnp.array([1.0, 2.0, 6.0]), jnp.array([11.0])], [jnp.array([2.0])]
    curve = curve_with(named, batches={"train": train, "test": test})
    plain = curve_with().values["loss"]
    expected = {
        "train loss": 5 * plain,
        "train accuracy": [5] * 4,
        "test loss": 2 * plain,
        "test accuracy": [2] * 4,
    }
    assert list(curve.values) == list(expected)
    for name, values in expected.items():
        assert_allclose(curve.values[name], values, rtol=1e-5)
    alone = curve_with(named, batches=train)
    assert_array_equal(alone.values["loss"], curve.values["train loss"])


def test_where_the_loss_overflows_there_is_nan():
    curve = loss_curve(jnp.exp, jnp.array(0.0), jnp.array(1.0), [0, 50, 100])
    assert_array_equal(np.isnan(curve.values["loss"]), [False, False, True])


def test_statistics_are_averaged_at_each_point_over_the_first_data_set():
    def loss(params, batch, statistics):
        return jnp.mean(batch) + statistics

    curve = partial(
        loss_curve,
        loss,
        jnp.array(1.0),
        jnp.array(1.0),
        [0, 1],
        batches={
            "train": [jnp.array([1.0, 2.0, 6.0]), jnp.array([11.0])],
            "test": [jnp.array([7.0])],
        },
        statistics=lambda params, batch: 10 * params * jnp.mean(batch),
    )
    found = curve()
    assert_allclose(found.values["train loss"], [55, 105])
    assert_allclose(found.values["test loss"], [57, 107])
    assert found.note == "statistics re-estimated at every point"
    assert curve(note="another").note == "another"


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
        curve_with(path=path)
    assert not evaluated


@pytest.mark.parametrize(
    ("stop", "seconds"), [(RuntimeError, 0.0), (KeyboardInterrupt, 5.0)]
)
def test_an_interrupted_surface_is_resumed(
    stop, seconds, tmp_path, evaluated, monkeypatch
):
    monkeypatch.setattr(_grid, "SECONDS_BETWEEN_SAVES", seconds)
    path, grid = tmp_path / "surface.npz", ([0, 1, 2], [0, 1, 2, 3])
    points = [(float(x), float(y)) for x in grid[0] for y in grid[1]]
    evaluate = landscape._Evaluator.__call__

    def stopping(self, coordinates):
        if len(evaluated) == 8:
            raise stop
        return evaluate(self, coordinates)

    def loss(params):
        return jnp.sum(params**2)

    surface = partial(loss_surface, loss, jnp.ones(2), jnp.eye(2), grid, path=path)
    with monkeypatch.context() as patch:
        patch.setattr(landscape._Evaluator, "__call__", stopping)
        with pytest.raises(stop):
            surface()
    with pytest.raises(ValueError, match=r"surface.npz is unfinished: 8 of 12 points"):
        Landscape.load(path)
    found = surface()
    # The first is evaluated again, to see whether the file is of this landscape.
    assert evaluated == [*points[:8], points[0], *points[8:]]
    expected = [[(1 + x) ** 2 + (1 + y) ** 2 for y in grid[1]] for x in grid[0]]
    for each in (found, Landscape.load(path)):
        assert_allclose(each.values["loss"], expected)
        assert_array_equal(each.points[1], grid[1])
    assert [file.name for file in tmp_path.iterdir()] == ["surface.npz"]


@pytest.mark.parametrize(
    "change",
    [
        {"params": moved(0.01, direction())},
        {"direction": direction(1)},
        {"points": np.r_[POINTS[:3], 3]},  # with the same first value
        {"loss": lambda params: 2 * mean_square(params)},
        {"loss": lambda params: {"other": mean_square(params)}},
    ],
)
def test_a_file_of_another_landscape_is_refused_and_kept(change, tmp_path):
    path = tmp_path / "curve.npz"
    curve_with(path=path)
    written = path.read_bytes()
    with pytest.raises(ValueError, match=r"curve.npz holds another landscape"):
        curve_with(**change, path=path)
    assert path.read_bytes() == written


def test_a_landscape_is_saved_whole_and_read_again(tmp_path):
    values = {"test accuracy": np.array([[1.0, np.nan]])}
    saved = Landscape((np.array([0.0]), np.array([0.0, 1.0])), values, "anew")
    saved.save(tmp_path / "it.npz")
    loaded = Landscape.load(tmp_path / "it.npz")
    assert_array_equal(loaded.values["test accuracy"], [[1, np.nan]])
    assert loaded.note == "anew"
    with pytest.raises(FileNotFoundError):
        Landscape.load(tmp_path / "missing.npz")


@pytest.mark.parametrize("content", ["nothing", "text", "cut short", "other arrays"])
def test_a_damaged_file_is_named_and_kept(content, tmp_path):
    path = tmp_path / "it.npz"
    Landscape((POINTS,), {"loss": POINTS}).save(path)
    whole = path.read_bytes()
    if content == "other arrays":
        np.savez(path, weights=POINTS)
    else:
        parts = {"nothing": b"", "text": b"no landscape", "cut short": whole[:-40]}
        path.write_bytes(parts[content])
    content = path.read_bytes()
    for read in (Landscape.load, lambda path: curve_with(path=path)):
        with pytest.raises(ValueError, match=r"it.npz is not a landscape, or is damag"):
            read(path)
    assert path.read_bytes() == content


ONES = jnp.ones(3)


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (curve_with, {"points": []}, r"points must be one or more .* row; got \[\]"),
        (curve_with, {"points": [[0, 1]]}, "points must be one or more numbers in a"),
        (curve_with, {"points": [0, np.nan]}, "points must be finite and increasing"),
        (curve_with, {"points": [1, 0]}, "points must be finite and increasing"),
        (curve_with, {"direction": ONES}, "direction must be a tree like params"),
        (curve_with, {"batches": {}}, "batches is an empty dict"),
        (curve_with, {"batches": {"train": []}}, "batches is empty"),
        (curve_with, {"batches": {"a": iter([])}}, r"batches\['a'\] is an iterator"),
        (curve_with, {"batches": {"x": ONES}}, r"batches\['x'\] must .* iterable"),
        (curve_with, {"batches": (ONES, ONES)}, "batches .* which is one batch"),
        (curve_with, {"loss": lambda _: ONES}, r"loss must .* real .* shape \(3,\)"),
        (curve_with, {"loss": lambda _: {"a": jnp.array(1)}}, "a must be a real"),
        (curve_with, {"loss": named}, r"loss must be .* \(params\) without batches"),
        (curve_with, {"loss": gaussian(0.1)}, r".*got one of \(key, params, step\)$"),
        (curve_with, {"statistics": 3, "batches": [ONES]}, "statistics .* function"),
        (
            curve_with,
            {"statistics": mean_square, "batches": [ONES]},
            r".*batch, statistics\)",
        ),
        (curve_with, {"params": named, "direction": named}, "params must hold arrays"),
        (surface_with, {"directions": [PARAMS]}, "directions must be a pair.* got 1$"),
        (surface_with, {"directions": PARAMS}, "directions must .* a dict of 3 leaves"),
        (surface_with, {"points": [POINTS]}, "points must be a pair.* got 1$"),
        (surface_with, {"points": 3}, "points must be a pair, got 3$"),
        (line_points, {"low": 1}, ".*low < high and .* at least 2; got low=1, high=1"),
        (line_points, {"num": 1}, ".*num=1"),
        (line_points, {"spacing": "log"}, "spacing must be one of"),
        (direction, {"relative_to": "filters"}, "relative_to must be one of"),
        (
            filter_normalized_direction,
            {"key": PARAMS},
            "key must be a single .* a dict",
        ),
    ],
)
def test_bad_arguments_are_refused(function, options, message):
    defaults = {
        line_points: {"low": 0, "high": 1, "num": 5},
        filter_normalized_direction: {"params": PARAMS},
    }
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        function(**defaults.get(function, {}) | options)
