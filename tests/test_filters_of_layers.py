"""The filters of every layer: the weights that make one output, by differentiating.

An output unit is a channel, the unit of an attention head, or the vector of a token in
an embedding. The weights that it depends on, which its gradient shows, are one filter.
"""

import inspect
import re
from functools import partial as of

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from smoothout_jax import equinox_filters, flax_filters, haiku_filters
from smoothout_jax._trees import leaf_names
from smoothout_jax.filters import numbering, raw_axes

KEY = jax.random.key(0)
RNGS = nnx.Rngs(0)


@pytest.fixture(autouse=True, scope="module")
def as_frameworks_compute():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


ones = of(np.ones, dtype="float32")
X, STEP, TOKENS = ones((4, 3)), ones((2, 4)), np.arange(5)
LINE, SQUARE = ones((1, 7, 4)), ones((1, 5, 5, 4))
CARRY, SQUARES = ones((2, 3)), 2 * (ones((1, 5, 5, 3)),)
STATE = CARRY, CARRY
CHANNELS = ones((4, 5, 5))

# By framework, class and what is special: how to make the layer, and its inputs.
ATTENTION = nn.MultiHeadDotProductAttention(2, qkv_features=6)
NNX_ATTENTION = of(nnx.MultiHeadAttention, 2, 3, 6, decode=False)
EQX_ATTENTION = of(eqx.nn.MultiheadAttention, 2, 6, use_query_bias=True)
LAYERS = {
    "linen Dense": (nn.Dense(2), X),
    "linen DenseGeneral": (nn.DenseGeneral((2, 3)), X),
    "linen DenseGeneral of two inputs": (nn.DenseGeneral(2, axis=(-2, -1)), X),
    "linen Conv": (nn.Conv(3, (2, 2)), SQUARE),
    "linen Conv in groups": (nn.Conv(6, (2, 2), feature_group_count=2), SQUARE),
    "linen ConvLocal": (nn.ConvLocal(3, (2,), padding="VALID"), LINE),
    "linen ConvTranspose": (nn.ConvTranspose(3, (2, 2)), SQUARE),
    "linen ConvTranspose, transposed": (
        nn.ConvTranspose(3, (2, 2), transpose_kernel=True),
        SQUARE,
    ),
    "linen Einsum": (nn.Einsum((3, 2, 5), "nx,xhd->nhd"), X),
    "linen Embed": (nn.Embed(5, 3), TOKENS),
    "linen MultiHeadDotProductAttention, query": (ATTENTION, X),
    "linen MultiHeadDotProductAttention, value": (ATTENTION, X),
    "linen MultiHeadDotProductAttention, out": (ATTENTION, X),
    "linen SimpleCell": (nn.SimpleCell(3), CARRY, STEP),
    "linen LSTMCell": (nn.LSTMCell(3), STATE, STEP),
    "linen OptimizedLSTMCell": (nn.OptimizedLSTMCell(3), STATE, STEP),
    "linen GRUCell": (nn.GRUCell(3), CARRY, STEP),
    "linen MGUCell": (nn.MGUCell(3), CARRY, STEP),
    "linen ConvLSTMCell": (nn.ConvLSTMCell(3, (2, 2)), SQUARES, SQUARE),
    "linen WeightNorm": (nn.WeightNorm(nn.Dense(2)), X),
    "nnx Linear": (of(nnx.Linear, 3, 2), X),
    "nnx LinearGeneral": (of(nnx.LinearGeneral, 3, (2, 5)), X),
    "nnx Conv": (of(nnx.Conv, 4, 3, (2, 2)), SQUARE),
    "nnx ConvTranspose": (of(nnx.ConvTranspose, 4, 3, (2, 2)), SQUARE),
    "nnx ConvTranspose, transposed": (
        of(nnx.ConvTranspose, 4, 3, (2, 2), transpose_kernel=True),
        SQUARE,
    ),
    "nnx Einsum": (of(nnx.Einsum, "nx,xhd->nhd", (3, 2, 5), (2, 5)), X),
    "nnx Embed": (of(nnx.Embed, 5, 3), TOKENS),
    "nnx MultiHeadAttention, key": (NNX_ATTENTION, X),
    "nnx MultiHeadAttention, out": (NNX_ATTENTION, ones((4, 2, 3))),
    "nnx SimpleCell": (of(nnx.SimpleCell, 4, 3), CARRY, STEP),
    "nnx LSTMCell": (of(nnx.LSTMCell, 4, 3), STATE, STEP),
    "nnx OptimizedLSTMCell": (of(nnx.OptimizedLSTMCell, 4, 3), STATE, STEP),
    "nnx GRUCell": (of(nnx.GRUCell, 4, 3), CARRY, STEP),
    "nnx LoRA, down": (of(nnx.LoRA, 3, 2, 5), X),
    "nnx LoRA, up": (of(nnx.LoRA, 3, 2, 5), X),
    "nnx LoRALinear": (of(nnx.LoRALinear, 3, 5, lora_rank=2), X),
    "nnx WeightNorm": (
        lambda rngs: nnx.WeightNorm(nnx.Linear(3, 2, rngs=rngs), rngs=rngs),
        X,
    ),
    "equinox Linear": (of(eqx.nn.Linear, 3, 2), ones(3)),
    "equinox MLP, its last layer": (of(eqx.nn.MLP, 3, 2, 4, 1), ones(3)),
    "equinox Conv": (of(eqx.nn.Conv, 2, 4, 3, 2), CHANNELS),
    "equinox Conv in groups": (of(eqx.nn.Conv2d, 4, 6, 2, groups=2), CHANNELS),
    "equinox ConvTranspose": (of(eqx.nn.ConvTranspose, 2, 4, 3, 2), CHANNELS),
    "equinox ConvTranspose in groups": (
        of(eqx.nn.ConvTranspose2d, 4, 6, 2, groups=2),
        CHANNELS,
    ),
    "equinox Embedding": (of(eqx.nn.Embedding, 5, 3), TOKENS),
    "equinox MultiheadAttention, query": (EQX_ATTENTION, ones(6)),
    "equinox MultiheadAttention, output": (EQX_ATTENTION, *3 * [ones((4, 6))]),
    "equinox GRUCell": (of(eqx.nn.GRUCell, 4, 3), ones(4), ones(3)),
    "equinox LSTMCell": (of(eqx.nn.LSTMCell, 4, 3), ones(4), 2 * (ones(3),)),
    "equinox WeightNorm": (
        lambda key: eqx.nn.WeightNorm(eqx.nn.Linear(3, 2, key=key)),
        ones(3),
    ),
    "haiku Linear": (of(hk.Linear, 2), X),
    "haiku Conv2D": (of(hk.Conv2D, 3, 2), SQUARE),
    "haiku Conv1DTranspose": (of(hk.Conv1DTranspose, 3, 2), LINE),
    "haiku Conv2DTranspose": (of(hk.Conv2DTranspose, 3, 2), SQUARE),
    "haiku DepthwiseConv2D": (of(hk.DepthwiseConv2D, 2, 2), SQUARE),
    "haiku Embed": (of(hk.Embed, 5, 3), TOKENS),
    "haiku LSTM": (of(hk.LSTM, 3), STEP, hk.LSTMState(CARRY, CARRY)),
    "haiku VanillaRNN": (of(hk.VanillaRNN, 3), STEP, CARRY),
}
# The outputs, if they are not all that the layer returns: those of a layer inside, or a
# function of the layer and its inputs.
OUTPUTS = {
    "linen MultiHeadDotProductAttention, query": "query",
    "linen MultiHeadDotProductAttention, value": "value",
    "linen MultiHeadDotProductAttention, out": "out",
    "nnx MultiHeadAttention, key": "key",
    "nnx MultiHeadAttention, out": "out",
    "nnx LoRA, down": lambda layer, x: x @ layer.lora_a[...],
    "equinox Embedding": lambda layer, tokens: jax.vmap(layer)(tokens),
    "equinox MultiheadAttention, query": "query_proj",
    "equinox LSTMCell": lambda cell, *inputs: cell(*inputs)[0],
}
# The filters, if not those of the framework.
TWO = {"kernel|bias": (-2, -1)}
FILTERS = dict.fromkeys(
    ("linen DenseGeneral", "linen Einsum", "nnx LinearGeneral", "nnx Einsum"), TWO
)
FILTERS |= {
    "linen ConvLocal": {"kernel|bias": (0, -1)},
    "linen ConvTranspose, transposed": {"kernel": -2},
    "nnx ConvTranspose, transposed": {"kernel": -2},
}
# The axes of the outputs that number units, if not the last, or Equinox's first.
HEADS = "linen ConvLocal", *(name for name in FILTERS if FILTERS[name] is TWO)
AXES = dict.fromkeys(HEADS, (-2, -1)) | {
    "linen Embed": (0,),
    "linen MultiHeadDotProductAttention, query": (-2, -1),
    "linen MultiHeadDotProductAttention, value": (-2, -1),
    "nnx Embed": (0,),
    "nnx MultiHeadAttention, key": (-2, -1),
    "equinox MultiheadAttention, output": (-1,),
    "haiku Embed": (0,),
}
# The leaves of the outputs' own layer, if not all.
LEAVES = {
    "linen MultiHeadDotProductAttention, out": "^out/",
    "nnx LoRA, up": "lora_b",
    "nnx LoRALinear": "kernel|bias|lora_b",
    "equinox MLP, its last layer": "layers/1",
    "equinox MultiheadAttention, output": "output_proj",
}
# How many filters a unit has in a leaf: the gates of a recurrent cell.
GATES = {
    "linen ConvLSTMCell": 4,
    "nnx OptimizedLSTMCell": 4,
    "nnx GRUCell": 3,
    "equinox GRUCell": 3,
    "equinox LSTMCell": 4,
    "haiku LSTM": 4,
}


def called(module, inputs, wanted):
    if callable(wanted):
        return wanted(module, *inputs)
    return last_of((getattr(module, wanted) if wanted else module)(*inputs))


def last_of(outputs):
    """The outputs of a recurrent cell, of (carry, outputs), or the outputs alone."""
    return jax.tree.leaves(outputs)[-1]


def linen(module, *inputs, wanted=None):
    """Parameters, and a function of them to the outputs of a layer, or one inside."""
    params = module.init(KEY, *inputs)["params"]

    def outputs(params):
        if wanted is None:
            return last_of(module.apply({"params": params}, *inputs))
        _, seen = module.apply({"params": params}, *inputs, capture_intermediates=True)
        return seen["intermediates"][wanted]["__call__"][0]

    return params, outputs


def of_nnx(make, *inputs, wanted=None):
    graph, params, rest = nnx.split(make(rngs=RNGS), nnx.Param, ...)
    return params, lambda params: called(nnx.merge(graph, params, rest), inputs, wanted)


def equinox(make, *inputs, wanted=None):
    params, static = eqx.partition(make(key=KEY), eqx.is_inexact_array)
    return params, lambda params: called(eqx.combine(params, static), inputs, wanted)


def haiku(make, *inputs, wanted=None):
    network = hk.without_apply_rng(hk.transform(lambda *inputs: make()(*inputs)))
    params = network.init(KEY, *inputs)
    return params, lambda params: jax.tree.leaves(network.apply(params, *inputs))[0]


FRAMEWORKS = {
    "linen": (linen, flax_filters),
    "nnx": (of_nnx, flax_filters),
    "equinox": (equinox, equinox_filters),
    "haiku": (haiku, haiku_filters),
}


# Modules without a kernel, or that hold those of others.
COMMON = "BatchNorm GroupNorm LayerNorm RMSNorm PReLU Dropout Sequential SpectralNorm "
FLAX = COMMON + "InstanceNorm Module RNN Bidirectional RNNCellBase "
WITHOUT = {
    "linen": FLAX + "Fp8DirectDotGeneralOp Fp8DotGeneralOp Fp8Einsum"
    " NANOOFp8DotGeneralOp",
    "nnx": FLAX + "Dict List",
    "equinox": COMMON + "Identity Lambda Shared StateIndex StatefulLayer"
    " RotaryPositionalEmbedding Pool AdaptivePool",
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
    """A class of its own, or a special case of one that is here."""
    here = {name.replace(",", "").split()[1] for name in LAYERS if framework in name}
    here |= set(WITHOUT[framework].split())
    missing = [
        each.__name__
        for each in vars(classes).values()
        if inspect.isclass(each)
        and issubclass(each, base)
        and here.isdisjoint(c.__name__ for c in each.__mro__ if c.__name__ != "Module")
        and each is not base
    ]
    assert not [name for name in missing if not re.search("(Avg|Max)Pool", name)]


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
        others = tuple(axis for axis in range(found.ndim) if axis not in kept)
        # Each element counts differently, so that none cancels another.
        weights = 1 + jax.random.uniform(KEY, found.shape)
        return jnp.sum(jnp.sin(found) * weights, others).ravel()

    jacobian = jax.jit(jax.jacrev(sums))(params)
    return jax.tree.map(lambda leaf: np.abs(leaf) > 1e-9, jacobian)


def by_filter(counts, filters):
    """(units, *shape) to (filters, units, weights of a filter)."""
    moved = np.moveaxis(counts, [axis + 1 for axis in filters], range(len(filters)))
    number = np.prod(moved.shape[: len(filters)], dtype=int)
    return moved.reshape(number, len(counts), counts[0].size // number)


@pytest.mark.parametrize("name", LAYERS)
def test_a_filter_is_the_weights_that_one_output_depends_on(name):
    framework = name.split()[0]
    make, filters = FRAMEWORKS[framework]
    params, outputs = make(*LAYERS[name], wanted=OUTPUTS.get(name))
    axes = AXES.get(name, (0,) if framework == "equinox" else (-1,))
    assert raw_axes("auto", params) == raw_axes(filters, params)
    params = randomized(params)
    counted = jax.tree.leaves(units_of(outputs, params, axes))
    given = raw_axes(FILTERS.get(name, filters), params)
    seen = 0
    for path, axes_of_leaf, counts in zip(
        leaf_names(params), given, counted, strict=True
    ):
        # Weights of another part of the layer count for no unit.
        if not re.search(LEAVES.get(name, ""), path) or not counts.any():
            continue
        seen += 1
        numbered = numbering(axes_of_leaf, counts.shape[1:], path).filters
        units = by_filter(counts, numbered)
        assert (units == units[..., :1]).all(), path  # all its weights are alike,
        units = units[..., 0]
        assert (units.sum(1) == 1).all(), path  # of one unit,
        assert set(units.sum(0)) <= {1, GATES.get(name)}, path  # which has no other.
    assert seen
