"""The filters of every layer: the weights that make one output, by differentiating.

An output unit is a channel, the unit of an attention head, or what an embedding makes
of a token. The weights that it depends on, which its gradient shows, are one filter.
"""

import inspect
import re

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from smoothout_jax import equinox_filters, flax_filters, haiku_filters, stacked
from smoothout_jax._trees import leaf_names
from smoothout_jax.filters import numbering, raw_axes

KEY = jax.random.key(0)


@pytest.fixture(autouse=True, scope="module")
def as_frameworks_compute():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def ones(*shape):
    return jnp.ones(shape)


def last_of(outputs):
    """What a recurrent cell hands on, of (carry, outputs), or the outputs alone."""
    return jax.tree.leaves(outputs)[-1]


def linen(module, *inputs, of=None):
    """Parameters, and a function of them to the outputs of a layer, or one inside."""
    params = module.init(KEY, *inputs)["params"]

    def outputs(params):
        if of is None:
            return last_of(module.apply({"params": params}, *inputs))
        _, seen = module.apply({"params": params}, *inputs, capture_intermediates=True)
        return seen["intermediates"][of]["__call__"][0]

    return params, outputs


def called(module, inputs, of):
    """The outputs of a module, of a layer inside, or of a function of the module."""
    if of is None:
        return last_of(module(*inputs))
    return of(module) if callable(of) else getattr(module, of)(*inputs)


def of_nnx(module, *inputs, of=None):
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    return params, lambda params: called(nnx.merge(graph, params, rest), inputs, of)


def equinox(module, *inputs, of=None):
    params, static = eqx.partition(module, eqx.is_inexact_array)
    return params, lambda params: called(eqx.combine(params, static), inputs, of)


def haiku(make, *inputs):
    network = hk.without_apply_rng(hk.transform(lambda *inputs: make()(*inputs)))
    params = network.init(KEY, *inputs)
    return params, lambda params: jax.tree.leaves(network.apply(params, *inputs))[0]


class Gradient(nn.Module):
    """One of Linen's layers in a scan: what it makes of inputs that are constant."""

    layer: nn.Module

    @nn.compact
    def __call__(self, x):
        made = self.layer(jax.lax.stop_gradient(x))
        return made, made


def linen_scan(layer, x, axis=0):
    scan = nn.scan(
        Gradient,
        variable_axes={"params": axis},
        split_rngs={"params": True},
        length=2,
    )
    return linen(scan(layer), x)


def nnx_stack(make, x):
    stack = nnx.split_rngs(splits=2)(nnx.vmap(make, in_axes=0, out_axes=0))

    def outputs(layers):
        return nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))(layers, x)

    return of_nnx(stack(nnx.Rngs(0)), of=outputs)


def equinox_stack(make, x):
    layers = eqx.filter_vmap(make)(jax.random.split(KEY, 2))
    return equinox(layers, of=eqx.filter_vmap(lambda layer: jax.vmap(layer)(x)))


def haiku_stack(x):
    def layer(x, _):
        made = hk.Linear(3)(jax.lax.stop_gradient(x))
        return made, made

    stack = hk.experimental.layer_stack(2, with_per_layer_inputs=True)
    return haiku(lambda: lambda x: stack(layer)(x, ones(2))[1], x)


def each(layer):
    """A layer of Equinox, for several inputs."""
    return lambda inputs: jax.vmap(layer)(inputs)


RNGS = nnx.Rngs(0)
X, STEP, TOKENS = ones(4, 3), ones(2, 4), jnp.arange(5)
LINE, SQUARE = ones(1, 7, 4), ones(1, 5, 5, 4)
CARRY = ones(2, 3)
STATE = (CARRY, CARRY)
LAST, HEADS, FIRST = (-1,), (-2, -1), (0,)
TWO = {"kernel|bias": (-2, -1)}
ATTENTION = nn.MultiHeadDotProductAttention(2, qkv_features=6)
NNX_ATTENTION = nnx.MultiHeadAttention(2, 3, 6, decode=False, rngs=RNGS)
LORA = nnx.LoRA(3, 2, 5, rngs=RNGS)

# By framework, class and what is special: parameters and outputs; the filters; the axes
# of the outputs that number units; which leaves, if not all; and how many filters a
# unit has in a leaf, as gates of a recurrent cell that are kept in one.
LAYERS = {
    "linen Dense": (lambda: linen(nn.Dense(2), X), flax_filters, LAST),
    "linen DenseGeneral": (lambda: linen(nn.DenseGeneral((2, 3)), X), TWO, HEADS),
    "linen DenseGeneral of two inputs": (
        lambda: linen(nn.DenseGeneral(2, axis=(-2, -1)), X),
        flax_filters,
        LAST,
    ),
    "linen Conv of lines": (
        lambda: linen(nn.Conv(3, (2,)), LINE),
        flax_filters,
        LAST,
    ),
    "linen Conv": (lambda: linen(nn.Conv(3, (2, 2)), SQUARE), flax_filters, LAST),
    "linen Conv in groups": (
        lambda: linen(nn.Conv(6, (2, 2), feature_group_count=2), SQUARE),
        flax_filters,
        LAST,
    ),
    "linen ConvLocal": (
        lambda: linen(nn.ConvLocal(3, (2,), padding="VALID"), LINE),
        {"kernel|bias": (0, -1)},
        HEADS,
    ),
    "linen ConvTranspose": (
        lambda: linen(nn.ConvTranspose(3, (2, 2)), SQUARE),
        flax_filters,
        LAST,
    ),
    "linen ConvTranspose, transposed": (
        lambda: linen(nn.ConvTranspose(3, (2, 2), transpose_kernel=True), SQUARE),
        {"kernel": -2},
        LAST,
    ),
    "linen Einsum": (lambda: linen(nn.Einsum((3, 2, 5), "nx,xhd->nhd"), X), TWO, HEADS),
    "linen Embed": (lambda: linen(nn.Embed(5, 3), TOKENS), flax_filters, FIRST),
    "linen MultiHeadDotProductAttention, query": (
        lambda: linen(ATTENTION, X, of="query"),
        flax_filters,
        HEADS,
    ),
    "linen MultiHeadDotProductAttention, out": (
        lambda: linen(ATTENTION, X, of="out"),
        flax_filters,
        LAST,
        "^out/",
    ),
    "linen MultiHeadAttention, value": (
        lambda: linen(nn.MultiHeadAttention(2, qkv_features=6), X, of="value"),
        flax_filters,
        HEADS,
    ),
    "linen SelfAttention, key": (
        lambda: linen(nn.SelfAttention(2, qkv_features=6), X, of="key"),
        flax_filters,
        HEADS,
    ),
    "linen SimpleCell": (
        lambda: linen(nn.SimpleCell(3), CARRY, STEP),
        flax_filters,
        LAST,
    ),
    "linen LSTMCell": (lambda: linen(nn.LSTMCell(3), STATE, STEP), flax_filters, LAST),
    "linen OptimizedLSTMCell": (
        lambda: linen(nn.OptimizedLSTMCell(3), STATE, STEP),
        flax_filters,
        LAST,
    ),
    "linen GRUCell": (lambda: linen(nn.GRUCell(3), CARRY, STEP), flax_filters, LAST),
    "linen MGUCell": (lambda: linen(nn.MGUCell(3), CARRY, STEP), flax_filters, LAST),
    "linen ConvLSTMCell": (
        lambda: linen(
            nn.ConvLSTMCell(3, (2, 2)), (ones(1, 5, 5, 3), ones(1, 5, 5, 3)), SQUARE
        ),
        flax_filters,
        LAST,
        "",
        4,
    ),
    "linen WeightNorm": (
        lambda: linen(nn.WeightNorm(nn.Dense(2)), X),
        flax_filters,
        LAST,
    ),
    "linen Dense in a scan": (
        lambda: linen_scan(nn.Dense(3), X),
        stacked(flax_filters),
        (0, -1),
    ),
    "linen Dense in a scan along axis 1": (
        lambda: linen_scan(nn.Dense(3), X, axis=1),
        stacked(flax_filters, axis=1),
        (0, -1),
    ),
    "nnx Linear": (lambda: of_nnx(nnx.Linear(3, 2, rngs=RNGS), X), flax_filters, LAST),
    "nnx LinearGeneral": (
        lambda: of_nnx(nnx.LinearGeneral(3, (2, 5), rngs=RNGS), X),
        TWO,
        HEADS,
    ),
    "nnx Conv": (
        lambda: of_nnx(nnx.Conv(4, 3, (2, 2), rngs=RNGS), SQUARE),
        flax_filters,
        LAST,
    ),
    "nnx ConvTranspose": (
        lambda: of_nnx(nnx.ConvTranspose(4, 3, (2, 2), rngs=RNGS), SQUARE),
        flax_filters,
        LAST,
    ),
    "nnx ConvTranspose, transposed": (
        lambda: of_nnx(
            nnx.ConvTranspose(4, 3, (2, 2), transpose_kernel=True, rngs=RNGS), SQUARE
        ),
        {"kernel": -2},
        LAST,
    ),
    "nnx Einsum": (
        lambda: of_nnx(nnx.Einsum("nx,xhd->nhd", (3, 2, 5), (2, 5), rngs=RNGS), X),
        TWO,
        HEADS,
    ),
    "nnx Embed": (
        lambda: of_nnx(nnx.Embed(5, 3, rngs=RNGS), TOKENS),
        flax_filters,
        FIRST,
    ),
    "nnx MultiHeadAttention, key": (
        lambda: of_nnx(NNX_ATTENTION, X, of="key"),
        flax_filters,
        HEADS,
    ),
    "nnx MultiHeadAttention, out": (
        lambda: of_nnx(NNX_ATTENTION, of=lambda module: module.out(ones(4, 2, 3))),
        flax_filters,
        LAST,
    ),
    "nnx SimpleCell": (
        lambda: of_nnx(nnx.SimpleCell(4, 3, rngs=RNGS), CARRY, STEP),
        flax_filters,
        LAST,
    ),
    "nnx LSTMCell": (
        lambda: of_nnx(nnx.LSTMCell(4, 3, rngs=RNGS), STATE, STEP),
        flax_filters,
        LAST,
    ),
    "nnx OptimizedLSTMCell": (
        lambda: of_nnx(nnx.OptimizedLSTMCell(4, 3, rngs=RNGS), STATE, STEP),
        flax_filters,
        LAST,
        "",
        4,
    ),
    "nnx GRUCell": (
        lambda: of_nnx(nnx.GRUCell(4, 3, rngs=RNGS), CARRY, STEP),
        flax_filters,
        LAST,
        "",
        3,
    ),
    "nnx LoRA, down": (
        lambda: of_nnx(LORA, of=lambda module: X @ module.lora_a[...]),
        flax_filters,
        LAST,
    ),
    "nnx LoRA, up": (lambda: of_nnx(LORA, X), flax_filters, LAST, "lora_b"),
    "nnx LoRALinear": (
        lambda: of_nnx(nnx.LoRALinear(3, 5, lora_rank=2, rngs=RNGS), X),
        flax_filters,
        LAST,
        "kernel|bias|lora_b",
    ),
    "nnx WeightNorm": (
        lambda: of_nnx(nnx.WeightNorm(nnx.Linear(3, 2, rngs=RNGS), rngs=RNGS), X),
        flax_filters,
        LAST,
    ),
    "nnx Linear, stacked": (
        lambda: nnx_stack(lambda rngs: nnx.Linear(3, 2, rngs=rngs), X),
        stacked(flax_filters),
        (0, -1),
    ),
    "nnx Embed, stacked": (
        lambda: nnx_stack(lambda rngs: nnx.Embed(5, 3, rngs=rngs), TOKENS),
        stacked(flax_filters),
        (0, 1),
    ),
    "equinox Linear": (
        lambda: equinox(eqx.nn.Linear(3, 2, key=KEY), ones(3)),
        equinox_filters,
        FIRST,
    ),
    "equinox MLP, its last layer": (
        lambda: equinox(eqx.nn.MLP(3, 2, 4, 1, key=KEY), ones(3)),
        equinox_filters,
        FIRST,
        "layers/1",
    ),
    "equinox Conv": (
        lambda: equinox(eqx.nn.Conv(2, 4, 3, 2, key=KEY), ones(4, 5, 5)),
        equinox_filters,
        FIRST,
    ),
    "equinox Conv1d in groups": (
        lambda: equinox(eqx.nn.Conv1d(4, 6, 2, groups=2, key=KEY), ones(4, 7)),
        equinox_filters,
        FIRST,
    ),
    "equinox Conv2d": (
        lambda: equinox(eqx.nn.Conv2d(4, 3, 2, key=KEY), ones(4, 5, 5)),
        equinox_filters,
        FIRST,
    ),
    "equinox Conv3d": (
        lambda: equinox(eqx.nn.Conv3d(2, 3, 2, key=KEY), ones(2, 3, 3, 3)),
        equinox_filters,
        FIRST,
    ),
    "equinox ConvTranspose": (
        lambda: equinox(eqx.nn.ConvTranspose(2, 4, 3, 2, key=KEY), ones(4, 5, 5)),
        equinox_filters,
        FIRST,
    ),
    "equinox ConvTranspose1d in groups": (
        lambda: equinox(eqx.nn.ConvTranspose1d(4, 6, 2, groups=2, key=KEY), ones(4, 7)),
        equinox_filters,
        FIRST,
    ),
    "equinox ConvTranspose2d": (
        lambda: equinox(eqx.nn.ConvTranspose2d(4, 3, 2, key=KEY), ones(4, 5, 5)),
        equinox_filters,
        FIRST,
    ),
    "equinox ConvTranspose3d": (
        lambda: equinox(eqx.nn.ConvTranspose3d(2, 3, 2, key=KEY), ones(2, 3, 3, 3)),
        equinox_filters,
        FIRST,
    ),
    "equinox Embedding": (
        lambda: equinox(
            eqx.nn.Embedding(5, 3, key=KEY), of=lambda layer: each(layer)(TOKENS)
        ),
        equinox_filters,
        FIRST,
    ),
    "equinox MultiheadAttention, query": (
        lambda: equinox(
            eqx.nn.MultiheadAttention(2, 6, use_query_bias=True, key=KEY),
            ones(6),
            of="query_proj",
        ),
        equinox_filters,
        FIRST,
    ),
    "equinox MultiheadAttention, output": (
        lambda: equinox(eqx.nn.MultiheadAttention(2, 6, key=KEY), *[ones(4, 6)] * 3),
        equinox_filters,
        (-1,),
        "output_proj",
    ),
    "equinox GRUCell": (
        lambda: equinox(eqx.nn.GRUCell(4, 3, key=KEY), ones(4), ones(3)),
        equinox_filters,
        FIRST,
        "",
        3,
    ),
    "equinox LSTMCell": (
        lambda: equinox(
            eqx.nn.LSTMCell(4, 3, key=KEY),
            of=lambda cell: cell(ones(4), (ones(3), ones(3)))[0],
        ),
        equinox_filters,
        FIRST,
        "",
        4,
    ),
    "equinox WeightNorm": (
        lambda: equinox(eqx.nn.WeightNorm(eqx.nn.Linear(3, 2, key=KEY)), ones(3)),
        equinox_filters,
        FIRST,
    ),
    "equinox Linear, stacked": (
        lambda: equinox_stack(lambda key: eqx.nn.Linear(3, 2, key=key), X),
        stacked(equinox_filters),
        (0, -1),
    ),
    "equinox Embedding, stacked": (
        lambda: equinox_stack(lambda key: eqx.nn.Embedding(5, 3, key=key), TOKENS),
        stacked(equinox_filters),
        (0, 1),
    ),
    "haiku Linear": (lambda: haiku(lambda: hk.Linear(2), X), haiku_filters, LAST),
    "haiku Linear, stacked": (
        lambda: haiku_stack(X),
        stacked(haiku_filters, "layer_stack"),
        (0, -1),
    ),
    "haiku Conv1D": (
        lambda: haiku(lambda: hk.Conv1D(3, 2), LINE),
        haiku_filters,
        LAST,
    ),
    "haiku Conv2D": (
        lambda: haiku(lambda: hk.Conv2D(3, 2), SQUARE),
        haiku_filters,
        LAST,
    ),
    "haiku Conv1DTranspose": (
        lambda: haiku(lambda: hk.Conv1DTranspose(3, 2), LINE),
        haiku_filters,
        LAST,
    ),
    "haiku Conv2DTranspose": (
        lambda: haiku(lambda: hk.Conv2DTranspose(3, 2), SQUARE),
        haiku_filters,
        LAST,
    ),
    "haiku DepthwiseConv2D": (
        lambda: haiku(lambda: hk.DepthwiseConv2D(2, 2), SQUARE),
        haiku_filters,
        LAST,
    ),
    "haiku Embed": (
        lambda: haiku(lambda: hk.Embed(5, 3), TOKENS),
        haiku_filters,
        FIRST,
    ),
    "haiku LSTM": (
        lambda: haiku(lambda: hk.LSTM(3), STEP, hk.LSTMState(CARRY, CARRY)),
        haiku_filters,
        LAST,
        "",
        4,
    ),
    "haiku VanillaRNN": (
        lambda: haiku(lambda: hk.VanillaRNN(3), STEP, CARRY),
        haiku_filters,
        LAST,
    ),
}

# Modules that hold no kernel, or those of others.
WITHOUT = {
    "linen": "BatchNorm GroupNorm InstanceNorm LayerNorm RMSNorm PReLU Dropout Module"
    " RNN Bidirectional RNNCellBase Sequential SpectralNorm Fp8DirectDotGeneralOp"
    " Fp8DotGeneralOp Fp8Einsum NANOOFp8DotGeneralOp",
    "nnx": "BatchNorm GroupNorm InstanceNorm LayerNorm RMSNorm PReLU Dropout Module"
    " RNN Bidirectional RNNCellBase Sequential SpectralNorm Dict List",
    "equinox": "BatchNorm GroupNorm LayerNorm RMSNorm PReLU Dropout Identity Lambda"
    " Sequential Shared SpectralNorm StateIndex StatefulLayer RotaryPositionalEmbedding"
    " Pool AdaptivePool",
}


@pytest.mark.parametrize(
    ("framework", "classes", "base"),
    [
        ("linen", nn, nn.Module),
        ("nnx", nnx, nnx.Module),
        ("equinox", eqx.nn, eqx.Module),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_every_class_with_a_kernel_is_here(framework, classes, base):
    found = {
        each.__name__
        for each in vars(classes).values()
        if inspect.isclass(each) and issubclass(each, base)
    }
    found = {name for name in found if not re.search("(Avg|Max)Pool", name)}
    here = {name.replace(",", "").split()[1] for name in LAYERS if framework in name}
    assert found - here <= set(WITHOUT[framework].split())


OF_FRAMEWORKS = flax_filters, equinox_filters, haiku_filters


@pytest.mark.filterwarnings("ignore:SelfAttention will be deprecated")
@pytest.mark.parametrize("name", [n for n in LAYERS if LAYERS[n][1] in OF_FRAMEWORKS])
def test_the_framework_of_a_layer_is_recognised(name):
    make, filter_axis, *_ = LAYERS[name]
    params, _ = make()
    assert raw_axes("auto", params) == raw_axes(filter_axis, params)


def randomized(params):
    """Parameters without zeros, which would hide what depends on them."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(KEY, len(leaves))
    pairs = zip(keys, leaves, strict=True)
    return jax.tree.unflatten(
        structure, [0.1 + 0.1 * jax.random.uniform(k, jnp.shape(p)) for k, p in pairs]
    )


def units_of(outputs, params, axes):
    """For each leaf, the units that each weight counts for: (units, *shape)."""

    def sums(params):
        found = outputs(params)
        kept = {axis % found.ndim for axis in axes}
        rest = tuple(axis for axis in range(found.ndim) if axis not in kept)
        # Each element counts differently, so that none cancels another.
        weights = 1 + jax.random.uniform(KEY, found.shape)
        return jnp.sum(jnp.sin(found) * weights, rest).ravel()

    return jax.tree.map(
        lambda leaf: np.abs(leaf) > 1e-9, jax.jit(jax.jacrev(sums))(params)
    )


def by_filter(counts, filters):
    """(units, *shape) to (filters, units, weights of a filter)."""
    moved = np.moveaxis(counts, [axis + 1 for axis in filters], range(len(filters)))
    number = np.prod(moved.shape[: len(filters)], dtype=int)
    return moved.reshape(number, len(counts), counts[0].size // number)


@pytest.mark.filterwarnings("ignore:SelfAttention will be deprecated")
@pytest.mark.parametrize("name", LAYERS)
def test_a_filter_is_the_weights_that_one_output_depends_on(name):
    make, filter_axis, axes, *options = LAYERS[name]
    leaves, gates = (*options, *("", 1)[len(options) :])
    params, outputs = make()
    params = randomized(params)
    counted = jax.tree.leaves(units_of(outputs, params, axes))
    given = raw_axes(filter_axis, params)
    seen = 0
    for path, axes_of_leaf, counts in zip(
        leaf_names(params), given, counted, strict=True
    ):
        # Of another part of the layer are those that count for no unit.
        if not re.search(leaves, path) or not counts.any():
            continue
        seen += 1
        filters = numbering(axes_of_leaf, counts.shape[1:], path).filters
        units = by_filter(counts, filters)
        assert (units == units[..., :1]).all(), path  # all its weights are alike,
        units = units[..., 0]
        assert (units.sum(1) == 1).all(), path  # of one unit,
        assert set(units.sum(0)) <= {1, gates}, path  # which has no other.
    assert seen
