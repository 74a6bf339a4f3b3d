"""The law of the noise, its size, its tree, and what it refuses."""

import importlib
import math
import re
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import freeze
from scipy import stats

from smoothout_jax import _checks, _random, gaussian, uniform

KEY = jax.random.key(2018)
# Where the law does not matter: its draws compile several times faster.
QUICK_KEY = jax.random.key(2018, impl="unsafe_rbg")
IMPLEMENTATIONS = ("threefry2x32", "rbg", "unsafe_rbg")
LAWS = {uniform: stats.uniform(-1, 2), gaussian: stats.norm()}
DTYPES = ("float16", "bfloat16", "float32", "float64", "complex64", "complex128")
SIZES = (None, "weight", "filter", "layer")


def name_of(value):
    """A test's identifier that is the same in every process."""
    return getattr(value, "__name__", repr(value))


every_law = pytest.mark.parametrize("law", LAWS, ids=name_of)
law_and_its_size = pytest.mark.parametrize(
    ("law", "name"), [(uniform, "radius"), (gaussian, "std")], ids=name_of
)
every_size = pytest.mark.parametrize("relative_to", SIZES)
eager_and_compiled = pytest.mark.parametrize(
    "transform", [lambda noise: noise, jax.jit], ids=["eager", "compiled"]
)


def weights(*shape, dtype="float32"):
    """Weights of both signs and of unequal sizes between a half and two."""
    size = math.prod(shape)
    flat = np.linspace(0.5, 2.0, size) * np.where(np.arange(size) % 3, 1, -1)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        flat = flat * np.exp(1j * np.arange(size))
    return jnp.asarray(flat.reshape(shape), dtype)


def network():
    return {"bias": weights(3), "kernel": weights(2, 3)}


def double(array):
    return np.asarray(array).astype(np.complex128)


def real_parts(array):
    """The real numbers that an array is made of, in double precision."""
    parts = double(array)
    parts = (parts.real, parts.imag) if jnp.iscomplexobj(array) else (parts.real,)
    return np.stack([part.ravel() for part in parts])


# The law


def assert_follows(sample, law):
    """Accepts the law of a sample, and rejects 2/3 and 3/2 of its width."""
    sample = np.ravel(sample)
    assert stats.kstest(sample, law.cdf).pvalue > 1e-4
    for wrong in (2 / 3, 3 / 2):
        assert stats.kstest(wrong * sample[:10_000], law.cdf).pvalue < 1e-12


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("law", "options"),
    [*((uniform, {"bits": bits}) for bits in (8, 16, 32)), (gaussian, {})],
    ids=["8 bits", "16 bits", "32 bits", "gaussian"],
)
def test_noise_follows_its_law_and_raw_keys_draw_that_of_typed_ones(
    law, options, implementation
):
    noise = law(0.3, **options)
    leaf = jnp.ones(100_000 if options == {"bits": 8} else 1_000_000)
    drawn = noise(jax.random.key(7, impl=implementation), leaf)
    assert_follows(np.float64(drawn) / 0.3, LAWS[law])
    with jax.default_prng_impl(implementation):
        raw = noise(jax.random.PRNGKey(7), leaf)
    chex.assert_trees_all_equal(raw, drawn)


@pytest.mark.parametrize("dtype", DTYPES)
@every_law
def test_noise_of_every_dtype_follows_the_law(law, dtype):
    with jax.enable_x64(dtype in ("float64", "complex128")):
        drawn = law(0.3)(QUICK_KEY, jnp.ones((100, 100), dtype))
        assert drawn.dtype == dtype
    parts = real_parts(drawn) / 0.3
    if law is gaussian:
        parts *= math.sqrt(len(parts))
    assert_follows(parts, LAWS[law])


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


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_outermost_levels_are_opposite_and_strictly_inside(monkeypatch, bits):
    def level_of(radius, word):
        monkeypatch.setattr(
            _random, "_words", lambda key, group, start, shape: jnp.full(shape, word)
        )
        return float(uniform(radius, bits=bits)(KEY, jnp.float32(1)))

    for radius in (1e-3, 0.1, 1 / 3, 1.0):
        lowest, highest = (level_of(radius, np.uint32(w)) for w in (0, 2**32 - 1))
        assert lowest == -highest
        assert highest < np.float32(radius)
        assert highest == pytest.approx(radius * (1 - 2.0 ** -min(bits, 24)), rel=1e-7)


SAMPLES = {
    "leaves": lambda noise: jax.tree.leaves(
        noise(KEY, {name: jnp.ones(100_000) for name in "abcd"})
    ),
    "keys": lambda noise: [
        noise(jax.random.key(seed), jnp.ones(100_000)) for seed in range(4)
    ],
    "copies": lambda noise: jax.vmap(noise, (0, None))(
        jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(4)), jnp.ones(100_000)
    ),
    "complex parts": lambda noise: real_parts(
        noise(KEY, jnp.ones(100_000, "complex64"))
    ),
}


@pytest.mark.parametrize("samples", SAMPLES)
@pytest.mark.parametrize("bits", [8, 16])
def test_noise_is_uncorrelated_between(samples, bits):
    found = np.corrcoef(SAMPLES[samples](uniform(0.3, bits=bits)))
    assert np.abs(found - np.eye(len(found))).max() < 5 / math.sqrt(100_000)


@pytest.mark.parametrize("bits", [8, 16])
def test_noise_is_uncorrelated_at_every_lag(bits):
    """Within words, between words, and between rows of words."""
    size = 2**20
    drawn = np.asarray(uniform(1.0, bits=bits)(KEY, jnp.ones(size)), np.float64)
    spectrum = np.abs(np.fft.rfft(drawn, 2 * size)) ** 2
    lags = np.fft.irfft(spectrum)[1:5000] / np.sum(drawn**2)
    # The largest of 5,000 standard normal numbers is rarely above 5.
    assert np.abs(lags).max() < 5.5 / np.sqrt(size)


# The size: noise is a draw of unit size, times what each weight's is relative to

# Shapes and dtypes, and the axes that number the filters.
LEAVES = {
    "flax dense": ((7, 5), "float32", -1),
    "equinox dense": ((5, 7), "float32", 0),
    "flax convolution": ((3, 3, 2, 4), "float32", -1),
    "equinox convolution": ((4, 2, 3, 3), "float32", 0),
    "middle axis": ((3, 5, 4), "float32", 1),
    "axis from the end": ((3, 5, 4), "float32", -2),
    "bias": ((6,), "float32", -1),
    "one filter": ((6,), "float32", ()),
    "heads": ((3, 2, 4), "float32", (-2, -1)),
    "one weight": ((1,), "float32", -1),
    "scalar": ((), "float32", -1),
    "no rows": ((0, 3), "float32", -1),
    "no columns": ((3, 0), "float32", -1),
    **{dtype: ((7, 5), dtype, -1) for dtype in DTYPES},
}
AXES = {f"^{name}$": axes for name, (_, _, axes) in LEAVES.items()}


def norms_of(array, relative_to, axes):
    """The size of what each weight belongs to, in double precision."""
    magnitude = np.abs(double(array))
    if relative_to in (None, "weight"):
        return magnitude if relative_to else np.ones_like(magnitude)
    kept = {axis % max(array.ndim, 1) for axis in np.atleast_1d(axes).astype(int)}
    others = [a for a in range(array.ndim) if relative_to == "layer" or a not in kept]
    return np.sqrt(np.sum(magnitude**2, tuple(others), keepdims=True))


@pytest.mark.parametrize(
    ("law", "relative_to", "options"),
    [
        *((law, size, {}) for law in LAWS for size in SIZES),
        *((gaussian, size, {"normalize": True}) for size in ("filter", "layer")),
    ],
    ids=name_of,
)
def test_noise_is_that_of_unit_size_times_the_weight_or_norm(law, relative_to, options):
    """Divided by its own norm where that is fixed: by `uniform`, or `normalize`."""
    with jax.enable_x64(True):
        params = {
            name: weights(*shape, dtype=dtype)
            for name, (shape, dtype, _) in LEAVES.items()
        }
        # A filter of zeros gets no noise.
        params["flax dense"] = params["flax dense"].at[:, 1].set(0)
        unit = law(1.0)(QUICK_KEY, params)
        noise = law(0.3, relative_to=relative_to, filter_axis=AXES, **options)(
            QUICK_KEY, params
        )
    chex.assert_trees_all_equal_shapes_and_dtypes(noise, params)
    for name, leaf in params.items():
        _, dtype, axes = LEAVES[name]
        expected = 0.3 * norms_of(leaf, relative_to, axes) * double(unit[name])
        if relative_to in ("filter", "layer") and (law is uniform or options):
            expected /= norms_of(unit[name], relative_to, axes)
        tolerance = max(4 * float(jnp.finfo(dtype).eps), 1e-6)
        np.testing.assert_allclose(double(noise[name]), expected, rtol=tolerance)
        assert np.all((double(noise[name]) != 0) == (expected != 0))


@every_size
@every_law
def test_noise_is_a_constant_of_the_gradient_but_for_its_radius(law, relative_to):
    def noise(radius, leaf):
        options = {"relative_to": relative_to, "filter_axis": -1}
        return law(radius, **options)(QUICK_KEY, leaf)

    def loss(radius, leaf):
        return jnp.sum((leaf + noise(radius, leaf)) ** 2)

    for leaf in (weights(4, 3).at[:, 1].set(0.0), jnp.zeros(())):
        added = noise(0.3, leaf)
        of_radius, of_leaf = jax.grad(loss, (0, 1))(0.3, leaf)
        np.testing.assert_allclose(of_leaf, 2 * (leaf + added), rtol=1e-6)
        expected = jnp.sum(2 * (leaf + added) * added / 0.3)
        np.testing.assert_allclose(of_radius, expected, rtol=1e-5)


@eager_and_compiled
@every_law
def test_a_radius_may_be_any_scalar_or_a_schedule_and_a_step_is_welcome(law, transform):
    params = network()
    expected = transform(law(1.0))(QUICK_KEY, params)
    for one in (1, np.float64(1.0), np.int32(1), jnp.ones((), "int32")):
        chex.assert_trees_all_equal(transform(law(one))(QUICK_KEY, params, 5), expected)
    noise = transform(law(optax.linear_schedule(0.1, 0.5, transition_steps=4)))
    for step, radius in [(0, 0.1), (1, 0.2), (3, 0.4), (9, 0.5)]:
        drawn = noise(QUICK_KEY, params, jnp.int32(step))
        scaled = optax.tree.scale(radius, expected)
        chex.assert_trees_all_close(drawn, scaled, rtol=1e-6)


@every_size
@every_law
def test_traced_radii_and_keys_draw_the_eager_noise_and_compile_once(law, relative_to):
    chex.clear_trace_counter()
    options = {"relative_to": relative_to, "filter_axis": -1}
    leaf, keys = weights(2, 3), jax.random.split(KEY, 2)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def draw(radius):
        return jax.vmap(law(radius, **options), (0, None))(keys, leaf)

    for radius in (0.1, 0.7):
        alone = [law(radius, **options)(key, leaf) for key in keys]
        chex.assert_trees_all_close(draw(radius), jnp.stack(alone), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64"])
def test_norms_on_one_gpu_are_those_elsewhere(monkeypatch, dtype):
    """There both norms are taken in one kernel."""
    leaf = weights(6, 4, dtype=dtype)
    noise = uniform(0.5, relative_to="filter", filter_axis=-1)
    expected = jax.jit(noise)(QUICK_KEY, leaf)
    module = importlib.import_module("smoothout_jax.noise")
    reductions, reduce = [], jax.lax.reduce
    monkeypatch.setattr(module, "on_one_gpu", lambda: True)
    monkeypatch.setattr(
        jax.lax, "reduce", lambda *args: reductions.append(1) or reduce(*args)
    )
    actual = jax.jit(lambda *args: noise(*args))(QUICK_KEY, leaf)
    assert len(reductions) == 1
    chex.assert_trees_all_close(actual, expected, rtol=1e-5)


# The tree


class Module(NamedTuple):
    """Parameters in a structure of the user's own."""

    kernel: object
    bias: object


@every_law
def test_noise_is_a_tree_like_the_parameters_of_every_kind_of_leaf(law):
    still = {
        "count": jnp.array([3, 4]),
        "byte": jnp.array(7, "uint8"),
        "flag": jnp.array([True, False]),
        "number": 5,
        "none": None,
    }
    moved = [
        Module(weights(2, 3), (weights(3),)),
        freeze({"head": weights(3)}),
        [[], [weights(3), None]],
        {"float": 1.5, "numpy": np.asarray(weights(2, 3))},
    ]
    noise = law(0.3, relative_to="filter", filter_axis=-1)
    added = noise(QUICK_KEY, [*moved, still])
    arrays = jax.tree.map(jnp.asarray, [*moved, still])
    arrays[3]["float"] = jnp.float32(1.5)
    chex.assert_trees_all_equal_structs(added, arrays)
    chex.assert_trees_all_equal_shapes_and_dtypes(added, arrays)
    chex.assert_trees_all_equal(noise(QUICK_KEY, arrays), added)
    assert all(jnp.all(leaf != 0) for leaf in jax.tree.leaves(added[:-1]))
    assert not any(leaf.any() for leaf in jax.tree.leaves(added[-1]))


@pytest.mark.parametrize("params", [{}, {"none": None}], ids=repr)
def test_parameters_without_leaves_get_no_noise(params):
    for mask in (None, True, params, lambda params: params):
        assert uniform(0.3, mask=mask)(QUICK_KEY, params) == params


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
        (0.1j, TypeError),
        ([0.1], TypeError),
        (np.ones(2), TypeError),
    ],
    ids=name_of,
)
@law_and_its_size
def test_a_size_must_be_a_number_of_at_least_zero(law, name, size, error):
    given = re.escape(_checks.describe(size))
    with pytest.raises(error, match=f"^{name} must be .* got {given}"):
        law(size)
    if isinstance(size, float):
        noise = law(lambda step: 0.3 if step < 3 else size)
        noise(QUICK_KEY, network(), 2)
        with pytest.raises(error, match=f"{name} at step 3 must be .* got {given}"):
            noise(QUICK_KEY, network(), 3)
    if isinstance(size, (bool, complex, np.ndarray)):
        with pytest.raises(error, match=f"{name} must be a number, got a traced"):
            jax.jit(lambda size: law(size)(QUICK_KEY, weights(2)))(size)


@law_and_its_size
def test_a_schedule_needs_a_step(law, name):
    noise = law(optax.constant_schedule(0.3))
    with pytest.raises(ValueError, match=rf"{name} is a schedule.*noise\(key, params,"):
        noise(QUICK_KEY, network())


@pytest.mark.parametrize(
    ("law", "options", "message"),
    [
        (uniform, {"relative_to": "channel"}, "^relative_to must be .* got 'channel'"),
        (gaussian, {"relative_to": 1}, "^relative_to must be .* got 1"),
        (uniform, {"bits": 4}, "^bits must be one of 8, 16, 32; got 4"),
        (uniform, {"bits": 16.0}, "^bits must be .* got 16.0"),
        (gaussian, {"normalize": True}, "normalize needs .*; got relative_to=None"),
        (
            gaussian,
            {"normalize": True, "relative_to": "weight"},
            "normalize needs .*; got relative_to='weight'",
        ),
    ],
)
def test_an_unknown_option_is_refused(law, options, message):
    with pytest.raises(ValueError, match=message):
        law(0.3, **options)


@pytest.mark.parametrize(
    ("arguments", "got"),
    [
        ((network(),), "a dict of 2 leaves; did you forget the key"),
        ((network(), 3), "a dict of 2 leaves; did you forget the key"),
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
def test_a_key_must_be_one_prng_key(arguments, got):
    with pytest.raises(TypeError, match=f"key must be a single PRNG key.*{got}"):
        uniform(0.3)(*arguments)


def test_parameters_must_have_a_leaf_to_perturb():
    with pytest.raises(ValueError, match=r"params has no floating .* only bool, int32"):
        uniform(0.3)(QUICK_KEY, {"count": jnp.arange(3), "flag": True})
