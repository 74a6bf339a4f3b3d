"""Trees of parameters of every framework: paths, layers and comparison."""

import dataclasses
import re

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from smoothout_jax import _trees, exclude, smooth, smoothout, uniform
from smoothout_jax.landscape import direction_between, interpolate, loss_curve
from smoothout_jax.sharpness import (
    expected_sharpness,
    hessian_eigenvalues,
    per_layer,
    sam_sharpness,
)

X = jnp.ones((1, 3))
LAYERS = "first", "last"


class Linen(nn.Module):
    """Two layers; Flax may box their kernels and biases."""

    boxed: bool = False

    @nn.compact
    def __call__(self, x):
        options = {}
        if self.boxed:
            kernel_init = nn.with_partitioning(nn.initializers.ones, ("in", "out"))
            bias_init = nn.with_logical_partitioning(nn.initializers.zeros, ("out",))
            options = {"kernel_init": kernel_init, "bias_init": bias_init}
        x = nn.Dense(2, name="first", **options)(x)
        return nn.Dense(2, name="last", **options)(x)


class NNX(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(3, 2, rngs=rngs)
        self.last = nnx.Linear(2, 2, rngs=rngs)


class Equinox(eqx.Module):
    first: eqx.nn.Linear
    last: eqx.nn.Linear


class Layer:
    """A class without value equality, registered with JAX."""

    def __init__(self, kernel, bias):
        self.kernel, self.bias = kernel, bias


jax.tree_util.register_pytree_with_keys(
    Layer,
    lambda layer: (
        [
            (jax.tree_util.GetAttrKey(name), child)
            for name, child in vars(layer).items()
        ],
        None,
    ),
    lambda _, children: Layer(*children),
)


class Tag:
    """Static data that is equal to itself alone."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(eq=False)
class Tagged:
    first: Layer
    last: Layer
    tag: Tag = dataclasses.field(metadata={"static": True}, default_factory=Tag)


def equinox():
    first, last = jax.random.split(jax.random.key(0))
    return Equinox(eqx.nn.Linear(3, 2, key=first), eqx.nn.Linear(2, 2, key=last))


def haiku():
    def network(x):
        return hk.Linear(2, name="last")(hk.Linear(2, name="first")(x))

    return hk.transform(network).init(jax.random.key(0), X)


def mapping(kernel, bias):
    return {name: {kernel: jnp.ones((3, 2)), bias: jnp.zeros(2)} for name in LAYERS}


TREES = {
    "Linen": lambda: Linen().init(jax.random.key(0), X),
    "boxed Linen": lambda: Linen(boxed=True).init(jax.random.key(0), X),
    "NNX module": NNX,
    "NNX state": lambda: nnx.state(NNX(), nnx.Param),
    "NNX split": lambda: nnx.split(NNX())[1],
    "NNX pure dict": lambda: nnx.to_pure_dict(nnx.state(NNX(), nnx.Param)),
    "Equinox": equinox,
    "Haiku": haiku,
    "dict": lambda: mapping("kernel", "bias"),
    "dict of values": lambda: mapping("value", "bias"),
    "registered class": lambda: Tagged(
        **{name: Layer(**layer) for name, layer in mapping("kernel", "bias").items()}
    ),
}
every_tree = pytest.mark.parametrize("name", TREES)


def away_from_zero(tree, by=0.5):
    return jax.tree.map(lambda leaf: leaf + by, tree)


def names(name):
    """The paths of the layers, and the names of their weights and biases."""
    top = "params/" if "Linen" in name else ""
    layers = [top + layer for layer in LAYERS]
    weight, bias = {
        "Equinox": ("weight", "bias"),
        "Haiku": ("w", "b"),
        "dict of values": ("value", "bias"),
    }.get(name, ("kernel", "bias"))
    return layers, weight, bias


def squares(params):
    """A loss with another curvature in each leaf."""
    leaves = enumerate(jax.tree.leaves(params), 1)
    return sum(number * jnp.sum(leaf**2) for number, leaf in leaves)


@every_tree
def test_a_layer_is_a_module(name):
    params = away_from_zero(TREES[name]())

    def ranks_and_loss(loss, own):
        return sorted(n.ndim for n in jax.tree.leaves(own) if n.size), loss(own)

    measured = per_layer(ranks_and_loss, squares, params)
    layers, *_ = names(name)
    assert list(measured) == layers
    for dimensions, loss in measured.values():
        assert dimensions == [1, 2]
        np.testing.assert_allclose(loss, squares(params), rtol=1e-6)


@every_tree
def test_patterns_are_of_the_path_that_the_user_wrote(name):
    """A pattern that matched nothing would warn, and so fail."""
    params = away_from_zero(TREES[name]())
    layers, weight, bias = names(name)
    for pattern, held in (
        (f"/{bias}$", {(layer, 1) for layer in layers}),
        (f"/{weight}$", {(layer, 2) for layer in layers}),
        (f"^{layers[0]}/", {(layers[0], 1), (layers[0], 2)}),
    ):
        noise = uniform(0.1, mask=exclude(pattern))(jax.random.key(1), params)
        found = per_layer(lambda _, own: jax.tree.leaves(own), squares, noise)
        still = {
            (k, n.ndim) for k, v in found.items() for n in v if n.size and not n.any()
        }
        assert still == held


@every_tree
def test_errors_name_the_path_that_the_user_wrote(name):
    layers, weight, _ = names(name)
    half = jax.tree.map(
        lambda leaf: leaf.astype("float16") if leaf.ndim == 2 else leaf, TREES[name]()
    )
    with pytest.raises(TypeError, match=f"'{layers[0]}/{weight}' is float16"):
        sam_sharpness(squares, half, rho=0.1)
    with pytest.raises(ValueError, match=f"filter_axis=5 .* '{layers[0]}/"):
        uniform(0.1, relative_to="filter", filter_axis=5)(jax.random.key(0), half)


@every_tree
def test_a_curve_joins_two_networks_of_separate_origin(name):
    params, other = away_from_zero(TREES[name]()), away_from_zero(TREES[name](), -2)
    along = direction_between(params, other)
    curve = loss_curve(squares, params, along, [0, 1])
    exact = squares(params), squares(other)
    np.testing.assert_allclose(curve.values["loss"], exact, rtol=1e-6)
    middle = interpolate(params, other, 0.5)
    assert type(middle) is type(params)
    pairs = zip(*map(jax.tree.leaves, (params, other)), strict=True)
    exact = squares([(one + another) / 2 for one, another in pairs])
    np.testing.assert_allclose(squares(middle), exact, rtol=1e-6)


@every_tree
def test_eigenvectors_have_the_structure_of_the_tree(name):
    params = away_from_zero(TREES[name]())
    pairs = hessian_eigenvalues(squares, params)
    np.testing.assert_allclose(pairs.values, [8], rtol=1e-4)
    assert jax.tree.structure(pairs.vector(0)) == jax.tree.structure(params)


def test_only_boxes_of_flax_are_left_out_of_paths():
    class Scale(eqx.Module):
        value: jax.Array

    class Adapter(nnx.Module):
        def __init__(self):
            self.low_rank = nnx.Param({"a": jnp.ones((2, 1)), "b": jnp.ones((1, 2))})

    params = {"norm": Scale(jnp.ones(2)), "head": {"value": jnp.ones(2)}}
    mask = exclude("^norm/value$", "^head/value$")(params)
    assert jax.tree.leaves(mask) == [False, False]
    mask = exclude("^low_rank/a$")(nnx.state(Adapter(), nnx.Param))
    assert jax.tree.leaves(mask) == [False, True]


class Dropped(nnx.Module):
    def __init__(self, *weights):
        self.kernel = nnx.Param(jnp.array(weights))
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.dropout(x)


def test_only_the_weights_of_a_network_with_keys_and_counters_move():
    params = Dropped(1.0, 2.0)
    along = direction_between(params, Dropped(3.0, -2.0))
    curve = loss_curve(lambda model: jnp.sum(model.kernel[...]), params, along, [0, 1])
    np.testing.assert_allclose(curve.values["loss"], [3, 1])

    def loss(model):
        return jnp.sum(model.kernel[...] ** 2) + model(jnp.zeros(3)).sum()

    rise = expected_sharpness(loss, params, uniform(0.3), key=0)
    assert abs(rise.value - 2 * 0.3**2 / 3) < 4 * rise.standard_error
    worst = per_layer(sam_sharpness, loss, params, rho=0.1)
    alone = sam_sharpness(lambda w: jnp.sum(w**2), params.kernel[...], rho=0.1)
    assert worst == {"kernel": alone}
    smoothed = smooth(loss, uniform(0.3), num_copies=100)(jax.random.key(0), params)
    assert abs(smoothed - 5 - rise.value) < 8 * rise.standard_error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"kernel": jnp.ones(2)},
            "'kernel' is of shape (2,) in other, and of shape ()",
        ),
        ({"kernel": None}, "'kernel' is missing in other, and of shape () in params"),
        ({"more": 1.0}, "'more' is of shape () in other, and missing in params"),
    ],
)
def test_errors_name_the_first_leaf_that_is_not_alike(change, message):
    params = {"bias": 0.5, "kernel": 1.0}
    match = re.escape(f"other must be a tree like params, but {message}")
    with pytest.raises(ValueError, match=match):
        direction_between(params, params | change)


def hijax_state(**metadata):
    with nnx.var_defaults(**metadata):
        return nnx.state(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: {"kernel": jax.new_ref(jnp.ones((3, 2)))}, r"Ref{float32\[3,2\]}"),
        (lambda: hijax_state(ref=True), r"Ref{float32\[2\]}"),
        (lambda: hijax_state(hijax=True), r"Param\(\)"),
    ],
    ids=["refs", "NNX refs", "NNX hijax"],
)
@pytest.mark.parametrize("jit", [jax.jit, lambda fn: fn], ids=["jit", "eager"])
def test_references_are_refused_and_the_arrays_in_them_are_not(make, shape, jit):
    refs, optimizer = make(), smoothout(optax.sgd(0.1), uniform(0.1), key=0)
    for refused in (lambda p: uniform(0.1)(jax.random.key(0), p), optimizer.init):
        with pytest.raises(
            TypeError, match=rf"is {shape}, a reference .*params"
        ) as got:
            jit(refused)(refs)
        assert "Equinox" not in str(got.value)
        jit(refused)(jax.tree.map(lambda ref: ref[...], refs))


@pytest.mark.parametrize(
    ("leaf", "is_of_equinox"),
    [
        (jax.nn.relu, True),
        (Equinox(jnp.ones(2), "an attribute"), True),
        ("a name", False),
        (object(), False),
    ],
)
def test_equinox_is_named_for_its_modules_and_functions_alone(leaf, is_of_equinox):
    with pytest.raises(TypeError, match=r"params must hold arrays, .* 'b") as error:
        uniform(0.1)(jax.random.key(0), {"a": jnp.ones(2), "b": leaf})
    assert ("eqx.filter" in str(error.value)) == is_of_equinox


@pytest.mark.parametrize("one_gpu", [True, False])
def test_the_total_is_the_sum_over_all_arrays(one_gpu, monkeypatch):
    """On a GPU the arrays are summed together, in one reduction after a barrier."""
    monkeypatch.setattr(_trees, "on_one_gpu", lambda: one_gpu)
    shapes = [(3,), (), (256,), (0, 4), (257,), (300, 300), (16, 16), (5, 7, 11)]
    arrays = [
        jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)
    ]
    total = jax.jit(lambda arrays: _trees.total(arrays))
    expected = sum(np.sum(np.asarray(each, np.float64)) for each in arrays)
    np.testing.assert_allclose(total(arrays), expected, rtol=1e-5)
    arrays[4] = arrays[4].at[256].set(jnp.nan)
    assert jnp.isnan(total(arrays))
    for found in (total(arrays), _trees.total([])):
        assert (found.dtype, found.shape) == ("float32", ())
    assert _trees.total([]) == 0
    program = str(jax.make_jaxpr(lambda arrays: _trees.total(arrays))(arrays))
    reductions = program.split("optimization_barrier")[-1].count("reduce_sum")
    assert reductions == (1 if one_gpu else len(arrays) + 1)
