"""Every measure of sharpness against closed forms, its error bars, and every error."""

import importlib
import math
import re
import sys
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from losses import (
    KEY,
    MEASURES,
    NOISE,
    bound,
    bowl,
    linear,
    quadratic,
    quadratic_of,
    random_array,
    separable,
)
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from smoothout_jax.sharpness import (
    Estimate,
    keskar_sharpness,
    sam_sharpness,
    worst,
)

every_measure = pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)


def shift(key, params, step=None):
    return jnp.full_like(params, 0.5)


@pytest.mark.parametrize("noise", [NOISE, shift])
def test_a_sample_is_the_rise_under_the_noise_of_its_key(noise):
    loss, params, _ = quadratic_of([1, 2, -3])
    rise = MEASURES["expected"](loss, params, noise=noise)
    noisy = [loss(params + noise(key, params)) for key in jax.random.split(KEY, 3)]
    assert_allclose(rise.samples, np.array(noisy) - loss(params), rtol=1e-5)


def test_an_estimate_is_the_mean_of_its_samples():
    samples = random_array(7, seed=1)
    estimate = Estimate.from_samples(samples.astype(np.float32))
    assert_allclose(estimate.value, samples.mean(), rtol=1e-6)
    assert_allclose(estimate.standard_error, stats.sem(samples), rtol=1e-6)
    assert estimate.samples.dtype == np.float64
    assert str(Estimate(0.5, 0.0123, samples)) == "0.5 ± 0.012"
    assert str(Estimate.from_samples(np.array([12.3456]))) == "12.35 ± nan"


@pytest.mark.parametrize(("name", "factor"), [("expected", 0.09 / 6), ("trace", 1)])
def test_19_of_20_intervals_hold_the_truth(name, factor):
    loss, params, hessian = quadratic_of(range(12))
    held = []
    for key in jax.random.split(KEY, 200):
        estimate = MEASURES[name](loss, params, key=key, num_samples=10)
        half_width = stats.t.ppf(0.975, 9) * estimate.standard_error
        held.append(abs(estimate.value - factor * np.trace(hessian)) < half_width)
    assert 0.9 <= np.mean(held) <= 0.985


def wave(params):
    x, y = params
    return 2 + jnp.sin(3 * x) * jnp.cos(2 * y) + x * y / 2


POINT = np.array([0.5, -2.0])
SURFACES = {
    "convex": bound(quadratic, [[2, 1], [1, 3]], POINT, [3, -2]),
    "ill-conditioned": bound(quadratic, [[90, 30], [30, 11]], POINT, [3, -2]),
    "indefinite": bound(quadratic, [[2, 1], [1, -3]], POINT, [3, -2]),
    "minimum": bound(quadratic, [[2, 1], [1, 3]], POINT, [0, 0]),
    "saddle": bound(quadratic, [[2, 1], [1, -3]], POINT, [0, 0]),
    "steep saddle": bound(quadratic, [[2, 9], [9, -30]], POINT, [0, 0]),
    "wave": wave,
}
TICKS = np.linspace(-1, 1, 201)
BOX = np.stack(np.meshgrid(TICKS, TICKS), -1).reshape(-1, 2)
DISC = BOX / np.maximum(np.linalg.norm(BOX, axis=1, keepdims=True), 1)


@pytest.mark.parametrize("surface", SURFACES.values(), ids=SURFACES)
@pytest.mark.parametrize(
    ("measure", "points"),
    [
        (partial(keskar_sharpness, epsilon=0.2), BOX * [0.3, 0.6]),
        (partial(sam_sharpness, rho=0.4), DISC * 0.4),
    ],
    ids=["keskar", "sam"],
)
def test_the_highest_loss_around_is_found(measure, points, surface):
    losses = jax.vmap(surface)(jnp.asarray(POINT + np.r_[[[0, 0]], points]))
    clean, rise = float(losses[0]), float(losses.max() - losses[0])
    exact = 100 * rise / (1 + clean) if measure.func is keskar_sharpness else rise
    estimate = measure(surface, jnp.asarray(POINT), num_samples=4)
    assert_allclose(estimate.samples.max(), exact, rtol=2e-3)
    assert (estimate.samples > 0).all()


@pytest.mark.parametrize(
    ("eigenvalues", "steepness"),
    [([4, 1, -1, -2], 0), (4 * [3], 2), (30 * [0], 2)],
    ids=str,
)
def test_sam_adds_the_slope_and_the_leading_curvature(eigenvalues, steepness):
    _, centre, hessian = quadratic_of(eigenvalues)
    slope = steepness * random_array(len(eigenvalues), seed=2)
    loss = bound(quadratic, hessian, centre, slope)
    rise = sam_sharpness(loss, centre, rho=0.3, num_samples=3)
    exact = 0.3 * np.linalg.norm(slope) + 0.3**2 / 2 * max(eigenvalues)
    assert_allclose(rise.samples, np.full(3, exact), rtol=1e-3)


def test_sam_takes_no_direction_from_a_gradient_that_vanishes():
    params = jnp.linspace(1, 2, 100)

    def cap(w):
        """Flat but for a cap around the mean direction, where no start lies."""
        return jnp.maximum(jnp.sum(w - params) / 10, 0.09)

    assert sam_sharpness(cap, params, rho=0.1).value == 0


def test_keskar_of_a_linear_loss_is_at_the_corner_of_the_box():
    params, slope = random_array((2, 1000), seed=1)
    slope = np.abs(slope) * np.sign(params) / 1000
    estimate = keskar_sharpness(bound(linear, slope), jnp.asarray(params))
    rise = 5e-4 * np.sum(np.abs(slope) * (np.abs(params) + 1))
    assert_allclose(estimate.value, 100 * rise / (1 + slope @ params), rtol=5e-3)


@pytest.mark.parametrize(
    "eigenvalues", [np.geomspace(1e-3, 1, 12), np.repeat([0, 1, 2], [8, 2, 2])]
)
def test_keskar_comes_near_the_highest_corner_at_a_minimum(eigenvalues):
    _, centre, hessian = quadratic_of(eigenvalues)
    loss = bound(quadratic, hessian, centre, np.zeros(12))
    signs = np.stack(np.meshgrid(*[[-1, 1]] * 12), -1).reshape(-1, 12)
    corners = signs * 0.01 * (np.abs(centre) + 1)
    highest = np.max(np.sum(corners @ hessian * corners, axis=1)) / 2
    sharpness = keskar_sharpness(loss, centre, epsilon=0.01, num_samples=10)
    assert 0.95 < sharpness.value / (100 * highest) < 1.001


@pytest.mark.parametrize(("size", "dimension"), [(9, 1), (10_000, 2)])
def test_keskar_of_a_subspace_is_that_of_its_matrix(
    double_precision, monkeypatch, size, dimension
):
    spaces = []

    class Recorded(worst.Subspace):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            spaces.append(self)

    monkeypatch.setattr(worst, "Subspace", Recorded)
    curvatures, centre, params = np.abs(random_array((3, size), seed=4))
    params *= math.sqrt(size)
    loss = bound(separable, curvatures, centre)
    grad, clean = curvatures * (params - centre), float(loss(params))
    estimate = keskar_sharpness(
        loss, params, subspace_dim=dimension, epsilon=0.01, num_samples=2
    )
    assert not np.array_equal(*estimate.samples)
    for space, sample in zip(spaces, estimate.samples, strict=True):
        matrix = np.stack([space.lift(unit) for unit in jnp.eye(dimension)], axis=1)
        assert stats.kstest(matrix.ravel(), "norm").pvalue > 1e-3
        assert np.unique(matrix).size > 0.99 * matrix.size
        assert_allclose(space.project(grad), matrix.T @ grad, rtol=1e-9)
        coordinates = np.linalg.pinv(matrix) @ params
        assert_allclose(space.coordinates(params), coordinates, rtol=1e-5)
        points = BOX[:, :dimension] * 0.01 * (np.abs(coordinates) + 1)
        bends = np.sum(points @ (matrix.T * curvatures @ matrix) * points, axis=1) / 2
        highest = np.max(points @ (matrix.T @ grad) + bends)
        assert_allclose(sample, 100 * highest / (1 + clean), rtol=1e-5)


@pytest.mark.parametrize(
    "name",
    ["expected", "keskar in a subspace", "sam", "eigenvalues", "trace", "density"],
)
def test_a_key_may_be_a_seed(name):
    loss, params, _ = quadratic_of(np.linspace(1, 3, 30))
    measure = MEASURES[name]
    keyed, seeded, other, default = (
        ravel_pytree(measure(loss, params, **options))[0]
        for options in ({"key": jax.random.key(0)}, {"key": 0}, {"key": 1}, {})
    )
    assert_array_equal(seeded, keyed)
    assert not np.array_equal(other, keyed, equal_nan=True)
    if "key" not in measure.keywords:
        assert_array_equal(default, keyed)


TRACES = []


def squared_error(params, batch):
    TRACES.append(params)
    hidden = jnp.tanh(batch["x"] @ params["first"])
    return jnp.mean((hidden @ params["last"] - batch["y"]) ** 2)


def squared_error_on(data, params):
    return squared_error(params, data)


def regression(seed):
    """Parameters, 17 examples, and these in batches of 7, 7 and 3."""
    arrays = (random_array(shape, seed) for shape in ((4, 5), 5, (17, 4), 17))
    first, last, x, y = map(jnp.asarray, arrays)
    batches = [{"x": x[i : i + 7], "y": y[i : i + 7]} for i in (0, 7, 14)]
    return {"first": first, "last": last}, {"x": x, "y": y}, batches


@every_measure
def test_batches_are_the_whole_data_and_networks_share_programs(
    double_precision, measure
):
    num_traces = []
    for seed in (5, 6):
        params, data, batches = regression(seed)
        whole = measure(Partial(squared_error_on, data), params)
        in_batches = measure(squared_error, params, batches=batches)
        jax.tree.map(partial(assert_allclose, rtol=1e-6, atol=1e-9), in_batches, whole)
        num_traces.append(len(TRACES))
    assert num_traces[0] == num_traces[1] > 0
    if measure is MEASURES["expected"]:
        once = measure(squared_error, params, batches=iter(batches))
        assert_array_equal(once.samples, in_batches.samples)


def cliff(params):
    return jnp.where(jnp.max(jnp.abs(params)) > 1.001, jnp.nan, 1.0)


STEEP = bound(separable, [0.0, 1000.0], [0.0, 0.0])
PARAMS, X = jnp.ones(3), np.ones(3)
MIXED = {"layer": {"bias": X, "kernel": np.ones(3, np.int32)}}
OF_BATCH = r"\(params, batch\) with batches; got one of"
REFUSED_BY_EACH = [
    ({"key": jax.random.split(KEY)}, "key must be a single PRNG key"),
    ({"params": jnp.sin}, "params must hold arrays"),
    ({"params": math.nan}, "the loss at params .* finite, got nan$"),
    ({"loss": 3}, "loss must be a function; got 3$"),
    ({"loss": {"w": X}}, "loss must be a function; got a dict of 1 leaves$"),
    ({"loss": NOISE}, r".* \(params\) without batches; got one of \(key, params, st"),
    ({"loss": NOISE, "batches": [X]}, f".*{OF_BATCH}"),
    ({"loss": jnp.sin, "batches": [X]}, f".*{OF_BATCH}"),
    ({"loss": jnp.atleast_1d}, r"loss must be a real scalar.* float32 of shape \(1,\)"),
    ({"loss": jnp.argmax}, r"loss must be a real scalar.* got int32 of shape \(\)"),
    ({"loss": lambda params: (params, {})}, "loss must be a real .* got a tuple"),
    ({"loss": lambda params: None}, "loss must be a real scalar.* got None"),
    ({"batches": 3}, r".* iterable of batches, such as \[\(x, y\)\]; got 3$"),
    ({"batches": np.ones((3, 2))}, r".* got an array of float64\[3, 2\]$"),
    ({"batches": jnp.ones((3, 2))}, r".* got an array of float32\[3, 2\]$"),
    ({"batches": (X, X)}, ".* tuple of arrays, which is one batch"),
    ({"batches": {"x": X}}, ".* got a dict of 1 leaves$"),
    ({"batches": "train"}, ".* got 'train'$"),
    ({"batches": []}, "batches is empty$"),
    ({"batches": [3.0]}, r".* got \(\)$"),
    ({"batches": [np.ones(0)]}, r".* got \(0,\)$"),
    ({"batches": [(X, np.ones(2))]}, r".* got \(3,\) and \(2,\)$"),
]
REFUSED_BY_ONE = [
    ("keskar", {"epsilon": -0.1}, "epsilon must be .*-0.1"),
    ("keskar", {"subspace_dim": 0}, "subspace_dim must be .*0"),
    ("keskar", {"num_starts": 0}, "num_starts must be .*0"),
    ("keskar", {"subspace_dim": 4}, "subspace_dim=4 is more than the 3 weights"),
    ("keskar", {"loss": lambda w: -jnp.mean(w)}, "loss must be above -1 .*, got -1.0$"),
    ("keskar", {"loss": cliff}, "the loss within epsilon=0.1 of params .* got nan$"),
    ("sam", {"rho": math.nan}, "rho must be .*nan"),
    ("sam", {"loss": cliff}, "the loss within rho=0.1 of params .*, got nan$"),
    ("sam", {"batches": iter([X])}, "batches is an iterator"),
    ("eigenvalues", {"tolerance": 0}, "tolerance must be .*0"),
    ("eigenvalues", {"num_eigenvalues": 0}, "num_eigenvalues must be .*0"),
    ("eigenvalues", {"num_eigenvalues": 4}, "num_eigenvalues=4 is more than the 3 wei"),
    ("eigenvalues", {"which": "LR"}, "which must be .*LR"),
    ("density", {"width": math.inf}, "width must be .*inf"),
    ("density", {"depth": 0}, "depth must be .*0"),
    ("density", {"depth": 4}, "depth=4 is more than the 3 weights"),
    ("density", {"num_points": 0}, "num_points must be .*0"),
    (
        "density",
        {"loss": STEEP, "params": jnp.ones(2), "depth": 2, "width": 0.01},
        r"num_points=1000 .* width=0.01 .* 0 and 1e\+03; use at least 100010$",
    ),
    ("expected", {"noise": 0.1}, "noise must be a function.*; got .*$"),
    ("expected", {"noise": bowl}, "noise must be a function.*; got .*$"),
    ("trace", {"params": {}}, "params has no weights$"),
    ("trace", {"params": MIXED}, ".* float32 or float64.*'layer/kernel' is int32"),
    *(
        (
            name,
            {"loss": jnp.linalg.norm, "params": 0 * PARAMS},
            "the Hessian of the loss",
        )
        for name in ("eigenvalues", "trace", "density")
    ),
    *(
        (name, {"num_samples": 0}, "num_samples must be .*0")
        for name in MEASURES
        if name != "eigenvalues"
    ),
    *(
        (name, {"max_iterations": 0}, "max_iterations must be .*0")
        for name in ("keskar", "sam", "eigenvalues")
    ),
    *(
        (name, REFUSED_BY_EACH[0][0], "key must be a single PRNG key")
        for name in MEASURES
    ),
]


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        *((name, *row) for name, row in product(("expected", "sam"), REFUSED_BY_EACH)),
        *(("sam by layer", *row) for row in REFUSED_BY_EACH[1:9]),
        *REFUSED_BY_ONE,
    ],
)
def test_bad_arguments_are_refused(name, given, message):
    params = 1.0 if "loss" in given and name != "keskar" else PARAMS
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        MEASURES[name](**{"loss": bowl, "params": params} | given)


def test_eigenvalues_that_do_not_converge_are_an_error():
    loss, params, _ = quadratic_of(np.linspace(1, 2, 100))
    message = r"^only \d of num_eigenvalues=9 .*tolerance=0.001 in max_iterations=1$"
    with pytest.raises(RuntimeError, match=message):
        MEASURES["eigenvalues"](
            loss, params, num_eigenvalues=9, tolerance=1e-3, max_iterations=1
        )


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("keskar", "scipy.optimize"),
        ("eigenvalues", "scipy.sparse.linalg"),
        ("density", "scipy.linalg"),
    ],
)
def test_a_missing_package_is_named(monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    command = re.escape('pip install "smoothout-jax[sharpness]"')
    with pytest.raises(ImportError, match=f"^scipy is not installed.*{command}$"):
        MEASURES[name](bowl, jnp.ones(30))


def test_measures_do_without_progress_bars(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    for name in ("expected", "sam"):
        MEASURES[name](bowl, PARAMS, batches=[np.ones(2), np.ones(1)])


class Bar:
    """A progress bar that keeps what it counts."""

    def __init__(self, items, description, total, **_):
        self.total, self.count = total, 0
        BARS.append(self)

    def update(self):
        self.count += 1

    def close(self):
        pass


BARS = []


@pytest.mark.parametrize(
    ("name", "expected"), [("sam", 4), ("trace", 3), ("density", 6)]
)
def test_progress_bars_count_to_their_total(monkeypatch, name, expected):
    BARS.clear()
    monkeypatch.setattr(importlib.import_module("tqdm"), "tqdm", Bar)
    loss, params, _ = quadratic_of([1, 2, 3, 4])
    MEASURES[name](loss, params)
    (bar,) = BARS
    assert bar.count == bar.total == expected
