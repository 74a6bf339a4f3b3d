"""The clean parameters of a training with `smoothout`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from smoothout_jax import _checks
from smoothout_jax._jax import is_traced
from smoothout_jax._trees import Params, add_noise, leaf_names, map_leaves
from smoothout_jax.noise import Noise
from smoothout_jax.transforms.following import SAME_TO_ROUNDING, is_like
from smoothout_jax.transforms.state import Noises, SmoothoutState

# Of a noise drawn again, by a program that may round otherwise.
SAME_NOISE = 1e-3


def smoothout_eval_params(
    state: optax.OptState,
    params: Params,
    *,
    noise: Noise | None = None,
    key: jax.Array | int | None = None,
    num_copies: int = 1,
) -> Params:
    """The clean parameters of a training with `smoothout`: to evaluate and to save.

    Args:
        state: the optimizer's state, or any tree that holds it, such as a `TrainState`:
            `smoothout` is found in chains and wrappers.
        params: the perturbed parameters of the training loop. A leaf that was changed
            since the last update comes back as it is, noise included, unless `noise`
            and `key` are given. Those that `smoothout` does not train, under
            `optax.masked` or `optax.multi_transform`, come back as they are too.
        noise: the noise of `smoothout`, to take it off leaves that were changed;
            required with `keep_clean=False`.
        key: the key of `smoothout`, given with `noise`; only its implementation counts
            here, since the state holds its data.
        num_copies: the number of copies of `smoothout`, given with `noise`.

    Returns:
        A tree like `params` with the clean parameters.

    Raises:
        ValueError: if the state holds none of `smoothout`, or other parameters'; if the
            clean parameters were not kept and no noise is given, or another than that
            of training (under `jax.jit`, the result is NaN instead).

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from smoothout_jax import smoothout, smoothout_eval_params, uniform
        >>> optimizer = optax.chain(
        ...     optax.clip_by_global_norm(1.0),
        ...     smoothout(optax.adam(1e-3), uniform(0.1), key=jax.random.key(0)))
        >>> params = {"w": jnp.ones(2)}
        >>> print(smoothout_eval_params(optimizer.init(params), params))
        {'w': Array([1., 1.], dtype=float32)}
    """

    def is_smoothout(node):
        return isinstance(node, SmoothoutState)

    found = [s for s in jax.tree.leaves(state, is_leaf=is_smoothout) if is_smoothout(s)]
    if not found:
        raise ValueError(
            "state holds no state of smoothout; pass the optimizer's state, as it came"
            f" from init or update, got {_checks.describe(state)}"
        )
    if (noise is None) != (key is None):
        raise ValueError("noise and key go together: give both, or neither")
    noises = None
    if noise is not None:
        if len(found) > 1:
            raise ValueError(
                f"noise is that of one smoothout, but state holds {len(found)}"
            )
        noises = Noises(noise, _checks.key_or_seed(key), num_copies)
    if any(node.clean_params is None for node in found):
        if noises is None or len(found) > 1:
            raise ValueError(
                "state keeps no clean parameters (keep_clean=False): give the state of"
                " one smoothout, with its noise and key, so that the noise can be drawn"
                " again"
            )
        return _denoised(found[0], params, noises)
    given = dict(jax.tree.leaves_with_path(params))
    clean = {
        path: leaf
        for node in found
        for path, leaf in jax.tree.leaves_with_path(_kept(node, given, noises))
    }
    return jax.tree.map_with_path(lambda path, p: clean.get(path, p), params)


def _kept(state: SmoothoutState, given: dict[Any, Any], noises) -> Params:
    """The clean parameters of a state, where those given, by path, did not change."""
    leaves = jax.tree.leaves_with_path(state.clean_params)
    for name, (path, leaf) in zip(leaf_names(state.clean_params), leaves, strict=True):
        if path not in given or jnp.shape(given[path]) != jnp.shape(leaf):
            raise ValueError(
                "state is that of other parameters: params has no leaf"
                f" {name!r} of shape {jnp.shape(leaf)}"
            )
    params = jax.tree.map_with_path(lambda path, _: given[path], state.clean_params)
    evaluate = functools.partial(_clean_or_changed, noises=noises)
    for _ in range(jnp.ndim(state.smoothout_step)):
        evaluate = jax.vmap(evaluate)  # over runs side by side
    return evaluate(state, params)


def _clean_or_changed(state: SmoothoutState, params: Params, noises) -> Params:
    """The clean parameters; what changed since, as it is or less its noise."""
    told = state.smoothout_fingerprint
    same = is_like(told, params, SAME_TO_ROUNDING) | jnp.isnan(told)
    if noises is not None:
        return noises.followed(state, params, ~same)

    def keep(clean, is_same, given):
        return jnp.where(is_same, clean, given) if _checks.is_inexact(clean) else given

    return map_leaves(keep, state.clean_params, list(same), params)


def _denoised(state: SmoothoutState, params: Params, noises) -> Params:
    """Subtracts the noise drawn again; raises ValueError if it is another noise."""
    drawn = noises.drawn(state, params)
    same = jnp.all(is_like(state.smoothout_fingerprint, drawn, SAME_NOISE))
    if not is_traced(same) and not same:
        raise ValueError(
            "noise, key and num_copies must be those of smoothout: the noise they draw"
            f" is not the one in params; got num_copies={noises.num_copies}"
        )
    clean = add_noise(params, jax.tree.map(jnp.negative, drawn))
    return jax.tree.map(
        lambda c: jnp.where(same, c, jnp.nan) if _checks.is_inexact(c) else c, clean
    )
