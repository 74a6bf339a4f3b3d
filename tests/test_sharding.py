"""Parameters, batches and copies laid over devices: what they compute and send."""

import collections
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding

from smoothout_jax import (
    gaussian,
    smooth_gradients,
    smoothout,
    smoothout_eval_params,
    smoothout_value_and_grad,
    uniform,
)

KEY = jax.random.key(5)
KINDS = (AxisType.Auto, AxisType.Explicit)
OPERATIONS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
# Weights drawn on their own, and small ones, which share a draw.
PARAMS = {
    "in": {
        "kernel": jax.random.normal(jax.random.key(0), (256, 512)) / 16,
        "bias": jnp.full(512, 0.1),
    },
    "out": {"kernel": jax.random.normal(jax.random.key(1), (512, 64)) / 16},
}
BATCH = (
    jax.random.normal(jax.random.key(2), (64, 256)),
    jax.random.normal(jax.random.key(3), (64, 64)),
)


def layout(inner, bias, outer):
    return {"in": {"kernel": inner, "bias": bias}, "out": {"kernel": outer}}


LAYOUTS = {
    "whole": layout(jax.P(), jax.P(), jax.P()),
    "fully sharded": layout(*[jax.P("data")] * 3),
    "fully sharded, filters": layout(
        jax.P(None, "data"), jax.P("data"), jax.P(None, "data")
    ),
    "tensor": layout(jax.P(None, "model"), jax.P("model"), jax.P("model")),
    "both": layout(jax.P("data", "model"), jax.P("model"), jax.P("model", "data")),
}
NOISES = {
    "uniform": uniform(0.1),
    "16 bits": uniform(0.1, bits=16),
    "weight": uniform(0.1, relative_to="weight"),
    "filter": uniform(0.1, relative_to="filter"),
    "gaussian": gaussian(0.1),
}


def make_mesh(data=4, model=2, kind=AxisType.Auto):
    devices = jax.devices()[: data * model]
    return jax.make_mesh((data, model), ("data", "model"), (kind,) * 2, devices=devices)


def laid_out(mesh, name="whole"):
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), LAYOUTS[name])
    return jax.device_put(PARAMS, shardings), shardings


def laid_batch(mesh):
    return jax.device_put(BATCH, NamedSharding(mesh, jax.P("data")))


def loss(params, x, y):
    """Explicit axes need to be told how products are laid out; automatic ones not."""
    mesh = jax.sharding.get_abstract_mesh()
    if AxisType.Explicit in mesh.axis_types:
        kernels = params["in"]["kernel"], params["out"]["kernel"]
        # As a user does it: weights that are laid over the data are gathered for use.
        inner, outer = (
            jax.sharding.reshard(kernel, jax.P(*[_kept(axis) for axis in spec]))
            for kernel, spec in (
                (kernel, jax.typeof(kernel).sharding.spec) for kernel in kernels
            )
        )
        bias = jax.typeof(params["in"]["bias"]).sharding.spec
        bias = jax.sharding.reshard(params["in"]["bias"], jax.P(_kept(bias[0])))
        columns = jax.typeof(inner).sharding.spec[1]
        hidden = jnp.matmul(x, inner, out_sharding=jax.P("data", columns))
        hidden = jnp.tanh(hidden + bias[None])
        out = jnp.matmul(hidden, outer, out_sharding=jax.P("data", None))
        return jnp.mean((out - y) ** 2)
    return simple_loss(params, x, y)


def simple_loss(params, x, y):
    hidden = jnp.tanh(x @ params["in"]["kernel"] + params["in"]["bias"][None])
    return jnp.mean((hidden @ params["out"]["kernel"] - y) ** 2)


def _kept(axis):
    return None if axis == "data" else axis


def collectives(program):
    """How often each collective is called, and on what shapes."""
    return collections.Counter(
        (operation, re.sub(r"\{[^}]*\}", "", shape))
        for shape, operation in re.findall(
            rf"= (.*?) ({OPERATIONS})(?:-start)?\(", program.as_text()
        )
    )


def compile_step(mesh, name, value_and_grad):
    params, shardings = laid_out(mesh, name)

    def step(key, params, *batch):
        value, grads = value_and_grad(key, params, *batch)
        return value, optax.tree.add_scale(params, -0.1, grads)

    jitted = jax.jit(step, out_shardings=(None, shardings))
    with jax.set_mesh(mesh):
        return jitted.lower(KEY, params, *laid_batch(mesh)).compile()


def plain(key, params, *batch):
    return jax.value_and_grad(loss)(params, *batch)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("name", LAYOUTS)
def test_noise_is_drawn_in_place(name, kind):
    """The step with noise sends what the step without sends, and nothing else."""
    mesh = make_mesh(kind=kind)
    without = collectives(compile_step(mesh, name, plain))
    assert without
    for law, noise in NOISES.items():
        program = compile_step(mesh, name, smoothout_value_and_grad(loss, noise))
        more = collectives(program) - without
        assert not without - collectives(program)
        split = name not in ("whole", "fully sharded, filters")
        if law == "filter" and split:
            # One sum of squares for each filter that lies on several devices.
            assert {operation for operation, _ in more} == {"all-reduce"}
            numbers = re.findall(r"f32\[(\d+)\]", " ".join(s for _, s in more))
            assert sum(map(int, numbers)) <= 2 * (512 + 64)
        else:
            assert not more, law


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("name", LAYOUTS)
def test_noise_is_the_same_on_every_mesh(name, kind):
    for law in ("uniform", "16 bits"):
        alone = jax.jit(NOISES[law])(KEY, PARAMS)
        for data, model in ((1, 1), (2, 1), (2, 2), (4, 2), (1, 8)):
            mesh = make_mesh(data, model, kind)
            params, shardings = laid_out(mesh, name)
            with jax.set_mesh(mesh):
                drawn = jax.jit(NOISES[law], out_shardings=shardings)(KEY, params)
            chex.assert_trees_all_equal(drawn, alone)


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_raw_keys_draw_what_typed_keys_draw_on_a_mesh(implementation):
    """And the same each time, whatever the kind of key."""
    key = jax.random.key(3, impl=implementation)
    mesh = make_mesh()
    params, shardings = laid_out(mesh, "both")
    # A function of its own: JAX does not trace one anew for another default of keys.
    draw = jax.jit(lambda *args: NOISES["uniform"](*args), out_shardings=shardings)
    with jax.set_mesh(mesh), jax.default_prng_impl(implementation):
        first = draw(key, params)
        chex.assert_trees_all_equal(draw(key, params), first)
        chex.assert_trees_all_equal(draw(jax.random.key_data(key), params), first)
    kernel = np.asarray(first["in"]["kernel"])
    assert len(np.unique(kernel, axis=0)) == len(kernel)
    assert len(np.unique(kernel, axis=1).T) == len(kernel.T)


def test_only_threefry_promises_the_noise_of_one_device_on_a_mesh():
    """Of rbg keys the noise is of the same law, but may be of other bits."""
    params, shardings = laid_out(make_mesh(), "fully sharded")
    draw = jax.jit(NOISES["uniform"], out_shardings=shardings)
    for implementation, promised in (("threefry2x32", True), ("rbg", False)):
        key = jax.random.key(3, impl=implementation)
        laid = draw(key, params)["in"]["kernel"]
        alone = jax.jit(NOISES["uniform"])(key, PARAMS)["in"]["kernel"]
        if promised:
            chex.assert_trees_all_equal(laid, alone)
        for noise in (laid, alone):
            np.testing.assert_allclose(np.var(noise), 0.1**2 / 3, rtol=0.02)


def train(mesh, name, make_optimizer):
    params, shardings = laid_out(mesh, name)
    optimizer = make_optimizer()
    batch = laid_batch(mesh)

    @jax.jit
    def step(params, state, *batch):
        def grad_fn(params, copy):
            return jax.grad(loss)(params, *batch)

        grads = grad_fn(params, 0)
        updates, state = optimizer.update(grads, state, params, grad_fn=grad_fn)
        return optax.apply_updates(params, updates), state

    with jax.set_mesh(mesh):
        state = jax.jit(optimizer.init)(params)
        for _ in range(3):
            params, state = step(params, state, *batch)
    for leaf, sharding in zip(
        jax.tree.leaves(params), jax.tree.leaves(shardings), strict=True
    ):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    return params, state, shardings


def wrapped():
    noise = uniform(0.1, relative_to="filter")
    optimizer = smoothout(optax.sgd(0.1, momentum=0.9), noise, key=KEY)
    return optax.with_extra_args_support(optimizer)


def wrapped_twice():
    noise = uniform(0.1, relative_to="filter")
    options = {"key": KEY, "num_copies": 2}
    optimizer = smoothout(optax.sgd(0.1, momentum=0.9), noise, **options)
    return optax.with_extra_args_support(optimizer)


def linked():
    noise = uniform(0.1, relative_to="filter")
    smoothed = smooth_gradients(noise, key=KEY, num_copies=2)
    return optax.chain(smoothed, optax.sgd(0.1, momentum=0.9))


@pytest.mark.parametrize("make_optimizer", [wrapped, wrapped_twice, linked])
@pytest.mark.parametrize("name", LAYOUTS)
def test_training_agrees_to_rounding_and_state_is_laid_out_as_the_parameters(
    name, make_optimizer
):
    alone, _, _ = train(make_mesh(1, 1), "whole", make_optimizer)
    params, state, shardings = train(make_mesh(), name, make_optimizer)
    chex.assert_trees_all_close(params, alone, rtol=1e-4, atol=1e-5)
    trees = [optax.tree.get(state, "trace")]
    if make_optimizer is not linked:
        trees.append(smoothout_eval_params(state, params))
    if make_optimizer is wrapped_twice:
        trees.append(optax.tree.get(state, "gradient_mean"))
    for tree in trees:
        for leaf, sharding in zip(
            jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True
        ):
            assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


# A copy for each device


def over_devices(value_and_grad):
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
    batch = jax.P("data")
    return jax.jit(
        jax.shard_map(
            value_and_grad,
            mesh=mesh,
            in_specs=(jax.P(), jax.P(), batch, batch),
            out_specs=jax.P(),
        )
    )


def big_batch(rows=8192):
    return tuple(jnp.tile(array, (rows // 64, 1)) for array in BATCH)


def test_a_copy_for_each_device_costs_what_data_parallelism_costs():
    """The same collectives on the same bytes; the noise alone is computed besides."""

    def data_parallel(key, params, *batch):
        own = jax.lax.pcast(params, "data", to="varying")
        return jax.lax.pmean(jax.value_and_grad(simple_loss)(own, *batch), "data")

    smoothed = smoothout_value_and_grad(simple_loss, uniform(0.1), axis_name="data")
    arguments = KEY, PARAMS, *big_batch()
    programs = [
        over_devices(fn).lower(*arguments).compile() for fn in (data_parallel, smoothed)
    ]
    sent = [collections.Counter(shapes_sent(program)) for program in programs]
    assert sent[0] == sent[1]
    flops = [program.cost_analysis()["flops"] for program in programs]
    assert flops[0] < flops[1] < 1.02 * flops[0]


def shapes_sent(program):
    """Operations and shapes, one for each array that a collective sends."""
    for operation, shapes in collectives(program):
        for shape in re.findall(r"\w+\[[\d,]*\]", shapes):
            yield operation, shape


# Copies laid over an axis of a mesh


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("num_copies", [8, 16])
def test_copies_over_a_mesh_are_the_copies(num_copies, kind):
    options = {"num_copies": num_copies, "antithetic": True}
    noise = uniform(0.1, relative_to="filter")
    alone = smoothout_value_and_grad(simple_loss, noise, execution="vmap", **options)
    laid = smoothout_value_and_grad(
        simple_loss, noise, spmd_axis_name="data", **options
    )
    expected = jax.jit(alone)(KEY, PARAMS, *BATCH)
    mesh = jax.make_mesh((8,), ("data",), (kind,))
    with jax.set_mesh(mesh):
        arguments = jax.device_put((PARAMS, *BATCH), NamedSharding(mesh, jax.P()))
        program = jax.jit(lambda *args: laid(KEY, *args)).lower(*arguments).compile()
        chex.assert_trees_all_close(program(*arguments), expected, rtol=1e-5, atol=1e-6)
    assert {operation for operation, _ in collectives(program)} == {"all-reduce"}
    assert len(collectives(program)) == 1


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_batch_over_the_same_axis_is_split_where_it_lies(kind):
    options = {"num_copies": 8, "batch_argnums": (1, 2)}
    fn = smoothout_value_and_grad(
        simple_loss, uniform(0.1), spmd_axis_name="data", **options
    )
    mesh = jax.make_mesh((8,), ("data",), (kind,))
    with jax.set_mesh(mesh):
        params = jax.device_put(PARAMS, NamedSharding(mesh, jax.P()))
        arguments = params, *laid_batch(mesh)
        program = jax.jit(lambda *args: fn(KEY, *args)).lower(*arguments).compile()
        value, grads = program(*arguments)
    assert {operation for operation, _ in collectives(program)} == {"all-reduce"}
    keys = jax.random.split(KEY, 8)
    each = []
    for copy, key in enumerate(keys):
        noisy = optax.tree.add(PARAMS, uniform(0.1)(key, PARAMS))
        rows = slice(8 * copy, 8 * copy + 8)
        each.append(jax.value_and_grad(simple_loss)(noisy, *(a[rows] for a in BATCH)))
    mean = jax.tree.map(lambda *leaves: np.mean(leaves, 0), *each)
    chex.assert_trees_all_close((value, grads), mean, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"execution": "scan"}, "excludes execution='scan'"),
        ({"chunk_size": 2}, "chunk_size=2"),
        ({"axis_name": "d"}, "axis_name='d' is for jax.shard_map"),
    ],
)
def test_options_that_exclude_copies_over_a_mesh(options, message):
    with pytest.raises(ValueError, match=message):
        smoothout_value_and_grad(
            simple_loss, uniform(0.1), num_copies=8, spmd_axis_name="data", **options
        )


def test_a_mesh_that_does_not_suit_the_copies_is_told():
    def laid(num_copies, name="data"):
        fn = smoothout_value_and_grad(
            simple_loss, uniform(0.1), num_copies=num_copies, spmd_axis_name=name
        )
        return fn(KEY, PARAMS, *BATCH)

    with pytest.raises(ValueError, match=r"no axis 'data', but \(\); set it by jax"):
        laid(8)
    with jax.set_mesh(make_mesh()):
        with pytest.raises(ValueError, match="6 copies do not divide over the 4 dev"):
            laid(6)
        with pytest.raises(ValueError, match="12 copies do not divide over the 8"):
            laid(12, ("data", "model"))
        with pytest.raises(ValueError, match="no axis 'copies'"):
            laid(8, "copies")
