"""Eigenvalues, trace and density of Hessians that are known in closed form."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from losses import KEY, MEASURES, bound, linear, quadratic_of, random_array
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from smoothout_jax.sharpness import hessian_density, hessian_eigenvalues, hessian_trace
from smoothout_jax.sharpness.objective import VectorLoss

SPECTRA = {
    "negative": np.linspace(-4, -0.5, 100),
    "indefinite": np.r_[-9, -4.5, np.linspace(-1, 2, 95), 3, 4, 5],
    "triple": np.r_[np.linspace(-2, 1, 97), 3, 3, 3],
    "triple below": np.r_[-3, -3, -3, np.linspace(-1, 2, 97)],
    "of rank two": np.r_[-7, np.zeros(98), 5],
    "ill-conditioned": np.r_[1e-3, np.geomspace(1, 1e3, 99)],
    "of few weights": np.r_[-9, -4.5, np.linspace(-1, 2, 7), 3, 4, 5],
}
RANKS = {"LA": lambda value: -value, "SA": lambda value: value, "LM": lambda v: -abs(v)}


@pytest.mark.parametrize("which", RANKS)
@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA)
def test_leading_eigenpairs_are_those_of_the_hessian(double_precision, spectrum, which):
    loss, params, hessian = quadratic_of(spectrum)
    params = {"bias": params[:3], "kernel": params[3:][None]}
    pairs = hessian_eigenvalues(loss, params, num_eigenvalues=4, which=which)
    assert_allclose(
        pairs.values, sorted(spectrum, key=RANKS[which])[:4], rtol=1e-4, atol=1e-7
    )
    assert pairs.vectors["kernel"].shape == (4, 1, len(spectrum) - 3)
    vectors = np.stack([ravel_pytree(pairs.vector(index))[0] for index in range(4)])
    assert_allclose(vectors @ vectors.T, np.eye(4), atol=1e-9)
    errors = np.linalg.norm(vectors @ hessian - pairs.values[:, None] * vectors, axis=1)
    assert_allclose(pairs.residuals, errors, rtol=1e-3, atol=1e-11)
    assert errors.max() <= 1e-4 * np.abs(spectrum).max()


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


def test_the_trace_has_the_variance_of_hutchinson():
    eigenvalues = [1, 2, 3, 5, 7, -2]
    loss, params, hessian = quadratic_of(eigenvalues)
    trace = hessian_trace(loss, params, key=KEY, num_samples=500)
    assert abs(trace.value - np.sum(eigenvalues)) < 4 * trace.standard_error
    variance = 2 * (np.sum(hessian**2) - np.sum(np.diag(hessian) ** 2))
    assert_allclose(trace.standard_error, math.sqrt(variance / 500), rtol=0.05)


@pytest.mark.parametrize(
    ("eigenvalues", "width", "double"),
    [
        ([-3, -1, 0, 0.5, 2, 4], None, True),
        ([-2, -2, 2, 2, 2, 2], 0.3, True),
        (np.repeat([-1, 0.5, 2], [5, 15, 20]), 0.2, False),
    ],
    ids=["distinct", "repeated", "repeated, in single precision"],
)
def test_the_density_is_a_gaussian_at_each_eigenvalue(eigenvalues, width, double):
    """Weighted by the squared coordinates of the probes along its eigenvectors."""
    size = len(eigenvalues)
    with jax.enable_x64(double):
        loss, params, hessian = quadratic_of(eigenvalues)
        density = hessian_density(
            loss, params, key=KEY, num_samples=3, depth=6, width=width, num_points=200
        )
        keys = jax.random.split(KEY, 3)
        probes = [np.asarray(jax.random.rademacher(key, (size,))) for key in keys]
    values, vectors = np.linalg.eigh(hessian)
    distinct, place = np.unique(values.round(9), return_inverse=True)
    weights = [np.bincount(place, (probe @ vectors) ** 2 / size) for probe in probes]
    close = {"atol": 1e-8} if double else {"rtol": 1e-3, "atol": 1e-4}
    assert_allclose(density.nodes[:, : len(distinct)], [distinct] * 3, **close)
    assert_allclose(density.weights[:, : len(distinct)], weights, **close)
    assert np.isnan(density.nodes[:, len(distinct) :]).all()
    assert np.isnan(density.weights[:, len(distinct) :]).all()
    low, high = distinct[[0, -1]]
    width = width or 0.01 * (high - low)
    points = np.linspace(low - 5 * width, high + 5 * width, 200)
    assert_allclose(density.eigenvalues, points, **close)
    peaks = stats.norm.pdf(points[:, None], distinct, width) @ np.transpose(weights)
    assert_allclose(density.density, peaks.mean(axis=1), **close)
    assert_allclose(density.standard_error, stats.sem(peaks, axis=1), **close)


class Passes(list):
    """Batches that count how often they are iterated over."""

    count = 0

    def __iter__(self):
        self.count += 1
        return super().__iter__()


@pytest.mark.parametrize(
    ("name", "num_products"), [("eigenvalues", None), ("trace", 3), ("density", 6)]
)
def test_each_product_with_the_hessian_is_taken_once(monkeypatch, name, num_products):
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

    MEASURES[name](loss, jnp.ones(30), batches=batches)
    assert batches.count == 1 + len(products)
    assert len(set(products)) == len(products)
    assert num_products in (None, len(products))
