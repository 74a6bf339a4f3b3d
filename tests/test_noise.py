"""The law, the size and the place of the noise, and every error."""

import functools
import importlib
import math
import re
import warnings
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.core import freeze
from scipy import stats

from smoothout_jax import (
    _checks,
    _random,
    exclude,
    gaussian,
    smooth_gradients,
    smoothout,
    smoothout_value_and_grad,
    uniform,
)
from smoothout_jax._trees import leaf_names

KEY = jax.random.key(2018)
# For all that does not hang on the law: its draws compile several times faster.
QUICK_KEY = jax.random.key(2018, impl="unsafe_rbg")
BITS = (8, 16, 32)
IMPLEMENTATIONS = ("threefry2x32", "rbg", "unsafe_rbg")
RELATIVE_TO = (None, "weight", "filter", "layer")
LAWS = {uniform: stats.uniform(-1, 2), gaussian: stats.norm()}
NOISES = {
    **{f"uniform {bits} bits": uniform(0.3, bits=bits) for bits in BITS},
    "gaussian": gaussian(0.3),
}


def spelled(value):
    """A test's identifier that is the same in every process."""
    return getattr(value, "__name__", repr(value))


every_bits = pytest.mark.parametrize("bits", BITS)
every_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
every_dtype = pytest.mark.parametrize(
    "dtype", ["float32", "float64", "bfloat16", "float16", "complex64", "complex128"]
)
every_law = pytest.mark.parametrize("law", LAWS, ids=spelled)
law_and_its_size = pytest.mark.parametrize(
    ("law", "name"), [(uniform, "radius"), (gaussian, "std")], ids=spelled
)
every_noise = pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
every_size = pytest.mark.parametrize("relative_to", RELATIVE_TO)
eager_and_compiled = pytest.mark.parametrize(
    "transform", [lambda noise: noise, jax.jit], ids=["eager", "compiled"]
)


class Module(NamedTuple):
    """Parameters that are callable, as those of Equinox are."""

    kernel: object
    bias: object

    def __call__(self, inputs):
        raise AssertionError("a module is no mask function")


def weights(*shape, dtype="float32"):
    """Weights of both signs and of unequal sizes between a half and two."""
    size = math.prod(shape)
    flat = np.linspace(0.5, 2.0, size) * np.where(np.arange(size) % 3, 1, -1)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        flat = flat * np.exp(1j * np.arange(size))
    return jnp.asarray(flat.reshape(shape), dtype)


def network():
    return {
        "BatchNorm_0": {"bias": weights(3), "scale": weights(3)},
        "Dense_0": {"bias": weights(3), "kernel": weights(2, 3)},
    }


def by_name(params):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree.leaves_with_path(params)
    }


def sizes(leaf, relative_to, filter_axis=-1):
    """What the noise of each weight is relative to, in double precision."""
    magnitude = np.abs(np.asarray(leaf).astype(np.complex128))
    if relative_to is None:
        return np.ones_like(magnitude)
    if relative_to == "weight":
        return magnitude
    if relative_to == "layer" or magnitude.ndim == 0:
        return np.full_like(magnitude, np.linalg.norm(magnitude))
    filters = np.moveaxis(magnitude, filter_axis, 0)
    norms = [np.full_like(one, np.linalg.norm(one)) for one in filters]
    return np.moveaxis(np.stack(norms), 0, filter_axis)


def real_parts(array):
    """The real numbers that an array is made of, in double precision."""
    array = np.asarray(array)
    parts = (array.real, array.imag) if np.iscomplexobj(array) else (array,)
    return np.stack([part.astype(np.float64).ravel() for part in parts])


def assert_follows(sample, law):
    """Accepts the law of a sample, and rejects 2/3 and 3/2 of its width."""
    sample = np.asarray(sample, np.float64).ravel()
    assert stats.kstest(sample, law.cdf).pvalue > 1e-4
    for wrong in (2 / 3, 3 / 2):
        assert stats.kstest(wrong * sample[:10_000], law.cdf).pvalue < 1e-12


def assert_uncorrelated(samples):
    """Accepts rows whose correlations are within five standard errors of zero."""
    off_diagonal = np.corrcoef(samples) - np.eye(len(samples))
    assert np.abs(off_diagonal).max() < 5 / math.sqrt(np.shape(samples)[1])


def assert_without_noise(noise):
    chex.assert_trees_all_equal(noise, jax.tree.map(jnp.zeros_like, noise))


def assert_all_noisy(noise):
    chex.assert_tree_all_finite(noise)
    assert all(jnp.all(leaf != 0) for leaf in jax.tree.leaves(noise))


# The law


@every_bits
@every_implementation
def test_uniform_noise_is_uniform_on_its_box(implementation, bits):
    key = jax.random.key(7, impl=implementation)
    leaf = jnp.ones(100_000 if bits == 8 else 1_000_000)
    assert_follows(uniform(0.3, bits=bits)(key, leaf) / 0.3, LAWS[uniform])


@every_implementation
def test_gaussian_noise_is_normal_of_its_deviation(implementation):
    key = jax.random.key(7, impl=implementation)
    assert_follows(gaussian(0.3)(key, jnp.ones(1_000_000)) / 0.3, LAWS[gaussian])


@every_noise
@every_implementation
def test_a_raw_key_draws_the_noise_of_its_typed_key(implementation, noise):
    with jax.default_prng_impl(implementation):
        raw = noise(jax.random.PRNGKey(7), weights(7))
    typed = noise(jax.random.key(7, impl=implementation), weights(7))
    chex.assert_trees_all_equal(raw, typed)


@every_noise
def test_mean_and_variance_are_those_of_the_law(noise):
    law = LAWS[gaussian if noise is NOISES["gaussian"] else uniform]
    sample = np.asarray(noise(KEY, jnp.ones(1_000_000)), np.float64) / 0.3
    variance = law.var()
    error_of_variance = math.sqrt((law.moment(4) - variance**2) / sample.size)
    assert abs(sample.mean()) < 5 * math.sqrt(variance / sample.size)
    assert abs(np.mean(sample**2) - variance) < 5 * error_of_variance


@pytest.mark.parametrize(
    ("bits", "dtype", "resolution"),
    [(8, "float32", 8), (16, "float32", 16), (32, "float32", 24), (32, "float64", 32)],
)
def test_levels_are_evenly_spaced_about_zero_and_equally_likely(
    bits, dtype, resolution
):
    with jax.enable_x64(dtype == "float64"):
        noise = uniform(1.0, bits=bits)(KEY, jnp.ones(2**20, dtype))
    steps = np.asarray(noise, np.float64) * 2**resolution
    odd = steps.astype(np.int64)
    np.testing.assert_array_equal(odd, steps)
    assert np.all(odd % 2 == 1)
    if resolution <= 16:
        every_level = np.arange(1 - 2**resolution, 2**resolution, 2)
        np.testing.assert_array_equal(np.unique(odd), every_level)
    lowest_bits = np.bincount(odd // 2 % 256)
    assert stats.chisquare(lowest_bits).pvalue > 1e-4


@pytest.mark.parametrize("radius", [1e-3, 0.1, 1 / 3, 0.7, 1.0])
@every_bits
def test_outermost_levels_are_opposite_and_strictly_inside(monkeypatch, bits, radius):
    def level_of(word):
        monkeypatch.setattr(
            _random, "_words", lambda key, group, start, shape: jnp.full(shape, word)
        )
        return uniform(radius, bits=bits)(KEY, jnp.ones(2))

    lowest, highest = level_of(np.uint32(0)), level_of(np.uint32(2**32 - 1))
    chex.assert_trees_all_equal(lowest, -highest)
    assert jnp.all(highest < jnp.float32(radius))
    expected = np.full(2, radius * (1 - 2.0 ** -min(bits, 24)))
    np.testing.assert_allclose(highest, expected, rtol=1e-7)


# The size


@every_size
@every_law
def test_relative_noise_scales_with_the_weight_or_norm(law, relative_to):
    leaf = weights(2, 50_000)
    noise = law(0.3, relative_to=relative_to, filter_axis=-1)(KEY, leaf)
    if law is uniform and relative_to in ("filter", "layer"):
        # The norm itself is fixed, so that each weight's law is a conditional one.
        norms = sizes(noise, relative_to)
        np.testing.assert_allclose(norms, 0.3 * sizes(leaf, relative_to), rtol=1e-6)
    else:
        assert_follows(noise / (0.3 * sizes(leaf, relative_to)), LAWS[law])


def test_noise_relative_to_a_weight_stays_within_its_fraction():
    leaf = weights(1000, 100)
    noise = uniform(0.3, relative_to="weight", bits=8)(KEY, leaf)
    fraction = jnp.max(jnp.abs(noise) / jnp.abs(leaf))
    assert fraction <= 0.3
    np.testing.assert_allclose(fraction, 0.3 * 255 / 256, rtol=1e-6)


def test_noise_relative_to_a_complex_weight_fills_a_box_of_its_size():
    leaf = weights(100, 100, dtype="complex64")
    noise = uniform(0.3, relative_to="weight")(QUICK_KEY, leaf)
    magnitude = sizes(leaf, "weight").ravel()
    assert_follows(real_parts(noise) / (0.3 * magnitude), LAWS[uniform])


@pytest.mark.parametrize(
    ("shape", "filter_axis"),
    [
        pytest.param((7, 5), -1, id="dense of Flax"),
        pytest.param((5, 7), 0, id="dense of Equinox"),
        pytest.param((3, 3, 2, 4), -1, id="convolution of Flax"),
        pytest.param((4, 2, 3, 3), 0, id="convolution of Equinox"),
        pytest.param((3, 5, 4), 1, id="axis in the middle"),
        pytest.param((3, 5, 4), -2, id="axis in the middle from the end"),
        pytest.param((6,), -1, id="bias"),
        pytest.param((6,), 0, id="bias of Equinox"),
        pytest.param((), -1, id="scalar"),
    ],
)
def test_noise_is_relative_to_the_norm_of_each_filter(shape, filter_axis):
    leaf = weights(*shape)
    options = {"relative_to": "filter", "filter_axis": filter_axis}
    noise = jax.jit(uniform(0.3, **options))(QUICK_KEY, leaf)
    expected = 0.3 * sizes(leaf, **options)
    np.testing.assert_allclose(sizes(noise, **options), expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [(), (7,), (3, 5, 4)])
def test_noise_is_relative_to_the_norm_of_a_whole_layer(shape):
    leaf = weights(*shape)
    noise = jax.jit(uniform(0.3, relative_to="layer"))(QUICK_KEY, leaf)
    np.testing.assert_allclose(
        np.linalg.norm(noise), 0.3 * np.linalg.norm(leaf), rtol=1e-6
    )


@pytest.mark.parametrize("relative_to", ["filter", "layer"])
def test_normalized_gaussian_noise_has_the_norm_itself(relative_to):
    leaf = weights(3, 5, 4)
    noise = gaussian(0.3, relative_to=relative_to, filter_axis=-1, normalize=True)(
        QUICK_KEY, leaf
    )
    norms = sizes(noise, relative_to)
    np.testing.assert_allclose(norms, 0.3 * sizes(leaf, relative_to), rtol=1e-6)
    ratios = noise / gaussian(0.3, relative_to=relative_to, filter_axis=-1)(
        QUICK_KEY, leaf
    )
    np.testing.assert_allclose(ratios.min((0, 1)), ratios.max((0, 1)), rtol=1e-5)


@pytest.mark.parametrize("relative_to", [None, "weight"])
def test_noise_relative_to_no_norm_cannot_be_normalized(relative_to):
    with pytest.raises(ValueError, match=f"normalize needs.*{relative_to!r}"):
        gaussian(0.3, relative_to=relative_to, filter_axis=-1, normalize=True)


@pytest.mark.parametrize("relative_to", ["filter", "layer"])
@every_law
def test_weights_of_a_filter_or_layer_share_one_scale(law, relative_to):
    leaf = weights(3, 5, 4)
    unit = law(1.0)(QUICK_KEY, leaf)
    norms = sizes(unit, relative_to) if law is uniform else 1.0
    noise = law(0.3, relative_to=relative_to, filter_axis=-1)(QUICK_KEY, leaf)
    expected = 0.3 * sizes(leaf, relative_to) / norms * unit
    np.testing.assert_allclose(noise, expected, rtol=1e-5)


def test_a_filter_of_one_weight_moves_by_its_fraction_either_way():
    leaf = weights(1000)
    signs = uniform(0.3, relative_to="filter", filter_axis=-1)(KEY, leaf) / (
        0.3 * jnp.abs(leaf)
    )
    np.testing.assert_allclose(jnp.abs(signs), np.ones(leaf.shape), rtol=1e-6)
    assert jnp.abs(signs.mean()) < 5 / math.sqrt(leaf.size)


@pytest.mark.parametrize("relative_to", ["filter", "layer"])
def test_direction_of_noise_is_that_of_a_point_of_the_box(relative_to):
    draw = jax.vmap(uniform(0.3, relative_to=relative_to, filter_axis=-1), (0, None))
    keys = jax.random.split(KEY, 50_000)
    first, second = jax.jit(draw)(keys, weights(2, 1))[..., 0].T
    # On rays through a square, the smaller coordinate over the larger is uniform; on
    # rays through a disc, as of normalized Gaussians, it is the tangent of an angle.
    ratio = first / second
    ratio = jnp.where(jnp.abs(ratio) < 1, ratio, 1 / ratio)
    assert_follows(ratio, LAWS[uniform])
    disc = stats.kstest(ratio, lambda r: 0.5 + 2 / np.pi * np.arctan(r))
    assert disc.pvalue < 1e-12


@pytest.mark.parametrize("relative_to", ["weight", "filter", "layer"])
@every_law
def test_a_filter_of_zeros_gets_zero_noise(law, relative_to):
    noise = law(0.3, relative_to=relative_to, filter_axis=-1)
    for leaf in (weights(4, 3).at[:, 1].set(0.0), jnp.zeros((4, 3))):
        drawn = noise(QUICK_KEY, leaf)
        chex.assert_tree_all_finite(drawn)
        np.testing.assert_array_equal(drawn == 0, sizes(leaf, relative_to) == 0)


@every_size
@every_law
def test_noise_is_a_constant_of_the_gradient_even_at_zeros(law, relative_to):
    noise = law(0.3, relative_to=relative_to, filter_axis=-1)

    def loss(leaf):
        return jnp.sum((leaf + noise(QUICK_KEY, leaf)) ** 2)

    for leaf in (weights(4, 3).at[:, 1].set(0.0), jnp.zeros((4, 3)), jnp.zeros(())):
        expected = 2 * (leaf + noise(QUICK_KEY, leaf))
        np.testing.assert_allclose(jax.grad(loss)(leaf), expected, rtol=1e-6)


# Independence


def draws_of_leaves(noise):
    leaf = jnp.ones(100_000)
    return jax.tree.leaves(noise(KEY, {"a": leaf, "b": [leaf, leaf], "c": leaf}))


def draws_of_copies(noise):
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(4))
    return jax.vmap(noise, (0, None))(keys, jnp.ones(100_000))


def draws_of_keys(noise):
    return [noise(jax.random.key(seed), jnp.ones(100_000)) for seed in range(4)]


def draws_of_neighbours(noise):
    return noise(KEY, jnp.ones(100_000)).reshape(-1, 4).T


def draws_of_positions_in_words(noise):
    return noise(KEY, jnp.ones((100_000, 4))).T


def draws_of_complex_parts(noise):
    return real_parts(noise(KEY, jnp.ones(100_000, "complex64")))


@pytest.mark.parametrize(
    "draws",
    [
        draws_of_leaves,
        draws_of_copies,
        draws_of_keys,
        draws_of_neighbours,
        draws_of_positions_in_words,
        draws_of_complex_parts,
    ],
    ids=lambda draws: draws.__name__.removeprefix("draws_of_"),
)
@pytest.mark.parametrize("bits", [8, 16])
def test_noise_is_uncorrelated_between(draws, bits):
    samples = draws(uniform(0.3, bits=bits))
    assert_uncorrelated([np.ravel(sample) for sample in samples])


@pytest.mark.parametrize("bits", [8, 16])
def test_noise_is_uncorrelated_at_every_lag(bits):
    """Within words, between words, and between rows of words."""
    size = 2**20
    drawn = np.asarray(uniform(1.0, bits=bits)(KEY, jnp.ones(size)), np.float64)
    spectrum = np.abs(np.fft.rfft(drawn, 2 * size)) ** 2
    lags = np.fft.irfft(spectrum)[1:5000] / np.sum(drawn**2)
    # The largest of 5,000 standard normal numbers is rarely above 5.
    assert np.abs(lags).max() < 5.5 / np.sqrt(size)


@every_noise
def test_equal_keys_draw_equal_noise_and_unequal_keys_do_not(noise):
    params = network()
    first, again = noise(QUICK_KEY, params), noise(QUICK_KEY, params)
    other = noise(jax.random.fold_in(QUICK_KEY, 1), params)
    chex.assert_trees_all_equal(first, again)
    for one, two in zip(*map(jax.tree.leaves, (first, other)), strict=True):
        assert jnp.any(one != two)


# Shapes, dtypes and structures


def leaf_and_noise(noise, dtype):
    with jax.enable_x64(dtype in ("float64", "complex128")):
        leaf = weights(100, 100, dtype=dtype)
        drawn = noise(QUICK_KEY, leaf)
        assert leaf.dtype == drawn.dtype == (leaf + drawn).dtype == dtype
    return leaf, drawn


@every_dtype
@every_law
def test_noise_of_every_dtype_follows_the_law(law, dtype):
    parts = real_parts(leaf_and_noise(law(0.3), dtype)[1]) / 0.3
    if law is gaussian:
        parts *= math.sqrt(len(parts))
    assert_follows(parts, LAWS[law])


@every_dtype
def test_noise_of_every_dtype_is_relative_to_the_norm(dtype):
    noise = uniform(0.3, relative_to="filter", filter_axis=-1)
    expected, drawn = (sizes(tree, "filter") for tree in leaf_and_noise(noise, dtype))
    rounding = {"bfloat16": 1e-3, "float16": 2e-4}.get(dtype, 1e-6)
    np.testing.assert_allclose(drawn, 0.3 * expected, rtol=rounding)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (3, 1), (0, 3), (3, 0), (2, 3, 5)])
@pytest.mark.parametrize(
    ("relative_to", "bits"), [(None, 8), ("filter", 16), (None, 32)]
)
def test_a_leaf_of_any_shape_gets_noise_of_its_shape(shape, relative_to, bits):
    noise = jax.jit(uniform(0.3, relative_to=relative_to, filter_axis=-1, bits=bits))
    leaf = weights(*shape)
    drawn = noise(QUICK_KEY, leaf)
    chex.assert_equal_shape([drawn, leaf])
    assert_all_noisy(drawn)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@every_law
def test_an_empty_leaf_gets_empty_noise(law, dtype):
    leaf = jnp.zeros((0, 3), dtype)
    chex.assert_trees_all_equal(law(1e-6)(QUICK_KEY, leaf), leaf)


@pytest.mark.parametrize("relative_to", [None, "filter"])
@every_law
def test_compiled_noise_is_the_eager_noise(law, relative_to):
    noise, leaf = law(0.3, relative_to=relative_to, filter_axis=-1), weights(2, 3)
    compiled = jax.jit(noise)(QUICK_KEY, leaf)
    chex.assert_trees_all_close(noise(QUICK_KEY, leaf), compiled, rtol=1e-6)


@every_law
def test_vmap_over_keys_draws_the_noise_of_each(law):
    noise, keys, leaf = law(0.3), jax.random.split(KEY, 3), weights(7)
    together = jax.vmap(noise, (0, None))(keys, leaf)
    alone = jnp.stack([noise(key, leaf) for key in keys])
    chex.assert_trees_all_close(together, alone, rtol=1e-6)


@pytest.mark.parametrize(
    "params",
    [
        Module(weights(2, 3), (weights(3),)),
        freeze(network()),
        [[weights(3)], [], [[weights(2, 3)], (weights(3), None)]],
        weights(2, 3),
    ],
    ids=lambda params: type(params).__name__,
)
@every_law
def test_noise_has_the_structure_of_the_parameters(law, params):
    noise = law(0.3)(QUICK_KEY, params)
    chex.assert_trees_all_equal_structs(noise, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(noise, params)
    assert_all_noisy(noise)


@every_law
def test_numpy_leaves_and_floats_get_the_noise_of_arrays(law):
    plain = {"float": 1.5, "numpy": np.asarray(weights(2, 3))}
    arrays = jax.tree.map(lambda leaf: jnp.asarray(leaf, "float32"), plain)
    noise = law(0.3, relative_to="filter", filter_axis=-1)
    chex.assert_trees_all_equal(noise(QUICK_KEY, plain), noise(QUICK_KEY, arrays))


@every_law
def test_leaves_that_are_no_real_or_complex_numbers_get_no_noise(law):
    still = {
        "count": jnp.array([3, 4]),
        "byte": jnp.array(7, "uint8"),
        "flag": jnp.array([True, False]),
        "number": 5,
        "none": None,
    }
    noise = law(0.3)(QUICK_KEY, {"weight": weights(3), **still})
    assert_all_noisy(noise.pop("weight"))
    assert_without_noise(noise)
    chex.assert_trees_all_equal_structs(noise, still)
    chex.assert_trees_all_equal_dtypes(noise, jax.tree.map(jnp.asarray, still))


@pytest.mark.parametrize("params", [{}, {"none": None}], ids=spelled)
def test_parameters_without_leaves_get_no_noise(params):
    for mask in (None, True, params, lambda params: params):
        assert uniform(0.3, mask=mask)(QUICK_KEY, params) == params


# The radius


@pytest.mark.parametrize(
    "radius", [1, np.float64(1.0), np.int32(1), jnp.float32(1.0), jnp.ones((), "int32")]
)
@every_law
def test_any_real_scalar_is_a_radius(law, radius):
    expected = law(1.0)(QUICK_KEY, network())
    chex.assert_trees_all_equal(law(radius)(QUICK_KEY, network()), expected)


@every_size
@every_law
def test_a_traced_radius_is_compiled_once(law, relative_to):
    chex.clear_trace_counter()
    leaf = weights(2, 3)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def draw(radius):
        return law(radius, relative_to=relative_to, filter_axis=-1)(QUICK_KEY, leaf)

    for radius in (0.1, 0.2, 0.7):
        expected = law(radius, relative_to=relative_to, filter_axis=-1)(QUICK_KEY, leaf)
        chex.assert_trees_all_close(draw(radius), expected, rtol=1e-6)


@every_law
def test_a_scheduled_radius_is_that_of_the_step(law):
    chex.clear_trace_counter()
    noise = law(optax.linear_schedule(0.1, 0.5, transition_steps=4))
    compiled = jax.jit(chex.assert_max_traces(lambda *args: noise(*args), n=1))
    for step, radius in [(0, 0.1), (1, 0.2), (3, 0.4), (9, 0.5)]:
        expected = law(radius)(QUICK_KEY, network())
        for draw in (noise, compiled):
            drawn = draw(QUICK_KEY, network(), jnp.int32(step))
            chex.assert_trees_all_close(drawn, expected, rtol=1e-6)


@every_law
def test_a_step_is_welcome_where_the_radius_is_a_number(law):
    noise = law(0.3)
    chex.assert_trees_all_equal(
        noise(QUICK_KEY, network(), 5), noise(QUICK_KEY, network())
    )


@every_size
@every_law
def test_noise_is_differentiable_in_its_radius(law, relative_to):
    leaf = weights(2, 3)

    def weighted_sum(radius):
        return jnp.sum(
            leaf * law(radius, relative_to=relative_to, filter_axis=-1)(QUICK_KEY, leaf)
        )

    np.testing.assert_allclose(
        jax.grad(weighted_sum)(0.3), weighted_sum(0.3) / 0.3, rtol=1e-5
    )


def test_a_radius_of_zero_adds_nothing():
    assert_without_noise(uniform(0.0, relative_to="filter")(QUICK_KEY, network()))


# The mask


@pytest.mark.parametrize(
    ("mask", "masked"),
    [
        pytest.param(
            {
                "BatchNorm_0": {"bias": False, "scale": True},
                "Dense_0": {"bias": np.True_, "kernel": jnp.array(False)},
            },
            {"BatchNorm_0/bias", "Dense_0/kernel"},
            id="tree",
        ),
        pytest.param(
            {"BatchNorm_0": False, "Dense_0": True},
            {"BatchNorm_0/bias", "BatchNorm_0/scale"},
            id="prefix",
        ),
        pytest.param(True, set(), id="everything"),
        pytest.param(
            lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
            {"BatchNorm_0/bias", "BatchNorm_0/scale", "Dense_0/bias"},
            id="function",
        ),
        pytest.param(
            lambda params: {"BatchNorm_0": False, "Dense_0": True},
            {"BatchNorm_0/bias", "BatchNorm_0/scale"},
            id="function that returns a prefix",
        ),
        pytest.param(
            exclude("BatchNorm"),
            {"BatchNorm_0/bias", "BatchNorm_0/scale"},
            id="one pattern",
        ),
        pytest.param(
            exclude("scale", "kernel"),
            {"BatchNorm_0/scale", "Dense_0/kernel"},
            id="two patterns",
        ),
        pytest.param(
            exclude(r"^Dense_\d/b", "_0/s.*e$"),
            {"BatchNorm_0/scale", "Dense_0/bias"},
            id="regular expressions",
        ),
    ],
)
def test_masked_leaves_get_no_noise_and_the_others_do(mask, masked):
    noise = by_name(uniform(0.3, mask=mask)(QUICK_KEY, network()))
    assert_without_noise({name: leaf for name, leaf in noise.items() if name in masked})
    assert_all_noisy({name: leaf for name, leaf in noise.items() if name not in masked})


@every_law
@pytest.mark.parametrize("mask", [False, exclude("kernel", "bias", "scale")])
def test_a_mask_that_leaves_nothing_is_refused(law, mask):
    with pytest.raises(ValueError, match="mask leaves none of the 4 leaves of params"):
        law(0.3, mask=mask)(QUICK_KEY, network())


class Normalised(nnx.Module):
    def __init__(self):
        self.norm = nnx.BatchNorm(2, rngs=nnx.Rngs(0))


class Sown(nnx.Module):
    def __init__(self):
        self.kernel = nnx.Param(jnp.ones(2))
        self.seen = nnx.Intermediate(jnp.ones(2))


def fp8_dense():
    return nn.Dense(4, dot_general_cls=nn.fp8_ops.Fp8DirectDotGeneralOp)


def fp8_variables():
    return fp8_dense().init(QUICK_KEY, jnp.ones((2, 3)))


def fp8_module():
    """NNX makes a type of variables for the collection."""
    module = nnx.bridge.ToNNX(fp8_dense(), rngs=nnx.Rngs(0))
    return nnx.bridge.lazy_init(module, jnp.ones((2, 3)))


def beside_params(collection):
    return {"params": {"w": jnp.ones(2)}, collection: {"var": jnp.ones(2)}}


@every_law
@pytest.mark.parametrize(
    ("make", "pattern", "path"),
    [
        *(
            (functools.partial(beside_params, name), f"^{name}/", f"{name}/var")
            for name in ("batch_stats", "cache", "intermediates", "perturbations")
        ),
        (fp8_variables, "^_overwrite_with_gradient/", "_overwrite_with_gradient/Fp8"),
        (fp8_module, "^Fp8", "Fp8DirectDotGeneralOp_0/input_amax_history"),
        (lambda: nnx.state(fp8_module()), "^Fp8", "Fp8DirectDotGeneralOp_0/input_am"),
        (lambda: nnx.state(Normalised()), "mean|var", "norm/mean"),
        (Normalised, "mean|var", "norm/mean"),
        (Sown, "^seen$", "seen"),
    ],
    ids=[
        *("batch_stats", "cache", "intermediates", "perturbations", "fp8 Linen"),
        *("fp8 module", "fp8 state", "NNX state", "NNX module", "Intermediate"),
    ],
)
def test_what_flax_does_not_train_gets_noise_from_no_mask_but_none(
    law, make, pattern, path
):
    with pytest.raises(ValueError, match=f"params holds '{path}.* is not trained"):
        law(0.3)(QUICK_KEY, make())
    law(0.3, mask=exclude(pattern))(QUICK_KEY, make())


@pytest.mark.parametrize("make", [fp8_variables, Normalised])
def test_the_mask_that_the_message_gives_excludes_the_leaf(make):
    with pytest.raises(ValueError, match="such as exclude") as error:
        uniform(0.3)(QUICK_KEY, make())
    leaf, pattern = re.search(
        r"holds '(.*?)'.*such as exclude\('(.*)'\)", str(error.value)
    ).groups()
    flags = jax.tree.leaves(exclude(pattern)(make()))
    names = leaf_names(make())
    assert not flags[names.index(leaf)]
    assert any(flags)


@pytest.mark.parametrize(
    "params",
    [
        {"cache": jnp.ones(2), "head": {"intermediates": jnp.ones(2)}},
        {"params": {"batch_stats": jnp.ones(2), "cache": jnp.ones(2)}},
        {"params": jnp.ones(2), "lora": jnp.ones(2)},
        nnx.state(nnx.LoRA(2, 1, 2, rngs=nnx.Rngs(0))),
    ],
)
def test_what_a_user_may_train_gets_noise(params):
    noise = uniform(0.3)(QUICK_KEY, params)
    assert all(leaf.any() for leaf in jax.tree.leaves(noise))


@every_law
@pytest.mark.parametrize(
    ("arguments", "got"),
    [
        ((network(),), "a dict of 4 leaves; did you forget the key"),
        ((network(), 3), "a dict of 4 leaves; did you forget the key"),
        ((nnx.Rngs(0), network()), r"Rngs.*rngs\.params\(\)"),
        ((jnp.zeros(3), network()), r"array of float32\[3\]; did you forget"),
        ((jax.random.split(QUICK_KEY), network()), r"array of key<.*>\[2\]$"),
        ((jnp.zeros((2, 2), "uint32"), network()), r"array of uint32\[2, 2\]"),
        ((0, network()), "got 0"),
        ((None, network()), "got None"),
    ],
    ids=[
        *("no key", "no key, but a step", "nnx.Rngs", "array", "several keys"),
        *("several raw keys", "seed", "None"),
    ],
)
def test_anything_but_one_key_is_told_in_one_line(law, arguments, got):
    with pytest.raises(TypeError, match=f"key must be a single PRNG key.*{got}"):
        law(0.3)(*arguments)


def test_a_leaf_of_one_axis_is_one_filter_or_many():
    scales = {"scale": jnp.linspace(1.0, 2.0, 512)}

    def draw(law, filter_axis):
        noise = law(0.1, relative_to="filter", filter_axis=filter_axis)
        return noise(QUICK_KEY, scales)["scale"]

    size, norm = scales["scale"], jnp.linalg.norm(scales["scale"])
    np.testing.assert_allclose(jnp.abs(draw(uniform, -1)), 0.1 * size, rtol=1e-5)
    whole = {"scale$": ()}
    drawn = jnp.linalg.norm(draw(uniform, whole))
    np.testing.assert_allclose(drawn, 0.1 * norm, rtol=1e-5)
    rms = float(jnp.sqrt((size**2).mean()))
    assert draw(gaussian, -1).std() == pytest.approx(0.1 * rms, rel=0.1)
    assert draw(gaussian, whole).std() == pytest.approx(0.1 * float(norm), rel=0.1)


@every_law
def test_a_mask_is_read_while_traced(law):
    noise = law(0.3, mask=exclude("BatchNorm"))
    compiled = jax.jit(noise)(QUICK_KEY, network())
    assert_without_noise(compiled["BatchNorm_0"])
    assert_all_noisy(compiled["Dense_0"])


def test_a_callable_module_of_booleans_is_a_tree_and_no_function():
    noise = uniform(0.3, mask=Module(True, False))(
        QUICK_KEY, Module(weights(3), weights(3))
    )
    assert_all_noisy(noise.kernel)
    assert_without_noise(noise.bias)


def test_exclude_names_the_leaves_of_every_structure():
    params = [Module(weights(2), None), freeze({"head": {"kernel": weights(2)}})]
    chex.assert_trees_all_equal(
        exclude("^0/kernel$")(params),
        [Module(False, None), freeze({"head": {"kernel": True}})],
    )


def test_exclude_is_a_mask_of_optax():
    params = network()
    decay = optax.add_decayed_weights(0.1, mask=exclude("BatchNorm", "bias$"))
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = decay.update(zero, decay.init(params), params)
    expected = zero | {
        "Dense_0": zero["Dense_0"] | {"kernel": 0.1 * params["Dense_0"]["kernel"]}
    }
    chex.assert_trees_all_close(updates, expected, rtol=1e-6)

    double = optax.masked(optax.scale(2.0), exclude("Dense"))
    updates, _ = double.update(params, double.init(params))
    doubled = jax.tree.map(lambda leaf: 2.0 * leaf, params["BatchNorm_0"])
    chex.assert_trees_all_close(updates, params | {"BatchNorm_0": doubled})


@pytest.mark.parametrize(
    "use",
    [
        lambda mask: mask(network()),
        lambda mask: uniform(0.3, mask=mask)(QUICK_KEY, network()),
    ],
    ids=["by itself", "by noise"],
)
def test_exclude_warns_of_each_pattern_that_matches_nothing(use):
    with pytest.warns(UserWarning, match="matches no parameter") as caught:
        use(exclude("BatchNrm", "kernel", "^bias"))
    first, second = (str(warning.message) for warning in caught)
    assert "'BatchNrm'" in first
    assert "BatchNorm_0/bias" in first
    assert "'^bias'" in second


# Half precision


@eager_and_compiled
@pytest.mark.parametrize("relative_to", [None, "filter"])
@law_and_its_size
def test_noise_below_the_resolution_of_a_leaf_warns(law, name, relative_to, transform):
    params = {
        "kernel": jnp.ones(3, "bfloat16"),
        "bias": jnp.ones(3, "float16"),
        "scale": jnp.ones(3),
    }
    noise = transform(law(1e-5, relative_to=relative_to))
    with pytest.warns(UserWarning, match=f"{name} is below the resolution") as caught:
        noise(QUICK_KEY, params)
    first, second = (str(warning.message) for warning in caught)
    assert "'bias', float16" in first
    assert "'kernel', bfloat16" in second


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_noise_warns_where_it_is_lost_and_only_there(dtype):
    leaf = jnp.ones(1000, dtype)
    # The neighbours of one are eps / 2 below and eps above it.
    lost, kept = (float(jnp.finfo(dtype).eps) * size for size in (0.2, 1.1))
    with pytest.warns(UserWarning, match="radius is below the resolution"):
        noise = uniform(lost)(QUICK_KEY, leaf)
    assert jnp.all(leaf + noise == leaf)
    assert jnp.any(leaf + uniform(kept)(QUICK_KEY, leaf) != leaf)


@pytest.mark.parametrize(
    "noise",
    [
        uniform(1e-6, mask={"half": False, "single": True}),
        uniform(0.0),
        uniform(1.0, relative_to="filter"),
        gaussian(0.05),
    ],
    ids=["masked", "no noise", "large relative noise", "large noise"],
)
@eager_and_compiled
def test_noise_that_is_not_lost_does_not_warn(transform, noise):
    params = {"half": jnp.ones(3, "bfloat16"), "single": jnp.ones(3)}
    transform(noise)(QUICK_KEY, params)


@pytest.mark.parametrize("relative_to", [None, "weight", "filter"])
def test_a_warning_says_at_which_weights_noise_is_lost(relative_to):
    with pytest.warns(UserWarning, match="noise is lost when added") as caught:
        uniform(1e-6, relative_to=relative_to)(QUICK_KEY, jnp.full(3, 4.0, "bfloat16"))
    (warning,) = caught
    assert ("weights near 1" in str(warning.message)) == (relative_to is None)
    assert warning.filename == __file__


def gradient(execution):
    def use(noise, leaf):
        def loss(leaf):
            return jnp.sum(leaf.astype("float32"))

        fn = smoothout_value_and_grad(loss, noise, num_copies=2, execution=execution)
        return fn(QUICK_KEY, leaf)

    return use


def start(noise, leaf):
    optimizer = smoothout(optax.sgd(0.1), noise, key=QUICK_KEY)
    return jax.eval_shape(optimizer.update, leaf, optimizer.init(leaf), leaf)


def update(noise, leaf):
    optimizer = smooth_gradients(noise, key=QUICK_KEY, num_copies=2, execution="scan")
    state = optimizer.init(leaf)
    return jax.eval_shape(
        lambda: optimizer.update(leaf, state, leaf, grad_fn=lambda leaf, copy: leaf)
    )


USES_OF_KNOWN_WEIGHTS = {
    "compiled": lambda noise, leaf: jax.jit(lambda key: noise(key, leaf))(QUICK_KEY),
    "vmap": lambda noise, leaf: jax.vmap(lambda k: noise(k, leaf))(QUICK_KEY[None]),
    "abstract": lambda noise, leaf: jax.eval_shape(
        lambda key: noise(key, leaf), QUICK_KEY
    ),
    **{f"{how} copies": gradient(how) for how in ("vmap", "scan", "unroll")},
    "smoothout": start,
    "smooth_gradients": update,
}


@pytest.mark.parametrize("use", USES_OF_KNOWN_WEIGHTS)
def test_lost_noise_warns_whatever_is_traced(use):
    for law in LAWS:
        leaf = jnp.array([1.0, 1.0, 1e-6], "bfloat16")
        USES_OF_KNOWN_WEIGHTS[use](law(0.1), leaf)
        with pytest.warns(UserWarning, match="below the resolution"):
            USES_OF_KNOWN_WEIGHTS[use](law(1e-6), leaf)


@pytest.mark.parametrize(
    "radius", [1e-6, optax.linear_schedule(1e-6, 2e-6, 5)], ids=["number", "schedule"]
)
def test_an_eager_loop_warns_once_of_lost_noise(radius):
    noise, leaf = uniform(radius), jnp.ones(3, "bfloat16")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for step in range(5):
            noise(jax.random.fold_in(QUICK_KEY, step), leaf, step)
    assert len(caught) == 1


# Errors


@pytest.mark.parametrize(
    ("size", "error"),
    [
        (-0.1, ValueError),
        (math.nan, ValueError),
        (math.inf, ValueError),
        (jnp.float32(-2.0), ValueError),
        ("0.1", TypeError),
        (None, TypeError),
        (True, TypeError),
        (jnp.array(True), TypeError),
        (0.1j, TypeError),
        ([0.1], TypeError),
        (np.ones(2), TypeError),
    ],
    ids=spelled,
)
@law_and_its_size
def test_a_size_that_is_no_number_of_at_least_zero_is_an_error(law, name, size, error):
    given = re.escape(_checks.describe(size))
    with pytest.raises(error, match=f"^{name} must be .* got {given}"):
        law(size)


@pytest.mark.parametrize("size", [True, 0.1j, np.ones(2)], ids=spelled)
@law_and_its_size
def test_a_traced_size_that_is_no_real_scalar_is_an_error(law, name, size):
    with pytest.raises(TypeError, match=f"{name} must be a number, got .*"):
        jax.jit(lambda size: law(size)(QUICK_KEY, weights(2)))(size)


@pytest.mark.parametrize(
    ("law", "options", "error"),
    [
        (uniform, {"relative_to": "channel"}, ValueError),
        (gaussian, {"relative_to": "channel"}, ValueError),
        (uniform, {"relative_to": 1}, ValueError),
        (uniform, {"bits": 4}, ValueError),
        (uniform, {"bits": 64}, ValueError),
        (uniform, {"bits": "16"}, ValueError),
        (uniform, {"bits": 16.0}, ValueError),
        (uniform, {"filter_axis": 0.5}, TypeError),
        (uniform, {"filter_axis": "0"}, TypeError),
        (uniform, {"filter_axis": None}, TypeError),
        (uniform, {"filter_axis": True}, TypeError),
        (gaussian, {"filter_axis": (0, 1.0)}, TypeError),
    ],
    ids=spelled,
)
def test_an_unknown_option_is_an_error(law, options, error):
    ((name, value),) = options.items()
    with pytest.raises(error, match=f"^{name} must be .* got {re.escape(repr(value))}"):
        law(0.3, **options)


@pytest.mark.parametrize("filter_axis", [2, -3])
@every_law
def test_a_filter_axis_out_of_range_names_the_leaf(law, filter_axis):
    params = {"kernel": weights(2, 3, 4), "head": {"kernel": weights(2, 3)}}
    options = {"relative_to": "filter", "filter_axis": filter_axis}
    with pytest.raises(
        ValueError, match=rf"filter_axis={filter_axis} .* 'head/kernel' of shape \(2, 3"
    ):
        law(0.3, **options)(QUICK_KEY, params)
    masked = law(0.3, **options, mask=exclude("head"))(QUICK_KEY, params)
    assert_without_noise(masked["head"])


@pytest.mark.parametrize(
    "mask",
    [
        {"BatchNorm_0": True},
        {"BatchNorm_0": True, "Dense_1": True},
        [True, False],
        jax.tree.map(lambda _: {"deeper": True}, network()),
        lambda params: params["Dense_0"] | {"bias": True, "kernel": True},
    ],
    ids=["missing", "renamed", "list", "deeper", "function"],
)
def test_a_mask_of_another_structure_is_an_error(mask):
    with pytest.raises(ValueError, match=r"mask must be a tree, or prefix tree.*Dense"):
        uniform(0.3, mask=mask)(QUICK_KEY, network())


@pytest.mark.parametrize(
    "flag",
    [1, 0.0, "yes", "bool"],
    ids=spelled,
)
def test_a_mask_of_anything_but_booleans_is_an_error(flag):
    mask = {"BatchNorm_0": True, "Dense_0": flag}
    with pytest.raises(TypeError, match=f"mask must .*{re.escape(repr(flag))}"):
        uniform(0.3, mask=mask)(QUICK_KEY, network())


def test_a_traced_mask_is_an_error():
    with pytest.raises(
        TypeError, match=r"mask must hold .* got a traced array of bool"
    ):
        jax.jit(lambda flag: uniform(0.3, mask=flag)(QUICK_KEY, weights(2)))(True)


@law_and_its_size
def test_a_schedule_without_a_step_is_an_error(law, name):
    noise = law(optax.constant_schedule(0.3))
    with pytest.raises(ValueError, match=rf"{name} is a schedule.*noise\(key, params,"):
        noise(QUICK_KEY, network())


@pytest.mark.parametrize("size", [-0.1, math.nan])
@law_and_its_size
def test_a_schedule_that_leaves_the_range_is_an_error(law, name, size):
    noise = law(lambda step: 0.3 if step < 3 else size)
    noise(QUICK_KEY, network(), 2)
    with pytest.raises(ValueError, match=f"{name} at step 3 must be .* got {size}"):
        noise(QUICK_KEY, network(), 3)


@every_law
def test_parameters_without_a_leaf_to_perturb_are_an_error(law):
    with pytest.raises(ValueError, match=r"params has no floating .* only bool, int32"):
        law(0.3)(QUICK_KEY, {"count": jnp.arange(3), "flag": True})


def test_exclude_without_patterns_is_an_error():
    with pytest.raises(ValueError, match="exclude needs at least one pattern"):
        exclude()


@pytest.mark.parametrize("pattern", [3, None, b"bias", ("bias",)], ids=spelled)
def test_a_pattern_that_is_no_string_is_an_error(pattern):
    value = re.escape(repr(pattern))
    with pytest.raises(TypeError, match=f"patterns of exclude must be .* got {value}"):
        exclude("kernel", pattern)


def test_a_pattern_that_is_no_regular_expression_is_an_error():
    with pytest.raises(
        ValueError, match=r"pattern '\(bias' of exclude is not a valid regular"
    ):
        exclude("kernel", "(bias")


# On a GPU, where norms are summed in one kernel


@pytest.mark.parametrize("relative_to", ["filter", "layer"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64"])
def test_norms_on_one_gpu_are_those_elsewhere(monkeypatch, relative_to, dtype):
    params = {"kernel": jnp.linspace(-1, 2, 24).reshape(6, 4).astype(dtype)}
    noise = uniform(0.5, relative_to=relative_to)
    expected = jax.jit(noise)(QUICK_KEY, params)
    module = importlib.import_module("smoothout_jax.noise")
    reductions = []
    reduce = jax.lax.reduce
    monkeypatch.setattr(module, "on_one_gpu", lambda: True)
    monkeypatch.setattr(
        jax.lax, "reduce", lambda *args: reductions.append(1) or reduce(*args)
    )
    actual = jax.jit(lambda *args: noise(*args))(QUICK_KEY, params)
    assert len(reductions) == 1
    chex.assert_trees_all_close(actual, expected, rtol=1e-5)
