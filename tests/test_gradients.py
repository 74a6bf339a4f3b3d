"""Averages over perturbed copies: a plain loop's, unbiased, in one program; errors."""

import functools
import inspect
import math
import operator
import re
from typing import NamedTuple

import chex
import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy.special import erf

from smoothout_jax import (
    exclude,
    gaussian,
    init_loss_rise,
    smooth,
    smooth_gradients,
    smoothout_value_and_grad,
    uniform,
)
from smoothout_jax.gradients import SharedOptions, SmoothOptions

KEY = jax.random.key(1805, impl="unsafe_rbg")  # which compiles fastest
KEYS = jax.random.split(jax.random.key(7898), 4096)
NOISE = uniform(0.3)
EXECUTIONS = ["vmap", "scan", "unroll", "chunks"]
DEVICES = 8
MESH = jax.make_mesh((DEVICES,), ("d",), axis_types=(AxisType.Auto,))
SPLIT, WHOLE = PartitionSpec("d"), PartitionSpec()

# The programs are small: compiling them takes longer than running them.
compiled = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)
every_execution = pytest.mark.parametrize("execution", EXECUTIONS)


def average(
    fun, execution, noise=NOISE, *, by=smoothout_value_and_grad, num_copies=1, **options
):
    """The averaged function; "chunks" vmaps as many copies as divide them."""
    if execution == "chunks":
        total = num_copies + bool(options.get("clean_weight"))
        execution = "scan"
        options["chunk_size"] = max(n for n in (1, 2, 3) if total % n == 0)
    return by(fun, noise, num_copies=num_copies, execution=execution, **options)


def assert_same(actual, expected, rtol=1e-5):
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)
    chex.assert_trees_all_close(actual, expected, rtol=rtol, atol=rtol)


# What is averaged: a small network that drops a unit, in which every argument tells.


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed, impl="unsafe_rbg"), shape)


PARAMS = {"kernel": normal(1, 3, 2), "bias": normal(2, 1, 2)}
BATCH = {"x": normal(3, 60, 3), "y": normal(4, 60)}
IMPORTANCE = normal(5, 60) ** 2


def network(params, batch, importance, key, *, scale=1.0):
    hidden = jnp.tanh(batch["x"] @ params["kernel"] + params["bias"])
    dropped = jax.random.key_data(key)[-1] % 2
    error = hidden.at[:, dropped].set(0).sum(-1) - batch["y"]
    loss = scale * jnp.mean(error**2) * jnp.mean(importance)
    return loss, {"params": params, "rows": batch["y"], "error": error.mean()}


def network_loss(*args, **kwargs):
    return network(*args, **kwargs)[0]


def quartic(params):
    """A real loss of any parameters, and those parameters themselves."""
    return sum(jnp.sum(jnp.abs(p) ** 4) for p in jax.tree.leaves(params)), params


def quartic_loss(params, *_):
    return quartic(params)[0]


def signs(key, params, step=None):
    """A noise of the user's own."""
    draw = functools.partial(jax.random.rademacher, key)
    return jax.tree.map(lambda p: 0.1 * draw(p.shape, p.dtype), params)


# What the averages are: one copy after another, in plain Python.


def key_of_copy(key, m, total):
    return key if total == 1 else jax.random.split(key, total)[m]


def key_of_device(key, device):
    return jax.random.split(key, DEVICES)[device]


@functools.cache
def value_and_grad(fun):
    return compiled(jax.value_and_grad(fun, has_aux=True))


def plain_loop(
    fun,
    noise,
    key,
    params,
    *args,
    num_copies=1,
    batch_argnums=(),
    copy_argnums=(),
    antithetic=False,
    clean_weight=0.0,
    aux="mean",
    **kwargs,
):
    """Returns ((value, aux), grads) of `fun`, which has an auxiliary output."""
    total = num_copies + bool(clean_weight)
    copies = []
    for m in range(total):
        sign = 0 if m == num_copies else (-1) ** m if antithetic else 1
        added = noise(key_of_copy(key, m // 2 if antithetic else m, total), params)
        perturbed = jax.tree.map(lambda p, n, s=sign: p + s * n, params, added)
        own = dict.fromkeys(np.atleast_1d(batch_argnums), np.s_[m::total])
        own |= dict.fromkeys(np.atleast_1d(copy_argnums), m)
        mine = [
            jax.tree.map(operator.itemgetter(own.get(i, ...)), arg)
            for i, arg in enumerate(args, start=1)
        ]
        copies.append(value_and_grad(fun)(perturbed, *mine, **kwargs))
    weights = [(1 - clean_weight) / num_copies] * num_copies + [clean_weight]

    def mean(*leaves):
        total = sum(w * np.asarray(x) for w, x in zip(weights, leaves, strict=False))
        return total.astype(leaves[0].dtype)

    (value, mean_aux), grads = jax.tree.map(mean, *copies)
    auxes = [copy_aux for (_, copy_aux), _ in copies]
    chosen = {
        "mean": mean_aux,
        "first": auxes[0],
        "clean": auxes[-1],
        "stack": jax.tree.map(lambda *leaves: np.stack(leaves), *auxes),
    }
    return (value, chosen[aux]), grads


def network_args(**options):
    total = options["num_copies"] + bool(options.get("clean_weight"))
    unit_dropped = jax.random.split(jax.random.key(6), total)
    return KEY, PARAMS, BATCH, IMPORTANCE, unit_dropped


@functools.cache
def network_loop(noise, **options):
    return plain_loop(network, noise, *network_args(**options), **options)


def assert_is_the_plain_loop(execution, noise=NOISE, **options):
    options = {"batch_argnums": (1, 2), "copy_argnums": 3} | options
    fn = compiled(average(network, execution, noise, has_aux=True, **options))
    assert_same(fn(*network_args(**options)), network_loop(noise, **options))


@every_execution
@pytest.mark.parametrize("clean_weight", [0.0, 0.3])
@pytest.mark.parametrize(
    ("num_copies", "antithetic"),
    [(1, False), (3, False), (4, True)],
)
def test_averages_are_those_of_a_plain_loop(
    execution, num_copies, antithetic, clean_weight
):
    options = {"antithetic": antithetic, "clean_weight": clean_weight}
    assert_is_the_plain_loop(execution, num_copies=num_copies, **options)


@every_execution
@pytest.mark.parametrize("aux", ["stack", "first", "clean"])
def test_auxiliary_outputs_are_those_of_the_chosen_copies(execution, aux):
    assert_is_the_plain_loop(execution, num_copies=2, clean_weight=0.3, aux=aux)


@pytest.mark.parametrize(
    "noise",
    [
        uniform(0.3, relative_to="filter"),
        uniform(0.3, mask=exclude("bias")),
        gaussian(0.2),
        signs,
        functools.partial(uniform(lambda step: 0.1 * step), step=3),
    ],
    ids=["relative to filter", "masked", "gaussian", "user's own", "schedule"],
)
def test_any_noise_perturbs_the_copies(noise):
    assert_is_the_plain_loop("chunks", noise, num_copies=2, antithetic=True)


@pytest.mark.parametrize("batch_argnums", [(), 1, (2,), (2, 1)])
def test_only_the_named_batches_are_split(batch_argnums):
    assert_is_the_plain_loop("scan", num_copies=4, batch_argnums=batch_argnums)


@pytest.mark.parametrize("name", ["scale", "key"])
def test_keyword_arguments_go_whole_to_every_copy(name):
    def loss(w, **kwargs):
        return w * jnp.sum(kwargs[name])

    fn = average(loss, "scan", num_copies=2)
    assert_same(fn(KEY, jnp.array(2.0), **{name: jnp.ones(2)})[1], jnp.array(2.0))


@every_execution
def test_smooth_is_the_loop_and_its_gradient_smoothouts(execution):
    options = {"num_copies": 2, "antithetic": True, "clean_weight": 0.3}
    options |= {"batch_argnums": (1, 2), "copy_argnums": 3}
    args, expected = network_args(**options), network_loop(NOISE, **options)
    smoothed = average(network, execution, by=smooth, has_aux=True, **options)
    assert_same(compiled(jax.value_and_grad(smoothed, 1, True))(*args), expected)
    (value, _), grads = expected
    without_aux = compiled(average(network_loss, execution, **options))
    assert_same(without_aux(*args), (value, grads))


@pytest.mark.parametrize(("num_copies", "same"), [(16, "unroll"), (17, "scan")])
def test_auto_unrolls_few_copies_on_cpu_and_scans_many(num_copies, same):
    auto, explicit = (
        jax.make_jaxpr(average(quartic_loss, execution, num_copies=num_copies))
        for execution in ("auto", same)
    )
    assert str(auto(KEY, jnp.ones(2))) == str(explicit(KEY, jnp.ones(2)))


# Which copies there are.


def copies_of(key, params, execution, **options):
    fn = average(quartic, execution, has_aux=True, aux="stack", **options)
    return compiled(fn)(key, params)[0][1]


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_every_execution_and_number_of_copies_draws_the_same_ones(
    implementation, make_key
):
    with jax.default_prng_impl(implementation):
        key, params = make_key(3), normal(0, 5)
        expected = jnp.stack(
            [params + NOISE(key_of_copy(key, m, 4), params) for m in range(4)]
        )
        for execution in EXECUTIONS:
            copies = copies_of(key, params, execution, num_copies=4)
            assert_same(copies, expected)
        fewer = copies_of(key, params, "vmap", num_copies=3)
        assert_same(fewer, expected[:3])
    assert len(np.unique(expected)) == expected.size


@every_execution
def test_antithetic_copies_lie_opposite_each_other(execution):
    params = normal(0, 5)
    copies = copies_of(KEY, params, execution, num_copies=4, antithetic=True)
    plus, minus = copies[::2] - params[None], copies[1::2] - params[None]
    assert_same(plus, -minus)
    assert len(np.unique(np.abs(plus))) == plus.size


# Averages that are known in closed form, away from the origin. A z-test accepts the
# estimate, and rejects one a tenth too large.


def z_scores(samples, expected):
    """Errors of the mean of samples along the leading axis, in standard errors."""
    standard_error = samples.std(0, ddof=1) / math.sqrt(len(samples))
    return np.abs(samples.mean(0) - expected) / standard_error


def assert_unbiased(samples, expected):
    samples, expected = np.float64(samples), np.float64(expected)
    assert z_scores(samples, expected) < 4
    assert z_scores(1.1 * samples, expected) > 4


def samples_of(fun, noise, w):
    """The copies' own results, which are what is averaged."""
    fn = smooth(
        lambda w: (fun(w), fun(w)),
        noise,
        num_copies=2**14,
        has_aux=True,
        aux="stack",
        execution="vmap",
    )
    mean, samples = fn(KEYS[0], w)
    assert_same(mean, jax.tree.map(lambda s: s.mean(0), samples), rtol=1e-4)
    return samples


def one_copy_of_each_key(fun, noise, w):
    keys = jax.random.split(KEYS[0], 2**14)
    return jax.vmap(smooth(fun, noise), (0, None))(keys, w)


@pytest.mark.parametrize("draw", [samples_of, one_copy_of_each_key])
def test_estimates_on_the_absolute_value_are_unbiased(draw):
    w, a = 0.6, 1.0
    values, grads = draw(jax.value_and_grad(jnp.abs), uniform(a), w)
    assert_unbiased(values, (w**2 + a**2) / (2 * a))
    assert_unbiased(grads, w / a)


def test_smoothing_raises_a_quadratic_by_its_trace_and_keeps_its_gradient():
    factor = normal(0, 3, 3)
    hessian, slope, w, a = factor @ factor.T, normal(1, 3), normal(2, 3), 0.5

    def quadratic(w):
        return w @ hessian @ w / 2 + slope @ w

    values = samples_of(quadratic, uniform(a), w)
    assert_unbiased(values - quadratic(w), jnp.trace(hessian) * a**2 / 6)
    fn = average(quadratic, "unroll", uniform(a), num_copies=2, antithetic=True)
    assert_same(fn(KEY, w)[1], hessian @ w + slope)


MIDDLE, DENT, DEPTH, WIDTH = 0.5, 2.0, 0.3, 0.1


def dented_valley(w):
    """A wide valley about MIDDLE, with a narrow dent in its slope at DENT."""
    return (w - MIDDLE) ** 2 / 2 - DEPTH * jnp.exp(-(((w - DENT) / WIDTH) ** 2) / 2)


def smoothed_dented_valley(w, a):
    """Its mean over (w - a, w + a), and the derivative of that, in closed form."""
    right, left = ((w + end - DENT) / WIDTH for end in (a, -a))
    area = np.sqrt(np.pi / 2) * WIDTH * (erf(right / 2**0.5) - erf(left / 2**0.5))
    rise = np.exp(-(right**2) / 2) - np.exp(-(left**2) / 2)
    value = (w - MIDDLE) ** 2 / 2 + a**2 / 6 - DEPTH * area / (2 * a)
    return value, w - MIDDLE - DEPTH * rise / (2 * a)


@pytest.mark.parametrize(
    ("radius", "dents"), [(0.02, 1), (0.6, 0)], ids=["narrower", "wider"]
)
def test_the_narrow_minimum_goes_when_the_noise_is_wider_and_the_wide_one_stays(
    radius, dents
):
    w = jnp.linspace(-0.5, 3.0, 141)
    fn = smoothout_value_and_grad(dented_valley, uniform(radius))
    along_w = jax.vmap(jax.vmap(fn, (None, 0)), (0, None))
    values, grads = map(np.float64, along_w(KEYS, w))
    for samples, exact in zip(
        (values, grads), smoothed_dented_valley(np.float64(w), radius), strict=True
    ):
        assert np.all(z_scores(samples, exact) < 4.5)  # the largest of 141
        assert np.any(z_scores(1.1 * samples, exact) > 6)
    slope = grads.mean(0)
    minima = w[1:][(slope[:-1] < 0) & (slope[1:] > 0)]
    assert np.sum(np.abs(minima - MIDDLE) < 0.05) == 1
    assert np.sum(np.abs(minima - DENT) < WIDTH) == len(minima) - 1 == dents


# Dtypes and containers.


class Layer(NamedTuple):
    weight: object
    bias: object


MIXED = Layer([normal(1, 2, 3), {"a": normal(2)}], None)
COMPLEX = (jax.lax.complex(normal(1, 3), normal(2, 3)), normal(3, 2))


@every_execution
@pytest.mark.parametrize(
    "params", [MIXED, normal(1), COMPLEX], ids=["mixed", "scalar", "complex"]
)
def test_gradients_have_the_structure_and_dtypes_of_any_parameters(params, execution):
    options = {"num_copies": 2, "clean_weight": 0.3}
    fn = average(quartic, execution, has_aux=True, **options)
    expected = plain_loop(quartic, NOISE, KEY, params, **options)
    assert_same(compiled(fn)(KEY, params), expected)


@every_execution
def test_float64_is_exact_to_its_own_rounding(execution):
    with jax.enable_x64(True):
        params = jnp.linspace(0.5, 2.0, 5)
        fn = average(quartic, execution, num_copies=3, has_aux=True)
        expected = plain_loop(quartic, NOISE, KEY, params, num_copies=3)
        assert params.dtype == jnp.float64
        assert_same(compiled(fn)(KEY, params), expected, rtol=1e-14)


def half_loss(params, x):
    """A loss that casts its parameters, if they are not yet cast."""
    half = jax.tree.map(lambda p: jnp.asarray(p, "bfloat16"), params)
    return jnp.sum(jnp.tanh(x @ half["kernel"] + half["bias"]).astype("float32"))


@every_execution
@pytest.mark.parametrize(
    "options", [{}, {"clean_weight": 0.5}, {"antithetic": True}], ids=str
)
def test_parameters_in_the_dtype_of_the_network_are_those_that_the_loss_would_cast(
    execution, options
):
    x = BATCH["x"].astype("bfloat16")

    def narrow(params, x):
        assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
        return half_loss(params, x)

    options |= {"num_copies": 4}
    expected = compiled(average(half_loss, execution, **options))(KEY, PARAMS, x)
    fn = average(narrow, execution, compute_dtype=jnp.bfloat16, **options)
    assert_same(compiled(fn)(KEY, PARAMS, x), expected, rtol=1e-2)


def test_only_real_floating_parameters_take_the_dtype_of_the_network():
    params = {"w": jnp.ones(3), "z": jnp.ones(3, "complex64"), "n": jnp.int32(3)}
    seen = {}

    def look(tree):
        seen.update({name: leaf.dtype.name for name, leaf in tree.items()})
        return tree["w"].sum()

    smooth(look, NOISE, compute_dtype="float16")(KEY, params)
    assert seen == {"w": "float16", "z": "complex64", "n": "int32"}


def test_the_rise_and_a_link_of_a_chain_know_the_dtype_of_the_network():
    params, rise = {"w": jnp.ones(300)}, init_loss_rise()

    def loss(params, copy=0):
        assert params["w"].dtype == jnp.bfloat16
        return jnp.sum(jnp.square(params["w"].astype("float32")))

    fn = smoothout_value_and_grad(
        loss, uniform(0.5), loss_rise=0.1, compute_dtype="bfloat16"
    )
    step = compiled(fn)
    for seed in range(20):
        (_, grads), rise = step(rise, jax.random.key(seed), params)
    assert grads["w"].dtype == jnp.float32
    # A rise of 0.1 of a sum of 300 squares: 100 a² = 0.1.
    assert 0.5 * float(rise.noise_scale) == pytest.approx(0.0316, rel=0.15)
    link = smooth_gradients(uniform(0.1), key=0, compute_dtype="bfloat16")
    update = functools.partial(link.update, grad_fn=jax.grad(loss))
    updates, _ = update(params, link.init(params), params)
    assert updates["w"].dtype == jnp.float32


def rise_held_at(target, **options):
    """The rise after 150 steps, for a loss in which the rounding of weights counts."""
    params = 1 + jax.random.uniform(jax.random.key(2), (4096,))

    def loss(w):
        return 30 * jnp.mean(jnp.square(w.astype("float32")))

    fn = smoothout_value_and_grad(
        loss, uniform(0.01), num_copies=2, antithetic=True, loss_rise=target, **options
    )

    def step(rise, key):
        return fn(rise, key, params)[1], None

    def steps(keys):
        return jax.lax.scan(step, init_loss_rise(), keys)[0]

    # So that XLA rounds to half precision, and does not leave it out.
    exactly = jax.jit(steps, compiler_options={"xla_allow_excess_precision": False})
    return exactly(jax.random.split(KEY, 150))


@every_execution
def test_the_rise_is_that_of_the_noise_and_not_of_rounding_the_weights(execution):
    options = {"execution": execution}
    if execution == "chunks":
        options = {"chunk_size": 2}
    target = 1e-5
    expected = rise_held_at(target, **options)
    rise = rise_held_at(target, compute_dtype="bfloat16", **options)
    # The mean of 30 ε² over a box of half-width a is 10 a².
    np.testing.assert_allclose(0.01 * expected.noise_scale, 1e-3, rtol=0.05)
    np.testing.assert_allclose(rise.noise_scale, expected.noise_scale, rtol=0.05)
    for each in (rise, expected):
        np.testing.assert_allclose(each.loss_rise_estimate, target, rtol=0.05)


@pytest.mark.parametrize(
    ("dtype", "error", "message"),
    [
        ("int32", ValueError, "compute_dtype must be a floating dtype, got 'int32'"),
        ("narrow", TypeError, "compute_dtype must be a dtype, got 'narrow'"),
        (3.0, TypeError, "compute_dtype must be a dtype, got 3.0"),
    ],
)
def test_what_no_network_computes_in_is_refused(dtype, error, message):
    with pytest.raises(error, match=message):
        smoothout_value_and_grad(half_loss, NOISE, compute_dtype=dtype)


@every_execution
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_averaged_in_float32(dtype, execution):
    slopes = (1 + jnp.abs(normal(0, 16, 100))).astype(dtype)

    def loss(w, slope):
        return jnp.sum(w * slope)

    fn = compiled(average(loss, execution, num_copies=16, copy_argnums=1))
    value, grads = fn(KEY, jnp.ones(100, dtype), slopes)
    assert value.dtype == grads.dtype == dtype
    half_a_unit = 1.01 * float(jnp.finfo(dtype).eps) / 2
    exact = np.float64(slopes).mean(0)
    np.testing.assert_allclose(np.float64(grads), exact, rtol=half_a_unit)


@every_execution
@pytest.mark.parametrize(
    ("num_copies", "aux"),
    [(1, {"step": jnp.arange(3), "on": True}), (2, {"number": 1.5, "none": None})],
)
def test_aux_need_not_be_floating_arrays(execution, num_copies, aux):
    fn = average(
        lambda w: (jnp.sum(w), aux), execution, num_copies=num_copies, has_aux=True
    )
    returned, expected = (
        jax.tree.map(jnp.asarray, tree) for tree in (fn(KEY, jnp.ones(2))[0][1], aux)
    )
    assert_same(returned, expected)


@pytest.mark.parametrize("aux", ["mean", "first"])
def test_aux_of_a_single_copy_may_be_any_object(aux):
    found = {"key": KEY, "name": "layer", "object": object()}
    fn = smoothout_value_and_grad(
        lambda w: (jnp.sum(w), found), uniform(0.1), has_aux=True, aux=aux
    )
    (_, returned), _ = fn(KEY, jnp.ones(2))
    assert returned == found


@every_execution
@pytest.mark.parametrize(
    ("aux", "leaf", "message"),
    [
        (
            "mean",
            KEY,
            r"an array of key<\w+>\[\], which has no mean.*aux='first' or aux='st",
        ),
        ("mean", "layer", "'layer', which several copies can neither average nor"),
        ("stack", "layer", "'layer', which several copies can neither average nor"),
    ],
)
def test_aux_that_copies_cannot_share_is_named(execution, aux, leaf, message):
    fn = average(
        lambda w: (jnp.sum(w), {"found": leaf}),
        execution,
        num_copies=2,
        has_aux=True,
        aux=aux,
    )
    with pytest.raises(TypeError, match=rf"output\['found'\] of fun is {message}"):
        fn(KEY, jnp.ones(2))


@every_execution
def test_parameters_may_be_numbers(execution):
    params = {"slope": 2.0, "shift": np.float32(3.0)}
    fn = average(
        lambda p: p["slope"] * 5.0 + p["shift"], execution, uniform(0.0), num_copies=2
    )
    value, grads = fn(KEY, params)
    assert value == 13.0
    assert grads == {"slope": 5.0, "shift": 1.0}


@every_execution
def test_batches_and_aux_may_hold_keys(execution):
    fn = average(
        lambda w, keys: (jnp.sum(w), keys),
        execution,
        num_copies=2,
        has_aux=True,
        aux="stack",
        batch_argnums=1,
    )
    (_, keys), _ = fn(KEY, jnp.ones(2), KEYS[:6])
    expected = jnp.stack([KEYS[0:6:2], KEYS[1:6:2]])
    assert_same(jax.random.key_data(keys), jax.random.key_data(expected))


@every_execution
def test_leaves_that_take_no_noise_are_left_alone_by_smooth(execution):
    params = {"w": normal(1, 3), "step": jnp.array(7), "frozen": jnp.array([True])}
    fn = average(
        lambda p: (jnp.sum(p["w"]), (p["step"], p["frozen"])),
        execution,
        by=smooth,
        num_copies=2,
        has_aux=True,
        aux="first",
        antithetic=True,
        clean_weight=0.3,
    )
    assert_same(fn(KEY, params)[1], (params["step"], params["frozen"]))


# The scales of Flax's fp8 layers, whose "gradients" are their next values.

SCALES = "_overwrite_with_gradient"
X = normal(3, 8, 16)
FP8_LAYER = nn.Dense(4, dot_general_cls=nn.Fp8DirectDotGeneralOp)


def fp8_loss(variables, x):
    return jnp.mean(jnp.square(FP8_LAYER.apply(variables, x) - 1))


@pytest.fixture(scope="module")
def fp8_variables(standard_promotion):
    return FP8_LAYER.init(jax.random.key(0), X)


def test_one_copy_gives_the_next_fp8_scales_as_they_are(fp8_variables):
    noise = uniform(0.0, mask=exclude(SCALES))
    fn = smoothout_value_and_grad(fp8_loss, noise)
    value, grads = fn(KEY, fp8_variables, X)
    expected = jax.value_and_grad(fp8_loss)(fp8_variables, X)
    chex.assert_trees_all_equal((value, grads), expected)
    history = grads[SCALES]["Fp8DirectDotGeneralOp_0"]["input_amax_history"]
    assert history.max() == jnp.abs(X).max()


@pytest.mark.parametrize(
    "options", [{"num_copies": 2}, {"clean_weight": 0.5}, {"axis_name": "d"}], ids=str
)
@pytest.mark.parametrize("by", [smooth, smoothout_value_and_grad])
def test_fp8_scales_are_not_averaged_over_copies(fp8_variables, by, options):
    fn = jax.vmap(by(fp8_loss, NOISE, **options), None, axis_name="d", axis_size=1)
    with pytest.raises(ValueError, match=rf"'{SCALES}'.* set num_copies=1, or diff"):
        fn(KEY, fp8_variables, X)


def test_fp8_scales_may_be_another_argument_of_several_copies(fp8_variables):
    def loss(params, scales):
        return fp8_loss({"params": params, SCALES: scales}, X)

    fn = smoothout_value_and_grad(loss, NOISE, num_copies=2)
    _, grads = fn(KEY, fp8_variables["params"], fp8_variables[SCALES])
    chex.assert_trees_all_equal_shapes(grads, fp8_variables["params"])


def test_fp8_scales_are_found_in_trees_of_nnx_and_of_frozen_dicts():
    kind = nnx.variablelib.variable_type_from_name(SCALES, allow_register=True)
    state = nnx.State({"scale": kind(jnp.ones(1)), "w": nnx.Param(jnp.ones(2))})
    frozen = flax.core.freeze({"params": jnp.ones(2), SCALES: jnp.ones(1)})
    fn = smoothout_value_and_grad(quartic_loss, NOISE, num_copies=2)
    for params in (state, frozen, (frozen,)):
        with pytest.raises(ValueError, match=f"collection '{SCALES}'"):
            fn(KEY, params)


# Under JAX's transformations.


def descent(execution):
    def step(params, key, radius):
        fn = average(quartic_loss, execution, uniform(radius), num_copies=2)
        return params - 0.01 * fn(key, params)[1]

    return step


@every_execution
def test_training_compiles_once_donates_and_scans(execution):
    chex.clear_trace_counter()
    start, radii = normal(0, 4), jnp.array([0.1, 0.2, 0.3])
    keys, step = jax.random.split(KEY, 3), descent(execution)
    donating = compiled(chex.assert_max_traces(step, n=1), donate_argnums=0)
    params = jnp.copy(start)
    for key, radius in zip(keys, radii, strict=True):
        before = params
        params = donating(before, key, radius)
        assert before.is_deleted()
    scanned, _ = jax.lax.scan(lambda p, x: (step(p, *x), None), start, (keys, radii))
    assert_same(scanned, params)


@every_execution
def test_seeds_train_together_under_vmap(execution):
    step, seeds = descent(execution), (normal(0, 2, 4), KEYS[:2], jnp.array([0.1, 0.3]))
    apart = [compiled(step)(*seed) for seed in zip(*seeds, strict=True)]
    assert_same(compiled(jax.vmap(step))(*seeds), jnp.stack(apart))


@every_execution
def test_smooth_has_second_derivatives_and_can_be_rematerialised(execution):
    w = normal(0, 3)
    smoothed = average(quartic_loss, execution, by=smooth, num_copies=2)
    copies = copies_of(KEY, w, "vmap", num_copies=2)
    hessian = jax.hessian(jax.checkpoint(functools.partial(smoothed, KEY)))
    assert_same(compiled(hessian)(w), jnp.diag(12 * jnp.mean(copies**2, 0)))


@every_execution
def test_only_vmap_holds_the_gradients_of_all_copies(execution):
    fn = average(quartic, execution, num_copies=6, has_aux=True)
    program = str(jax.make_jaxpr(fn)(KEY, jnp.ones((7, 11))))
    assert ("f32[6,7,11]" in program) == (execution == "vmap")
    assert "f32[2,3,7,11]" not in program


# Over devices.

ROWS = jax.tree.map(lambda a: a[:32], (BATCH, IMPORTANCE))


def split_rows(rows):
    return jax.tree.map(lambda a: a.reshape(DEVICES, -1, *a.shape[1:]), rows)


def undropped(params, batch, importance):
    loss, aux = network(params, batch, importance, KEY)
    return loss, aux["error"]


MASKED = uniform(0.3, mask=exclude("bias"))


@functools.cache
def average_of_plain_loops(**options):
    """The mean over devices, each with its own rows and a key of its own."""
    results = []
    for device in range(DEVICES):
        rows = jax.tree.map(operator.itemgetter(device), split_rows(ROWS))
        own_key = key_of_device(KEYS[0], device)
        results.append(plain_loop(undropped, MASKED, own_key, PARAMS, *rows, **options))
    return jax.tree.map(lambda *leaves: np.mean(leaves, 0), *results)


@every_execution
@pytest.mark.parametrize("mapped", ["checked", "unchecked", "vmap"])
@pytest.mark.parametrize(
    "options",
    [
        {"num_copies": 1},
        {"num_copies": 3, "clean_weight": 0.3, "batch_argnums": (1, 2)},
    ],
    ids=["one copy", "clean copy and split batch"],
)
def test_devices_average_gradients_at_noise_of_their_own(execution, mapped, options):
    fn = average(undropped, execution, MASKED, has_aux=True, axis_name="d", **options)
    if mapped == "vmap":
        rows, in_axes = split_rows(ROWS), (None, None, 0, 0)
        over_devices = jax.vmap(fn, in_axes, None, axis_name="d")
    else:
        rows, specs = ROWS, (WHOLE, WHOLE, SPLIT, SPLIT)
        over_devices = jax.shard_map(
            fn,
            mesh=MESH,
            in_specs=specs,
            out_specs=WHOLE,
            check_vma=mapped == "checked",
        )
    actual = compiled(over_devices)(KEYS[0], PARAMS, *rows)
    assert_same(actual, average_of_plain_loops(**options))


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg", "unsafe_rbg"])
@pytest.mark.parametrize(("aux", "different"), [("stack", 17), ("first", 8)])
def test_each_copy_on_each_device_is_another_and_not_averaged(
    aux, different, implementation
):
    options = {"num_copies": 2, "clean_weight": 0.3, "has_aux": True, "aux": aux}
    fn = average(quartic, "scan", axis_name="d", **options)
    key, w = jax.random.key(3, impl=implementation), normal(0, 5)
    own = jax.shard_map(
        lambda w: fn(key, w)[0][1].reshape(-1, 5),
        mesh=MESH,
        in_specs=WHOLE,
        out_specs=SPLIT,
    )
    assert len(np.unique(own(w), axis=0)) == different


@every_execution
@pytest.mark.parametrize("num_copies", [2, 4])
def test_a_sharded_batch_is_split_where_it_lies(execution, num_copies):
    fn = average(
        lambda w, x: jnp.mean(jnp.tanh(x @ w)),
        execution,
        num_copies=num_copies,
        batch_argnums=1,
    )
    w = jax.device_put(normal(0, 3), NamedSharding(MESH, WHOLE))
    x = jax.device_put(normal(1, 64, 3), NamedSharding(MESH, SPLIT))
    program = jax.jit(fn).lower(KEY, w, x).compile().as_text()
    assert "all-reduce" in program
    assert not re.search("all-gather|all-to-all|collective-permute", program)


def test_one_copy_may_be_laid_over_a_mesh_of_one_device():
    options = {"num_copies": 1, "spmd_axis_name": "d"}
    fn = smoothout_value_and_grad(quartic_loss, NOISE, **options)
    expected = smoothout_value_and_grad(quartic_loss, NOISE)(KEY, PARAMS)
    with jax.set_mesh(jax.make_mesh((1,), ("d",), (AxisType.Auto,))):
        assert_same(compiled(fn)(KEY, PARAMS), expected)


# Errors.

EVEN = {"num_copies": 4}
ODD = {"num_copies": 4, "clean_weight": 0.1}
WRONG_OPTIONS = [
    ({"num_copies": 0}, ValueError, "num_copies must be at least 1, got 0"),
    ({"num_copies": -1}, ValueError, "num_copies must be at least 1, got -1"),
    ({"num_copies": 2.0}, TypeError, "num_copies must be .* integer, got 2.0"),
    ({"num_copies": True}, TypeError, "num_copies must be .* integer, got True"),
    ({"num_copies": 3, "antithetic": True}, ValueError, "even; got num_copies=3"),
    ({"clean_weight": -0.1}, ValueError, r"clean_weight .* got -0\.1"),
    ({"clean_weight": 1.0}, ValueError, r"clean_weight .* \[0, 1\) .* got 1\.0"),
    ({"clean_weight": math.nan}, ValueError, "clean_weight .* got nan"),
    ({"clean_weight": "a"}, TypeError, "clean_weight must be a number, got 'a'"),
    ({"has_aux": True, "aux": "all"}, ValueError, "aux must be .*; got 'all'"),
    ({"has_aux": True, "aux": "clean"}, ValueError, "aux='clean'.* clean_weight"),
    ({"aux": "stack"}, ValueError, "aux='stack' needs has_aux=True"),
    ({"execution": "pmap"}, ValueError, "execution must be .*; got 'pmap'"),
    ({"chunk_size": 0}, ValueError, "chunk_size must be at least 1, got 0"),
    ({"chunk_size": 2.0}, TypeError, "chunk_size must be .* integer, got 2.0"),
    ({"chunk_size": 1, "execution": "vmap"}, ValueError, "excludes .*'vmap'"),
    ({"chunk_size": 1, "execution": "unroll"}, ValueError, "excludes .*'unroll'"),
    ({"chunk_size": 3} | EVEN, ValueError, "chunk_size=3 does not .* 4 copies"),
    ({"chunk_size": 2} | ODD, ValueError, "chunk_size=2 does not .* 5 copies"),
    ({"batch_argnums": 0}, ValueError, "batch_argnums .* at least 1; got 0"),
    ({"copy_argnums": (1, -1)}, ValueError, r"copy_argnums .* got \(1, -1\)"),
    ({"batch_argnums": (1, 1)}, ValueError, r"twice: \(1, 1\)"),
    ({"batch_argnums": 1, "copy_argnums": [1]}, ValueError, r"twice: .* \(1,\)"),
    ({"batch_argnums": 1.0}, TypeError, "batch_argnums .* integer .* got 1.0"),
    ({"copy_argnums": "1"}, TypeError, "copy_argnums .* integer .* got '1'"),
    ({"noise": 0.1}, TypeError, "noise must be a function.*; got 0.1"),
    ({"fun": 0.1}, TypeError, "fun must be a function.*; got 0.1"),
    ({"fun": NOISE}, TypeError, "were fun and noise swapped"),
    ({"num_copy": 2}, TypeError, "unexpected keyword argument 'num_copy'"),
]
BY_ROW = {"batch_argnums": 1}
BY_COPY = {"copy_argnums": 1}
VECTOR = {"fun": lambda w: w}
COUNTER = {"fun": lambda w: (w.sum(), jnp.arange(2)), "has_aux": True}
MISSHAPEN = {"noise": lambda key, params, step=None: jnp.ones(1)}
SCHEDULE = {"noise": uniform(lambda step: 0.1)}
INTEGERS = {"params": {"n": jnp.arange(3)}}
WRONG_CALLS = [
    (
        BY_ROW | EVEN,
        [{"x": jnp.ones((7, 2))}],
        ValueError,
        r"1\['x'\] has 7 .* 4 copies",
    ),
    (BY_ROW | ODD, [jnp.ones((8, 2))], ValueError, "argument 1 has 8 .* 5 copies"),
    (BY_ROW, [3.0], ValueError, "batch_argnums: argument 1 has no rows"),
    (BY_ROW, [], ValueError, "batch_argnums names argument 1, but fun was given 1 pos"),
    (
        BY_COPY | EVEN,
        [jnp.ones((5, 2))],
        ValueError,
        r"1 of shape \(5, 2\) .* 4 copies",
    ),
    (BY_COPY, [3.0], ValueError, r"copy_argnums: argument 1 of shape \(\)"),
    (VECTOR, [], TypeError, r"scalar-output functions. Output had shape: \(2,\)"),
    (COUNTER | EVEN, [], TypeError, "int32.*aux='first' or aux='stack'"),
    (MISSHAPEN, [], ValueError, r"noise .*\(1,\)"),
    (SCHEDULE, [], ValueError, "radius is a schedule, which needs the step"),
    (INTEGERS, [], ValueError, "params has no floating .* leaf .*, only int32"),
    ({"key": 0}, [], TypeError, "key must be a single PRNG key.* got 0"),
    ({"key": KEYS[:3]}, [], TypeError, r"single .* got an array of key<fry>\[3\]"),
    ({"key": {"w": jnp.ones(3)}}, [], TypeError, "1 leaves; did you forget the key?"),
]


@pytest.mark.parametrize("transform", [smooth, smoothout_value_and_grad])
@pytest.mark.parametrize(("options", "error", "message"), WRONG_OPTIONS)
def test_wrong_options_are_refused_at_once(transform, options, error, message):
    with pytest.raises(error, match=message):
        transform(**{"fun": quartic_loss, "noise": NOISE} | options)


def test_smooth_takes_no_rise():
    with pytest.raises(TypeError, match="unexpected keyword argument 'loss_rise'"):
        smooth(quartic_loss, NOISE, loss_rise=0.1)


@pytest.mark.parametrize("transform", [smooth, smoothout_value_and_grad])
def test_signatures_show_every_option_with_its_default(transform):
    options = inspect.signature(transform).parameters
    listed = inspect.get_annotations(SmoothOptions)
    for name in listed | inspect.get_annotations(SharedOptions):
        assert options[name].kind is inspect.Parameter.KEYWORD_ONLY
        explicit = {name: options[name].default}
        assert transform(quartic_loss, NOISE, **explicit)
        assert re.search(
            rf"^ +{name}: ", SmoothOptions.__doc__ + SharedOptions.__doc__, re.M
        )
    assert ("loss_rise" in options) == (transform is smoothout_value_and_grad)


@pytest.mark.parametrize("name", ["num_copies", "clean_weight"])
def test_what_shapes_the_program_cannot_be_traced(name):
    with pytest.raises((TypeError, ValueError), match=f"{name} must be"):
        jax.jit(lambda value: smooth(quartic_loss, NOISE, **{name: value}))(0)


@every_execution
@pytest.mark.parametrize(("options", "args", "error", "message"), WRONG_CALLS)
def test_wrong_calls_are_refused(execution, options, args, error, message):
    options = {"fun": quartic_loss, "key": KEY, "params": jnp.ones(2)} | options
    key, params = options.pop("key"), options.pop("params")
    fn = average(execution=execution, **options)
    with pytest.raises(error, match=message):
        fn(key, params, *args)


@every_execution
def test_integer_outputs_have_no_average(execution):
    counted = average(lambda w: jnp.arange(2), execution, by=smooth, num_copies=2)
    with pytest.raises(TypeError, match=r"int32\[2\], which has no mean"):
        counted(KEY, jnp.ones(2))


def test_integers_of_the_clean_copy_have_no_average_over_devices():
    options = {"clean_weight": 0.5, "aux": "clean", "axis_name": "d"} | COUNTER
    fn = smoothout_value_and_grad(noise=NOISE, **options)
    over_devices = jax.vmap(fn, None, None, axis_name="d", axis_size=2)
    with pytest.raises(TypeError, match=r"int32\[2\], which has no mean"):
        over_devices(KEY, jnp.ones(2))
