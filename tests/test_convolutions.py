"""Convolutions in loops on CPU."""

import functools

import chex
import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from smoothout_jax.experiments.commands.compare import CompareSettings
from smoothout_jax.experiments.convolutions import convolve
from smoothout_jax.experiments.methods.table import METHODS
from smoothout_jax.experiments.networks import CNet, max_pool
from smoothout_jax.experiments.training.task import Task
from smoothout_jax.experiments.training.trainer import Trainer


@pytest.mark.parametrize("sizes", [(7,), (6, 5), (4, 7, 2), (1, 4)])
@pytest.mark.parametrize("kind", ["distinct", "equal", "not a number"])
def test_pooling_is_flax_s(sizes, kind):
    two = (2,) * len(sizes)
    images = jax.random.normal(jax.random.key(0), (3, *sizes, 2))
    if kind == "equal":
        images = jnp.round(images)
    if kind == "not a number":
        images = jnp.where(images > 1, jnp.nan, images)
    expected, pull = jax.vjp(jax.jit(lambda x: nn.max_pool(x, two, two)), images)
    actual, our_pull = jax.vjp(jax.jit(max_pool), images)
    chex.assert_trees_all_equal(actual, expected)
    if kind != "not a number":
        grads = jax.random.normal(jax.random.key(1), expected.shape)
        chex.assert_trees_all_equal(our_pull(grads), pull(grads))


@pytest.mark.parametrize("padding", ["SAME", "VALID", "uneven"])
@pytest.mark.parametrize(
    ("sizes", "strides"),
    [
        ((9,), (1,)),
        ((12,), (1,)),
        ((8, 7), (2, 1)),
        ((7, 8), (3, 2)),
        ((6, 8), (1, 1)),
        ((5, 6), (1, 1)),
    ],
)
@pytest.mark.parametrize("outputs", [5, 16, 40])
def test_a_convolution_for_loops_is_that_of_jax(sizes, strides, padding, outputs):
    axes = len(sizes)
    keys = jax.random.split(jax.random.key(0), 3)
    inputs = jax.random.normal(keys[0], (2, *sizes, 3))
    kernel = jax.random.normal(keys[1], (*(3, 4)[:axes], 3, outputs))
    pads = [(2, 0), (1, 3)][:axes] if padding == "uneven" else padding
    form = ("NWC", "WIO", "NWC") if axes == 1 else ("NHWC", "HWIO", "NHWC")

    def by_jax(inputs, kernel):
        return jax.lax.conv_general_dilated(
            inputs, kernel, strides, pads, dimension_numbers=form
        )

    def ours(inputs, kernel):
        return convolve(inputs, kernel, strides, pads)

    expected, pull = jax.vjp(by_jax, inputs, kernel)
    actual, ours_pull = jax.vjp(ours, inputs, kernel)
    grads = jax.random.normal(keys[2], expected.shape)
    close = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-5)
    close(actual, expected)
    close(ours_pull(grads), pull(grads))


@pytest.mark.parametrize(("number", "groups"), [(128, 0), (384, 3), (251, 0), (102, 0)])
def test_the_gradient_of_many_images_is_summed_in_groups(number, groups):
    images = jax.random.normal(jax.random.key(0), (number, 3, 1))
    kernel = jax.random.normal(jax.random.key(1), (3, 1, 2))

    def grad(conv):
        return jax.grad(lambda k: jnp.sum(conv(images, k) ** 2))

    ours = grad(lambda x, k: convolve(x, k, (1,), "SAME"))
    numbers = ("NWC", "WIO", "NWC")
    expected = grad(
        lambda x, k: jax.lax.conv_general_dilated(
            x, k, (1,), "SAME", dimension_numbers=numbers
        )
    )
    chex.assert_trees_all_close(ours(kernel), expected(kernel), rtol=1e-4)
    loops = [e for e in jax.make_jaxpr(ours)(kernel).eqns if e.primitive.name == "scan"]
    assert sum(loop.params["length"] for loop in loops) == groups


@pytest.mark.parametrize("sizes", [(0, 4, 4), (2, 4, 0), (2, 4, 3)])
def test_a_convolution_of_nothing_is_empty(sizes):
    kernel = jnp.ones((3, 4, 1, 2))
    out = convolve(jnp.ones((*sizes, 1)), kernel, (1, 1), "VALID")
    assert out.shape == (sizes[0], 2, max(sizes[2] - 3, 0), 2)


@pytest.mark.parametrize(
    ("width", "size", "channels", "outputs", "expected"),
    [
        (8, 5, 3, 3, (2, 12)),
        (8, 5, 4, 8, (2, 32)),
        (6, 5, 4, 8, (3, 16)),
        (8, 5, 4, 12, (4, 24)),
        (8, 5, 4, 17, (8, 17)),
        (8, 5, 3, 32, (4, 64)),
        (8, 5, 3, 33, (8, 33)),
        (7, 5, 3, 3, (7, 3)),
        (8, 3, 3, 8, (2, 32)),
        (8, 3, 4, 8, (8, 8)),
        (8, 1, 3, 8, (8, 8)),
    ],
)
def test_few_channels_are_convolved_in_tiles(width, size, channels, outputs, expected):
    images = jnp.ones((1, 4, width, channels))
    kernel = jnp.ones((size, size, channels, outputs))
    program = jax.jit(lambda *args: convolve(*args, (1, 1), "SAME"))
    text = program.lower(images, kernel).as_text()
    (line,) = (each for each in text.splitlines() if "stablehlo.convolution" in each)
    tiles, features = expected
    assert line.endswith(f"-> tensor<1x4x{tiles}x{features}xf32>")


def test_its_second_derivatives_are_those_of_jax():
    inputs = jax.random.normal(jax.random.key(0), (2, 6, 5, 2))

    def product(layer):
        params = nn.Conv(3, (3, 3)).init(jax.random.key(1), inputs)
        along = jax.tree.map(jnp.cos, params)

        def loss(params):
            return jnp.sum(jnp.tanh(layer.apply(params, inputs)))

        return jax.jvp(jax.grad(loss), (params,), (along,))

    expected = product(nn.Conv(3, (3, 3)))
    actual = product(nn.Conv(3, (3, 3), conv_general_dilated=convolve))
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{"feature_group_count": 2}, {"kernel_dilation": 2}, {"input_dilation": 2}],
)
def test_it_refuses_groups_and_dilation(options):
    layer = nn.Conv(4, (3,), conv_general_dilated=convolve, **options)
    with pytest.raises(ValueError, match="neither dilated nor grouped, got"):
        layer.init(jax.random.key(0), jnp.ones((1, 8, 2)))


def test_it_refuses_axes_in_another_order():
    channels_first = ("NCHW", "HWIO", "NCHW")
    with pytest.raises(ValueError, match="dimension_numbers must be those of"):
        convolve(
            jnp.ones((1, 2, 8, 8)),
            jnp.ones((3, 3, 2, 4)),
            (1, 1),
            "SAME",
            dimension_numbers=channels_first,
        )


def test_in_a_loop_its_gradients_keep_the_form_of_the_fast_kernel():
    """So that this says when XLA no longer needs it, or no longer heeds it."""

    def forms(**options):
        network = CNet(2, 3, lambda: nn.GroupNorm(1), **options)
        images = jnp.ones((2, 16, 16, 1))
        params = network.init(jax.random.key(0), images)

        def step(params, _):
            return jax.grad(lambda p: network.apply(p, images).sum())(params), None

        def loop(params):
            return jax.lax.scan(step, params, length=3)[0]

        text = jax.jit(loop).lower(params).compile().as_text()
        lines = [line for line in text.splitlines() if " convolution(" in line]
        assert lines
        return {line.partition("dim_labels=")[2].partition(",")[0] for line in lines}

    assert forms(convolve=convolve) == {"b01f_01io->b01f"}
    assert len(forms()) > 1


def small_task():
    return Task(
        CompareSettings(
            data="digits",
            network="cnet",
            width=2,
            train_size=60,
            batch_size=20,
            steps=20,
        )
    )


def test_networks_are_judged_with_it_too():
    task = small_task()
    params, stats = task.init(jax.random.key(0))
    batch = task.data.test_images[:4], task.data.test_labels[:4]
    for fn in (
        lambda params: task.quantities(params, batch, stats),
        lambda params: task.batch_statistics(params, batch),
    ):
        assert "custom_vjp_call" in str(jax.make_jaxpr(fn)(params))


@jax.numpy_dtype_promotion("standard")  # Optax's trace
def test_short_loops_train_as_steps_one_by_one_do_and_can_be_stopped_between():
    task = small_task()
    method = METHODS["adasmoothout"]
    in_loops, by_step, stopped = (Trainer(method, task, [0]) for _ in range(3))
    metrics, _ = in_loops.advance(0, 20)
    steps = [by_step.advance(step, step + 1)[0] for step in range(20)]
    each = jax.tree.map(lambda *m: jnp.concatenate(m, axis=1), *steps)
    chex.assert_trees_all_close(metrics, each, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(in_loops.state, by_step.state, rtol=1e-4, atol=1e-5)
    some, _ = stopped.advance(0, 20, lambda: True)
    chex.assert_trees_all_close(some.loss, metrics.loss[:, :10], rtol=1e-6)
    # Continued in loops of another length, as after an interruption, it has the bits.
    stopped.advance(10, 15)
    stopped.advance(15, 20)
    chex.assert_trees_all_equal(stopped.state.params, in_loops.state.params)
