"""Parameters that are sharded by hand, in `jax.shard_map`."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding

from smoothout_jax import (
    by_path,
    init_loss_rise,
    smoothout,
    smoothout_eval_params,
    uniform,
)
from smoothout_jax.loss_rise import LossRise, rise_of

RISE, RADIUS, STEPS = 0.2, 0.5, 3
KIND = 2 * (AxisType.Auto,)
MESH = jax.make_mesh((2, 2), ("x", "y"), KIND, devices=jax.devices()[:4])
EVERYWHERE = jax.P(("x", "y"))
# Smaller and smaller along the axis that filters span.
FALLING = jnp.geomspace(1.0, 0.01, 8).reshape(8, 1)
PARAMS = {
    "kernel": jnp.linspace(-1.5, 2.5, 48).reshape(8, 6) * FALLING,
    "square": jnp.linspace(3.0, 0.5, 32).reshape(8, 4) * FALLING,
    "bias": jnp.linspace(0.5, 2.0, 8),
}
# As the argument has them, and for every leaf.
LAYOUTS = {
    "x": ("x", dict.fromkeys(PARAMS, jax.P("x"))),
    "x and y": (("x", "y"), dict.fromkeys(PARAMS, EVERYWHERE)),
    "a tree": 2
    * ({"kernel": jax.P(None, "y"), "square": jax.P("x", "y"), "bias": jax.P()},),
    "whole": (jax.P(), dict.fromkeys(PARAMS, jax.P())),
}
FILTERS = uniform(RADIUS, relative_to="filter", bits=32)
LAWS = {
    "absolute": uniform(RADIUS, bits=32),
    "filter": FILTERS,
    "layer": uniform(RADIUS, relative_to="layer", bits=32),
    "by path": by_path({"kernel|square": FILTERS, "": FILTERS}),
}
CASES = [(law, layout, True) for law in LAWS for layout in LAYOUTS if law != "by path"]
CASES += [("by path", "a tree", True), ("absolute", "x", False)]
CASES += [("filter", "a tree", False)]
every_case = pytest.mark.parametrize(("law", "layout", "check_vma"), CASES)


def grads_of(params):
    """Gradients of a sum over the weights, so that each shard has its own."""
    return jax.tree.map(lambda leaf: leaf + jnp.cos(leaf), params)


def whole(blocks, specs):
    """Assembles leaves from the blocks of all devices, which must agree."""

    def put_together(like, blocks, spec):
        found = np.full(like.shape, np.nan)
        places = NamedSharding(MESH, spec).devices_indices_map(like.shape)
        for block, device in zip(blocks, MESH.devices.flat, strict=True):
            known = found[places[device]]
            assert np.all(np.isnan(known) | (known == block))
            found[places[device]] = block
        assert not np.isnan(found).any()
        return found

    return {
        name: put_together(PARAMS[name], blocks[name], specs[name]) for name in specs
    }


@functools.cache
def run(law, layout, check_vma, **options):
    """The results on every device after each step with learning rate 0."""
    axis_name, specs = LAYOUTS[layout]
    optimizer = smoothout(
        optax.sgd(0.0), LAWS[law], key=5, axis_name=axis_name, **options
    )
    state = optimizer.init(PARAMS)
    of_state = jax.tree.map(lambda _: jax.P(), state)
    if options.get("keep_noise", True):
        of_state = of_state._replace(smoothout_noise=specs)

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(grads_of(params), state, params)
        params = optax.apply_updates(params, updates)
        clean = smoothout_eval_params(state, params)
        scale = optax.tree.get(state, "noise_scale", jnp.ones([]))
        return (params, state), (params, clean, scale)

    def train(params, state):
        _, found = jax.lax.scan(step, (params, state), length=STEPS)
        return jax.tree.map(lambda leaf: leaf[None], found)

    mapped = jax.shard_map(
        train,
        mesh=MESH,
        in_specs=(specs, of_state),
        out_specs=EVERYWHERE,
        check_vma=check_vma,
    )
    held, clean, scale = jax.jit(mapped)(PARAMS, state)
    histories = []
    for tree in (held, clean):
        steps = (jax.tree.map(lambda leaf, n=n: leaf[:, n], tree) for n in range(STEPS))
        histories.append([whole(blocks, specs) for blocks in steps])
    return *histories, np.asarray(scale), held


@every_case
def test_each_shard_has_noise_of_its_own(law, layout, check_vma):
    """Replicated leaves get the same noise, or `whole` could not assemble them."""
    _, _, _, held = run(law, layout, check_vma, loss_rise=RISE)
    _, specs = LAYOUTS[layout]
    for name, blocks in held.items():
        start = np.asarray(PARAMS[name])
        if start.ndim == 1 and law in ("filter", "by path"):
            continue  # Noise of one weight has but a sign.
        places = NamedSharding(MESH, specs[name]).devices_indices_map(start.shape)
        own = {}
        for block, device in zip(blocks, MESH.devices.flat, strict=True):
            noise = np.asarray(block[-1]) - start[places[device]]
            # Repeated noise would differ in the norms of its filters.
            own[str(places[device])] = noise / np.linalg.norm(noise, axis=0)
        for one, other in itertools.combinations(own.values(), 2):
            assert np.mean(np.isclose(one, other, rtol=1e-3)) < 0.2


@pytest.mark.parametrize(
    ("law", "layout", "check_vma"), [case for case in CASES if case[0] != "absolute"]
)
def test_the_norm_of_noise_is_that_of_a_whole_filter(law, layout, check_vma):
    held, _, scales, _ = run(law, layout, check_vma, loss_rise=RISE)
    for params, scale in zip(held, scales[0], strict=True):
        for name, param in PARAMS.items():
            noise = params[name] - np.float64(param)
            axis = None if law == "layer" else () if param.ndim == 1 else 0
            size, norm = (
                np.sqrt(np.sum(np.square(leaf), axis, dtype=float))
                for leaf in (noise, np.float64(param))
            )
            np.testing.assert_allclose(size, scale * RADIUS * norm, rtol=1e-4)
            # It is spread evenly, not by the norms of the shards.
            first, second = map(np.linalg.norm, np.split(noise, 2))
            assert noise.ndim == 1 or 1 / 3 < first / second < 3


@every_case
def test_the_rise_is_that_of_all_shards_together(law, layout, check_vma):
    """Every shard finds the rise that one device finds from all noise and gradients."""
    held, _, scales, _ = run(law, layout, check_vma, loss_rise=RISE)
    np.testing.assert_array_equal(scales, np.broadcast_to(scales[0], scales.shape))
    rule, state = LossRise(RISE), init_loss_rise()
    noise, at = optax.tree.zeros_like(PARAMS), PARAMS
    for scale, after in zip(scales[0], held, strict=True):
        state = rule.scaled(rule.observed(state, rise_of(noise, grads_of(at))))
        np.testing.assert_allclose(scale, state.noise_scale, rtol=1e-5)
        at = optax.tree.cast(jax.tree.map(jnp.asarray, after), jnp.float32)
        noise = optax.tree.sub(at, PARAMS)
    assert np.all(np.abs(np.diff(scales[0])) > 1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("keep_noise", [True, False], ids=["kept", "drawn again"])
def test_clean_parameters_come_back_in_every_shard(layout, keep_noise):
    options = {"loss_rise": RISE} if keep_noise else {"keep_noise": False}
    held, clean, *_ = run("absolute", layout, True, **options)
    for params, own in zip(held, clean, strict=True):
        for name, param in PARAMS.items():
            np.testing.assert_allclose(own[name], param, rtol=0, atol=1e-6)
            assert np.all(params[name] != own[name])


@pytest.mark.parametrize("axis_name", [3, ("x", 1), {"kernel": "x"}, [jax.P(), "x"]])
def test_invalid_axis_names_are_refused(axis_name):
    with pytest.raises(TypeError, match="axis_name must be a name, a tuple of names"):
        smoothout(optax.sgd(0.1), LAWS["filter"], key=0, axis_name=axis_name)


def test_specs_of_other_parameters_are_refused():
    specs = {"kernel": jax.P("x"), "scale": jax.P()}
    optimizer = smoothout(optax.sgd(0.1), LAWS["filter"], key=0, axis_name=specs)
    with pytest.raises(ValueError, match=r"axis_name must be a tree, or prefix tree"):
        optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)
