"""What holds for any tree, mask, axis, dtype and number of copies."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from smoothout_jax import gaussian, init_loss_rise, smoothout_value_and_grad, uniform
from smoothout_jax.loss_rise import LossRise

# Draws of other keys than threefry's compile several times faster.
KEY = jax.random.key(7, impl="unsafe_rbg")
few_examples = settings(derandomize=True, deadline=None, max_examples=25)

DTYPES = ("float16", "bfloat16", "float32", "complex64", "int32", "bool")
leaves = st.builds(
    lambda shape, dtype: jnp.ones(shape, dtype),
    st.lists(st.integers(1, 3), max_size=3).map(tuple),
    st.sampled_from(DTYPES),
)
trees = st.recursive(
    leaves | st.none(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    ),
    max_leaves=5,
)


@few_examples
@given(
    trees,
    st.data(),
    st.sampled_from([uniform, gaussian]),
    st.sampled_from([None, "weight", "filter", "layer"]),
    st.integers(-3, 2),
)
def test_noise_is_like_the_parameters(params, data, law, relative_to, axis):
    assume(params is not None)
    floating = [
        leaf
        for leaf in jax.tree.leaves(params)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    if relative_to == "filter":
        assume(all(-leaf.ndim <= axis < leaf.ndim for leaf in floating if leaf.ndim))
    mask = jax.tree.map(lambda _: data.draw(st.booleans()), params)
    noise = law(0.5, relative_to=relative_to, filter_axis=axis, mask=mask)
    chosen = [
        flag and jnp.issubdtype(leaf.dtype, jnp.inexact)
        for leaf, flag in zip(
            jax.tree.leaves(params), jax.tree.leaves(mask), strict=True
        )
    ]
    if not any(chosen) and jax.tree.leaves(params):
        with pytest.raises(
            ValueError, match=r"mask leaves none|no floating or complex"
        ):
            noise(KEY, params)
        return
    added = noise(KEY, params)
    assert jax.tree.structure(added) == jax.tree.structure(params)
    for leaf, other, is_noisy in zip(
        jax.tree.leaves(params), jax.tree.leaves(added), chosen, strict=True
    ):
        assert (other.shape, other.dtype) == (leaf.shape, leaf.dtype)
        assert jnp.any(other) == is_noisy


@settings(few_examples, max_examples=10)
@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.booleans(),
    st.sampled_from(["unroll", "scan", "vmap"]),
)
def test_the_copies_rows_are_a_partition_of_the_batch(
    num_copies, rows, clean, execution
):
    total = num_copies + clean
    fn = smoothout_value_and_grad(
        lambda w, batch: (jnp.sum(w), batch),
        uniform(0.1),
        num_copies=num_copies,
        clean_weight=0.5 if clean else 0.0,
        has_aux=True,
        aux="stack",
        batch_argnums=1,
        execution=execution,
    )
    (_, parts), _ = fn(KEY, jnp.ones(2), jnp.arange(total * rows))
    assert parts.shape == (total, rows)
    np.testing.assert_array_equal(np.sort(parts, axis=None), np.arange(total * rows))


@functools.partial(jax.jit, static_argnums=0)
def scales_of(copies, target, rises):
    """The state at every gradient, of rises whatever the noise was."""
    held = LossRise(target, copies)

    def step(state, rise):
        state = held.scaled(state)
        return held.observed(state, rise), state

    return jax.lax.scan(step, init_loss_rise(), rises)[1]


@few_examples
@given(
    st.sampled_from([1, 3]),
    st.floats(0, 2.0**10, width=32, allow_subnormal=False),
    st.lists(
        st.floats(width=32, allow_subnormal=False) | st.floats(-1, 1, width=32),
        min_size=12,
        max_size=12,
    ),
)
def test_whatever_the_gradients_are_the_scale_is_a_number_of_at_most_one(
    copies, target, rises
):
    state = scales_of(copies, jnp.float32(target), jnp.array(rises, jnp.float32))
    assert jnp.all(jnp.isfinite(state.rise_per_square))
    assert jnp.all((state.noise_scale > 0) == (target > 0))
    most = 0.1 * 1.05 ** (np.arange(len(rises)) / copies)
    assert jnp.all(state.noise_scale <= np.float32(1.0001) * np.float32(most))
    np.testing.assert_array_equal(state.rise_step, np.arange(len(rises)))
