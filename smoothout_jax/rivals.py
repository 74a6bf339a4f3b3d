"""Momentum-SAM: the method to compare with at one gradient per step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from smoothout_jax import _checks
from smoothout_jax._trees import (
    Params,
    accumulator_dtype,
    map_leaves,
    named_leaves,
    require_like,
)

__all__ = ["msam", "msam_eval_params"]


class MomentumSamState(NamedTuple):
    """The clean parameters, and the state of the wrapped optimizer."""

    msam_params: Params
    msam_state: optax.OptState


def msam(
    optimizer: optax.GradientTransformation, rho: jax.typing.ArrayLike
) -> optax.GradientTransformationExtraArgs:
    """Momentum-SAM: takes gradients at w - ρ v / ‖v‖, where v is the momentum.

    The training loop holds these perturbed parameters. The state holds the clean ones,
    w, for `msam_eval_params`; if you change the parameters, call `init` again.

    Weight decay in `optimizer` acts on the clean parameters, as in the authors' AdamW.
    Their SGD decays the perturbed ones, as does `optax.chain(
    optax.add_decayed_weights(5e-4), msam(optax.sgd(0.1, momentum=0.9), rho))`.

    Args:
        optimizer: an optimizer with one momentum of all parameters, a `trace` or `mu`
            in its state: `optax.sgd(0.1, momentum=0.9)`, `optax.adamw(1e-3)`. To train
            some parameters only, wrap `msam` in `optax.masked` or
            `optax.multi_transform`.
        rho: length ρ of the perturbation, at least 0; may be traced. For a schedule,
            `optax.inject_hyperparams(msam)(optimizer, rho=schedule)`.

    Returns:
        The `optax.GradientTransformationExtraArgs`. Its `update` needs the parameters,
        and passes keyword arguments on to `optimizer`.

    Raises:
        TypeError: if `optimizer` is not a transformation or `rho` not a number; from
            `init` and `update`, if a leaf of the parameters is not an array.
        ValueError: if `rho` is negative or not finite; from `init`, if `optimizer` has
            no such momentum; from `update`, without the parameters.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from smoothout_jax.rivals import msam, msam_eval_params
        >>> optimizer = msam(optax.sgd(0.1, momentum=0.9), rho=0.3)
        >>> params = jnp.zeros(2)
        >>> state = optimizer.init(params)
        >>> for _ in range(50):
        ...     grads = jax.grad(lambda w: jnp.sum((w - 3) ** 2))(params)
        ...     updates, state = optimizer.update(grads, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> print(jnp.linalg.norm(params - msam_eval_params(state, params)).round(3))
        0.3

    Reference:
        Becker et al., `Momentum-SAM: Sharpness Aware Minimization without Computational
        Overhead <https://arxiv.org/abs/2401.12033>`_, 2024, algorithm 1.
    """
    _checks.transformation(optimizer=optimizer)
    _checks.nonnegative(rho=rho)
    wrapped = optax.with_extra_args_support(optimizer)

    def init(params: Params) -> MomentumSamState:
        _checks.arrays(params=params)
        inner = wrapped.init(params)
        require_like(params, "optimizer's momentum", _momentum(inner))
        copied = jax.tree.map(lambda p: jnp.array(p, jnp.result_type(p)), params)
        return MomentumSamState(copied, inner)

    def update(updates, state, params: Any = None, **extra_args):
        if params is None:
            raise ValueError("msam needs params: call update(grads, state, params)")
        _checks.arrays(params=params)
        clean, inner = state
        updates, inner = wrapped.update(updates, inner, clean, **extra_args)
        clean = optax.apply_updates(clean, updates)
        momentum = jax.tree.map(_widen, _momentum(inner))
        norm = optax.tree.norm(momentum)
        step = jnp.where(
            norm > 0, jnp.negative(rho) / jnp.where(norm > 0, norm, 1.0), 0.0
        )

        def perturb(clean, momentum, param):
            moved = _widen(clean) + jnp.asarray(step, momentum.dtype) * momentum
            return moved.astype(clean.dtype) - param

        updates = map_leaves(perturb, clean, momentum, params)
        return updates, MomentumSamState(clean, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def msam_eval_params(state: optax.OptState, params: Params) -> Params:
    """The clean parameters in training with `msam`, to evaluate and to save.

    Args:
        state: the optimizer's state, or any tree that holds it, such as a `TrainState`.
        params: the perturbed parameters of the training loop. Those that `msam` does
            not train are returned unchanged.

    Returns:
        A tree like `params` with the clean parameters.

    Raises:
        ValueError: if the state has none of `msam`, or one for other parameters.
    """
    found = _nodes(state, {"msam_params"})
    if not found:
        raise ValueError(
            "state must contain the state of msam, as returned by init or update; got"
            f" {_checks.describe(state)}"
        )
    kept = {name: p for node in found for name, p in named_leaves(node.msam_params)}
    given = dict(named_leaves(params))
    require_like({name: given.get(name) for name in kept}, "state of msam", kept)
    leaves = [kept.get(name, leaf) for name, leaf in named_leaves(params)]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def _momentum(state: optax.OptState) -> Params:
    found = _nodes(state, {"trace", "mu"})
    if len(found) != 1:
        raise ValueError(
            "msam needs an optimizer with one momentum, a `trace` or `mu` in its state,"
            " such as optax.sgd(0.1, momentum=0.9) or optax.adam(1e-3); found"
            f" {len(found)}; for groups of parameters, wrap the optimizer of each"
        )
    return found[0].trace if hasattr(found[0], "trace") else found[0].mu


def _widen(leaf: Any) -> jax.Array:
    return jnp.asarray(leaf, accumulator_dtype(jnp.result_type(leaf)))


def _nodes(state: optax.OptState, fields: set[str]) -> list[Any]:
    """The named tuples in a state that have one of the fields."""

    def has_one(node):
        return not fields.isdisjoint(getattr(node, "_fields", ()))

    return list(filter(has_one, jax.tree.leaves(state, is_leaf=has_one)))
