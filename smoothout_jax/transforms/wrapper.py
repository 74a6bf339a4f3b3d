"""`smoothout`: an optimizer wrapped, the training loop left as it is."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from smoothout_jax import _checks
from smoothout_jax._trees import Params, accumulator_dtype, add_noise
from smoothout_jax.loss_rise import LossRise, init_loss_rise, require_rise, rise_of
from smoothout_jax.noise import Noise, Size
from smoothout_jax.transforms.following import fingerprint, rounded
from smoothout_jax.transforms.state import (
    NO_PARAMS,
    Noises,
    SmoothoutState,
    fresh,
    key_data_of,
    require_independent,
    warn_of_lost_noise,
)


def smoothout(
    optimizer: optax.GradientTransformation,
    noise: Noise,
    *,
    key: jax.Array | int,
    num_copies: int = 1,
    keep_clean: bool = True,
    loss_rise: Size | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Trains with SmoothOut, in the training loop you have.

    The parameters the loop holds are perturbed ones, so the gradient it computes is
    SmoothOut's. Each update de-noises, lets `optimizer` update the clean parameters,
    which weight decay, trust ratios and the like see, and perturbs again. The clean
    parameters are kept, not recomputed, so nothing drifts; evaluate and save those:
    `smoothout_eval_params(state, params)`. The first gradient is at the initial
    parameters themselves.

    Make it the last link of a chain: it writes the loop's parameters, and a link behind
    it would distort the noise. Clipping goes before it, or into `optimizer`, where it
    sees the mean gradient of the copies.

    The loop's parameters remain yours. If they come back changed, by weights loaded
    after `init`, a reset or a projection, the clean parameters move by the same
    difference; at the first update they are what you set. Where nothing changed they
    keep their bits.

    Args:
        optimizer: the Optax optimizer of the clean parameters.
        noise: the law of the noise, such as `uniform(0.01)`. A schedule of its radius
            gets the number of updates of the clean parameters.
        key: PRNG key of the noise, typed or raw, or an integer seed. Runs under
            `jax.vmap` over seeds take a key each; so do transformations side by side in
            `optax.multi_transform`.
        num_copies: number M of perturbed gradients averaged into one update: the
            optimizer runs once in M calls. `optax.MultiSteps` around `smoothout` would
            repeat the same noise, since it keeps its inner state for its micro-steps.
        keep_clean: whether the state holds the clean parameters. Without, their memory
            is saved: the noise is drawn again from its key and subtracted, as Flat-LoRA
            does. The noise must then not depend on the parameters' values, as noise
            relative to them does, and each update rounds the parameters twice more:
            they drift, in half precision by much, as docs/scaling.md shows.
        loss_rise: the rise δ of the loss that the noise may cost, in the units of the
            loss, such as 0.1 nats: the noise given is then the largest, and is scaled
            so that the loss rises by δ under it, as read off the gradients. A number
            of at least 0, a traced scalar, or a schedule of the number of updates.
            `optax.tree.get(state, "noise_scale")` is the factor in use, and
            `"loss_rise_estimate"` the mean rise in the last 50 steps. The gradients
            must be those of the loss: put clipping and weight decay into `optimizer`
            rather than before `smoothout`, and unscale scaled losses first.

    Returns:
        The `optax.GradientTransformationExtraArgs`. Its `update` needs the parameters,
        and hands further keyword arguments on to `optimizer`.

    Raises:
        TypeError: if `optimizer`, `noise`, `key` or `num_copies` is of another type;
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
    _check_optimizer(optimizer)
    _checks.function("such as smoothout_jax.uniform(0.01)", noise=noise)
    _checks.count(num_copies=num_copies)
    _checks.choice((True, False), keep_clean=keep_clean)
    wrapper = _Wrapper(
        optax.with_extra_args_support(optimizer),
        Noises(noise, _checks.key_or_seed(key), num_copies),
        keep_clean,
        None if loss_rise is None else LossRise(loss_rise, num_copies),
    )
    return optax.GradientTransformationExtraArgs(wrapper.init, wrapper.update)


@dataclasses.dataclass(frozen=True)
class _Wrapper:
    """The two functions of the transformation, and what they share."""

    optimizer: optax.GradientTransformationExtraArgs
    noises: Noises
    keep_clean: bool
    rise: LossRise | None

    def init(self, params: Params) -> Any:
        _checks.arrays(params=params)
        warn_of_lost_noise(self.noises.noise, self.noises.key, params)
        if not self.keep_clean and jax.tree.leaves(params):
            require_independent(self.noises.noise, self.noises.key, params)
        clean = jax.tree.map(fresh, params)
        told = clean if self.keep_clean else optax.tree.zeros_like(clean)
        return SmoothoutState(
            clean_params=clean if self.keep_clean else None,
            smoothout_key_data=key_data_of(self.noises.key),
            smoothout_step=jnp.zeros([], jnp.int32),
            smoothout_copy=jnp.zeros([], jnp.int32),
            gradient_mean=self._no_gradient(params),
            smoothed_state=self.optimizer.init(params),
            smoothout_fingerprint=fingerprint(told),
            smoothout_rise=None if self.rise is None else init_loss_rise(),
        )

    def update(
        self,
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
        require_rise("smoothout", self.rise, state.smoothout_rise)
        clean, state = self._step(updates, state, params, extra_args)
        if self.rise is not None and state.smoothout_rise is not None:
            held = self.rise.scaled(state.smoothout_rise)
            state = state._replace(smoothout_rise=held)
        added = self.noises.draw(state, clean)
        changes = rounded(optax.tree.sub(add_noise(clean, added), params))
        told = added
        if self.keep_clean:
            told = rounded(optax.apply_updates(params, changes))
        return changes, state._replace(
            clean_params=clean if self.keep_clean else None,
            smoothout_fingerprint=fingerprint(told),
        )

    def _step(
        self, grads, state: SmoothoutState, params, extra_args
    ) -> tuple[Params, SmoothoutState]:
        """The next clean parameters, and the state without them."""
        copies = self.noises.num_copies
        clean, state = self._look(grads, state, params)
        stepped = optax.safe_increment(state.smoothout_step)

        def optimize(grads):
            steps, inner = self.optimizer.update(
                grads, state.smoothed_state, clean, **extra_args
            )
            moved = rounded(optax.apply_updates(clean, steps))
            return moved, _in_dtypes_of(state.smoothed_state, inner)

        if copies == 1:
            clean, inner = optimize(grads)
            return clean, state._replace(smoothout_step=stepped, smoothed_state=inner)
        mean = _running_mean(state.gradient_mean, grads, state.smoothout_copy)
        last = state.smoothout_copy == copies - 1
        clean, inner = jax.lax.cond(
            last,
            lambda: optimize(optax.tree.cast_like(mean, grads)),
            lambda: (clean, state.smoothed_state),
        )
        return clean, state._replace(
            smoothout_step=jnp.where(last, stepped, state.smoothout_step),
            smoothout_copy=jnp.where(last, 0, state.smoothout_copy + 1),
            gradient_mean=mean,
            smoothed_state=inner,
        )

    def _look(self, grads, state, params) -> tuple[Params, SmoothoutState]:
        """The clean parameters, and the state with what the gradients show of them."""
        held = state.smoothout_rise
        if self.rise is None or held is None:
            return self.noises.clean(state, params)[0], state
        clean, rise = self.noises.clean(
            state,
            params,
            self.rise.is_due(held),
            lambda clean: rise_of(clean, params, grads),
        )
        observed = self.rise.observed(held, rise)
        return clean, state._replace(smoothout_rise=observed)

    def _no_gradient(self, params: Params) -> Params | None:
        """Zeros to average gradients in, if there are several."""
        if self.noises.num_copies == 1:
            return None
        return jax.tree.map(
            lambda p: jnp.zeros_like(p, accumulator_dtype(jnp.result_type(p))), params
        )


def _check_optimizer(optimizer: Any) -> None:
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(
            "optimizer must be an optax.GradientTransformation, such as optax.sgd(0.1);"
            f" got {_checks.describe(optimizer)}"
        )


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
