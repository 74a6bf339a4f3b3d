"""Losses of known curvature, and every measure of sharpness, for the tests."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from smoothout_jax import uniform
from smoothout_jax.sharpness import (
    expected_sharpness,
    hessian_density,
    hessian_eigenvalues,
    hessian_trace,
    keskar_sharpness,
    per_layer,
    sam_sharpness,
)

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
