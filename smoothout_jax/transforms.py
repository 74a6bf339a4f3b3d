"""How it trains: SmoothOut as transformations of Optax.

`smoothout` wraps an optimizer and leaves the training loop as it is: the parameters the
loop holds are perturbed, the clean ones live in the state. `smooth_gradients` is a link
of a chain: the parameters stay clean, and a `grad_fn` given to each update is called at
the perturbed copies.

Reference:
    Wen et al., `SmoothOut: Smoothing Out Sharp Minima to Improve Generalization in
    Deep Learning <https://arxiv.org/abs/1805.07898>`_, 2018: Stochastic SmoothOut, with
    its de-noising before the update.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from smoothout_jax import _checks
from smoothout_jax._copies import Copies
from smoothout_jax._following import (
    SAME_TO_ROUNDING,
    fingerprint,
    follow,
    is_like,
    rounded,
    where_any,
)
from smoothout_jax._jax import is_traced, reads_its_input
from smoothout_jax._trees import (
    Params,
    accumulator_dtype,
    add_noise,
    leaf_names,
    map_leaves,
)
from smoothout_jax.noise import Noise

# Of a noise drawn again, by a program that may round otherwise.
SAME_NOISE = 1e-3
NO_PARAMS = (
    "needs the parameters: call update(grads, state, params), not update(grads, state)"
)
NO_GRAD_FN = """smooth_gradients takes the gradients itself, so update needs a grad_fn:

    grad_fn = jax.grad(lambda params, copy: loss(params, batch))
    updates, state = optimizer.update(grads, state, params, grad_fn=grad_fn)
"""


class SmoothoutState(NamedTuple):
    """State of `smoothout`.

    Attributes:
        clean_params: the clean parameters, to evaluate and to save; `None` if they are
            not kept.
        smoothout_key_data: data of the PRNG key, from which every noise is folded.
        smoothout_step: number of updates of the clean parameters, int32.
        smoothout_copy: number of gradients taken since the last of them, int32.
        gradient_mean: mean of those gradients, in float32 at least; `None` if M = 1.
        smoothed_state: state of the wrapped optimizer.
        smoothout_fingerprint: a number for each leaf, by which a change of the loop's
            parameters is told; if the clean ones are not kept, of the noise in them.
    """

    clean_params: Params | None
    smoothout_key_data: jax.Array
    smoothout_step: jax.typing.ArrayLike
    smoothout_copy: jax.typing.ArrayLike
    gradient_mean: Params | None
    smoothed_state: optax.OptState
    smoothout_fingerprint: jax.Array


def smoothout(
    optimizer: optax.GradientTransformation,
    noise: Noise,
    *,
    key: jax.Array,
    num_copies: int = 1,
    keep_clean: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Trains with SmoothOut, in the training loop you have.

    The parameters the loop holds are perturbed ones, so the gradient it computes is
    SmoothOut's. Each update de-noises, lets `optimizer` update the clean parameters,
    which weight decay, trust ratios and the like see, and perturbs afresh. The clean
    parameters are kept, not recomputed, so nothing drifts; evaluate and save those:
    `smoothout_eval_params(state, params)`. The first gradient is at the initial
    parameters themselves.

    Make it the last link of a chain: it writes the loop's parameters, and a link behind
    it would distort the noise. Clipping goes before it, or into `optimizer`, where it
    sees the mean gradient of the copies.

    Args:
        optimizer: the Optax optimizer of the clean parameters.
        noise: the law of the noise, such as `uniform(0.01)`. A schedule of its radius
            gets the number of updates of the clean parameters.
        key: PRNG key of the noise, typed or raw. Runs under `jax.vmap` over seeds take
            a key each; so do transformations side by side in `optax.multi_transform`.
        num_copies: number M of perturbed gradients averaged into one update: the
            optimizer runs once in M calls. `optax.MultiSteps` around `smoothout` would
            repeat the same noise, since it keeps its inner state for its micro-steps.
        keep_clean: whether the state holds the clean parameters. Without, their memory
            is saved: the noise is drawn again from its key and subtracted, as Flat-LoRA
            does. The noise must then not depend on the parameters' values, as noise
            relative to them does, and each update rounds the parameters twice more:
            they drift, in half precision by much, as docs/scaling.md shows.

    Returns:
        The `optax.GradientTransformationExtraArgs`. Its `update` needs the parameters,
        and hands further keyword arguments on to `optimizer`.

    Raises:
        TypeError: if `optimizer`, `noise`, `key` or `num_copies` is of another type.
        ValueError: if `num_copies` is below 1, or, from `init`, if the noise cannot be
            drawn again.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from smoothout_jax import smoothout, smoothout_eval_params, uniform
        >>> def loss(w):
        ...     return jnp.sum((w - 3) ** 2)
        >>> optimizer = smoothout(optax.sgd(0.1), uniform(0.1), key=jax.random.key(0))
        >>> params = jnp.zeros(2)
        >>> state = optimizer.init(params)
        >>> for _ in range(50):
        ...     grads = jax.grad(loss)(params)
        ...     updates, state = optimizer.update(grads, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> print(smoothout_eval_params(state, params).round(1))
        [3. 3.]

    Reference:
        Wen et al., 2018: Stochastic SmoothOut; SmoothOut with `num_copies`.

        Li et al., `Flat-LoRA: Low-Rank Adaptation over a Flat Loss Landscape
        <https://arxiv.org/abs/2409.14396>`_, 2024: noise kept as its key.
    """
    _check_optimizer(optimizer)
    _checks.function("such as smoothout_jax.uniform(0.01)", noise=noise)
    _checks.count(num_copies=num_copies)
    _checks.choice((True, False), keep_clean=keep_clean)
    optimizer = optax.with_extra_args_support(optimizer)
    noises = _Noises(noise, _checks.key_or_seed(key), num_copies)

    def init(params: Params) -> Any:
        _checks.arrays(params=params)
        _warn_of_lost_noise(noise, noises.key, params)
        if not keep_clean and jax.tree.leaves(params):
            _require_independent(noise, noises.key, params)
        mean = None
        if num_copies > 1:
            mean = jax.tree.map(
                lambda p: jnp.zeros_like(p, accumulator_dtype(jnp.result_type(p))),
                params,
            )
        clean = jax.tree.map(_fresh, params)
        told = clean if keep_clean else optax.tree.zeros_like(clean)
        return SmoothoutState(
            clean_params=clean if keep_clean else None,
            smoothout_key_data=_key_data(noises.key),
            smoothout_step=jnp.zeros([], jnp.int32),
            smoothout_copy=jnp.zeros([], jnp.int32),
            gradient_mean=mean,
            smoothed_state=optimizer.init(params),
            smoothout_fingerprint=fingerprint(told),
        )

    def update(
        updates: optax.Updates,
        state: Any,
        params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        if params is None:
            raise ValueError(f"smoothout {NO_PARAMS}")
        _checks.arrays(params=params)
        if not isinstance(state, SmoothoutState):
            raise TypeError(
                "state must be the state of smoothout, as its init or update returned"
                f" it; got {_checks.describe(state)}"
            )
        held = noises.clean(state, params)

        def step(grads):
            steps, smoothed_state = optimizer.update(
                grads, state.smoothed_state, held, **extra_args
            )
            clean = rounded(optax.apply_updates(held, steps))
            return clean, _in_dtypes_of(state.smoothed_state, smoothed_state)

        if num_copies == 1:
            mean, count, copy = None, optax.safe_increment(state.smoothout_step), 0
            clean, smoothed_state = step(updates)
        else:
            mean = _running_mean(state.gradient_mean, updates, state.smoothout_copy)
            last = state.smoothout_copy == num_copies - 1
            clean, smoothed_state = jax.lax.cond(
                last,
                lambda: step(optax.tree.cast_like(mean, updates)),
                lambda: (held, state.smoothed_state),
            )
            stepped = optax.safe_increment(state.smoothout_step)
            count = jnp.where(last, stepped, state.smoothout_step)
            copy = jnp.where(last, 0, state.smoothout_copy + 1)
        added = noises.draw(state.smoothout_key_data, count, copy, clean)
        changes = rounded(optax.tree.sub(add_noise(clean, added), params))
        told = rounded(optax.apply_updates(params, changes)) if keep_clean else added
        return changes, SmoothoutState(
            clean_params=clean if keep_clean else None,
            smoothout_key_data=state.smoothout_key_data,
            smoothout_step=count,
            smoothout_copy=jnp.asarray(copy, jnp.int32),
            gradient_mean=mean,
            smoothed_state=smoothed_state,
            smoothout_fingerprint=fingerprint(told),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def smoothout_eval_params(
    state: optax.OptState,
    params: Params,
    *,
    noise: Noise | None = None,
    key: jax.Array | None = None,
    num_copies: int = 1,
) -> Params:
    """The clean parameters of a training with `smoothout`: to evaluate and to save.

    Args:
        state: the optimizer's state, or any tree that holds it, such as a `TrainState`:
            `smoothout` is found in chains and wrappers.
        params: the perturbed parameters of the training loop. Those that `smoothout`
            does not train, under `optax.masked` or `optax.multi_transform`, come back
            as they are.
        noise: with `keep_clean=False`, the noise of `smoothout`.
        key: with `keep_clean=False`, its key, of which the kind alone counts here.
        num_copies: with `keep_clean=False`, its number of copies.

    Returns:
        A tree like `params` with the clean parameters.

    Raises:
        ValueError: if the state holds none of `smoothout`, or other parameters'; if the
            clean parameters were not kept and no noise is given.

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
        noises = _Noises(noise, _checks.key_or_seed(key), num_copies)
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
    same = is_like(state.smoothout_fingerprint, params, SAME_TO_ROUNDING)
    if noises is not None:
        return noises.followed(state, params, ~same)

    def keep(clean, is_same, given):
        return jnp.where(is_same, clean, given) if _checks.is_inexact(clean) else given

    return map_leaves(keep, state.clean_params, list(same), params)


def _denoised(state: SmoothoutState, params: Params, noises) -> Params:
    """Parameters less their noise, once it is seen to be the noise in them."""
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


class SmoothGradientsState(NamedTuple):
    """State of `smooth_gradients`.

    Attributes:
        smooth_gradients_key_data: data of the PRNG key, from which noise is folded.
        smooth_gradients_step: number of updates, int32.
    """

    smooth_gradients_key_data: jax.Array
    smooth_gradients_step: jax.typing.ArrayLike


def smooth_gradients(
    noise: Noise,
    *,
    key: jax.Array,
    num_copies: int = 1,
    antithetic: bool = False,
    clean_weight: float = 0.0,
    execution: str = "auto",
    chunk_size: int | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    spmd_axis_name: str | tuple[str, ...] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Replaces the gradients by gradients averaged over perturbed copies.

    The first link of a chain. Each update calls `grad_fn(params, copy)`, as
    `optax.contrib.sam` calls its own, at every copy's perturbed parameters; what came
    in as gradients is dropped, and the parameters stay clean throughout.

    Args:
        noise: the law of the noise, such as `uniform(0.01)`. A schedule of its radius
            gets the number of updates.
        key: PRNG key of the noise, typed or raw.
        num_copies: number of perturbed copies.
        antithetic: as for `smoothout_value_and_grad`, like all that follow.
        clean_weight: weight of the gradient at the parameters themselves, taken by
            `grad_fn(params, num_copies)`.
        execution: how the copies run. The number of the copy that `grad_fn` gets is an
            integer under `"unroll"`, and traced under `"vmap"` and `"scan"`.
        chunk_size: copies vmapped together inside a scan.
        axis_name: the axis of devices that each draw noise of their own.
        spmd_axis_name: the mesh axis that the copies are laid over.

    Returns:
        The `optax.GradientTransformationExtraArgs`. Its `update` raises a `ValueError`
        without `params` or `grad_fn`.

    Raises:
        TypeError, ValueError: as for `smoothout_value_and_grad`.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from smoothout_jax import smooth_gradients, uniform
        >>> optimizer = optax.chain(
        ...     smooth_gradients(uniform(0.1), key=jax.random.key(0), num_copies=2),
        ...     optax.sgd(0.1))
        >>> params = jnp.zeros(2)
        >>> state = optimizer.init(params)
        >>> grad_fn = jax.grad(lambda params, copy: jnp.sum((params - 3) ** 2))
        >>> for _ in range(50):
        ...     updates, state = optimizer.update(
        ...         params, state, params, grad_fn=grad_fn)
        ...     params = optax.apply_updates(params, updates)
        >>> print(params.round(1))
        [3. 3.]

    Reference:
        Wen et al., 2018: SmoothOut.
    """
    copies = Copies(
        noise=noise,
        num_copies=num_copies,
        copy_argnums=1,
        antithetic=antithetic,
        clean_weight=clean_weight,
        execution=execution,
        chunk_size=chunk_size,
        axis_name=axis_name,
        spmd_axis_name=spmd_axis_name,
    )
    key = _checks.key_or_seed(key)

    def init(params: Params) -> Any:
        _checks.arrays(params=params)
        _warn_of_lost_noise(noise, key, params)
        return SmoothGradientsState(_key_data(key), jnp.zeros([], jnp.int32))

    def update(
        updates: optax.Updates,
        state: Any,
        params: Params | None = None,
        *,
        grad_fn: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        del updates, extra_args
        if params is None:
            raise ValueError(f"smooth_gradients {NO_PARAMS}")
        if grad_fn is None:
            raise ValueError(NO_GRAD_FN)
        key_data, step = state

        def grads_and_aux(params, copy):
            return _checked_grads(grad_fn(params, copy), params), None

        grads, _ = copies.mean(
            grads_and_aux,
            _fold(key, key_data, step),
            params,
            [np.arange(copies.total)],
            step,
        )
        return grads, SmoothGradientsState(key_data, optax.safe_increment(step))

    return optax.GradientTransformationExtraArgs(init, update)


@dataclasses.dataclass(frozen=True)
class _Noises:
    """The noises of a training, drawn from the key in its state.

    Attributes:
        noise: their law.
        key: a key of the implementation that the key in the state is of.
        num_copies: noises for each update of the clean parameters.
    """

    noise: Noise
    key: jax.Array
    num_copies: int

    def draw(self, key_data, step, copy, params) -> Params:
        """The noise of a copy in a step; no step and no copy before has the same."""
        number = step * self.num_copies + copy
        return self.noise(_fold(self.key, key_data, number), params, step)

    def drawn(self, state: SmoothoutState, params: Params) -> Params:
        """The noise that the loop's parameters were handed out with."""
        key_data, step, copy = state[1:4]
        added = self.draw(key_data, step, copy, params)
        return jax.tree.map(lambda n: jnp.where(_is_first(state), 0, n), added)

    def clean(self, state: SmoothoutState, params: Params) -> Params:
        """The clean parameters of those that an update was given."""
        if state.clean_params is None:
            noise = self.drawn(state, params)
            return add_noise(params, jax.tree.map(jnp.negative, noise))
        changed = state.smoothout_fingerprint != fingerprint(params)
        clean = jax.tree.map(
            lambda c, p: c if _checks.is_inexact(c) else jnp.asarray(p, c.dtype),
            state.clean_params,
            params,
        )
        return where_any(
            changed,
            lambda: self.followed(state, params, changed),
            lambda: clean,
        )

    def followed(self, state: SmoothoutState, params, changed) -> Params:
        """The clean parameters that were kept, with what changed since."""
        noise = self.drawn(state, state.clean_params)
        first = _is_first(state)
        return follow(state.clean_params, params, noise, changed, first)


def _is_first(state: SmoothoutState) -> jax.Array:
    """Whether the loop's parameters are the initial ones, which have no noise."""
    return (jnp.asarray(state.smoothout_step) == 0) & (state.smoothout_copy == 0)


def _require_independent(noise: Noise, key: jax.Array, params: Params) -> None:
    """Requires a noise that is the same whatever the parameters' values are."""
    step = jnp.zeros([], jnp.int32)
    if reads_its_input(lambda params: noise(key, params, step), params):
        raise ValueError(
            "keep_clean=False draws the noise again at perturbed parameters, so it must"
            " not depend on their values, as noise relative to weights, filters or"
            " layers does; keep the clean parameters, or take relative_to=None"
        )


def _check_optimizer(optimizer: Any) -> None:
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(
            "optimizer must be an optax.GradientTransformation, such as optax.sgd(0.1);"
            f" got {optimizer!r}"
        )


def _fresh(leaf: Any) -> jax.Array:
    """A copy in a buffer of its own, so that the parameters can be donated."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jnp.zeros_like(leaf)
    return jnp.array(leaf, jnp.result_type(leaf), copy=True)


def _key_data(key: jax.Array) -> jax.Array:
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return _fresh(jax.random.key_data(key) if typed else key)


def _fold(key: jax.Array, key_data: jax.Array, count: Any) -> jax.Array:
    """The key of one noise, from the data in the state: `key` lends its kind alone."""
    folded = jnp.asarray(key_data)
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        folded = jax.random.wrap_key_data(folded, impl=jax.random.key_impl(key))
    return jax.random.fold_in(folded, count)


def _checked_grads(grads: Any, params: Params) -> optax.Updates:
    """What a `grad_fn` returned; raises TypeError unless it is a tree like params."""
    shapes = [
        [(path, jnp.shape(leaf)) for path, leaf in jax.tree.leaves_with_path(tree)]
        for tree in (grads, params)
    ]
    if shapes[0] != shapes[1]:
        raise TypeError(
            "grad_fn must return the gradients alone, a tree like params, as jax.grad"
            f" of the loss does; got {_checks.describe(grads)}"
        )
    return grads


def _in_dtypes_of(old: Any, new: Any) -> Any:
    """The new state in the dtypes of the old, whatever those of the gradients are."""
    return jax.tree.map(
        lambda new, old: jnp.asarray(new).astype(jnp.result_type(old)), new, old
    )


def _running_mean(mean: Params, grads: optax.Updates, count: Any) -> Params:
    """The mean of count + 1 gradients from that of count and one more."""

    def include(mean, grad):
        if jnp.shape(grad) != mean.shape:
            raise ValueError(
                "updates must be gradients like params, to be averaged over the copies;"
                f" got one of shape {jnp.shape(grad)} for a parameter of shape"
                f" {mean.shape}"
            )
        grad = jnp.asarray(grad, mean.dtype)
        step = (grad - mean) / (count + 1).astype(mean.dtype)
        return jnp.where(count == 0, grad, mean + step)

    return jax.tree.map(include, mean, grads)


def _warn_of_lost_noise(noise: Noise, key: jax.Array, params: Params) -> None:
    """Draws once from half-precision parameters while their values are known."""
    leaves = jax.tree.leaves(params)
    if any(jnp.result_type(leaf).itemsize <= 2 for leaf in leaves) and not any(
        is_traced(leaf) or isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves
    ):
        noise(key, params, jnp.zeros([], jnp.int32))
