r"""How strong the noise may be: as strong as the loss bears.

Noise of mean zero raises the loss by

    E f(θ + ε) - f(θ) = ½ E⟨ε, ∇f(θ + ε)⟩ + O(ε⁴),

the trapezoid rule along the line from θ to θ + ε, of whose two ends the clean one has
mean zero. A step has both factors, so the rise costs it a dot product. It grows with
the square of the noise: with c the mean of ½⟨ε, ∇f(θ + ε)⟩ / s² over the last steps,
where s is the scale that the noise was multiplied by, s = √(δ / c) holds the rise at δ.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from smoothout_jax import _checks
from smoothout_jax._trees import Params, accumulator_dtype
from smoothout_jax.noise import Noise, Size, at_step

# Of the running means, a step.
DECAY = 0.98
# The scale of the first noise, and the steps in which it may grow to 1.
START, WARMUP = 0.1, 50
# Steps between two looks at the rise after those, since a look reads three trees.
EVERY = 5
# So that a scale, however small, can be told from no noise.
LEAST = 1e-12
# Of the target: a rise counts as no more, so that one bad batch cannot silence the
# noise for hundreds of steps.
MOST_SEEN = 100


class LossRiseState(NamedTuple):
    """State of a rise that is held.

    Attributes:
        noise_scale: the factor in [0, 1] that the noise in use is multiplied by.
        loss_rise_estimate: mean rise of the loss in the last steps, about 50 of them,
            in the units of the loss.
        rise_per_square: mean of the rise over the square of the scale.
        rise_weight: weight of these means, the sum of the scales' squares.
        rise_step: number of gradients observed, int32.
    """

    noise_scale: jax.Array
    loss_rise_estimate: jax.Array
    rise_per_square: jax.Array
    rise_weight: jax.Array
    rise_step: jax.Array


def init_loss_rise() -> LossRiseState:
    """The state before the first step: nothing is known yet.

    It is what `smoothout_value_and_grad` with a `loss_rise` starts from.
    """
    return LossRiseState(
        noise_scale=jnp.zeros([], jnp.float32),
        loss_rise_estimate=jnp.zeros([], jnp.float32),
        rise_per_square=jnp.zeros([], jnp.float32),
        rise_weight=jnp.zeros([], jnp.float32),
        rise_step=jnp.zeros([], jnp.int32),
    )


@dataclasses.dataclass(frozen=True)
class LossRise:
    """Holds the rise of the loss under noise at a target.

    Attributes:
        target: the rise δ, in the units of the loss: a number of at least 0, a traced
            scalar, or a schedule of the step.
        copies: gradients observed in a step, one after another.
    """

    target: Size
    copies: int = 1

    def __post_init__(self):
        if not callable(self.target):
            _checks.nonnegative(loss_rise=self.target)

    def scaled(self, state: LossRiseState) -> LossRiseState:
        """The state with the scale of the next noise."""
        target, curvature = self._now(state), state.rise_per_square
        held = jnp.where(curvature > target, target / jnp.abs(curvature), 1)
        most = jnp.clip(state.rise_step / (WARMUP * self.copies), START, 1)
        scale = jnp.clip(jnp.sqrt(held), LEAST, most.astype(jnp.float32))
        return state._replace(noise_scale=jnp.where(target > 0, scale, 0))

    def is_due(self, state: LossRiseState) -> jax.Array:
        """Whether the next gradient should be looked at."""
        step = state.rise_step
        return (step < WARMUP * self.copies) | (step % EVERY == 0)

    def observed(self, state: LossRiseState, rise: jax.Array) -> LossRiseState:
        """The state after a gradient under that noise, and the rise that it showed.

        A rise that is not finite was not seen.
        """
        square, curvature = jnp.square(state.noise_scale), state.rise_per_square
        # A rise is the surer, the stronger its noise: its weight is the square of the
        # scale. Noise that was stronger than this one's counts as if it had been like
        # it, or its rises would be remembered for too long.
        decay = DECAY ** (1 / self.copies)
        most = square * decay / (1 - decay)
        weight = decay * state.rise_weight
        seen = (square > 0) & jnp.isfinite(rise)
        weight = jnp.where(seen, jnp.minimum(weight, most) + square, weight)
        share = jnp.where(seen, 1 / jnp.where(seen, weight, 1), 0)
        rise = jnp.where(seen, rise, 0)
        most = MOST_SEEN * self._now(state)
        excess = jnp.clip(rise, -most, most) - square * curvature
        estimate = state.loss_rise_estimate
        return state._replace(
            loss_rise_estimate=estimate + share * square * (rise - estimate),
            rise_per_square=curvature + share * excess,
            rise_weight=weight,
            rise_step=optax.safe_increment(state.rise_step),
        )

    def _now(self, state: LossRiseState) -> jax.Array:
        """The target of the step."""
        step = state.rise_step // self.copies
        return jnp.asarray(at_step("loss_rise", self.target, step), jnp.float32)


def scaled_noise(noise: Noise, scale: jax.Array) -> Noise:
    """The noise times a factor."""

    def scale_leaf(leaf):
        if not _checks.is_inexact(leaf):
            return leaf
        wide = accumulator_dtype(jnp.result_type(leaf))
        return (jnp.asarray(leaf, wide) * scale.astype(wide)).astype(leaf.dtype)

    def scaled(key: jax.Array, params: Params, *step: Any) -> Params:
        return jax.tree.map(scale_leaf, noise(key, params, *step))

    return scaled


def rise_of(params: Params, perturbed: Params, grads: optax.Updates) -> jax.Array:
    """½⟨ε, ∇f(θ + ε)⟩, float32, of the gradients at the perturbed parameters."""
    trees = map(jax.tree.leaves, (params, perturbed, grads))
    products = [
        _dot(jnp.asarray(noisy, clean.dtype), jnp.asarray(clean), jnp.asarray(grad))
        for clean, noisy, grad in zip(*trees, strict=True)
        if _checks.is_inexact(clean)
    ]
    return 0.5 * jnp.sum(jnp.asarray(products, jnp.float32))


def _dot(noisy, clean, grad) -> jax.Array:
    wide = accumulator_dtype(clean.dtype)
    # As JAX has the gradient of a complex weight, without a conjugate.
    product = (noisy.astype(wide) - clean.astype(wide)) * grad.astype(wide)
    return jnp.sum(product.real).astype(jnp.float32)
