"""The filters of a network: the weights that make one output, found by differentiating.

An output unit is a channel, the unit of an attention head, or what an embedding makes
of a token. The weights that it depends on, which its gradient shows, are one filter.
"""

import itertools

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from smoothout_jax import (
    by_path,
    exclude,
    flax_filters,
    gaussian,
    haiku_filters,
    only,
    smoothout,
    smoothout_value_and_grad,
    stacked,
    uniform,
)
from smoothout_jax._trees import leaf_names
from smoothout_jax.filters import numbering, raw_axes

KEY = jax.random.key(0)


@pytest.fixture(autouse=True, scope="module")
def as_frameworks_compute():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def randomized(params):
    """Parameters without zeros, which would hide what depends on them."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(KEY, len(leaves))
    pairs = zip(keys, leaves, strict=True)
    return jax.tree.unflatten(
        structure, [0.1 + 0.1 * jax.random.uniform(k, jnp.shape(p)) for k, p in pairs]
    )


def linen(module, *inputs, of=None):
    """Parameters, and a function of them to the outputs of a layer, or one inside."""
    params = module.init(KEY, *inputs)["params"]

    def outputs(params):
        if of is None:
            return module.apply({"params": params}, *inputs)
        _, seen = module.apply({"params": params}, *inputs, capture_intermediates=True)
        return seen["intermediates"][of]["__call__"][0]

    return params, outputs


def nnx_layer(module, *inputs, of=None):
    graph, params, rest = nnx.split(module, nnx.Param, ...)

    def outputs(params):
        layer = nnx.merge(graph, params, rest)
        return (layer if of is None else getattr(layer, of))(*inputs)

    return params, outputs


def equinox(module, *inputs, of=None):
    params, static = eqx.partition(module, eqx.is_inexact_array)

    def outputs(params):
        layer = eqx.combine(params, static)
        return (layer if of is None else getattr(layer, of))(*inputs)

    return params, outputs


def haiku(make, *inputs):
    network = hk.without_apply_rng(hk.transform(lambda *inputs: make()(*inputs)))
    return network.init(KEY, *inputs), lambda params: network.apply(params, *inputs)


def ones(*shape):
    return jnp.ones(shape)


RNGS = nnx.Rngs(0)
X, TOKENS = ones(4, 3), jnp.arange(5)
LINE, SQUARE = ones(1, 7, 4), ones(1, 5, 5, 4)
STATE = (ones(2, 3), ones(2, 3))
LAST, HEADS, FIRST = (-1,), (-2, -1), (0,)

# Layer: parameters and outputs; its filters; the axes of the outputs that number units.
LAYERS = {
    "linen Dense": (lambda: linen(nn.Dense(2), X), -1, LAST),
    "linen DenseGeneral": (
        lambda: linen(nn.DenseGeneral((2, 3)), X),
        {"kernel|bias": (-2, -1)},
        HEADS,
    ),
    "linen DenseGeneral of two axes": (
        lambda: linen(nn.DenseGeneral(2, axis=(-2, -1)), X),
        -1,
        LAST,
    ),
    "linen Conv of lines": (lambda: linen(nn.Conv(3, (2,)), LINE), -1, LAST),
    "linen Conv": (lambda: linen(nn.Conv(3, (2, 2)), SQUARE), -1, LAST),
    "linen grouped Conv": (
        lambda: linen(nn.Conv(6, (2, 2), feature_group_count=2), SQUARE),
        -1,
        LAST,
    ),
    "linen ConvLocal": (
        lambda: linen(nn.ConvLocal(3, (2,), padding="VALID"), LINE),
        {"kernel|bias": (0, -1)},
        HEADS,
    ),
    "linen ConvTranspose": (
        lambda: linen(nn.ConvTranspose(3, (2, 2)), SQUARE),
        -1,
        LAST,
    ),
    "linen transposed ConvTranspose": (
        lambda: linen(nn.ConvTranspose(3, (2, 2), transpose_kernel=True), SQUARE),
        {"kernel": -2},
        LAST,
    ),
    "linen Einsum": (
        lambda: linen(nn.Einsum((3, 2, 5), "nx,xhd->nhd"), X),
        {"kernel|bias": (-2, -1)},
        HEADS,
    ),
    "linen Embed": (lambda: linen(nn.Embed(5, 3), TOKENS), flax_filters, FIRST),
    "linen query of attention": (
        lambda: linen(
            nn.MultiHeadDotProductAttention(2, qkv_features=6), X, of="query"
        ),
        flax_filters,
        HEADS,
    ),
    "linen output of attention": (
        lambda: linen(nn.MultiHeadDotProductAttention(2, qkv_features=6), X, of="out"),
        flax_filters,
        LAST,
    ),
    "linen LSTMCell": (
        lambda: linen(Carry(nn.LSTMCell(3)), STATE, ones(2, 4)),
        -1,
        LAST,
    ),
    "linen OptimizedLSTMCell": (
        lambda: linen(Carry(nn.OptimizedLSTMCell(3)), STATE, ones(2, 4)),
        -1,
        LAST,
    ),
    "linen GRUCell": (
        lambda: linen(Carry(nn.GRUCell(3)), ones(2, 3), ones(2, 4)),
        -1,
        LAST,
    ),
    "linen LayerNorm": (
        lambda: linen(nn.LayerNorm(), ones(2, 3).at[0].set(2)),
        -1,
        LAST,
    ),
    "nnx Linear": (lambda: nnx_layer(nnx.Linear(3, 2, rngs=RNGS), X), -1, LAST),
    "nnx LinearGeneral": (
        lambda: nnx_layer(nnx.LinearGeneral(3, (2, 5), rngs=RNGS), X),
        {"kernel|bias": (-2, -1)},
        HEADS,
    ),
    "nnx Conv": (
        lambda: nnx_layer(nnx.Conv(4, 3, (2, 2), rngs=RNGS), SQUARE),
        -1,
        LAST,
    ),
    "nnx ConvTranspose": (
        lambda: nnx_layer(nnx.ConvTranspose(4, 3, (2, 2), rngs=RNGS), SQUARE),
        -1,
        LAST,
    ),
    "nnx transposed ConvTranspose": (
        lambda: nnx_layer(
            nnx.ConvTranspose(4, 3, (2, 2), transpose_kernel=True, rngs=RNGS), SQUARE
        ),
        {"kernel": -2},
        LAST,
    ),
    "nnx Einsum": (
        lambda: nnx_layer(nnx.Einsum("nx,xhd->nhd", (3, 2, 5), (2, 5), rngs=RNGS), X),
        {"kernel|bias": (-2, -1)},
        HEADS,
    ),
    "nnx Embed": (
        lambda: nnx_layer(nnx.Embed(5, 3, rngs=RNGS), TOKENS),
        flax_filters,
        FIRST,
    ),
    "nnx key of attention": (
        lambda: nnx_layer(
            nnx.MultiHeadAttention(2, 3, 6, decode=False, rngs=RNGS), X, of="key"
        ),
        flax_filters,
        HEADS,
    ),
    "equinox Linear": (
        lambda: equinox(eqx.nn.Linear(3, 2, key=KEY), ones(3)),
        0,
        FIRST,
    ),
    "equinox Conv2d": (
        lambda: equinox(eqx.nn.Conv2d(4, 3, 2, key=KEY), ones(4, 5, 5)),
        0,
        FIRST,
    ),
    "equinox grouped Conv1d": (
        lambda: equinox(eqx.nn.Conv1d(4, 6, 2, groups=2, key=KEY), ones(4, 7)),
        0,
        FIRST,
    ),
    "equinox ConvTranspose1d": (
        lambda: equinox(eqx.nn.ConvTranspose1d(4, 3, 2, key=KEY), ones(4, 7)),
        0,
        FIRST,
    ),
    "equinox Embedding": (
        lambda: equinox(Each(eqx.nn.Embedding(5, 3, key=KEY)), TOKENS),
        0,
        FIRST,
    ),
    "equinox query of attention": (
        lambda: equinox(
            eqx.nn.MultiheadAttention(2, 6, key=KEY), ones(6), of="query_proj"
        ),
        0,
        FIRST,
    ),
    "haiku Linear": (lambda: haiku(lambda: hk.Linear(2), X), haiku_filters, LAST),
    "haiku Conv2D": (
        lambda: haiku(lambda: hk.Conv2D(3, 2), SQUARE),
        haiku_filters,
        LAST,
    ),
    "haiku Conv2DTranspose": (
        lambda: haiku(lambda: hk.Conv2DTranspose(3, 2), SQUARE),
        haiku_filters,
        LAST,
    ),
    "haiku Embed": (
        lambda: haiku(lambda: hk.Embed(5, 3), TOKENS),
        haiku_filters,
        FIRST,
    ),
}


class Carry(nn.Module):
    """What a recurrent cell carries on: the last of its states."""

    cell: nn.Module

    def __call__(self, carry, inputs):
        carry, _ = self.cell(carry, inputs)
        return carry[0] if isinstance(carry, tuple) else carry


class Each(eqx.Module):
    """A layer of single inputs, for several."""

    layer: eqx.Module

    def __call__(self, inputs):
        return jax.vmap(self.layer)(inputs)


def units_of(outputs, params, axes):
    """For each leaf, the units that each weight counts for: (units, *shape)."""

    def sums(params):
        found = outputs(params)
        kept = {axis % found.ndim for axis in axes}
        rest = tuple(axis for axis in range(found.ndim) if axis not in kept)
        # Each element counts differently, so that none cancels another.
        weights = 1 + jax.random.uniform(KEY, found.shape)
        return jnp.sum(jnp.sin(found) * weights, rest).ravel()

    return jax.tree.map(lambda leaf: np.abs(leaf) > 1e-9, jax.jacrev(sums)(params))


@pytest.mark.parametrize("name", LAYERS)
def test_a_filter_is_the_weights_that_one_output_depends_on(name):
    make, filter_axis, axes = LAYERS[name]
    params, outputs = make()
    params = randomized(params)
    numbered = raw_axes(filter_axis, params)
    counted = jax.tree.leaves(units_of(outputs, params, axes))
    rows = zip(leaf_names(params), numbered, counted, strict=True)
    seen = 0
    for path, given, counts in rows:
        if "output of" in name and "out/" not in path:
            continue
        if not counts.any():  # of another part of the layer
            continue
        seen += 1
        shape = counts.shape[1:]
        filters = numbering(given, shape, path).filters
        rest = tuple(axis for axis in range(len(shape)) if axis not in filters)
        # One row for each filter: the units that its weights count for.
        by_filter = np.moveaxis(
            counts, [axis + 1 for axis in filters], range(len(filters))
        )
        by_filter = by_filter.reshape(
            *(shape[axis] for axis in filters), len(counts), -1
        ).reshape(-1, len(counts), max(1, np.prod([shape[a] for a in rest], dtype=int)))
        assert (by_filter == by_filter[..., :1]).all(), path  # all alike
        units = by_filter[..., 0]
        assert (units.sum(1) == 1).all(), path  # of one unit
        assert len(np.unique(units, axis=0)) == len(units), path  # and of it alone
    assert seen


def test_relative_noise_of_every_head_is_the_same():
    """One head fifty times the others, as trained attention has them."""
    kernel = jax.random.normal(KEY, (16, 4, 8)).at[:, 3].multiply(50.0)
    params = {"query": {"kernel": kernel, "bias": ones(4, 8)}}
    noise = uniform(0.2, relative_to="filter", filter_axis=flax_filters)(KEY, params)
    added = noise["query"]["kernel"]
    sizes = jnp.linalg.norm(added, axis=0) / jnp.linalg.norm(kernel, axis=0)
    np.testing.assert_allclose(sizes, 0.2, rtol=1e-5)


@pytest.mark.parametrize("law", [uniform, gaussian])
@pytest.mark.parametrize("relative_to", ["filter", "layer"])
def test_stacked_layers_keep_norms_of_their_own(law, relative_to):
    options = {} if law is uniform else {"normalize": True}
    kernel = jnp.stack([jnp.full((3, 2), 1.0), jnp.full((3, 2), 100.0)])
    params = {"layers": {"kernel": kernel, "bias": jnp.ones((2, 2))}, "out": ones(3, 2)}
    filters = stacked(-1, "^layers/")
    noise = law(0.2, relative_to=relative_to, filter_axis=filters, **options)
    added = noise(KEY, params)["layers"]
    axis = 1 if relative_to == "filter" else (1, 2)
    sizes = np.linalg.norm(added["kernel"], axis=axis) / np.linalg.norm(
        kernel, axis=axis
    )
    np.testing.assert_allclose(sizes, 0.2, rtol=1e-5)


def test_stacked_layers_get_the_noise_of_each_alone():
    """Of a kernel, of attention, and of an embedding of Equinox."""
    shapes = {"query": {"kernel": (4, 2, 3)}, "kernel": (4, 2), "embedding": (5, 3)}
    one = jax.tree.map(
        lambda s: ones(*s), shapes, is_leaf=lambda s: isinstance(s, tuple)
    )
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, 7 * leaf]), one)
    alone = raw_axes(flax_filters, one)
    names = leaf_names(one)
    together = raw_axes(stacked(flax_filters), both)
    for name, leaf, few, many in zip(
        names, jax.tree.leaves(one), alone, together, strict=True
    ):
        single = numbering(few, leaf.shape, name).filters
        assert set(many.filters) == {0, *(axis + 1 for axis in single)}
        assert many.layers == (0,)


def test_the_first_pattern_found_counts_and_the_rest_have_the_last_axis():
    params = {"a": {"kernel": ones(2, 3)}, "ab": {"kernel": ones(2, 3)}}
    params["c"] = ones(2, 3)
    found = raw_axes({"ab": (0, 1), "a": 0}, params)
    assert found == [0, (0, 1), -1]


def test_a_pattern_that_matches_nothing_warns():
    with pytest.warns(UserWarning, match="filter_axis: pattern 'querry' matches no"):
        uniform(0.1, relative_to="filter", filter_axis={"querry": 0})(KEY, {"w": X})


def test_equinox_with_its_inputs_taken_for_outputs_warns():
    params = eqx.filter(eqx.nn.Linear(3, 2, key=KEY), eqx.is_inexact_array)
    with pytest.warns(UserWarning, match="params is a module of Equinox"):
        uniform(0.1, relative_to="filter")(KEY, params)
    for axes in (0, (-1,)):  # as warnings are errors here
        uniform(0.1, relative_to="filter", filter_axis=axes)(KEY, params)
    uniform(0.1, relative_to="layer")(KEY, params)
    uniform(0.1)(KEY, params)


@pytest.mark.parametrize(
    ("filter_axis", "error", "message"),
    [
        (
            0.5,
            TypeError,
            "filter_axis must be an integer or a tuple of integers, got 0.5",
        ),
        ((0, "1"), TypeError, "filter_axis must be an integer or a tuple"),
        ({"kernel": None}, TypeError, r"filter_axis\['kernel'\] must be an integer"),
        ({0: 1}, TypeError, "patterns of filter_axis must be strings, got 0"),
        ({"(": 1}, ValueError, "pattern '\\(' of filter_axis is not a valid regular"),
    ],
)
def test_what_is_no_axis_is_refused_at_once(filter_axis, error, message):
    with pytest.raises(error, match=message):
        uniform(0.1, relative_to="filter", filter_axis=filter_axis)


@pytest.mark.parametrize(
    ("filter_axis", "message"),
    [
        ((-2, -1), r"filter_axis=\(-2, -1\) is out of range for parameter 'bias' of 1"),
        (
            (0, -1),
            "filter_axis=\\(0, -1\\) names an axis of 'bias', of shape \\(3,\\), twi",
        ),
        (
            lambda params: {"bias": 0},
            "filter_axis must make a tree of axes like params",
        ),
        (lambda params: {"bias": 5, "kernel": 0}, "filter_axis=5 is out of range"),
        (
            stacked(-1, axis=1),
            "stacked: parameter 'bias' of shape \\(3,\\) has no axis 1",
        ),
    ],
)
def test_axes_that_a_leaf_does_not_have_name_it(filter_axis, message):
    params = {"bias": ones(3), "kernel": ones(2, 3)}
    with pytest.raises(ValueError, match=message):
        uniform(0.1, relative_to="filter", filter_axis=filter_axis)(KEY, params)


def test_no_axes_at_all_make_the_leaf_one_filter():
    params = {"kernel": ones(2, 3), "bias": ones(3)}
    for leaf in jax.tree.leaves(
        uniform(0.5, relative_to="filter", filter_axis=())(KEY, params)
    ):
        size = 0.5 * np.sqrt(leaf.size)
        np.testing.assert_allclose(jnp.linalg.norm(leaf), size, rtol=1e-5)


def test_axes_may_be_given_in_any_order_and_counted_from_either_end():
    params = {"kernel": jax.random.normal(KEY, (2, 3, 4))}
    draws = [
        uniform(0.5, relative_to="filter", filter_axis=axes)(KEY, params)["kernel"]
        for axes in ((0, 2), (2, 0), (-3, -1), (0, -1))
    ]
    for first, second in itertools.pairwise(draws):
        np.testing.assert_array_equal(first, second)


def groups():
    return {
        "embed": {"embedding": jax.random.normal(KEY, (5, 4))},
        "head": {"kernel": jax.random.normal(KEY, (4, 3)), "bias": ones(3)},
        "steps": jnp.array(7),
    }


def test_groups_of_parameters_get_noise_of_their_own():
    params = groups()
    noise = by_path(
        {
            "embedding": uniform(0.1, relative_to="filter", filter_axis=0),
            "kernel|embed": uniform(0.3, relative_to="filter"),
        }
    )
    added = noise(KEY, params)
    for leaf, drawn, axis, radius in (
        (params["embed"]["embedding"], added["embed"]["embedding"], 1, 0.1),
        (params["head"]["kernel"], added["head"]["kernel"], 0, 0.3),
    ):
        sizes = jnp.linalg.norm(drawn, axis=axis) / jnp.linalg.norm(leaf, axis=axis)
        np.testing.assert_allclose(sizes, radius, rtol=1e-5)
    assert not added["head"]["bias"].any()
    assert added["steps"] == 0


def test_groups_of_one_shape_get_different_noise():
    params = {"a": ones(8), "b": ones(8)}
    added = by_path({"a": uniform(0.1), "b": uniform(0.1)})(KEY, params)
    assert not (added["a"] == added["b"]).any()


def test_the_noise_of_groups_may_follow_the_step_and_hold_a_rise():
    params = {"a": ones(40), "b": ones(40)}
    noise = by_path({"a": uniform(lambda step: 0.1 * step), "b": uniform(0.1)})
    assert not noise(KEY, params, 0)["a"].any()
    assert abs(noise(KEY, params, 2)["a"]).max() > 0.15
    optimizer = smoothout(optax.sgd(0.1), noise, key=0, loss_rise=0.1)
    state = optimizer.init(params)
    _, state = optimizer.update(params, state, params)
    assert optax.tree.get(state, "noise_scale") == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("noises", "error", "message"),
    [
        ({}, ValueError, "by_path needs at least one pattern"),
        ({"a": 0.1}, TypeError, r"noises\['a'\] must be a function, such as uniform"),
        ({1: uniform(0.1)}, TypeError, "patterns of by_path must be strings, got 1"),
    ],
)
def test_groups_without_a_noise_are_refused(noises, error, message):
    with pytest.raises(error, match=message):
        by_path(noises)


def test_groups_that_hold_statistics_or_nothing_are_refused():
    with pytest.raises(ValueError, match="BatchNorm's statistics"):
        by_path({"": uniform(0.1)})(KEY, {"batch_stats": {"var": ones(2)}})
    with (
        pytest.warns(UserWarning, match="by_path: pattern 'kernal' matches no"),
        pytest.raises(ValueError, match="leaves none"),
    ):
        by_path({"kernal": uniform(0.1)})(KEY, {"kernel": ones(2)})


def test_only_is_the_rest_of_exclude():
    params = groups()
    chosen = jax.tree.leaves(only("kernel$", "embed")(params))
    assert chosen == [
        not each for each in jax.tree.leaves(exclude("kernel$", "embed")(params))
    ]
    assert chosen == [True, False, True, False]
    with pytest.warns(UserWarning, match="only: pattern 'kernal' matches no parameter"):
        only("kernal")(params)
    with pytest.raises(ValueError, match="only needs at least one pattern, got none"):
        only()


@pytest.mark.parametrize("execution", ["vmap", "scan", "unroll"])
@pytest.mark.parametrize("num_copies", [1, 3])
def test_a_function_says_what_becomes_of_auxiliary_outputs(num_copies, execution):
    """Of a state that counts in integers beside its mean."""

    def loss(w, x):
        return jnp.sum(w * x), {"mean": x.mean(), "count": jnp.int32(5)}

    value_and_grad = smoothout_value_and_grad(
        loss,
        uniform(0.1),
        num_copies=num_copies,
        batch_argnums=1,
        has_aux=True,
        aux=lambda stacked: {
            "mean": stacked["mean"].mean(0),
            "count": stacked["count"][0],
        },
        execution=execution,
    )
    (_, aux), _ = value_and_grad(KEY, ones(1), jnp.arange(6.0))
    assert aux["count"] == 5
    assert aux["count"].dtype == jnp.int32
    assert aux["mean"] == pytest.approx(2.5)


def test_a_function_of_auxiliary_outputs_needs_some():
    with pytest.raises(ValueError, match="aux=a function needs has_aux=True"):
        smoothout_value_and_grad(jnp.sum, uniform(0.1), aux=lambda stacked: stacked)
