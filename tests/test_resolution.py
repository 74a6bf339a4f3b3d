"""Noise that half precision would round away warns."""

import warnings

import jax
import jax.numpy as jnp
import optax
import pytest

from smoothout_jax import gaussian, uniform

KEY = jax.random.key(2018, impl="unsafe_rbg")


@pytest.mark.parametrize(
    "transform", [lambda noise: noise, jax.jit], ids=["eager", "compiled"]
)
@pytest.mark.parametrize(("law", "name"), [(uniform, "radius"), (gaussian, "std")])
def test_noise_below_the_resolution_of_a_leaf_warns(law, name, transform):
    params = {
        "kernel": jnp.full(3, 4.0, "bfloat16"),
        "bias": jnp.ones(3, "float16"),
        "scale": jnp.ones(3),
        "empty": jnp.ones(0, "bfloat16"),
    }
    for relative_to in (None, "weight", "filter"):
        noise = transform(law(1e-5, relative_to=relative_to))
        with pytest.warns(UserWarning, match=f"{name} is below the") as caught:
            noise(KEY, params)
        first, second = (str(warning.message) for warning in caught)
        assert "'bias', float16" in first
        assert "'kernel', bfloat16" in second
        assert ("added to weights near 1" in first) == (relative_to is None)
        assert transform is jax.jit or caught[0].filename == __file__


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_noise_warns_where_it_is_lost_and_only_there(dtype):
    leaf = jnp.ones(1000, dtype)
    # The neighbours of one are eps / 2 below and eps above it.
    lost, kept = (float(jnp.finfo(dtype).eps) * size for size in (0.2, 1.1))
    with pytest.warns(UserWarning, match="radius is below the resolution"):
        noise = uniform(lost)(KEY, leaf)
    assert jnp.all(leaf + noise == leaf)
    assert jnp.any(leaf + uniform(kept)(KEY, leaf) != leaf)
    params = {"half": leaf, "single": jnp.ones(3)}
    uniform(lost, mask={"half": False, "single": True})(KEY, params)
    noise = uniform(0.0)(KEY, params)
    assert not any(leaf.any() for leaf in jax.tree.leaves(noise))


def test_an_eager_loop_warns_once_of_lost_noise():
    leaf = jnp.ones(3, "bfloat16")
    for radius in (1e-6, optax.linear_schedule(1e-6, 2e-6, 5)):
        noise = uniform(radius)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            for step in range(5):
                noise(jax.random.fold_in(KEY, step), leaf, step)
        assert len(caught) == 1
