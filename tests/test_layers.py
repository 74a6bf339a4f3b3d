"""Measures of single layers: against whole networks, and of layers that are stacked."""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from losses import KEY, MEASURES, bound, bowl, quadratic, random_array
from numpy.testing import assert_allclose

from smoothout_jax import by_path, exclude, flax_filters, only, stacked, uniform
from smoothout_jax.sharpness import (
    expected_sharpness,
    hessian_eigenvalues,
    hessian_trace,
    per_layer,
    sam_sharpness,
)


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = jnp.tanh(nn.Dense(4)(x))
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
    for measure in (
        partial(hessian_eigenvalues, num_eigenvalues=4),
        partial(hessian_trace, key=KEY, num_samples=200),
    ):
        measured = per_layer(measure, loss, params)
        assert list(measured) == ["params/Dense_0", "params/Dense_1"]
        measured["whole"] = measure(loss, params)
        for found, hessian in zip(
            measured.values(), (whole[:16, :16], whole[16:, 16:], whole), strict=True
        ):
            if measure.func is hessian_trace:
                error = abs(found.value - np.trace(hessian))
                assert error < 4 * found.standard_error
            else:
                exact = np.linalg.eigvalsh(hessian)[::-1][:4]
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
def test_stacked_layers_are_measured_as_if_they_were_not(axis):
    x, head, kernels, biases = (
        jnp.asarray(random_array(shape, seed=4))
        for shape in ((9, 3), (3,), (2, 3, 3), (2, 3))
    )
    layers = {
        "kernel": jnp.moveaxis(kernels, 0, axis),
        "bias": jnp.moveaxis(biases, 0, min(axis, 1)),
    }
    found = per_layer(
        MEASURES["sam"],
        Partial(partial(in_a_stack, axis), x),
        {"head": head, "layers": layers},
        stacked={"kernel$": axis, "bias$": min(axis, 1)},
    )
    alone = {
        f"layers[{i}]": {"kernel": kernels[i], "bias": biases[i]} for i in range(2)
    }
    exact = per_layer(MEASURES["sam"], Partial(one_by_one, x), alone | {"head": head})
    assert list(found) == list(exact) == ["head", "layers[0]", "layers[1]"]
    for layer, measured in found.items():
        assert_allclose(measured.value, exact[layer].value, rtol=1e-4)


@pytest.mark.parametrize(
    ("axes", "error", "message"),
    [
        (["^layers"], TypeError, r"^stacked must be a mapping .* got \['\^layers'\]$"),
        ({3: 0}, TypeError, "^patterns of stacked must be strings, got 3$"),
        ({"(": 0}, ValueError, r"^pattern '\(' of stacked is not a valid"),
        ({"^layers": 1.5}, TypeError, r"^stacked\['\^layers'\] must be .* got 1.5$"),
        ({"^layers": 1}, ValueError, r"'layers/b' of shape \(2,\) has no axis 1 of"),
        (
            {"/v$": 1, "^layers": 0},
            ValueError,
            r"'layers/v' of shape \(2, 3\) has 3 layers along axis 1, other weights of"
            " 'layers' 2$",
        ),
    ],
)
def test_stacked_axes_are_checked(axes, error, message):
    params = {"layers": {"b": jnp.ones(2), "v": jnp.ones((2, 3))}}
    with pytest.raises(error, match=message):
        per_layer(sam_sharpness, bowl, params, rho=0.1, stacked=axes)


def test_what_has_no_layer_is_reported():
    with pytest.raises(ValueError, match=r"^params has no floating or complex leaf"):
        per_layer(sam_sharpness, bowl, {"steps": jnp.arange(3)}, rho=0.1)
    with pytest.warns(UserWarning, match="^stacked: pattern 'lair' matches") as caught:
        per_layer(sam_sharpness, bowl, {"w": jnp.ones(2)}, rho=0.1, stacked={"lair": 0})
    assert caught[0].filename == __file__


TWO_LAYERS = {
    "Dense": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)},
    "Norm": {"scale": jnp.full(2, 3.0)},
}
BIASES = {"Dense": {"kernel": False, "bias": True}, "Norm": False}
BY_FILTER = partial(uniform, 0.1, relative_to="filter")


@pytest.mark.parametrize(
    ("noise", "layers"),
    [
        (uniform(0.1, mask=only("^Norm/scale$")), ["Norm"]),
        (uniform(0.1, mask=BIASES), ["Dense"]),
        (by_path({"^Norm": uniform(0.1), "k": uniform(0.2)}), ["Dense", "Norm"]),
        (by_path({"": uniform(0.1, mask=exclude("Norm"))}), ["Dense"]),
        (BY_FILTER(filter_axis={"kernel": 0, "bias": -1}), ["Dense", "Norm"]),
        (BY_FILTER(filter_axis=stacked(flax_filters, "^Dense/k")), ["Dense", "Norm"]),
    ],
)
def test_paths_of_noise_are_those_of_the_whole_network(noise, layers):
    """What matches in the network warns of nothing where a layer does not have it."""
    rises = per_layer(
        expected_sharpness, bowl, TWO_LAYERS, noise=noise, key=0, num_samples=1
    )
    assert [layer for layer, rise in rises.items() if rise.value] == layers
