"""Parameters, batches and copies on several devices: what they compute and send."""

import collections
import contextlib
import functools
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
MIXED = (AxisType.Auto, AxisType.Explicit), (AxisType.Explicit, AxisType.Auto)
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
    "both": layout(jax.P("data", "model"), jax.P("model"), jax.P("model", "data")),
}
NOISES = {
    "uniform": uniform(0.1),
    "16 bits": uniform(0.1, bits=16),
    "32 bits": uniform(0.1, bits=32),
    "gaussian": gaussian(0.1),
    "weight": uniform(0.1, relative_to="weight"),
    "filter": uniform(0.1, relative_to="filter"),
    "layer": gaussian(0.1, relative_to="layer", normalize=True),
    "masked": uniform(0.1, mask={"kernel": True, "bias": False, "phases": True}),
}
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def make_mesh(data=4, model=2, kind=AxisType.Auto):
    kinds = kind if isinstance(kind, tuple) else (kind, kind)
    devices = jax.devices()[: data * model]
    return jax.make_mesh((data, model), ("data", "model"), kinds, devices=devices)


def lay(mesh, tree, specs):
    """Puts a tree on a mesh, by one spec for each leaf or for all."""
    laid = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    return jax.device_put(tree, laid)


def loss(params, x, y):
    """The loss, with the shardings of its products, which explicit axes require."""
    if AxisType.Explicit not in jax.sharding.get_abstract_mesh().axis_types:
        return simple_loss(params, x, y)

    def gathered(leaf):
        """Gathers weights that are sharded over the data, as a user does."""
        kept = [None if a == "data" else a for a in jax.typeof(leaf).sharding.spec]
        return jax.sharding.reshard(leaf, jax.P(*kept))

    params = jax.tree.map(gathered, params)
    inner = params["in"]["kernel"]
    columns = jax.typeof(inner).sharding.spec[1]
    hidden = jnp.matmul(x, inner, out_sharding=jax.P("data", columns))
    hidden = jnp.tanh(hidden + params["in"]["bias"][None])
    outer, out = params["out"]["kernel"], jax.P("data", None)
    return jnp.mean((jnp.matmul(hidden, outer, out_sharding=out) - y) ** 2)


def simple_loss(params, x, y):
    hidden = jnp.tanh(x @ params["in"]["kernel"] + params["in"]["bias"][None])
    return jnp.mean((hidden @ params["out"]["kernel"] - y) ** 2)


def collectives(program):
    """How often each collective is called on which shapes."""
    return collections.Counter(
        (operation, re.sub(r"\{[^}]*\}", "", shape))
        for shape, operation in re.findall(
            rf"= (.*?) ({OPERATIONS})(?:-start)?\(", program.as_text()
        )
    )


def shardings(tree):
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def cost(program):
    """FLOPs and bytes of intermediate values on one device."""
    memory = program.memory_analysis().temp_size_in_bytes
    return np.array([program.cost_analysis()["flops"], memory])


def compile_on(mesh, fn, *args):
    with jax.set_mesh(mesh):
        return jax.jit(fn).lower(*args).compile()


def perturb(noise, key, params):
    return optax.tree.add(params, noise(key, params))


@pytest.mark.parametrize("law", NOISES)
def test_every_device_draws_its_part_alone(law):
    params = {
        "kernel": PARAMS["in"]["kernel"],
        "bias": PARAMS["in"]["bias"],
        "phases": jnp.full((512, 256), 1 + 1j),
    }
    specs = {
        "kernel": jax.P("data", "model"),
        "bias": jax.P("model"),
        "phases": jax.P("model", "data"),
    }
    draw = functools.partial(perturb, NOISES[law])
    alone = jax.jit(draw).lower(KEY, params).compile()
    expected = alone(KEY, params)
    for kind in KINDS:
        mesh = make_mesh(4, 2, kind)
        laid = lay(mesh, params, specs)
        program = compile_on(mesh, draw, KEY, laid)
        # The small leaves are drawn on every device, and norms are summed on all.
        assert np.all(cost(program) < 1.2 * cost(alone) / 8 + (3e4, 2e4))
        sent = {operation for operation, _ in collectives(program)}
        assert sent == ({"all-reduce"} if law in ("filter", "layer") else set())
        drawn = program(KEY, laid)
        chex.assert_trees_all_close(drawn, expected, rtol=1e-6, atol=1e-6)
        for leaf, like in zip(*map(jax.tree.leaves, (drawn, laid)), strict=True):
            assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)


@every_kind
def test_noise_is_bit_for_bit_the_same_on_every_mesh(kind):
    """Even for rows that do not divide into words, at up to one word per weight."""
    params = {"rows": jnp.zeros((8192, 24)), **PARAMS["in"]}
    both = ("data", "model")
    specs = {"rows": jax.P(None, both), "kernel": jax.P(*both), "bias": jax.P("model")}
    noise = NOISES["uniform"]
    alone = jax.jit(noise).lower(KEY, params).compile()
    for shape in ((1, 1), (2, 1), (2, 2), (1, 8)):
        mesh = make_mesh(*shape, kind)
        laid = lay(mesh, params, specs)
        draw = jax.jit(noise, out_shardings=shardings(laid))
        program = compile_on(mesh, draw, KEY, laid)
        chex.assert_trees_all_equal(program(KEY, laid), alone(KEY, params))
        share = (4 if mesh.size > 2 else 1) / mesh.size
        assert cost(program)[0] < 1.1 * share * cost(alone)[0]
        assert not collectives(program)


@pytest.mark.parametrize("kinds", [*KINDS, *MIXED])
def test_noise_of_known_weights_lies_where_they_do(kinds):
    """With all, some or none of the axes explicit."""
    mesh, noise = make_mesh(kind=kinds), NOISES["uniform"]
    params = lay(mesh, PARAMS, LAYOUTS["both"])
    draw = functools.partial(noise, params=params)
    with jax.set_mesh(mesh):
        eager, compiled = draw(KEY), jax.jit(draw)(KEY)
        # One key does not divide over the devices.
        over_keys = jax.vmap(draw)(KEY[None])
    chex.assert_trees_all_equal(jax.tree.map(lambda a: a[0], over_keys), eager)
    for drawn in (eager, compiled):
        if kinds in KINDS:
            expect_laid(drawn, LAYOUTS["both"])
        chex.assert_trees_all_equal(drawn, jax.jit(noise)(KEY, PARAMS))
    whole, own = (
        compile_on(mesh, functools.partial(perturb, noise), KEY, tree["in"]["kernel"])
        for tree in (PARAMS, params)
    )
    assert cost(own)[0] < 1.1 * cost(whole)[0] / 8


@every_kind
def test_noise_is_drawn_inside_a_map_over_an_axis(kind):
    """For a shard over the other axis, and for weights from outside the map."""
    mesh, noise = make_mesh(kind=kind), NOISES["uniform"]
    kernel = PARAMS["in"]["kernel"]
    half = kernel.astype("bfloat16")
    # JAX itself does not let a map close over arrays that lie over explicit axes.
    outside = lay(mesh, kernel, jax.P("data")) if kind is AxisType.Auto else kernel

    def draw(shards):
        noise(KEY, half)
        return noise(KEY, shards), shards + noise(KEY, outside)

    laid = lay(mesh, jnp.zeros((1024, 512)), jax.P("data", "model"))
    over = {"in_specs": jax.P("data"), "out_specs": jax.P("data")}
    with jax.set_mesh(mesh):
        mapped = jax.jit(jax.shard_map(draw, axis_names={"data"}, **over))(laid)
    alone = jax.jit(noise)(KEY, kernel)
    for drawn in mapped:
        np.testing.assert_array_equal(drawn, jnp.tile(alone, (4, 1)))


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg"])
def test_raw_keys_draw_what_typed_keys_draw_on_a_mesh(implementation):
    key = jax.random.key(3, impl=implementation)
    mesh = make_mesh()
    params = lay(mesh, PARAMS, LAYOUTS["both"])
    # A function of its own: JAX does not trace one anew for another default of keys.
    draw = jax.jit(
        lambda *args: NOISES["uniform"](*args), out_shardings=shardings(params)
    )
    with jax.set_mesh(mesh), jax.default_prng_impl(implementation):
        first = draw(key, params)
        chex.assert_trees_all_equal(draw(jax.random.key_data(key), params), first)
    kernel = np.asarray(first["in"]["kernel"])
    for axis in (0, 1):
        assert np.unique(kernel, axis=axis).shape == kernel.shape


# Steps


def gradient_step(value_and_grad):
    """Returns a function of sharded parameters to a step and its arguments."""

    def make(params):
        def step(key, params, *batch):
            value, grads = value_and_grad(key, params, *batch)
            return value, optax.tree.add_scale(params, -0.1, grads)

        return step, (KEY, params)

    return make


def smoothout_step(num_copies):
    def make(params):
        optimizer = smoothout(SGD, uniform(0.1), key=KEY, num_copies=num_copies)

        def step(state, params, *batch):
            grads = jax.grad(loss)(params, *batch)
            updates, state = optimizer.update(grads, state, params)
            return state, optax.apply_updates(params, updates)

        return step, (jax.jit(optimizer.init)(params), params)

    return make


def compile_step(kind, name, make):
    mesh = make_mesh(kind=kind)
    params = lay(mesh, PARAMS, LAYOUTS[name])
    with jax.set_mesh(mesh):
        step, args = make(params)
        out = None, shardings(params)
        args = *args, *lay(mesh, BATCH, jax.P("data"))
        return jax.jit(step, out_shardings=out).lower(*args).compile()


def plain(key, params, *batch):
    return jax.value_and_grad(loss)(params, *batch)


def sent_by(kind, name, make):
    """How often each collective sends each shape."""
    return collections.Counter(shapes_sent(compile_step(kind, name, make)))


@every_kind
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_step_with_noise_sends_what_the_step_without_sends(name, kind):
    without = sent_by(kind, name, gradient_step(plain))
    assert without
    for law in ("uniform", "filter"):
        fn = smoothout_value_and_grad(loss, NOISES[law])
        sent = sent_by(kind, name, gradient_step(fn))
        more = sent - without
        assert not without - sent
        if law == "filter" and name != "whole":
            # One sum of squares for each filter that lies on several devices.
            assert {operation for operation, _ in more} == {"all-reduce"}
            numbers = [
                int(re.fullmatch(r"f32\[(\d+)\]", shape)[1]) * times
                for (_, shape), times in more.items()
            ]
            assert sum(numbers) <= 2 * (512 + 64)
        else:
            assert not more, law
    more = sent_by(kind, name, smoothout_step(1)) - without
    # Before, after, and, where the noise is drawn again, for its largest.
    assert set(more) <= {("all-reduce", "f32[]")}
    assert more.total() <= 3 * len(jax.tree.leaves(PARAMS))


@pytest.mark.parametrize("num_copies", [1, 2])
def test_a_step_on_explicit_axes_costs_what_it_costs_on_automatic_ones(num_copies):
    """Memory may differ a little, because buffers are placed differently."""
    steps = [smoothout_step(num_copies)]
    for execution in ("scan", "vmap") if num_copies > 1 else ("auto",):
        options = {"num_copies": num_copies, "execution": execution}
        fn = smoothout_value_and_grad(loss, NOISES["gaussian"], **options)
        steps.append(gradient_step(fn))
    for make in steps:
        auto, explicit = (cost(compile_step(kind, "both", make)) for kind in KINDS)
        assert np.all(explicit < (1.01, 1.2) * auto)


# Training


def train(kind, make_optimizer, mesh_shape=(4, 2)):
    mesh = make_mesh(*mesh_shape, kind)
    params = lay(mesh, PARAMS, LAYOUTS["both"])
    optimizer = make_optimizer()
    batch = lay(mesh, BATCH, jax.P("data"))

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
    return params, state


SGD = optax.sgd(0.1, momentum=0.9)


def wrapped():
    optimizer = smoothout(SGD, NOISES["filter"], key=KEY, num_copies=2)
    return optax.with_extra_args_support(optimizer)


def linked():
    return optax.chain(smooth_gradients(NOISES["filter"], key=KEY, num_copies=2), SGD)


@pytest.mark.slow
@pytest.mark.parametrize("make_optimizer", [wrapped, linked])
def test_training_agrees_to_rounding_and_state_is_laid_out_as_the_parameters(
    make_optimizer,
):
    alone, _ = train(AxisType.Auto, make_optimizer, (1, 1))
    for kind in KINDS:
        params, state = train(kind, make_optimizer)
        chex.assert_trees_all_close(params, alone, rtol=1e-4, atol=1e-5)
        trees = [params, optax.tree.get(state, "trace")]
        if make_optimizer is wrapped:
            trees.append(smoothout_eval_params(state, params))
            trees.append(optax.tree.get(state, "gradient_mean"))
        for tree in trees:
            expect_laid(tree, LAYOUTS["both"])


def expect_laid(tree, specs):
    for leaf, spec in zip(*map(jax.tree.leaves, (tree, specs)), strict=True):
        expected = NamedSharding(leaf.sharding.mesh, spec)
        assert leaf.sharding.is_equivalent_to(expected, leaf.ndim)


@every_kind
def test_half_precision_over_a_mesh_warns_where_noise_is_lost(kind):
    mesh = make_mesh(kind=kind)
    params = lay(mesh, optax.tree.cast(PARAMS["in"], "float16"), LAYOUTS["both"]["in"])
    with jax.set_mesh(mesh):
        uniform(0.1)(KEY, params)
        with pytest.warns(UserWarning, match="below the resolution") as caught:
            uniform(1e-5)(KEY, params)
    assert [str(each.message).split("'")[1] for each in caught] == ["bias", "kernel"]


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


def test_a_copy_for_each_device_costs_what_data_parallelism_costs():
    """The same collectives on the same bytes, and only the noise on top."""

    def data_parallel(key, params, *batch):
        own = jax.lax.pcast(params, "data", to="varying")
        return jax.lax.pmean(jax.value_and_grad(simple_loss)(own, *batch), "data")

    smoothed = smoothout_value_and_grad(simple_loss, uniform(0.1), axis_name="data")
    arguments = KEY, PARAMS, *(jnp.tile(array, (128, 1)) for array in BATCH)
    programs = [
        over_devices(fn).lower(*arguments).compile() for fn in (data_parallel, smoothed)
    ]
    sent = [collections.Counter(shapes_sent(program)) for program in programs]
    assert sent[0] == sent[1]
    flops = [program.cost_analysis()["flops"] for program in programs]
    assert flops[0] < flops[1] < 1.02 * flops[0]


def shapes_sent(program):
    """The operation and shape of each array that a collective sends."""
    for operation, shapes in collectives(program):
        for shape in re.findall(r"\w+\[[\d,]*\]", shapes):
            yield operation, shape


# Copies laid over an axis of a mesh


def strided(block):
    """Reorders rows so that taking every eighth one yields the original blocks."""
    return block.reshape(8, 8, -1).swapaxes(0, 1).reshape(block.shape)


@every_kind
@pytest.mark.parametrize(
    ("options", "law", "order", "spec"),
    [
        ({"num_copies": 16, "antithetic": True}, "filter", jnp.asarray, jax.P()),
        ({"num_copies": 8, "batch_argnums": (1, 2)}, "uniform", strided, jax.P("data")),
    ],
    ids=["whole batch", "split batch"],
)
def test_copies_over_a_mesh_are_the_copies(kind, options, law, order, spec):
    """A batch sharded over the same axis is split without moving rows."""
    fn = functools.partial(
        smoothout_value_and_grad, simple_loss, NOISES[law], **options
    )
    alone, laid = fn(execution="vmap"), fn(spmd_axis_name="data")
    expected = jax.jit(alone)(KEY, PARAMS, *map(order, BATCH))
    mesh = jax.make_mesh((8,), ("data",), (kind,))
    with jax.set_mesh(mesh):
        arguments = lay(mesh, PARAMS, jax.P()), *lay(mesh, BATCH, spec)
        program = jax.jit(lambda *args: laid(KEY, *args)).lower(*arguments).compile()
        chex.assert_trees_all_close(program(*arguments), expected, rtol=1e-4, atol=1e-6)
    assert {operation for operation, _ in collectives(program)} == {"all-reduce"}
    assert len(collectives(program)) == 1 or "batch_argnums" in options


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_copies_over_explicit_axes_take_any_key_and_leaves_of_any_size(implementation):
    """Without small leaves no draw is shared; without large ones none is separate."""
    noise, key = NOISES["uniform"], jax.random.key(7, impl=implementation)
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Explicit,))
    fn = smoothout_value_and_grad(
        lambda leaf: jnp.mean(leaf**2), noise, num_copies=8, spmd_axis_name="data"
    )
    with jax.set_mesh(mesh):
        for shape in ((256, 512), (512,)):
            value, _ = jax.jit(fn)(key, lay(mesh, jnp.zeros(shape), jax.P()))
            np.testing.assert_allclose(value, 0.1**2 / 3, rtol=0.05)


def test_copies_stay_apart_in_a_loss_that_is_mapped_over_another_axis():
    """Otherwise every device would gather and run every copy."""

    def layer(x, kernel):
        return jax.lax.psum(x @ kernel, "model")

    def mapped_loss(kernel, x):
        specs = jax.P(None, "model"), jax.P("model")
        hidden = jax.shard_map(layer, in_specs=specs, out_specs=jax.P())(x, kernel)
        return jnp.mean(jnp.tanh(hidden) ** 2)

    options = {"num_copies": 8, "batch_argnums": 1, "spmd_axis_name": "data"}
    fn = smoothout_value_and_grad(mapped_loss, uniform(0.1), **options)
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        kernel = jax.device_put(jnp.ones((6, 5)), NamedSharding(mesh, jax.P()))
        x = jax.device_put(jnp.ones((64, 6)), NamedSharding(mesh, jax.P("data")))
        program = jax.jit(fn).lower(KEY, kernel, x).compile()
    assert "all-gather" not in {operation for operation, _ in collectives(program)}


@pytest.mark.parametrize(
    ("num_copies", "axis", "mesh", "message"),
    [
        (8, "data", None, r"no axis 'data', only \(\); set it with jax"),
        (6, "data", (4, 2), "6 copies do not divide evenly over the 4 dev"),
        (12, ("data", "model"), (4, 2), "12 copies do not divide evenly over the 8"),
        (8, "copies", (4, 2), "no axis 'copies'"),
    ],
)
def test_a_mesh_that_does_not_suit_the_copies_is_refused(
    num_copies, axis, mesh, message
):
    options = {"num_copies": num_copies, "spmd_axis_name": axis}
    fn = smoothout_value_and_grad(simple_loss, uniform(0.1), **options)
    with (
        jax.set_mesh(make_mesh(*mesh)) if mesh else contextlib.nullcontext(),
        pytest.raises(ValueError, match=message),
    ):
        fn(KEY, PARAMS, *BATCH)
