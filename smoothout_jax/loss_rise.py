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
from smoothout_jax._trees import Params, accumulator_dtype, leaves_or_none, total
from smoothout_jax.noise import Size, at_step

# Of the running means, a step.
DECAY = 0.98
# The scale of the first noise, and the factor by which it may grow in a step, so that
# noise of a strength not seen before does not come at once.
START, GROWTH = 0.1, 1.05
# So that a scale, however small, can be told from no noise.
LEAST = 1e-12
# Of the target: no rise counts as less or more, so that one bad batch can neither set
# the noise free nor silence it for hundreds of steps.
LEAST_SEEN, MOST_SEEN = -10, 100


class LossRiseState(NamedTuple):
    """State of a rise that is held; all scalars, float32 but for the step.

    Attributes:
        noise_scale: the factor in [0, 1] that the noise in use is multiplied by.
        loss_rise_estimate: mean rise of the loss in the last steps, about 50 of them,
            in the units of the loss; none counts as more than 100 times the target.
        rise_per_square: mean of the rise over the square of the scale.
        rise_weight: weight of these means, the sum of the scales' squares.
        rise_step: number of gradients so far, int32.
    """

    noise_scale: jax.Array
    loss_rise_estimate: jax.Array
    rise_per_square: jax.Array
    rise_weight: jax.Array
    rise_step: jax.Array


def init_loss_rise() -> LossRiseState:
    """The state before the first step, when nothing is known yet.

    `smoothout_value_and_grad` with a `loss_rise` starts from it.
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
        growth = GROWTH ** (1 / self.copies)
        most = jnp.clip(growth * state.noise_scale, START, 1)
        scale = jnp.clip(jnp.sqrt(held), LEAST, most)
        scale = jnp.where(target > 0, scale, 0)
        # When the noise weakens, the rises seen so far keep their mean, but weigh only
        # as much as if their noise had been that weak, or they would last too long.
        old = state.noise_scale
        weaker = (scale > 0) & (scale < old)
        ratio = jnp.where(weaker, scale / jnp.where(weaker, old, 1), 1)
        return state._replace(
            noise_scale=scale, rise_weight=state.rise_weight * jnp.square(ratio)
        )

    def observed(self, state: LossRiseState, rise: jax.Array) -> LossRiseState:
        """The state after a gradient under that noise, and the rise that it showed.

        A rise that is not finite is not counted.
        """
        square, curvature = jnp.square(state.noise_scale), state.rise_per_square
        seen = (square > 0) & jnp.isfinite(rise)
        # Stronger noise gives a more reliable estimate, so it weighs more.
        weight = DECAY ** (1 / self.copies) * state.rise_weight
        weight += jnp.where(seen, square, 0)
        share = jnp.where(seen, 1 / jnp.where(seen, weight, 1), 0)
        target = self._now(state)
        rise = jnp.clip(
            jnp.where(seen, rise, 0), LEAST_SEEN * target, MOST_SEEN * target
        )
        excess = rise - square * curvature
        estimate = state.loss_rise_estimate
        return state._replace(
            loss_rise_estimate=estimate + share * square * (rise - estimate),
            rise_per_square=curvature + share * excess,
            rise_weight=weight,
            rise_step=optax.safe_increment(state.rise_step),
        )

    def _now(self, state: LossRiseState) -> jax.Array:
        """The target of the step; 0 if a schedule is not finite."""
        step = state.rise_step // self.copies
        target = jnp.asarray(at_step("loss_rise", self.target, step), jnp.float32)
        return jnp.where(jnp.isfinite(target), target, 0)


def rise_of(noise: Params, grads: optax.Updates) -> jax.Array:
    """½⟨ε, ∇f(θ + ε)⟩, float32, of the noise and the gradients at θ + ε.

    Leaves of the noise that are `None` or not floating do not count.
    """
    trees = (leaves_or_none(tree) for tree in (noise, grads))
    products = [
        _product(jnp.asarray(added), jnp.asarray(grad))
        for added, grad in zip(*trees, strict=True)
        if added is not None and _checks.is_inexact(added)
    ]
    return 0.5 * total(products)


def _product(noise: jax.Array, grad: jax.Array) -> jax.Array:
    if grad.shape != noise.shape:
        raise ValueError(
            "loss_rise needs gradients like params; got one of shape"
            f" {grad.shape} for a parameter of shape {noise.shape}"
        )
    wide = accumulator_dtype(noise.dtype)
    # As JAX has the gradient of a complex weight, without a conjugate.
    return (noise.astype(wide) * grad.astype(wide)).real


def scaled(noise: Params, scale: jax.Array) -> Params:
    """The noise times a factor, in float32 at least."""

    def scale_leaf(leaf):
        if not _checks.is_inexact(leaf):
            return leaf
        wide = accumulator_dtype(jnp.result_type(leaf))
        return jnp.asarray(leaf, wide) * scale.astype(wide)

    return jax.tree.map(scale_leaf, noise)


def require_rise(name: str, held: Any, given: LossRiseState | None) -> None:
    """Requires a state with the rise if it is held, and without if not."""
    if (held is None) != (given is None):
        made, takes = ("without", "with") if given is None else ("with", "without")
        raise ValueError(
            f"state was made {made} loss_rise, but {name} is {takes} it: take the state"
            " from its own init"
        )
