"""Which leaves get noise: masks, patterns of paths, and what Flax does not train."""

import functools
import re
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

from smoothout_jax import exclude, uniform
from smoothout_jax._trees import leaf_names

KEY = jax.random.key(2018, impl="unsafe_rbg")
PARAMS = {
    "BatchNorm_0": {"bias": jnp.ones(3), "scale": jnp.ones(3)},
    "Dense_0": {"bias": jnp.ones(3), "kernel": jnp.ones((2, 3))},
}


class Module(NamedTuple):
    """Parameters that are callable, as those of Equinox are."""

    kernel: object
    bias: object

    def __call__(self, inputs):
        raise AssertionError("a module is not a mask function")


def masked_by(mask, params=PARAMS):
    """The names of the leaves without noise, compiled and not."""
    noise = uniform(0.3, mask=mask)
    eager, compiled = (
        [
            name
            for name, leaf in zip(
                leaf_names(params), jax.tree.leaves(drawn), strict=True
            )
            if not leaf.any()
        ]
        for drawn in (noise(KEY, params), jax.jit(noise)(KEY, params))
    )
    assert eager == compiled
    return eager


@pytest.mark.parametrize(
    ("mask", "masked"),
    [
        (
            {
                "BatchNorm_0": {"bias": False, "scale": True},
                "Dense_0": {"bias": np.True_, "kernel": jnp.array(False)},
            },
            ["BatchNorm_0/bias", "Dense_0/kernel"],
        ),
        (
            {"BatchNorm_0": False, "Dense_0": True},
            ["BatchNorm_0/bias", "BatchNorm_0/scale"],
        ),
        (True, []),
        (
            lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
            ["BatchNorm_0/bias", "BatchNorm_0/scale", "Dense_0/bias"],
        ),
        (
            lambda params: {"BatchNorm_0": False, "Dense_0": True},
            ["BatchNorm_0/bias", "BatchNorm_0/scale"],
        ),
        (exclude("BatchNorm"), ["BatchNorm_0/bias", "BatchNorm_0/scale"]),
        (exclude("scale", "kernel"), ["BatchNorm_0/scale", "Dense_0/kernel"]),
        (
            exclude(r"^Dense_\d/b", "_0/s.*e$"),
            ["BatchNorm_0/scale", "Dense_0/bias"],
        ),
    ],
    ids=[
        *("tree", "prefix", "everything", "function", "function to a prefix"),
        *("one pattern", "two patterns", "regular expressions"),
    ],
)
def test_masked_leaves_get_no_noise_and_the_others_do(mask, masked):
    assert masked_by(mask) == masked


def test_a_callable_module_of_booleans_is_a_tree():
    params = Module(jnp.ones(3), jnp.ones(3))
    assert masked_by(Module(True, False), params) == ["bias"]


def test_a_masked_leaf_needs_no_axis_of_filters():
    noise = uniform(
        0.3, relative_to="filter", filter_axis=1, mask=lambda params: [True, False]
    )
    kernel, bias = noise(KEY, [jnp.ones((2, 3)), jnp.ones(3)])
    assert kernel.all()
    assert not bias.any()


def test_patterns_name_the_leaves_of_every_structure():
    params = [Module(1.0, None), freeze({"head": {"kernel": 1.0}})]
    assert exclude("^0/kernel$")(params) == [
        Module(False, None),
        freeze({"head": {"kernel": True}}),
    ]


def test_exclude_is_a_mask_of_optax():
    decay = optax.add_decayed_weights(0.5, mask=exclude("BatchNorm", "bias$"))
    zeros = optax.tree.zeros_like(PARAMS)
    updates, _ = decay.update(zeros, decay.init(PARAMS), PARAMS)
    kernel = 0.5 * PARAMS["Dense_0"]["kernel"]
    expected = zeros | {"Dense_0": zeros["Dense_0"] | {"kernel": kernel}}
    chex.assert_trees_all_equal(updates, expected)


# What Flax does not train


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
    return fp8_dense().init(KEY, jnp.ones((2, 3)))


@functools.cache
def fp8_module():
    """NNX makes a type of variables for the collection."""
    module = nnx.bridge.ToNNX(fp8_dense(), rngs=nnx.Rngs(0))
    return nnx.bridge.lazy_init(module, jnp.ones((2, 3)))


def beside_params(collection):
    return {"params": {"w": jnp.ones(2)}, collection: {"var": jnp.ones(2)}}


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
def test_what_flax_does_not_train_must_be_masked_as_the_message_shows(
    make, pattern, path
):
    params = make()
    with pytest.raises(ValueError, match=f"params holds '{path}.* is not trained") as e:
        uniform(0.3)(KEY, params)
    uniform(0.3, mask=exclude(pattern))(KEY, params)
    leaf, shown = re.search(
        r"holds '(.*?)'.*such as exclude\('(.*)'\)", str(e.value)
    ).groups()
    flags = dict(
        zip(leaf_names(params), jax.tree.leaves(exclude(shown)(params)), strict=True)
    )
    assert not flags[leaf]
    assert any(flags.values())


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
    noise = uniform(0.3)(KEY, params)
    assert all(leaf.any() for leaf in jax.tree.leaves(noise))


# Warnings and errors


@pytest.mark.parametrize("use", [lambda mask: mask(PARAMS), masked_by])
def test_exclude_warns_of_each_pattern_that_matches_nothing(use):
    with pytest.warns(UserWarning, match="matches no parameter") as caught:
        use(exclude("BatchNrm", "kernel", "^bias"))
    first, second, *_ = (str(warning.message) for warning in caught)
    assert "'BatchNrm'" in first
    assert "BatchNorm_0/bias" in first
    assert "'^bias'" in second


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (False, ValueError, "mask leaves none of the 4 leaves of params"),
        (exclude(""), ValueError, "mask leaves none of the 4 leaves of params"),
        *(
            (mask, ValueError, "mask must be a tree, or prefix tree.*Dense")
            for mask in (
                {"BatchNorm_0": True},
                {"BatchNorm_0": True, "Dense_1": True},
                [True, False],
                jax.tree.map(lambda _: {"deeper": True}, PARAMS),
                lambda params: params["Dense_0"] | {"bias": True, "kernel": True},
            )
        ),
        *(
            (
                {"BatchNorm_0": True, "Dense_0": flag},
                TypeError,
                f"mask must .*{re.escape(repr(flag))}",
            )
            for flag in (1, 0.0, "yes")
        ),
    ],
    ids=[
        *("nothing", "nothing by path", "missing", "renamed", "list", "deeper"),
        *("function", "integer", "float", "string"),
    ],
)
def test_a_mask_must_be_booleans_like_the_parameters(mask, error, message):
    with pytest.raises(error, match=message):
        uniform(0.3, mask=mask)(KEY, PARAMS)


def test_a_traced_mask_is_refused():
    with pytest.raises(
        TypeError, match=r"mask must hold .* got a traced array of bool"
    ):
        jax.jit(lambda flag: uniform(0.3, mask=flag)(KEY, PARAMS))(True)


@pytest.mark.parametrize(
    ("patterns", "error", "message"),
    [
        ((), ValueError, "exclude needs at least one pattern"),
        (("kernel", 3), TypeError, "patterns of exclude must be .* got 3"),
        (("kernel", b"bias"), TypeError, "patterns of exclude must be .* got b'bias'"),
        (
            ("kernel", "(bias"),
            ValueError,
            r"pattern '\(bias' of exclude is not a valid regular",
        ),
    ],
)
def test_patterns_must_be_regular_expressions(patterns, error, message):
    with pytest.raises(error, match=message):
        exclude(*patterns)
