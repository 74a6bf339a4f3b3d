"""Averages over perturbed copies: those of a plain loop, in one compiled program."""

import functools
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
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from scipy.special import erf

from smoothout_jax import (
    exclude,
    init_loss_rise,
    smooth,
    smooth_gradients,
    smoothout_value_and_grad,
    uniform,
)

KEY = jax.random.key(1805, impl="unsafe_rbg")  # which compiles fastest
KEYS = jax.random.split(jax.random.key(7898), 4096)
NOISE = uniform(0.3)
MASKED = uniform(0.3, mask=exclude("bias"))
EXECUTIONS = ["vmap", "scan", "unroll", "chunks"]
DEVICES = 8
MESH = jax.make_mesh((DEVICES,), ("d",), axis_types=(AxisType.Auto,))
SPLIT, WHOLE = jax.P("d"), jax.P()
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


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed, impl="unsafe_rbg"), shape)


PARAMS = {"kernel": normal(1, 3, 2), "bias": normal(2, 1, 2)}
BATCH = {"x": normal(3, 60, 3), "y": normal(4, 60)}
IMPORTANCE = normal(5, 60) ** 2


def network(params, batch, importance, key, *, scale=1.0):
    """A small network that drops a unit; its loss depends on every argument."""
    hidden = jnp.tanh(batch["x"] @ params["kernel"] + params["bias"])
    dropped = jax.random.key_data(key)[-1] % 2
    error = hidden.at[:, dropped].set(0).sum(-1) - batch["y"]
    loss = scale * jnp.mean(error**2) * jnp.mean(importance)
    return loss, {"params": params, "rows": batch["y"], "error": error.mean()}


def quartic(params):
    """A real loss of any parameters, and those parameters themselves."""
    return sum(jnp.sum(jnp.abs(p) ** 4) for p in jax.tree.leaves(params)), params


def quartic_loss(params, *_):
    return quartic(params)[0]


def signs(key, params, step=None):
    """A noise of the user's own."""
    draw = functools.partial(jax.random.rademacher, key)
    return jax.tree.map(lambda p: 0.1 * draw(p.shape, p.dtype), params)


@functools.cache
def value_and_grad(fun):
    return compiled(jax.value_and_grad(fun, has_aux=True))


def key_of_copy(key, m, total):
    return key if total == 1 else jax.random.split(key, total)[m]


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
):
    """The reference: one copy after another, in plain Python."""
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
        copies.append(value_and_grad(fun)(perturbed, *mine))
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


def network_args(num_copies, clean_weight=0.0, **_):
    dropped = jax.random.split(jax.random.key(6), num_copies + bool(clean_weight))
    return KEY, PARAMS, BATCH, IMPORTANCE, dropped


@functools.cache
def network_loop(noise, **options):
    return plain_loop(network, noise, *network_args(**options), **options)


def assert_is_the_plain_loop(execution, noise=NOISE, **options):
    options = {"batch_argnums": (1, 2), "copy_argnums": 3} | options
    fn = compiled(average(network, execution, noise, has_aux=True, **options))
    assert_same(fn(*network_args(**options)), network_loop(noise, **options))


@every_execution
@pytest.mark.parametrize(
    "options",
    [
        {"num_copies": 1},
        {"num_copies": 1, "clean_weight": 0.3, "aux": "clean"},
        {"num_copies": 3},
        {"num_copies": 3, "clean_weight": 0.3, "aux": "stack"},
        {"num_copies": 4, "antithetic": True, "aux": "first"},
        {"num_copies": 2, "antithetic": True, "clean_weight": 0.3},
    ],
    ids=str,
)
def test_averages_are_those_of_a_plain_loop(execution, options):
    assert_is_the_plain_loop(execution, **options)


def test_any_noise_perturbs_the_copies():
    schedule = functools.partial(uniform(lambda step: 0.1 * step), step=3)
    for noise in (uniform(0.3, relative_to="filter"), MASKED, signs, schedule):
        assert_is_the_plain_loop("chunks", noise, num_copies=2, antithetic=True)


@pytest.mark.parametrize("batch_argnums", [(), 1, (2,), (2, 1)])
def test_only_the_named_batches_are_split(batch_argnums):
    assert_is_the_plain_loop("scan", num_copies=4, batch_argnums=batch_argnums)


@every_execution
def test_smooth_is_the_loop_and_its_gradient_smoothouts(execution):
    options = {"num_copies": 2, "antithetic": True, "clean_weight": 0.3}
    options |= {"batch_argnums": (1, 2), "copy_argnums": 3}
    args, expected = network_args(**options), network_loop(NOISE, **options)
    smoothed = average(network, execution, by=smooth, has_aux=True, **options)
    assert_same(compiled(jax.value_and_grad(smoothed, 1, True))(*args), expected)
    (value, _), grads = expected
    loss = average(lambda *args: network(*args)[0], execution, **options)
    assert_same(compiled(loss)(*args), (value, grads))


@pytest.mark.parametrize("name", ["scale", "key"])
def test_keyword_arguments_are_passed_unsplit_to_every_copy(name):
    def loss(w, **kwargs):
        return w * jnp.sum(kwargs[name])

    kwargs, w = {name: jnp.ones(2)}, jnp.array(2.0)
    value, grad = average(loss, "scan", num_copies=2)(KEY, w, **kwargs)
    assert grad == 2
    assert value == average(loss, "scan", by=smooth, num_copies=2)(KEY, w, **kwargs)


@pytest.mark.parametrize(("num_copies", "same"), [(16, "unroll"), (17, "scan")])
def test_auto_unrolls_few_copies_on_cpu_and_scans_many(num_copies, same):
    auto, explicit = (
        jax.make_jaxpr(average(quartic_loss, execution, num_copies=num_copies))
        for execution in ("auto", same)
    )
    assert str(auto(KEY, jnp.ones(2))) == str(explicit(KEY, jnp.ones(2)))


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
            assert_same(copies_of(key, params, execution, num_copies=4), expected)
        assert_same(copies_of(key, params, "vmap", num_copies=3), expected[:3])
    assert len(np.unique(expected)) == expected.size


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


def z_scores(samples, expected):
    standard_error = samples.std(0, ddof=1) / math.sqrt(len(samples))
    return np.abs(samples.mean(0) - expected) / standard_error


@pytest.mark.parametrize(
    ("radius", "dents"), [(0.02, 1), (0.6, 0)], ids=["narrower", "wider"]
)
def test_estimates_are_unbiased_and_wide_noise_removes_the_narrow_minimum(
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
COMPLEX = jax.lax.complex(normal(1, 3), normal(2, 3))


@every_execution
def test_gradients_have_the_structure_and_dtypes_of_any_parameters(execution):
    params, options = (MIXED, COMPLEX), {"num_copies": 2, "clean_weight": 0.3}
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


@every_execution
def test_half_precision_is_averaged_in_float32(execution):
    slopes = {
        d: (1 + abs(normal(0, 16, 100))).astype(d) for d in ("bfloat16", "float16")
    }
    params = {dtype: jnp.ones(100, dtype) for dtype in slopes}

    def loss(params, slopes):
        sums = [jnp.sum(params[dtype] * slopes[dtype]) for dtype in slopes]
        return sum(each.astype("bfloat16") for each in sums)

    fn = compiled(average(loss, execution, num_copies=16, copy_argnums=1))
    value, grads = fn(KEY, params, slopes)
    assert value.dtype == "bfloat16"
    for dtype, grad in grads.items():
        assert grad.dtype == dtype
        half_a_unit = 1.01 * float(jnp.finfo(dtype).eps) / 2
        exact = np.float64(slopes[dtype]).mean(0)
        np.testing.assert_allclose(np.float64(grad), exact, rtol=half_a_unit)


@every_execution
def test_parameters_and_aux_may_be_numbers(execution):
    params = {"slope": 2.0, "shift": np.float32(3.0)}
    aux = {"number": 1.5, "none": None}
    fn = average(
        lambda p: (p["slope"] * 5.0 + p["shift"], aux),
        execution,
        uniform(0.0),
        num_copies=2,
        has_aux=True,
    )
    assert fn(KEY, params) == ((13.0, aux), {"slope": 5.0, "shift": 1.0})


@pytest.mark.parametrize("aux", ["mean", "first"])
def test_aux_of_a_single_copy_may_be_any_object(aux):
    found = {"key": KEY, "name": "layer", "count": jnp.arange(3), "object": object()}
    fn = smoothout_value_and_grad(
        lambda w: (jnp.sum(w), found), uniform(0.1), has_aux=True, aux=aux
    )
    (_, returned), _ = fn(KEY, jnp.ones(2))
    assert returned == found


@every_execution
@pytest.mark.parametrize("num_copies", [1, 3])
def test_a_function_gets_stacked_aux_of_any_dtype(execution, num_copies):
    fn = average(
        lambda w, keys: (jnp.sum(w), (keys, jnp.int32(5))),
        execution,
        num_copies=num_copies,
        has_aux=True,
        aux=lambda stacked: (stacked[1][0], jax.random.key_data(stacked[0])),
        batch_argnums=1,
    )
    ((_, (count, keys)), _) = fn(KEY, jnp.ones(2), KEYS[:6])
    assert (count, count.dtype) == (5, "int32")
    rows = [KEYS[:6][m::num_copies] for m in range(num_copies)]
    assert_same(keys, jax.random.key_data(jnp.stack(rows)))


@every_execution
def test_leaves_that_take_no_noise_are_left_alone_by_smooth(execution):
    params = {"w": normal(1, 3), "step": jnp.array(7), "frozen": jnp.array([True])}
    options = {"aux": "first", "antithetic": True, "clean_weight": 0.3}
    options |= {"by": smooth, "num_copies": 2, "has_aux": True}
    fn = average(
        lambda p: (jnp.sum(p["w"]), (p["step"], p["frozen"])), execution, **options
    )
    assert_same(fn(KEY, params)[1], (params["step"], params["frozen"]))


# The dtype in which the network computes.


def half_loss(params, x):
    """A loss that casts its parameters, unless they are cast already."""
    half = jax.tree.map(lambda p: jnp.asarray(p, "bfloat16"), params)
    return jnp.sum(jnp.tanh(x @ half["kernel"] + half["bias"]).astype("float32"))


@every_execution
def test_compute_dtype_casts_the_parameters_as_the_loss_would(execution):
    x = BATCH["x"].astype("bfloat16")

    def narrow(params, x):
        assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
        return half_loss(params, x)

    options = {"num_copies": 2, "antithetic": True, "clean_weight": 0.5}
    expected = compiled(average(half_loss, execution, **options))(KEY, PARAMS, x)
    fn = average(narrow, execution, compute_dtype=jnp.bfloat16, **options)
    assert_same(compiled(fn)(KEY, PARAMS, x), expected, rtol=1e-2)


def test_compute_dtype_casts_real_floating_parameters_only_in_a_chain_too():
    params = {"w": jnp.ones(3), "z": jnp.ones(3, "complex64"), "n": jnp.int32(3)}
    expected = {"w": "float16", "z": "complex64", "n": "int32"}

    def dtypes(params):
        return {name: leaf.dtype.name for name, leaf in params.items()}

    def grad_fn(params, copy):
        assert dtypes(params) == expected
        return params

    link = smooth_gradients(uniform(0.1), key=0, compute_dtype="float16")
    updates, _ = link.update(params, link.init(params), params, grad_fn=grad_fn)
    assert dtypes(updates) == dtypes(params)


def rise_held_at(target, execution, **options):
    """The rise after 150 steps, for a loss in which the rounding of weights counts."""
    params = 1 + jax.random.uniform(jax.random.key(2), (4096,))
    options |= {"num_copies": 2, "antithetic": True, "loss_rise": target}

    def loss(w):
        return 30 * jnp.mean(jnp.square(w.astype("float32")))

    fn = average(loss, execution, uniform(0.01), **options)

    def steps(keys):
        step = lambda rise, key: (fn(rise, key, params)[1], None)  # noqa: E731
        return jax.lax.scan(step, init_loss_rise(), keys)[0]

    # So that XLA rounds to half precision, and does not leave it out.
    exactly = jax.jit(steps, compiler_options={"xla_allow_excess_precision": False})
    return exactly(jax.random.split(KEY, 150))


@pytest.mark.parametrize("execution", ["unroll", "chunks"])
def test_the_rise_is_that_of_the_noise_and_not_of_rounding_the_weights(execution):
    target = 1e-5
    for options in ({}, {"compute_dtype": "bfloat16"}):
        rise = rise_held_at(target, execution, **options)
        # The mean of 30 ε² over a box of half-width a is 10 a².
        np.testing.assert_allclose(0.01 * rise.noise_scale, 1e-3, rtol=0.05)
        np.testing.assert_allclose(rise.loss_rise_estimate, target, rtol=0.05)


@pytest.mark.parametrize(
    "options", [{"num_copies": 2}, {"clean_weight": 0.5}, {"axis_name": "d"}], ids=str
)
def test_fp8_scales_of_flax_are_not_averaged_over_copies(options):
    """Their "gradients" are their next values; one copy returns them unchanged."""
    scales = "_overwrite_with_gradient"
    kind = nnx.variablelib.variable_type_from_name(scales, allow_register=True)
    state = nnx.State({"scale": kind(jnp.ones(1)), "w": nnx.Param(jnp.ones(2))})
    frozen = flax.core.freeze({"params": jnp.ones(2), scales: jnp.ones(1)})
    noise = uniform(0.3, mask=lambda tree: jax.tree.map(lambda p: p.size == 2, tree))
    fn = smoothout_value_and_grad(quartic_loss, noise, **options)
    over_devices = jax.vmap(fn, None, axis_name="d", axis_size=1)
    for params in (state, frozen, (frozen,)):
        with pytest.raises(ValueError, match=f"'{scales}'.* set num_copies=1, or diff"):
            over_devices(KEY, params)
        _, grads = smoothout_value_and_grad(quartic_loss, noise)(KEY, params)
        assert jax.tree.leaves(grads)[0] == 4
    over_devices(KEY, jnp.ones(2), frozen)


# Under JAX's transformations.


def descent(execution):
    def step(params, key, radius):
        fn = average(quartic_loss, execution, uniform(radius), num_copies=2)
        return params - 0.01 * fn(key, params)[1]

    return step


@every_execution
def test_training_compiles_once_donates_scans_and_maps(execution):
    chex.clear_trace_counter()
    start, radii = normal(0, 4), jnp.array([0.1, 0.2, 0.3])
    keys, step = KEYS[:3], descent(execution)
    donating = compiled(chex.assert_max_traces(step, n=1), donate_argnums=0)
    params, seen = jnp.copy(start), []
    for key, radius in zip(keys, radii, strict=True):
        seen.append(jnp.copy(params))
        before = params
        params = donating(before, key, radius)
        assert before.is_deleted()
    scanned, _ = jax.lax.scan(lambda p, x: (step(p, *x), None), start, (keys, radii))
    assert_same(scanned, params)
    mapped = compiled(jax.vmap(step))(jnp.stack(seen), keys, radii)
    assert_same(mapped, jnp.stack([*seen[1:], params]))


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


@functools.cache
def average_of_plain_loops(**options):
    """The mean over devices, each with its own rows and a key of its own."""
    results = []
    for device, key in enumerate(jax.random.split(KEYS[0], DEVICES)):
        rows = jax.tree.map(operator.itemgetter(device), split_rows(ROWS))
        results.append(plain_loop(undropped, MASKED, key, PARAMS, *rows, **options))
    return jax.tree.map(lambda *leaves: np.mean(leaves, 0), *results)


ONE = {"num_copies": 1}
FOUR = {"num_copies": 3, "clean_weight": 0.3, "batch_argnums": (1, 2)}


@pytest.mark.parametrize(
    ("mapped", "execution", "options"),
    [
        *(("checked", execution, FOUR) for execution in EXECUTIONS),
        *((mapped, "chunks", FOUR) for mapped in ("unchecked", "vmap")),
        *((mapped, "scan", ONE) for mapped in ("checked", "unchecked", "vmap")),
    ],
)
def test_devices_average_gradients_at_noise_of_their_own(execution, mapped, options):
    fn = average(undropped, execution, MASKED, has_aux=True, axis_name="d", **options)
    if mapped == "vmap":
        rows, in_axes = split_rows(ROWS), (None, None, 0, 0)
        over_devices = jax.vmap(fn, in_axes, None, axis_name="d")
    else:
        rows, specs = ROWS, (WHOLE, WHOLE, SPLIT, SPLIT)
        check = mapped == "checked"
        over_devices = jax.shard_map(
            fn, mesh=MESH, in_specs=specs, out_specs=WHOLE, check_vma=check
        )
    actual = compiled(over_devices)(KEYS[0], PARAMS, *rows)
    assert_same(actual, average_of_plain_loops(**options))


@pytest.mark.parametrize(
    ("implementation", "aux", "different"),
    [
        ("threefry2x32", "stack", 17),
        ("rbg", "stack", 17),
        ("unsafe_rbg", "stack", 17),
        ("unsafe_rbg", "first", 8),
    ],
)
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
def test_a_sharded_batch_is_split_where_it_lies(execution):
    fn = average(
        lambda w, x: jnp.mean(jnp.tanh(x @ w)),
        execution,
        num_copies=4,
        batch_argnums=1,
    )
    w = jax.device_put(normal(0, 3), NamedSharding(MESH, WHOLE))
    x = jax.device_put(normal(1, 64, 3), NamedSharding(MESH, SPLIT))
    program = jax.jit(fn).lower(KEY, w, x).compile().as_text()
    assert "all-reduce" in program
    assert not re.search("all-gather|all-to-all|collective-permute", program)


def test_one_copy_may_be_laid_over_a_mesh_of_one_device():
    fn = smoothout_value_and_grad(quartic_loss, NOISE, spmd_axis_name="d")
    expected = smoothout_value_and_grad(quartic_loss, NOISE)(KEY, PARAMS)
    with jax.set_mesh(jax.make_mesh((1,), ("d",), (AxisType.Auto,))):
        assert_same(compiled(fn)(KEY, PARAMS), expected)
