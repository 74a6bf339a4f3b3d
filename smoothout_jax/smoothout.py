"""How it trains: SmoothOut as a transformation of Optax.

`smoothout` wraps an optimizer and leaves the training loop unchanged: the loop's
parameters are perturbed, the state holds their noise, and the clean parameters are the
difference.

Reference:
    Wen et al., `SmoothOut: Smoothing Out Sharp Minima to Improve Generalization in
    Deep Learning <https://arxiv.org/abs/1805.07898>`_, 2018: Stochastic SmoothOut, with
    its de-noising before the update.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from smoothout_jax import _checks, _shards
from smoothout_jax._jax import is_traced, reads_its_input
from smoothout_jax._keys import fold, implementation, key_data
from smoothout_jax._shards import Specs
from smoothout_jax._trees import (
    Params,
    accumulator_dtype,
    is_in_range,
    map_leaves,
    require_like,
    stored,
)
from smoothout_jax.loss_rise import (
    LossRise,
    LossRiseState,
    Rise,
    heldout_gap,
    init_loss_rise,
    require_rise,
    rise_of,
    scaled,
)
from smoothout_jax.noise import Noise, noisy_leaves, uniform


class SmoothoutState(NamedTuple):
    """State of `smoothout`: plain arrays, to be saved beside the parameters.

    Attributes:
        smoothout_noise: the noise ε in the loop's parameters, in float32 or wider, and
            `None` for leaves without noise; with `keep_noise=False`, how to draw it.
        smoothout_key_data: data of the PRNG key from which all noise is drawn.
        smoothout_step: number of updates of the clean parameters, int32.
        smoothout_copy: number of gradients taken since the last update, int32.
        gradient_mean: mean of those gradients, in float32 or wider; `None` if M = 1.
        smoothed_state: state of the wrapped optimizer.
        smoothout_rise: state of the noise scale with `loss_rise`; else `None`.
    """

    smoothout_noise: Any
    smoothout_key_data: jax.Array
    smoothout_step: jax.typing.ArrayLike
    smoothout_copy: jax.typing.ArrayLike
    gradient_mean: Params | None
    smoothed_state: optax.OptState
    smoothout_rise: LossRiseState | None = None


def smoothout(
    optimizer: optax.GradientTransformation,
    noise: Noise | None = None,
    *,
    key: jax.Array | int,
    loss_rise: Rise | None = None,
    num_copies: int = 1,
    keep_noise: bool = True,
    axis_name: Specs = None,
) -> optax.GradientTransformationExtraArgs:
    """Trains with SmoothOut in your existing training loop.

    The loop's parameters are perturbed, so the gradient it computes is SmoothOut's.
    Each update removes the noise, lets `optimizer` update the clean parameters, so that
    weight decay and trust ratios use them, and adds new noise. Evaluate and save the
    clean parameters: `smoothout_eval_params(state, params)`. The first gradient is
    taken at the initial parameters.

    The state holds the noise, and the clean parameters are the loop's parameters minus
    that noise. You may change the loop's parameters at any time: loading weights after
    `init`, a reset or a projection changes the clean parameters by the same amount.

    Make it the last link of a chain: a link after it would distort the noise. Put
    clipping before it, or into `optimizer`, where it clips the mean gradient of the
    copies.

    Args:
        optimizer: the Optax optimizer of the clean parameters.
        noise: the distribution of the noise, such as `uniform(0.01)`. A schedule of its
            radius gets the number of updates of the clean parameters. Noise is not
            added where it would take a parameter out of the range of its dtype. By
            default `uniform(relative_to="filter")` with `loss_rise=heldout_gap()`; then
            report both losses to `smoothout_report`.
        key: PRNG key of the noise, typed or raw, or an integer seed. Give every run
            under `jax.vmap` its own key, and every part of `optax.multi_transform`.
        loss_rise: by how much, δ, the noise may raise the loss, in the units of the
            loss, such as 0.1 nats. `noise` is then the upper limit: it is scaled down
            so that it raises the loss by δ, as estimated from the gradients. A number
            of at least 0, a traced scalar, a schedule of the number of updates, or
            `heldout_gap()`. `smoothout_metrics` shows it. The gradients must be those
            of the loss: put clipping and weight decay into `optimizer` rather than
            before `smoothout`, and unscale scaled losses first.
        num_copies: number M of perturbed gradients averaged into one update: the
            optimizer runs once in M calls. `optax.MultiSteps` around `smoothout` would
            repeat the same noise, since it keeps its inner state for its micro-steps.
        keep_noise: whether the state holds the noise. `False` saves that memory and
            draws the noise again from its key, as Flat-LoRA does. The noise must then
            not depend on the values of the parameters, as relative noise does, nor on a
            radius that changes other than by a schedule. Each update also rounds the
            parameters twice more, so they drift, considerably in half precision; see
            docs/scaling.md. Orbax saves such a state; Flax's serialization does not.
        axis_name: how the parameters are sharded by hand, in `jax.shard_map`: the name
            (or a tuple of names) of the mesh axes along which the first axis of every
            leaf lies, or a tree, or prefix tree, of `jax.P` like the `in_specs` of the
            parameters. Each shard then draws its own noise, and norms and the rise are
            summed over the shards. Not needed under `jax.jit`.

    Returns:
        The `optax.GradientTransformationExtraArgs`. Its `update` needs the parameters,
        and passes extra keyword arguments on to `optimizer`.

    Raises:
        TypeError: if `optimizer`, `noise`, `key` or `num_copies` has the wrong type;
            from `init` and `update`, if a leaf of the parameters is not an array.
        ValueError: if `num_copies` is below 1 or `loss_rise` is negative or not finite,
            or, from `init`, if the noise cannot be drawn again.

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
    _checks.transformation(optimizer=optimizer)
    if noise is None:
        noise = uniform(relative_to="filter")
        loss_rise = heldout_gap() if loss_rise is None else loss_rise
    _checks.function("such as smoothout_jax.uniform(0.01)", noise=noise)
    _checks.count(num_copies=num_copies)
    _checks.choice((True, False), keep_noise=keep_noise)
    key = _checks.key_or_seed(key)
    wrapper = _Wrapper(
        optax.with_extra_args_support(optimizer),
        key,
        _Draws(noise, implementation(key), num_copies, _shards.specs_of(axis_name)),
        keep_noise,
        None if loss_rise is None else LossRise(loss_rise, num_copies),
    )
    return optax.GradientTransformationExtraArgs(wrapper.init, wrapper.update)


def smoothout_eval_params(state: Any, params: Params) -> Params:
    """The clean parameters of a training with `smoothout`: to evaluate and to save.

    Args:
        state: the optimizer's state, or any tree that contains it, such as a
            `TrainState`; `smoothout` may be inside chains and wrappers.
        params: the perturbed parameters of the training loop. Leaves that `smoothout`
            does not train, under `optax.masked` or `optax.multi_transform`, are
            returned unchanged.

    Returns:
        A tree like `params` with the clean parameters.

    Raises:
        ValueError: if the state contains no state of `smoothout`, belongs to other
            parameters, or is in a different memory than the parameters.

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
    given = dict(jax.tree.leaves_with_path(params))
    clean = {}
    for node in _found(state):
        for path, noise in jax.tree.leaves_with_path(_noise_of(node, given)):
            _require_leaf(given, path, noise)
            clean[path] = _denoised(given[path], noise)
    return jax.tree.map_with_path(lambda path, p: clean.get(path, p), params)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Draws:
    """Draws the noise of a training from the key in its state.

    Attributes:
        noise: its distribution.
        impl: the implementation of the key; `None` for raw keys.
        num_copies: draws for each update of the clean parameters.
        specs: how the parameters are sharded by hand, if they are.
    """

    noise: Noise
    impl: Any
    num_copies: int
    specs: Any = dataclasses.field(hash=False)

    def draw(self, state: SmoothoutState, params: Params) -> Params:
        """The noise for the state's step and copy; no two are the same."""
        step = state.smoothout_step
        number = step * self.num_copies + state.smoothout_copy
        key = fold(self.impl, state.smoothout_key_data, number)
        if self.specs is None:
            noise = self.noise(key, params, step)
        else:
            noise = _shards.draw(self.noise, key, params, step, self.specs)
        require_like(params, "noise", noise)
        rise = state.smoothout_rise
        return noise if rise is None else scaled(noise, rise.noise_scale)

    def noise_in(self, state: SmoothoutState, params: Params) -> Params:
        """The noise in the loop's parameters, kept or drawn again."""
        if not isinstance(state.smoothout_noise, _DrawnAgain):
            return state.smoothout_noise
        first = (state.smoothout_step == 0) & (state.smoothout_copy == 0)

        def since_first(leaf):
            return jnp.where(first, 0, leaf) if _checks.is_inexact(leaf) else None

        return jax.tree.map(since_first, self.draw(state, params))

    def rise(self, noise: Params, grads: optax.Updates) -> jax.Array:
        """The rise of the loss, estimated from the gradients at this noise."""
        if self.specs is None:
            return rise_of(noise, grads)
        return _shards.total(rise_of, noise, grads, self.specs)


class _Place(NamedTuple):
    """A placeholder for a leaf whose noise is drawn again."""


class _DrawnAgain(NamedTuple):
    """Replaces, in the state, noise that is not kept."""

    draws: _Draws
    places: Params


@dataclasses.dataclass(frozen=True)
class _Wrapper:
    """The two functions of the transformation, and the settings they share."""

    optimizer: optax.GradientTransformationExtraArgs
    key: jax.Array
    draws: _Draws
    keep_noise: bool
    rise: LossRise | None

    def init(self, params: Params) -> Any:
        _checks.arrays(params=params)
        if not self.keep_noise and jax.tree.leaves(params):
            _require_independent(self.draws.noise, self.key, params)
        return SmoothoutState(
            smoothout_noise=self._no_noise(params),
            smoothout_key_data=key_data(self.key),
            smoothout_step=jnp.zeros([], jnp.int32),
            smoothout_copy=jnp.zeros([], jnp.int32),
            gradient_mean=_zeros(params) if self.draws.num_copies > 1 else None,
            smoothed_state=self.optimizer.init(params),
            smoothout_rise=None
            if self.rise is None
            else init_loss_rise(self.rise.target),
        )

    def update(
        self,
        updates: optax.Updates,
        state: Any,
        params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        if params is None:
            raise ValueError(
                "smoothout needs the parameters: call update(grads, state, params), not"
                " update(grads, state)"
            )
        _checks.arrays(params=params)
        if not isinstance(state, SmoothoutState):
            raise TypeError(
                "state must be the state of smoothout, as its init or update returned"
                f" it; got {_checks.describe(state)}"
            )
        held = None if self.rise is None else self.rise.target
        require_rise("smoothout", held, state.smoothout_rise)
        old = self.draws.noise_in(state, params)
        clean = _denoised(params, old)
        rise = state.smoothout_rise
        if self.rise is not None and rise is not None:
            rise = self.rise.observed(rise, self.draws.rise(old, updates))
            rise = self.rise.scaled(rise)
        steps, state = self._step(updates, state, clean, extra_args)
        state = state._replace(smoothout_rise=rise)
        clean = optax.apply_updates(clean, steps)
        changes = _changes(params, steps, clean, old, self.draws.draw(state, clean))
        if self.keep_noise:
            noise = _noise_after(params, changes, clean, old)
            state = state._replace(smoothout_noise=noise)
        return changes, state

    def _step(
        self, grads, state: SmoothoutState, clean: Params, extra_args
    ) -> tuple[optax.Updates, SmoothoutState]:
        """The updates of the clean parameters, and the state with the optimizer's."""
        copies = self.draws.num_copies
        stepped = optax.safe_increment(state.smoothout_step)

        def optimize(grads):
            steps, inner = self.optimizer.update(
                grads, state.smoothed_state, clean, **extra_args
            )
            return steps, _in_dtypes_of(state.smoothed_state, inner)

        if copies == 1:
            steps, inner = optimize(grads)
            return steps, state._replace(smoothout_step=stepped, smoothed_state=inner)
        mean = _running_mean(state.gradient_mean, grads, state.smoothout_copy)
        of_round = optax.tree.cast_like(mean, grads)
        none, _ = jax.eval_shape(optimize, of_round)
        last = state.smoothout_copy == copies - 1
        steps, inner = jax.lax.cond(
            last,
            lambda: optimize(of_round),
            lambda: (optax.tree.zeros_like(none), state.smoothed_state),
        )
        return steps, state._replace(
            smoothout_step=jnp.where(last, stepped, state.smoothout_step),
            smoothout_copy=jnp.where(last, 0, state.smoothout_copy + 1),
            gradient_mean=mean,
            smoothed_state=inner,
        )

    def _no_noise(self, params: Params) -> Any:
        """Zeros in place of the noise, and `None` for leaves that never get any."""
        if not self.keep_noise:
            places = jax.tree.map(lambda _: _Place(), params)
            return _DrawnAgain(self.draws, places)
        leaves, structure = jax.tree.flatten(_zeros(params))
        noisy = noisy_leaves(self.draws.noise, params) if leaves else []
        return jax.tree.unflatten(
            structure,
            [leaf if its else None for leaf, its in zip(leaves, noisy, strict=True)],
        )


def _denoised(params: Params, noise: Params) -> Params:
    """The clean parameters: the loop's parameters minus their noise."""

    def subtract(param, noise):
        param = jnp.asarray(param)
        if noise is None:
            return param
        return stored(param.astype(noise.dtype) - noise, param.dtype)

    return map_leaves(subtract, params, noise)


def _changes(
    params: Params, steps: optax.Updates, clean: Params, old: Params, noise: Params
) -> optax.Updates:
    """The updates from the loop's parameters to the clean ones plus new noise.

    Leaves whose old noise is `None` take only the optimizer's step.
    """

    def change(param, step, clean, old, noise):
        if old is None:
            return step
        dtype, wide = clean.dtype, old.dtype
        start, end = jnp.asarray(param).astype(wide), clean.astype(wide)
        target = end + noise.astype(wide)
        perturbing = stored(target, dtype).astype(wide) - start
        # Two equal infinities have no difference.
        denoising = jnp.where(end == start, 0, end - start)
        fits = is_in_range(target, dtype)
        return stored(jnp.where(fits, perturbing, denoising), dtype)

    return map_leaves(change, params, steps, clean, old, noise)


def _noise_after(params: Params, changes: Any, clean: Params, old: Params) -> Params:
    """The noise in the loop's next parameters, including their rounding."""

    def difference(param, change, clean, old):
        if old is None:
            return None
        held = stored(jnp.asarray(optax.apply_updates(param, change)), clean.dtype)
        difference = held.astype(old.dtype) - clean.astype(old.dtype)
        is_number = difference == difference
        return jnp.where(is_number, difference, 0)

    return map_leaves(difference, params, changes, clean, old)


def _zeros(params: Params) -> Params:
    """Zeros like the parameters, in float32 or wider."""
    return jax.tree.map(
        lambda leaf: jnp.zeros_like(leaf, accumulator_dtype(jnp.result_type(leaf))),
        params,
    )


def _in_dtypes_of(old: optax.OptState, new: optax.OptState) -> optax.OptState:
    """The new state in the dtypes of the old one, whatever those of the gradients."""

    def cast(new, old):
        dtype = jnp.result_type(old)
        return new if jnp.result_type(new) == dtype else jnp.asarray(new).astype(dtype)

    return jax.tree.map(cast, new, old)


def _running_mean(mean: Params, grads: optax.Updates, count: Any) -> Params:
    """The mean of `count + 1` gradients, from the mean of `count` and the next one."""

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


def _require_independent(noise: Noise, key: jax.Array, params: Params) -> None:
    """Requires noise that does not depend on the values of the parameters."""
    step = jnp.zeros([], jnp.int32)
    if reads_its_input(lambda params: noise(key, params, step), params):
        raise ValueError(
            "keep_noise=False draws the noise again at perturbed parameters, so it must"
            " not depend on their values, as noise relative to weights, filters or"
            " layers does; keep the noise, or choose relative_to=None"
        )


def _noise_of(state: SmoothoutState, given: dict[Any, Any]) -> Params:
    """The noise in the parameters given by path, kept or drawn again."""
    noise = state.smoothout_noise
    if not isinstance(noise, _DrawnAgain):
        return noise

    def leaf_at(path, _):
        _require_leaf(given, path)
        _require_memory(state.smoothout_key_data, given[path])
        return given[path]

    params = jax.tree.map_with_path(
        leaf_at, noise.places, is_leaf=lambda node: isinstance(node, _Place)
    )
    noise_in = noise.draws.noise_in
    for _ in range(jnp.ndim(state.smoothout_step)):
        noise_in = jax.vmap(noise_in)  # over runs side by side
    return noise_in(state, params)


def _found(state: Any) -> list[SmoothoutState]:
    """The states of `smoothout` in a tree; raises ValueError if there is none."""

    def is_smoothout(node):
        return isinstance(node, SmoothoutState)

    found = list(filter(is_smoothout, jax.tree.leaves(state, is_leaf=is_smoothout)))
    if not found:
        raise ValueError(
            "state holds no state of smoothout; pass the optimizer's state, as it came"
            f" from init or update, got {_checks.describe(state)}"
        )
    return found


def _require_leaf(given: dict[Any, Any], path: Any, noise: Any = None) -> None:
    """Requires the noise's leaf, in the noise's shape and memory."""
    leaf = given.get(path)
    if leaf is None or (noise is not None and jnp.shape(leaf) != noise.shape):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        shape = "" if noise is None else f" of shape {noise.shape}"
        below = {other[0] for other in given if other[1:] == path}
        hint = "".join(f"; pass params{jax.tree_util.keystr((k,))}" for k in below)
        raise ValueError(
            "state belongs to other parameters: params has no leaf"
            f" {name!r}{shape}{hint}"
        )
    if noise is not None:
        _require_memory(noise, leaf)


def _require_memory(kept: Any, leaf: Any) -> None:
    """Requires an array of the state in the same memory as a leaf of the parameters."""
    if any(is_traced(each) or not isinstance(each, jax.Array) for each in (kept, leaf)):
        return
    its, others = kept.sharding.memory_kind, leaf.sharding.memory_kind
    if its != others:
        raise ValueError(
            f"state is in memory {its!r} and params in {others!r}: move the state to"
            " the parameters' memory first, as jax.device_put does"
        )
