"""Sharpness and landscapes of networks sharded over axes of every kind."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding

from smoothout_jax import flax_filters, stacked, uniform
from smoothout_jax.landscape import (
    direction_between,
    filter_normalized_direction,
    interpolate,
    loss_curve,
    loss_surface,
)
from smoothout_jax.sharpness import (
    expected_sharpness,
    hessian_density,
    hessian_eigenvalues,
    hessian_trace,
    keskar_sharpness,
    per_layer,
    sam_sharpness,
)

PARAMS = {
    "layers": {
        "kernel": jax.random.normal(jax.random.key(0), (4, 4, 4)) / 2,
        "bias": jnp.full((4, 4), 0.1),
    },
    "head": jax.random.normal(jax.random.key(1), (4,)),
}
# Layers are on different devices, as in a pipeline.
SPECS = {
    "layers": {"kernel": jax.P("data", None, "model"), "bias": jax.P("data", None)},
    "head": jax.P("model"),
}
BATCHES = [
    jax.random.normal(jax.random.key(2), (8, 4)),
    jax.random.normal(jax.random.key(3), (16, 4)),
]
NOISE = uniform(
    0.1, relative_to="filter", filter_axis=stacked(flax_filters, "^layers/")
)
NOISY = partial(expected_sharpness, noise=NOISE, key=5, num_samples=2)
SAM = partial(sam_sharpness, rho=0.05, max_iterations=3)


def whole(params):
    """Gathers the weights, as a user does on explicit axes."""
    if AxisType.Explicit not in jax.sharding.get_abstract_mesh().axis_types:
        return params
    assert jax.tree.map(lambda leaf: jax.typeof(leaf).sharding.spec, params) == SPECS
    return jax.tree.map(lambda leaf: jax.sharding.reshard(leaf, jax.P()), params)


def loss(params, batch):
    hidden, params = batch, whole(params)
    layers = params["layers"]
    for kernel, bias in zip(layers["kernel"], layers["bias"], strict=True):
        hidden = jnp.tanh(hidden @ kernel + bias[None])
    return jnp.mean((hidden @ params["head"] - 1) ** 2)


def squares(params):
    return jnp.sum(params["w"] ** 2) + params["b"] ** 2


def curve(loss, params, *, batches):
    direction = filter_normalized_direction(3, params)
    return loss_curve(loss, params, direction, [-1, 0, 1], batches=batches).values


def surface(loss, params, *, batches):
    other = interpolate(params, jax.tree.map(jnp.zeros_like, params), 0.5)
    directions = (
        direction_between(params, other),
        filter_normalized_direction(3, params),
    )
    return loss_surface(
        loss, params, directions, ([0, 1], [0, 1]), batches=batches
    ).values


def eigenvalues(loss, params, *, batches):
    pairs = hessian_eigenvalues(loss, params, num_eigenvalues=2, key=1, batches=batches)
    return pairs.values, abs(pairs.vector(0)["head"])


MEASURES = {
    "expected": NOISY,
    "keskar": partial(keskar_sharpness, epsilon=0.1, max_iterations=3),
    "keskar in a subspace": partial(keskar_sharpness, epsilon=0.1, subspace_dim=2),
    "sam": SAM,
    "eigenvalues": eigenvalues,
    "trace": partial(hessian_trace, key=1, num_samples=3),
    "density": partial(hessian_density, key=1, num_samples=2, depth=3),
    "expected by layer": partial(per_layer, NOISY, stacked={"^layers/": 0}),
    "sam by layer": partial(per_layer, SAM, stacked={"^layers/": 0}),
    "curve": curve,
    "surface": surface,
}


@functools.cache
def alone(name):
    return MEASURES[name](loss, PARAMS, batches=BATCHES)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, AxisType.Explicit) for name in MEASURES),
        *((name, AxisType.Auto) for name in ("expected", "eigenvalues", "surface")),
    ],
)
def test_a_network_over_devices_measures_as_on_one(name, kind):
    mesh = jax.make_mesh((4, 2), ("data", "model"), (kind, kind))
    with jax.set_mesh(mesh):
        laid = jax.tree.map(lambda spec: NamedSharding(mesh, spec), SPECS)
        params = jax.device_put(PARAMS, laid)
        batches = jax.device_put(BATCHES, NamedSharding(mesh, jax.P("data")))
        found = MEASURES[name](loss, params, batches=batches)
    close = partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-6)
    jax.tree.map(close, found, alone(name))


def test_numbers_and_arrays_of_numpy_are_measured_within_a_mesh():
    params = {"w": np.ones(3, np.float32), "b": 2.0}
    with jax.set_mesh(jax.make_mesh((8,), ("data",), (AxisType.Explicit,))):
        rises = per_layer(sam_sharpness, squares, params, rho=0.1)
    exact = [0.1 * 4 + 0.01, 2 * 0.1 * 3**0.5 + 0.01]
    np.testing.assert_allclose([r.value for r in rises.values()], exact, rtol=1e-5)
