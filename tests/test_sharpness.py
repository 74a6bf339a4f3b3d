"""Every measure of sharpness against closed forms, its error bars, and every error."""

import importlib
import math
import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from smoothout_jax import (
    by_path,
    exclude,
    flax_filters,
    gaussian,
    only,
    stacked,
    uniform,
)
from smoothout_jax.sharpness import (
    Estimate,
    expected_sharpness,
    hessian_density,
    hessian_eigenvalues,
    hessian_trace,
    keskar_sharpness,
    per_layer,
    sam_sharpness,
    worst,
)
from smoothout_jax.sharpness.objective import VectorLoss

KEY = jax.random.key(3)
NOISE = uniform(0.3)
MEASURES = {
    "expected": partial(expected_sharpness, noise=NOISE, key=KEY, num_samples=3),
    "keskar": partial(keskar_sharpness, epsilon=0.1),
    "keskar in a subspace": partial(keskar_sharpness, epsilon=0.1, subspace_dim=2),
    "sam": partial(sam_sharpness, rho=0.1, max_iterations=3),
    "eigenvalues": partial(hessian_eigenvalues, num_eigenvalues=2),
    "trace": partial(hessian_trace, key=KEY, num_samples=3),
    "density": partial(hessian_density, key=KEY, num_samples=2, depth=3),
    "sam by layer": partial(per_layer, sam_sharpness, rho=0.1),
}
every_measure = pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)


@pytest.fixture
def double_precision():
    with jax.enable_x64(True):
        yield


def quadratic(hessian, centre, slope, params):
    params = ravel_pytree(params)[0]
    offset = params - centre
    return offset @ hessian @ offset / 2 + slope @ params


def separable(curvatures, centre, params):
    return jnp.sum(curvatures * (params - centre) ** 2) / 2


def linear(slope, params):
    return slope @ params


def bowl(params, batch=None):
    return jnp.sum(ravel_pytree(params)[0] ** 2)


def wave(params):
    x, y = params
    return 2 + jnp.sin(3 * x) * jnp.cos(2 * y) + x * y / 2


def bound(loss, *arrays):
    """The loss with arrays bound to it, arguments of its compiled program."""
    return Partial(loss, *(jnp.asarray(array, float) for array in arrays))


def random_array(shape, seed):
    return np.random.default_rng(seed).normal(size=shape)


def quadratic_of(eigenvalues):
    """A quadratic, parameters off its centre, and its Hessian, in a random basis."""
    size = len(eigenvalues)
    basis = np.linalg.qr(random_array((size, size), seed=0))[0]
    hessian = basis * np.asarray(eigenvalues, float) @ basis.T
    centre, slope, params = random_array((3, size), seed=1)
    return bound(quadratic, hessian, centre, slope), jnp.asarray(params), hessian


def assert_within_four_errors(estimate, truth):
    assert abs(estimate.value - truth) < 4 * estimate.standard_error


SPECTRA = {
    "positive": lambda size: np.linspace(0.5, 4, size),
    "negative": lambda size: np.linspace(-4, -0.5, size),
    "indefinite": lambda size: np.r_[-9, -4.5, np.linspace(-1, 2, size - 5), 3, 4, 5],
    "triple": lambda size: np.r_[np.linspace(-2, 1, size - 3), 3, 3, 3],
    "triple below": lambda size: np.r_[-3, -3, -3, np.linspace(-1, 2, size - 3)],
    "of rank two": lambda size: np.r_[-7, np.zeros(size - 2), 5],
    "of half rank": lambda size: np.r_[np.zeros(size // 2), 1 : size // 2 + 1],
    "ill-conditioned": lambda size: np.r_[1e-3, np.geomspace(1, 1e3, size - 1)],
}
RANKS = {"LA": lambda value: -value, "SA": lambda value: value, "LM": lambda v: -abs(v)}


@pytest.mark.parametrize("which", RANKS)
@pytest.mark.parametrize("size", [12, 100])
@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA)
def test_leading_eigenpairs_are_those_of_the_hessian(
    double_precision, spectrum, size, which
):
    loss, params, hessian = quadratic_of(spectrum(size))
    params = {"bias": params[:3], "kernel": params[3:][None]}
    pairs = hessian_eigenvalues(loss, params, num_eigenvalues=4, which=which)
    exact = np.array(sorted(spectrum(size), key=RANKS[which])[:4])
    assert_allclose(pairs.values, exact, rtol=1e-4, atol=1e-7)
    shapes = jax.tree.map(lambda leaf: (4, *leaf.shape), params)
    assert jax.tree.map(jnp.shape, pairs.vectors) == shapes
    vectors = np.stack([ravel_pytree(pairs.vector(index))[0] for index in range(4)])
    assert_allclose(vectors @ vectors.T, np.eye(4), atol=1e-9)
    errors = np.linalg.norm(vectors @ hessian - pairs.values[:, None] * vectors, axis=1)
    assert_allclose(pairs.residuals, errors, rtol=1e-3, atol=1e-11)
    assert errors.max() <= 1e-4 * np.abs(spectrum(size)).max()


@pytest.mark.parametrize("size", [12, 100])
def test_eigenvalues_are_found_in_single_precision(size):
    loss, params, _ = quadratic_of(np.r_[np.geomspace(1e-3, 1e2, size - 3), 3 * [1e3]])
    pairs = hessian_eigenvalues(loss, params, num_eigenvalues=4)
    assert_allclose(pairs.values, [1e3, 1e3, 1e3, 1e2], rtol=1e-4)


def test_a_linear_loss_has_no_curvature():
    loss, params = bound(linear, random_array(30, seed=1)), jnp.ones(30)
    pairs = hessian_eigenvalues(loss, params, num_eigenvalues=3)
    assert_array_equal(pairs.values, np.zeros(3))
    assert_array_equal(pairs.vectors @ pairs.vectors.T, np.eye(3))
    assert MEASURES["trace"](loss, params).value == 0
    density = MEASURES["density"](loss, params)
    assert_array_equal(density.nodes[:, 0], np.zeros(2))
    assert_array_equal(density.weights[:, 0], np.ones(2))


def test_the_trace_of_a_diagonal_hessian_is_exact():
    loss = bound(separable, [1e-3, 2.0, -5.0, 1e3], random_array(4, seed=1))
    trace = MEASURES["trace"](loss, jnp.ones(4))
    assert_allclose(trace.samples, np.full(3, 997.001), rtol=1e-6)


@pytest.mark.parametrize("eigenvalues", [[1, 4], [1, 2, 3, 5, 7, -2]], ids=str)
def test_the_trace_has_the_variance_of_hutchinson(eigenvalues):
    loss, params, hessian = quadratic_of(eigenvalues)
    trace = hessian_trace(loss, params, key=KEY, num_samples=500)
    assert_within_four_errors(trace, np.sum(eigenvalues))
    variance = 2 * (np.sum(hessian**2) - np.sum(np.diag(hessian) ** 2))
    assert_allclose(trace.standard_error, math.sqrt(variance / 500), rtol=0.05)


EIGENVALUES, COUNTS = np.array([-1, 0.5, 2]), np.array([5, 15, 20])


def mixture(points, weights, width):
    return stats.norm.pdf(points[:, None], EIGENVALUES, width) @ weights


@pytest.mark.parametrize(("depth", "width"), [(3, None), (9, 0.2)])
def test_the_density_is_a_gaussian_at_each_eigenvalue(depth, width):
    loss, params, _ = quadratic_of(np.repeat(EIGENVALUES, COUNTS))
    density = hessian_density(
        loss, params, key=KEY, num_samples=20, depth=depth, width=width
    )
    nodes, no_nodes = np.split(density.nodes, [3], axis=1)
    weights, no_weights = np.split(density.weights, [3], axis=1)
    assert_allclose(nodes, np.tile(EIGENVALUES, (20, 1)), atol=1e-5)
    assert_allclose(weights.sum(axis=1), np.ones(20), rtol=1e-6)
    assert np.isnan([no_nodes, no_weights]).all()
    first_moment = Estimate.from_samples(weights @ EIGENVALUES)
    assert_within_four_errors(first_moment, EIGENVALUES @ COUNTS / 40)
    points, width = density.eigenvalues, width or 0.03
    assert_allclose(np.trapezoid(density.density, points), 1, rtol=1e-5)
    each = [mixture(points, probe, width) for probe in weights]
    assert_allclose(density.density, np.mean(each, axis=0), atol=1e-4)
    assert_allclose(density.standard_error, stats.sem(each), atol=1e-4)
    error = np.abs(density.density - mixture(points, COUNTS / 40, width))
    assert (error < 4 * density.standard_error + 1e-4).all()


def test_the_density_of_a_diagonal_hessian_is_exact():
    loss = bound(separable, np.repeat(EIGENVALUES, COUNTS), random_array(40, seed=1))
    density = MEASURES["density"](loss, jnp.ones(40), width=0.3, num_points=50)
    points = np.linspace(-2.5, 3.5, 50)
    assert_allclose(density.eigenvalues, points, rtol=1e-5)
    assert_allclose(density.density, mixture(points, COUNTS / 40, 0.3), rtol=1e-3)
    assert density.standard_error.max() < 1e-5


def test_points_too_far_apart_for_the_peaks_are_an_error():
    loss = bound(separable, [0.0, 1000.0], [0.0, 0.0])
    message = r"^num_points=1000 .* width=0.01 .* 0 and 1e\+03: 100010 would do$"
    with pytest.raises(ValueError, match=message):
        hessian_density(loss, jnp.ones(2), key=KEY, depth=2, width=0.01)


@pytest.mark.parametrize(
    "eigenvalues", [[-3, -1, 0, 0.5, 2, 4], [-2, -2, 2, 2, 2, 2]], ids=str
)
def test_nodes_and_weights_are_those_of_the_eigendecomposition(
    double_precision, eigenvalues
):
    loss, params, hessian = quadratic_of(eigenvalues)
    density = MEASURES["density"](loss, params, num_samples=1, depth=6)
    probe = jax.random.rademacher(jax.random.split(KEY, 1)[0], (6,), float)
    values, vectors = np.linalg.eigh(hessian)
    distinct, place = np.unique(values.round(9), return_inverse=True)
    weights = np.bincount(place, weights=(probe @ vectors) ** 2 / 6)
    nothing = np.full(6 - len(distinct), np.nan)
    assert_allclose(density.nodes, [np.r_[distinct, nothing]], atol=1e-8)
    assert_allclose(density.weights, [np.r_[weights, nothing]], atol=1e-8)
    assert np.isnan(density.standard_error).all()


@pytest.mark.parametrize(
    ("noise", "variance"),
    [
        (uniform(0.3), lambda _: 0.09 / 3),
        (gaussian(0.3), lambda _: 0.09),
        (
            uniform(0.3, relative_to="filter", filter_axis=-1),
            lambda w: 0.09 * np.mean(w**2, axis=0),
        ),
        (
            gaussian(0.3, relative_to="filter", filter_axis=-1),
            lambda w: 0.09 * np.sum(w**2, axis=0),
        ),
    ],
    ids=["uniform", "gaussian", "uniform by filter", "gaussian by filter"],
)
@pytest.mark.parametrize("distance", [0.0, 0.05])
def test_noise_raises_a_quadratic_by_half_its_variance_times_the_curvature(
    noise, variance, distance
):
    curvatures, params, offset = np.abs(random_array((3, 20, 20), seed=1))
    loss = bound(separable, curvatures, params + distance * offset)
    rise = expected_sharpness(loss, jnp.asarray(params), noise, key=KEY)
    assert_within_four_errors(rise, np.sum(curvatures * variance(params)) / 2)
    assert 4 * rise.standard_error < 0.09 * rise.value


def test_any_function_of_a_key_and_parameters_is_a_noise():
    def shift(key, params, step=None):
        return jnp.full_like(params, 0.5)

    loss, params, hessian = quadratic_of([1, 2, -3])
    rise = MEASURES["expected"](loss, params, noise=shift)
    exact = 0.5 * jax.grad(loss)(params).sum() + 0.125 * hessian.sum()
    assert_allclose(rise.samples, np.full(3, exact), rtol=1e-5)


def test_networks_measured_with_one_key_are_compared_in_pairs():
    centre, curvatures = np.abs(random_array((2, 20), seed=1))

    def measure(factor, seed):
        loss = bound(separable, factor * curvatures, centre)
        return expected_sharpness(loss, jnp.ones(20), NOISE, key=jax.random.key(seed))

    one, other, independent = measure(1, 1), measure(1.1, 1), measure(1.1, 2)
    assert_array_equal(one.samples, measure(1, 1).samples)
    assert not np.isin(independent.samples, other.samples).any()
    paired = Estimate.from_samples(other.samples - one.samples)
    unpaired = math.hypot(one.standard_error, independent.standard_error)
    assert paired.standard_error < 0.1 * unpaired
    assert_allclose(paired.value, 0.1 * one.value, rtol=1e-4)


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
    [([4, 1, -1, -2], 0), (4 * [3], 0), (4 * [3], 2), (30 * [0], 2)],
    ids=str,
)
def test_sam_adds_the_slope_and_the_leading_curvature(eigenvalues, steepness):
    _, centre, hessian = quadratic_of(eigenvalues)
    slope = steepness * random_array(len(eigenvalues), seed=2)
    loss = bound(quadratic, hessian, centre, slope)
    rise = sam_sharpness(loss, centre, rho=0.3, num_samples=3)
    exact = 0.3 * np.linalg.norm(slope) + 0.3**2 / 2 * max(eigenvalues)
    assert_allclose(rise.samples, np.full(3, exact), rtol=1e-3)


@pytest.mark.parametrize("size", [30, 1000])
def test_keskar_of_a_linear_loss_is_at_the_corner_of_the_box(size):
    params, slope = random_array((2, size), seed=1)
    slope = np.abs(slope) * np.sign(params) / size
    estimate = keskar_sharpness(bound(linear, slope), jnp.asarray(params))
    rise = 5e-4 * np.sum(np.abs(slope) * (np.abs(params) + 1))
    assert_allclose(estimate.value, 100 * rise / (1 + slope @ params), rtol=5e-3)


@pytest.mark.parametrize(
    "eigenvalues",
    [np.linspace(0, 1, 12), np.geomspace(1e-3, 1, 12), np.repeat([0, 1, 2], [8, 2, 2])],
    ids=["even", "decaying", "flat but for four"],
)
def test_keskar_comes_near_the_highest_corner_at_a_minimum(eigenvalues):
    loss, _, hessian = quadratic_of(eigenvalues)
    centre = loss.args[1]
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


@pytest.mark.parametrize("name", ["keskar in a subspace", "sam", "eigenvalues"])
def test_the_default_key_is_that_of_seed_zero(name):
    loss, params, _ = quadratic_of(np.linspace(1, 3, 30))
    default = ravel_pytree(MEASURES[name](loss, params))[0]
    same = ravel_pytree(MEASURES[name](loss, params, key=jax.random.key(0)))[0]
    assert_array_equal(default, same)
    other = ravel_pytree(MEASURES[name](loss, params, key=1))[0]
    assert not np.array_equal(default, other, equal_nan=True)


@pytest.mark.parametrize("name", ["expected", "trace", "density"])
def test_a_key_may_be_a_seed(name):
    loss, params, _ = quadratic_of(np.linspace(1, 3, 30))
    seeded = ravel_pytree(MEASURES[name](loss, params, key=5))[0]
    keyed = ravel_pytree(MEASURES[name](loss, params, key=jax.random.key(5)))[0]
    assert_array_equal(seeded, keyed)


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = jnp.tanh(nn.Dense(6)(x))
        return nn.Dense(2)(x)


def cross_entropy(x, labels, params):
    log_probabilities = jax.nn.log_softmax(MLP().apply(params, x))
    return -jnp.mean(jnp.take_along_axis(log_probabilities, labels[:, None], axis=1))


def test_the_hessian_of_a_network_and_its_layers_is_that_of_jax():
    x = jnp.asarray(random_array((30, 3), seed=1))
    params = jax.tree.map(lambda leaf: leaf + 0.3, jax.jit(MLP().init)(KEY, x))
    loss = Partial(cross_entropy, x, jnp.arange(30) % 2)
    flat, unravel = ravel_pytree(params)
    whole = jax.jit(jax.hessian(lambda vector: loss(unravel(vector))))(flat)
    hessians = whole[:24, :24], whole[24:, 24:], whole
    for measure in (
        partial(hessian_eigenvalues, num_eigenvalues=4),
        partial(hessian_trace, key=KEY, num_samples=200),
    ):
        measured = per_layer(measure, loss, params)
        assert list(measured) == ["params/Dense_0", "params/Dense_1"]
        measured["whole"] = measure(loss, params)
        for found, hessian in zip(measured.values(), hessians, strict=True):
            if isinstance(found, Estimate):
                assert_within_four_errors(found, np.trace(hessian))
            else:
                exact = np.linalg.eigvalsh(hessian)[::-1][: len(found.values)]
                assert_allclose(found.values, exact, rtol=1e-3, atol=1e-5)


def test_a_layer_is_what_lies_below_one_node():
    params = {"body": {"in": {"w": 1.0, "v": 2.0}, "scale": 3.0}, "head": 4.0}
    loss = bound(quadratic, np.diag([1.0, 1, 2, 5]), np.zeros(4), np.zeros(4))
    rises = per_layer(sam_sharpness, loss, jax.tree.map(jnp.float32, params), rho=0.5)
    assert list(rises) == ["body/in", "body", "head"]
    for rise, curvature, distance in zip(
        rises.values(), [1, 2, 5], [math.hypot(1, 2), 3, 4], strict=True
    ):
        exact = curvature / 2 * ((distance + 0.5) ** 2 - distance**2)
        assert_allclose(rise.value, exact, rtol=1e-4)


def in_a_stack(axis, x, params):
    """A loss of two tanh layers, stacked along an axis of their kernels, and a head."""

    def layer(hidden, weights):
        kernel, bias = weights
        return jnp.tanh(hidden @ kernel + bias[None]), None

    kernels = jnp.moveaxis(params["layers"]["kernel"], axis, 0)
    biases = jnp.moveaxis(params["layers"]["bias"], min(axis, 1), 0)
    return jnp.mean(
        (jax.lax.scan(layer, x, (kernels, biases))[0] @ params["head"]) ** 2
    )


def one_by_one(x, params):
    for name in ("layers[0]", "layers[1]"):
        x = jnp.tanh(x @ params[name]["kernel"] + params[name]["bias"][None])
    return jnp.mean((x @ params["head"]) ** 2)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("name", ["keskar", "sam", "eigenvalues"])
def test_stacked_layers_are_measured_as_if_they_were_not(name, axis, double_precision):
    x, head, kernels, biases = (
        jnp.asarray(random_array(shape, seed=4))
        for shape in ((9, 3), (3,), (2, 3, 3), (2, 3))
    )
    layers = {
        "kernel": jnp.moveaxis(kernels, 0, axis),
        "bias": jnp.moveaxis(biases, 0, min(axis, 1)),
    }
    found = per_layer(
        MEASURES[name],
        Partial(partial(in_a_stack, axis), x),
        {"head": head, "layers": layers},
        stacked={"kernel$": axis, "bias$": min(axis, 1)},
    )
    alone = {
        f"layers[{i}]": {"kernel": kernels[i], "bias": biases[i]} for i in range(2)
    }
    exact = per_layer(MEASURES[name], Partial(one_by_one, x), alone | {"head": head})
    assert list(found) == list(exact) == ["head", "layers[0]", "layers[1]"]
    for layer, measured in found.items():
        field = "values" if name == "eigenvalues" else "value"
        assert_allclose(
            *(getattr(each, field) for each in (measured, exact[layer])), rtol=1e-6
        )


@pytest.mark.parametrize(
    ("axes", "error", "message"),
    [
        (["^layers"], TypeError, r"^stacked must be a mapping .* got \['\^layers'\]$"),
        ({3: 0}, TypeError, "^patterns of stacked must be strings, got 3$"),
        ({"(": 0}, ValueError, r"^pattern '\(' of stacked is not a valid"),
        ({"^layers": 1.5}, TypeError, r"^stacked\['\^layers'\] must be .* got 1.5$"),
        ({"^layers": True}, TypeError, r"^stacked\['\^layers'\] must be .* got True$"),
        ({"^layers": -1}, ValueError, r"^stacked\['\^layers'\] must be at least 0"),
        ({"^layers": 1}, ValueError, r"'layers/b' of shape \(2,\) has no axis 1 of"),
        (
            {"/v$": 1, "^layers": 0},
            ValueError,
            r"'layers/v' of shape \(2, 3\) has 3 layers along axis 1, other weights of"
            " 'layers' 2$",
        ),
        ({"^number$": 0}, ValueError, r"'number' of shape \(\) has no axis 0 of"),
    ],
)
def test_stacked_axes_are_checked(axes, error, message):
    layers = {"b": jnp.ones(2), "v": jnp.ones((2, 3))}
    params = {"layers": layers, "number": 1.0}
    with pytest.raises(error, match=message):
        per_layer(sam_sharpness, bowl, params, rho=0.1, stacked=axes)


def test_a_network_without_weights_has_no_layers():
    with pytest.raises(ValueError, match=r"^params has no floating or complex leaf"):
        per_layer(sam_sharpness, bowl, {"steps": jnp.arange(3)}, rho=0.1)


def test_a_stacked_pattern_without_a_parameter_warns_of_the_call():
    with pytest.warns(UserWarning, match="^stacked: pattern 'lair' matches") as caught:
        per_layer(sam_sharpness, bowl, {"w": jnp.ones(2)}, rho=0.1, stacked={"lair": 0})
    assert caught[0].filename == __file__


TWO_LAYERS = {
    "Dense": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)},
    "Norm": {"scale": jnp.full(2, 3.0)},
}
BIASES = {"Dense": {"kernel": False, "bias": True}, "Norm": False}


@pytest.mark.parametrize(
    ("noise", "shares"),
    [
        (uniform(0.1, mask=exclude("Norm")), [1, 0]),
        (uniform(0.1, mask=only("^Norm/scale$")), [0, 1]),
        (uniform(0.1, mask=BIASES), [1, 0]),
        (by_path({"^Norm": uniform(0.1), "kernel": uniform(0.2)}), [1, 1]),
        (by_path({"": uniform(0.1, mask=exclude("Norm"))}), [1, 0]),
        (
            uniform(0.1, relative_to="filter", filter_axis={"kernel": 0, "bias": -1}),
            [1, 1],
        ),
        (
            uniform(
                0.1, relative_to="filter", filter_axis=stacked(flax_filters, "^Dense/k")
            ),
            [1, 1],
        ),
    ],
)
def test_paths_of_noise_are_those_of_the_whole_network(noise, shares):
    """What matches in the network warns of nothing where a layer does not have it."""
    rises = per_layer(
        expected_sharpness, bowl, TWO_LAYERS, noise=noise, key=0, num_samples=2
    )
    assert [rise.value != 0 for rise in rises.values()] == list(map(bool, shares))


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
def test_batches_of_any_size_are_the_whole_data(double_precision, measure):
    params, data, batches = regression(seed=5)
    whole = measure(Partial(squared_error_on, data), params)
    in_batches = measure(squared_error, params, batches=batches)
    jax.tree.map(partial(assert_allclose, rtol=1e-6, atol=1e-9), in_batches, whole)


@every_measure
def test_a_second_network_runs_the_programs_of_the_first(double_precision, measure):
    num_traces = []
    for seed in (5, 6):
        params, data, batches = regression(seed)
        measure(Partial(squared_error_on, data), params)
        measure(squared_error, params, batches=batches)
        num_traces.append(len(TRACES))
    assert num_traces[0] == num_traces[1] > 0


def test_noise_takes_one_pass_over_the_batches_of_an_iterator(double_precision):
    params, _, batches = regression(seed=5)
    listed, once = (
        MEASURES["expected"](squared_error, params, batches=either)
        for either in (batches, (batch for batch in batches))
    )
    assert_array_equal(listed.samples, once.samples)


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


@every_measure
@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"key": jax.random.split(KEY)}, TypeError, r"^key must be a single PRNG key"),
        ({"loss": squared_error}, TypeError, r"^loss must be a function of \(params\)"),
        ({"batches": [np.ones(2)], "loss": jnp.sin}, TypeError, r"\(params, batch\)"),
        ({"batches": np.ones((3, 2))}, TypeError, r"^batches must be an iterable"),
        ({"params": math.nan}, ValueError, r"^the loss at params .* finite, got nan$"),
        ({"params": jnp.sin}, TypeError, r"^params must hold arrays"),
    ],
)
def test_every_measure_refuses(measure, given, error, message):
    options = {"loss": bowl, "params": 1.0} | given
    with pytest.raises(error, match=message):
        measure(**options)


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        (3, TypeError, r"must be an iterable of batches, such as \[\(x, y\)\]; got 3$"),
        (np.ones((3, 2)), TypeError, r"got an array of float64\[3, 2\]$"),
        (jnp.ones((3, 2)), TypeError, r"got an array of float32\[3, 2\]$"),
        ((np.ones(3), np.ones(3)), TypeError, "tuple of arrays, which is one batch"),
        ({"x": np.ones(3)}, TypeError, "got a dict of 1 leaves$"),
        ("train", TypeError, "got 'train'$"),
        (iter([np.ones(3)]), ValueError, "^batches is an iterator"),
        ([], ValueError, "^batches is empty$"),
        ([3.0], ValueError, r"got \(\)$"),
        ([np.ones(0)], ValueError, r"got \(0,\)$"),
        ([(np.ones(3), np.ones(2))], ValueError, r"got \(3,\) and \(2,\)$"),
    ],
)
def test_what_is_no_iterable_of_batches_is_refused(batches, error, message):
    with pytest.raises(error, match=message):
        sam_sharpness(bowl, 1.0, rho=0.1, batches=batches)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (3, "^loss must be a function; got 3$"),
        ({"w": jnp.ones(3)}, "^loss must be a function; got a dict of 1 leaves$"),
        (NOISE, r"\(params\) without batches; got one of \(key, params, step\)$"),
        (jnp.atleast_1d, r"real scalar.* float32 of shape \(1,\)"),
        (jnp.argmax, r"real scalar.* got int32 of shape \(\)"),
        (lambda params: (params, {}), "^loss must be a real scalar.* got a tuple"),
        (lambda params: None, "^loss must be a real scalar.* got None"),
    ],
)
def test_what_is_no_loss_is_refused(loss, message):
    with pytest.raises(TypeError, match=message):
        sam_sharpness(loss, 1.0, rho=0.1)


def test_a_noise_in_the_place_of_a_loss_of_batches_is_refused():
    with pytest.raises(TypeError, match=r"\(params, batch\) with batches; got one of"):
        sam_sharpness(NOISE, 1.0, rho=0.1, batches=[np.ones(3)])


@pytest.mark.parametrize("noise", [0.1, bowl, jnp.square])
def test_what_is_no_noise_is_refused(noise):
    with pytest.raises(TypeError, match=r"^noise must be a function.*; got .*$"):
        expected_sharpness(bowl, 1.0, noise, key=0)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("keskar", {"epsilon": -0.1}),
        ("sam", {"rho": math.nan}),
        ("eigenvalues", {"tolerance": 0}),
        ("density", {"width": math.inf}),
        ("keskar", {"subspace_dim": 0}),
        ("keskar", {"num_starts": 0}),
        ("eigenvalues", {"num_eigenvalues": 0}),
        ("eigenvalues", {"which": "LR"}),
        ("density", {"depth": 0}),
        ("density", {"num_points": 0}),
        *((name, {"num_samples": 0}) for name in MEASURES if name != "eigenvalues"),
        *((name, {"max_iterations": 0}) for name in ("keskar", "sam", "eigenvalues")),
    ],
)
def test_an_option_out_of_range_is_an_error(name, option):
    ((argument, value),) = option.items()
    with pytest.raises(ValueError, match=f"^{argument} must be .*{value}"):
        MEASURES[name](bowl, jnp.ones(3), **option)


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("keskar", "subspace_dim"),
        ("eigenvalues", "num_eigenvalues"),
        ("density", "depth"),
    ],
)
def test_more_dimensions_than_weights_are_an_error(name, argument):
    with pytest.raises(ValueError, match=f"^{argument}=4 is more than the 3 weights"):
        MEASURES[name](bowl, jnp.ones(3), **{argument: 4})


@pytest.mark.parametrize("dtype", ["float16", "int32"])
def test_parameters_of_other_types_are_an_error(dtype):
    params = {"layer": {"bias": jnp.ones(3), "kernel": jnp.ones(3, dtype)}}
    message = f"^params must be in float32 or float64.*'layer/kernel' is {dtype}"
    with pytest.raises(TypeError, match=message):
        hessian_trace(bowl, params, key=0)


def test_a_network_without_weights_is_an_error():
    with pytest.raises(ValueError, match=r"^params has no weights$"):
        hessian_trace(bowl, {}, key=0)


def test_sam_takes_no_direction_from_a_gradient_that_vanishes():
    params = jnp.linspace(1, 2, 100)

    def cap(w):
        """Flat but for a cap around the mean direction, where no start lies."""
        return jnp.maximum(jnp.sum(w - params) / 10, 0.09)

    assert sam_sharpness(cap, params, rho=0.1).value == 0


def test_keskar_divides_by_nothing_below_zero():
    with pytest.raises(
        ValueError, match=r"^loss must be above -1 at params, got -1.0$"
    ):
        keskar_sharpness(jnp.negative, 1.0)


@pytest.mark.parametrize(("name", "size"), [("keskar", "epsilon"), ("sam", "rho")])
def test_a_loss_that_overflows_nearby_is_not_taken_for_flat(name, size):
    def cliff(params):
        return jnp.where(jnp.max(jnp.abs(params)) > 1.001, jnp.nan, 1.0)

    message = f"^the loss within {size}=0.1 of params must be finite, got nan$"
    with pytest.raises(ValueError, match=message):
        MEASURES[name](cliff, jnp.ones(3))


@pytest.mark.parametrize("name", ["eigenvalues", "trace", "density"])
def test_a_hessian_that_is_not_finite_is_an_error(name):
    with pytest.raises(ValueError, match=r"^the Hessian of the loss at .*"):
        MEASURES[name](lambda params: jnp.linalg.norm(params), jnp.zeros(3))


def test_eigenvalues_that_do_not_converge_are_an_error():
    loss, params, _ = quadratic_of(np.linspace(1, 2, 100))
    measure = partial(hessian_eigenvalues, num_eigenvalues=9, tolerance=1e-3)
    message = r"^only \d of num_eigenvalues=9 .*tolerance=0.001 in max_iterations=1$"
    with pytest.raises(RuntimeError, match=message):
        measure(loss, params, max_iterations=1)


@pytest.fixture
def hide(monkeypatch):
    """Makes a package one that is not installed."""

    def hide(package):
        def import_module(module, actual=importlib.import_module):
            if module.partition(".")[0] == package:
                raise ImportError(module)
            return actual(module)

        monkeypatch.setattr(importlib, "import_module", import_module)

    return hide


@pytest.mark.parametrize("name", ["keskar", "eigenvalues", "density"])
def test_a_missing_package_is_told_by_name_before_anything_is_computed(hide, name):
    hide("scipy")
    command = re.escape('pip install "smoothout-jax[sharpness]"')
    with pytest.raises(ImportError, match=f"^scipy is not installed.*{command}$"):
        MEASURES[name](bowl, jnp.ones(30))


@pytest.mark.parametrize("name", ["expected", "sam by layer"])
def test_measures_do_without_progress_bars(hide, name):
    hide("tqdm")
    MEASURES[name](bowl, jnp.ones(3), batches=[np.ones(2), np.ones(1)])


class Bar:
    """A progress bar that keeps what it is told."""

    def __init__(self, items, description, total, **_):
        self.items, self.total, self.count = items, total, 0
        BARS.append(self)

    def __iter__(self):
        return iter(self.items)

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


class Passes(list):
    """Batches that count how often they are gone through."""

    count = 0

    def __iter__(self):
        self.count += 1
        return super().__iter__()


@pytest.mark.parametrize("in_batches", [False, True])
@pytest.mark.parametrize(
    ("name", "num_products"),
    [("eigenvalues", None), ("trace", 3), ("density", 6)],
)
def test_each_product_with_the_hessian_is_taken_once(
    monkeypatch, name, num_products, in_batches
):
    products = []
    product = VectorLoss.hessian_vector

    def counting(self, vector):
        products.append(np.asarray(vector).tobytes())
        return product(self, vector)

    monkeypatch.setattr(VectorLoss, "hessian_vector", counting)
    # More weights than vectors that ARPACK keeps.
    batches = Passes(jnp.asarray(random_array((3, 30, 30), seed=1)))

    def loss(params, batch):
        return jnp.mean(batch @ jnp.cos(params))

    if in_batches:
        MEASURES[name](loss, jnp.ones(30), batches=batches)
        assert batches.count == 1 + len(products)
    else:
        MEASURES[name](partial(loss, batch=batches[0]), jnp.ones(30))
    assert len(set(products)) == len(products)
    assert num_products in (None, len(products))
