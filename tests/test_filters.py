"""The axes of filters: how they are given, and the noise relative to those filters."""

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
    only,
    smoothout,
    stacked,
    uniform,
)
from smoothout_jax._trees import leaf_names
from smoothout_jax.experiments.networks import ViT
from smoothout_jax.filters import numbering, raw_axes

KEY = jax.random.key(0)
X = jnp.ones((4, 3))


def ones(*shape):
    return jnp.ones(shape)


def relative(filter_axis="auto", radius=0.2, to="filter"):
    return uniform(radius, relative_to=to, filter_axis=filter_axis)


# One head fifty times the others, and one layer a hundred times the other.
HEADS = jax.random.normal(KEY, (16, 4, 8)).at[:, 3].multiply(50.0)
PAIR = jnp.stack([jnp.full((3, 2), 1.0), jnp.full((3, 2), 100.0)])


@pytest.mark.parametrize(
    ("kernel", "noise", "norm_axis"),
    [
        (HEADS, relative(flax_filters), 0),
        (PAIR, relative(stacked(-1)), 1),
        (PAIR, relative(stacked(-1), to="layer"), (1, 2)),
        (PAIR, relative(()), None),
    ],
    ids=["heads", "stacked", "stacked, by layer", "one filter"],
)
def test_noise_has_the_relative_size_asked_for_in_every_filter(
    kernel, noise, norm_axis
):
    added = noise(KEY, {"query": {"kernel": kernel}})["query"]["kernel"]
    sizes, norms = (
        np.sqrt(np.sum(np.square(leaf), norm_axis)) for leaf in (added, kernel)
    )
    np.testing.assert_allclose(sizes / norms, 0.2, rtol=1e-5)


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
    axes, layers = flax_filters, ()
    if axis is not None:
        axes, layers = stacked(flax_filters, axis=axis), (axis,)
        shape = (*shape[:axis], 3, *shape[axis:])
        filters = (axis, *(each + (each >= axis) for each in filters))
    found = numbering(raw_axes(axes, {path: ones(*shape)})[0], shape, path)
    assert found == (filters, layers)


def test_the_vision_transformer_of_the_command_knows_its_filters():
    images = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        params = jax.eval_shape(ViT(1, 12, 10).init, KEY, images)["params"]
    axes = zip(leaf_names(params), raw_axes(flax_filters, params), strict=True)
    of_heads = {
        f"MultiHeadDotProductAttention_0/{part}/{leaf}": (-2, -1)
        for part in ("query", "key", "value")
        for leaf in ("kernel", "bias")
    }
    assert {path: each for path, each in axes if each != -1} == (
        {"position": -2} | of_heads
    )


def test_a_function_of_stacked_layers_sees_one_of_them():
    def of_matrices(params):
        return jax.tree.map(lambda leaf: -2 if leaf.ndim == 2 else -1, params)

    tree = {"layers": {"kernel": ones(3, 4, 2), "bias": ones(3, 2)}, "out": ones(4, 2)}
    found = raw_axes(stacked(of_matrices, "^layers/"), tree)
    assert found == [((0, 1), (0,)), ((0, 1), (0,)), -2]


def test_the_first_pattern_found_counts_and_other_leaves_have_the_last_axis():
    params = {"a": {"kernel": X}, "ab": {"kernel": X}, "c": X}
    assert raw_axes({"ab": (0, 1), "a": 0}, params) == [0, (0, 1), -1]


def test_patterns_that_match_nothing_warn():
    for match, draw in (
        ("filter_axis: pattern 'querry'", relative({"querry": 0})),
        ("only: pattern 'querry'", uniform(0.1, mask=only("querry", "w"))),
    ):
        with pytest.warns(UserWarning, match=match):
            draw(KEY, {"w": X})


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: relative(0.5), TypeError, "filter_axis must be .* integers, got 0.5"),
        (lambda: relative((0, "1")), TypeError, "must be an integer or a tuple"),
        (
            lambda: relative({"a": None}),
            TypeError,
            r"filter_axis\['a'\] must be an int",
        ),
        (lambda: relative({0: 1}), TypeError, "of filter_axis must be strings, got 0"),
        (lambda: relative({"(": 1}), ValueError, r"pattern '\(' of .* not a valid reg"),
        (lambda: by_path({}), ValueError, "by_path needs at least one pattern"),
        (lambda: by_path({"a": 0.1}), TypeError, r"noises\['a'\] must be a function"),
        (lambda: by_path({1: uniform(0.1)}), TypeError, "must be strings, got 1"),
        (lambda: only(), ValueError, "only needs at least one pattern, got none"),
    ],
)
def test_invalid_axes_patterns_and_groups_are_refused_at_once(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        (
            relative((-2, -1)),
            r"filter_axis=\(-2, -1\) does not suit .* 'bias' .* out of",
        ),
        (relative((0, -1)), r"\(0, -1\) .* 'bias' of shape \(3,\): repeated axis"),
        (relative(lambda _: {"bias": 0}), "filter_axis must make a tree of axes like"),
        (
            relative(lambda _: {"bias": 5, "kernel": 0}),
            "filter_axis=5 .*: axis 5 is out of bounds",
        ),
        (relative(stacked(-1, axis=1)), r"stacked: .* 'bias' .* \(3,\) has no axis 1"),
    ],
)
def test_axes_that_a_leaf_does_not_have_name_it(noise, message):
    params = {"bias": ones(3), "kernel": ones(2, 3)}
    with pytest.raises(ValueError, match=message):
        noise(KEY, params)


def test_axes_may_be_given_in_any_order_and_counted_from_either_end():
    params = {"kernel": jax.random.normal(KEY, (2, 3, 4))}
    draws = [
        relative(axes)(KEY, params)["kernel"]
        for axes in ((0, 2), (2, 0), (-3, -1), (0, -1))
    ]
    for first, second in itertools.pairwise(draws):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("params", "path"),
    [
        ({"a": {"b": X, "c": X}}, "a/b"),
        ([{"bias": ones(3)}, {"matrix": X}], "1/matrix"),
        ({"w": X}, "w"),
        (X, ""),
    ],
)
def test_the_first_leaf_of_no_known_framework_is_named_with_the_remedy(params, path):
    with pytest.raises(ValueError, match=rf"parameter '{path}': .* filter_axis=-1"):
        relative()(KEY, params)
    for noise in (relative(-1), relative(to="layer")):
        noise(KEY, params)


def test_leaves_of_one_axis_need_no_framework():
    added = relative()(KEY, {"gain": ones(3), "x": ones()})
    np.testing.assert_allclose(jnp.abs(added["gain"]), 0.2)


# Groups of parameters.

GROUPS = {
    "embed": {"embedding": jax.random.normal(KEY, (5, 4))},
    "head": {"kernel": jax.random.normal(KEY, (4, 3)), "bias": ones(3)},
    "steps": jnp.array(7),
}


def test_groups_of_parameters_get_noise_of_their_own():
    groups = {"embedding": relative(0, radius=0.1), "kernel|embed": relative()}
    added = by_path(groups)(KEY, GROUPS)
    for group, leaf, axis, radius in (
        ("embed", "embedding", 1, 0.1),
        ("head", "kernel", 0, 0.2),
    ):
        sizes, norms = (
            jnp.linalg.norm(tree[group][leaf], axis=axis) for tree in (added, GROUPS)
        )
        np.testing.assert_allclose(sizes / norms, radius, rtol=1e-5)
    assert not added["head"]["bias"].any()
    assert added["steps"] == 0


def test_noise_of_groups_differs_follows_the_step_and_may_hold_a_rise():
    params = {"a": ones(40), "b": ones(40)}
    noise = by_path(
        {"a": uniform(lambda step: 0.1 * jnp.float32(step)), "b": uniform(0.1)}
    )
    assert not noise(KEY, params, 0)["a"].any()
    assert abs(noise(KEY, params, 2)["a"]).max() > 0.15
    added = noise(KEY, params, 1)
    assert not (added["a"] == added["b"]).any()
    optimizer = smoothout(optax.sgd(0.1), noise, key=0, loss_rise=0.1)
    state = optimizer.init(params)
    _, state = optimizer.update(params, state, params)
    assert optax.tree.get(state, "noise_scale") == pytest.approx(0.1)


def test_a_framework_is_recognised_in_groups_of_its_leaves_too():
    params = {"Dense_0": {"kernel": X, "bias": ones(3)}, "other": X}
    added, expected = (
        by_path({"Dense": relative(axes)})(KEY, params) for axes in ("auto", -1)
    )
    assert jax.tree.all(jax.tree.map(jnp.array_equal, added, expected))


def test_groups_that_hold_statistics_or_nothing_are_refused():
    noise = uniform(0.1)
    with pytest.raises(ValueError, match="Flax's 'batch_stats', which is not trained"):
        by_path({"": noise})(KEY, {"batch_stats": {"var": X}})
    with (
        pytest.warns(UserWarning, match="by_path: pattern 'kernal' matches no"),
        pytest.raises(ValueError, match="leaves none"),
    ):
        by_path({"kernal": noise})(KEY, GROUPS)


def test_only_is_the_complement_of_exclude():
    chosen, excluded = (
        jax.tree.leaves(mask("kernel$", "embed")(GROUPS)) for mask in (only, exclude)
    )
    assert chosen == [not each for each in excluded] == [True, False, True, False]
