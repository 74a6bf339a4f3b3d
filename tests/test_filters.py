"""The axes of filters: how they are given, and the noise that they make."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from smoothout_jax import (
    by_path,
    exclude,
    flax_filters,
    gaussian,
    only,
    smoothout,
    smoothout_value_and_grad,
    stacked,
    uniform,
)
from smoothout_jax._trees import leaf_names
from smoothout_jax.experiments.networks import ViT
from smoothout_jax.filters import numbering, raw_axes

KEY = jax.random.key(0)


@pytest.fixture(autouse=True, scope="module")
def as_frameworks_compute():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def ones(*shape):
    return jnp.ones(shape)


X = ones(4, 3)


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


@pytest.mark.parametrize(
    ("path", "shape", "filters"),
    [
        ("query/kernel", (4, 6), (1,)),  # a dense layer, as in BERT
        ("query/bias", (6,), (0,)),
        ("query/kernel", (4, 2, 3), (1, 2)),
        ("query/bias", (2, 3), (0, 1)),
        ("prequery/kernel", (4, 2, 3), (2,)),
        ("embedding", (5, 3), (0,)),
        ("position_embeddings", (1, 5, 3), (1,)),
        ("encoder/pos_embedding", (1, 5, 3), (1,)),
        ("position", (1, 5, 3), (1,)),
        ("mask_embed", (3,), (0,)),
        ("embedding/kernel", (5, 3), (1,)),
    ],
)
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_the_filters_of_flax_follow_name_and_rank(path, shape, filters, axis):
    """Of one layer, and of three that are stacked."""
    axes = flax_filters
    if axis is not None:
        axes = stacked(flax_filters, axis=axis)
        shape = (*shape[:axis], 3, *shape[axis:])
        filters = (axis, *(each + (each >= axis) for each in filters))
    tree = {path: ones(*shape)}
    assert numbering(raw_axes(axes, tree)[0], shape, path).filters == filters


def test_the_vision_transformer_of_the_command_knows_its_filters():
    network = ViT(1, 12, 10)
    images = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    params = jax.eval_shape(network.init, KEY, images)["params"]
    axes = zip(leaf_names(params), raw_axes(flax_filters, params), strict=True)
    found = {path: each for path, each in axes if each != -1}
    attention = "MultiHeadDotProductAttention_0/"
    of_heads = {
        f"{attention}{part}/{leaf}": (-2, -1)
        for part in ("query", "key", "value")
        for leaf in ("kernel", "bias")
    }
    assert found == {"position": -2} | of_heads


def test_a_function_of_stacked_layers_sees_one_of_them():
    def of_matrices(params):
        return jax.tree.map(lambda leaf: -2 if leaf.ndim == 2 else -1, params)

    tree = {"layers": {"kernel": ones(3, 4, 2), "bias": ones(3, 2)}, "out": ones(4, 2)}
    found = raw_axes(stacked(of_matrices, "^layers/"), tree)
    assert found == [((0, 1), (0,)), ((0, 1), (0,)), -2]


def test_the_first_pattern_found_counts_and_the_rest_have_the_last_axis():
    params = {"a": {"kernel": ones(2, 3)}, "ab": {"kernel": ones(2, 3)}}
    params["c"] = ones(2, 3)
    found = raw_axes({"ab": (0, 1), "a": 0}, params)
    assert found == [0, (0, 1), -1]


def test_a_pattern_that_matches_nothing_warns():
    with pytest.warns(UserWarning, match="filter_axis: pattern 'querry' matches no"):
        uniform(0.1, relative_to="filter", filter_axis={"querry": 0})(KEY, {"w": X})


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
        ((-2, -1), r"filter_axis=\(-2, -1\) does not suit parameter 'bias' .* out of"),
        (
            (0, -1),
            r"filter_axis=\(0, -1\) .* 'bias' of shape \(3,\): repeated axis",
        ),
        (
            lambda params: {"bias": 0},
            "filter_axis must make a tree of axes like params",
        ),
        (
            lambda params: {"bias": 5, "kernel": 0},
            "filter_axis=5 .*: axis 5 is out of bounds",
        ),
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
    with pytest.raises(ValueError, match="Flax's 'batch_stats', which is not trained"):
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


def test_a_framework_is_recognised_in_groups_of_its_leaves_too():
    params = {"Dense_0": {"kernel": ones(4, 3), "bias": ones(3)}, "other": ones(2, 2)}
    noises = [
        by_path({"Dense": uniform(0.1, relative_to="filter", filter_axis=axes)})
        for axes in ("auto", -1)
    ]
    added, expected = (noise(KEY, params) for noise in noises)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, added, expected))


@pytest.mark.parametrize(
    ("params", "path"),
    [
        ({"a": {"b": X, "c": X}}, "a/b"),
        ([{"bias": ones(3)}, {"matrix": X}], "1/matrix"),
        ({"w": X}, "w"),
        (X, ""),
    ],
)
def test_the_first_leaf_of_no_framework_is_named_with_the_remedy(params, path):
    with pytest.raises(ValueError, match=rf"parameter '{path}': .* filter_axis=-1"):
        uniform(relative_to="filter")(KEY, params)
    for options in ({"filter_axis": -1}, {"relative_to": "layer"}):
        uniform(**{"relative_to": "filter"} | options)(KEY, params)


def test_leaves_of_one_axis_need_no_framework():
    added = uniform(0.5, relative_to="filter")(KEY, {"gain": ones(3), "x": ones()})
    np.testing.assert_allclose(jnp.abs(added["gain"]), 0.5)
