r"""How strong the noise is: as strong as a given rise of the loss allows.

Noise of mean zero raises the loss by

    E f(θ + ε) - f(θ) = ½ E⟨ε, ∇f(θ + ε)⟩ + O(ε⁴),

by the trapezoid rule along the line from θ to θ + ε; the term at the clean end has mean
zero. A training step computes both factors anyway, so the rise costs one dot product.
It grows with the square of the noise: if the noise is multiplied by a scale s, and c is
the mean of ½⟨ε, ∇f(θ + ε)⟩ / s² over the last steps, s = √(δ / c) holds the rise at δ.

The right rise follows from the gap between held-out and training loss, which the noise
is meant to close: `heldout_gap` and `smoothout_report`.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from smoothout_jax import _checks
from smoothout_jax._trees import Params, accumulator_dtype, leaves_or_none, total
from smoothout_jax.noise import Size, at_step

# Decay of the running means in each step.
DECAY = 0.98
# The scale of the first noise, and the factor by which it may grow in a step, so that
# strong noise does not set in abruptly.
START, GROWTH = 0.1, 1.05
# The smallest scale, so that zero means no noise.
LEAST = 1e-12
# Rises are clipped to these multiples of the target, so that one bad batch can neither
# release the noise nor silence it for hundreds of steps.
LEAST_SEEN, MOST_SEEN = -10, 100
# How far a report moves the target towards the share of the gap.
GAP_STEP = 0.2


class LossGapState(NamedTuple):
    """The reported losses of a network; all scalars, float32.

    Attributes:
        gap_share: the ratio of the rise to the gap.
        loss_gap: held-out minus training loss in the last report, at least 0.
        least_heldout_loss: the lowest held-out loss reported so far.
    """

    gap_share: jax.Array
    loss_gap: jax.Array
    least_heldout_loss: jax.Array


class LossRiseState(NamedTuple):
    """State of `loss_rise`; all scalars, float32 except for the step.

    Attributes:
        noise_scale: the factor in [0, 1] by which the current noise is multiplied.
        loss_rise_estimate: mean rise of the loss over about the last 50 steps, in the
            units of the loss; each is clipped to -10 to 100 times its target, and
            weighted by the square of its scale.
        rise_per_square: mean, weighted likewise, of the rise divided by the square of
            the scale.
        rise_weight: weight of these means: the sum of the squares of the scales, which
            decays by 2 % a step, and with the square of a scale that falls.
        rise_step: number of gradients so far, int32.
        loss_rise_target: the rise that the noise should cause.
        gap_state: the gap that the target follows with `heldout_gap`; else `None`.
    """

    noise_scale: jax.Array
    loss_rise_estimate: jax.Array
    rise_per_square: jax.Array
    rise_weight: jax.Array
    rise_step: jax.Array
    loss_rise_target: jax.Array
    gap_state: LossGapState | None = None


@dataclasses.dataclass(frozen=True)
class HeldoutGap:
    """A rise that follows the reported losses; made by `heldout_gap`."""

    share: jax.typing.ArrayLike
    start: jax.typing.ArrayLike

    def __post_init__(self):
        _checks.nonnegative(share=self.share, start=self.start)


Rise = Size | HeldoutGap


def heldout_gap(
    share: jax.typing.ArrayLike = 0.5, start: jax.typing.ArrayLike = 0.0
) -> HeldoutGap:
    """A `loss_rise` that follows the gap between held-out and training loss.

    The noise should keep a network from memorising its training data, and the gap shows
    how much it has memorised. The rise follows a share of the gap, so that a growing
    gap brings stronger noise, which narrows it. Report both losses, once an epoch or
    so, to `smoothout_report`. Each report moves the rise a fifth of the way to that
    share, but never up while the held-out loss reaches a new minimum, since a network
    that is still improving needs no more noise.

    Args:
        share: the ratio of the rise to the gap, at least 0; may be traced. A larger
            share helps more where many labels are wrong, and slows learning where
            little can be learned.
        start: the rise before the first report, in the units of the loss, at least 0;
            may be traced.

    Returns:
        The `loss_rise` of `smoothout`, `smoothout_value_and_grad`, `smooth_gradients`
        and `init_loss_rise`.

    Raises:
        TypeError, ValueError: if an argument is not a number, negative or not finite.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from smoothout_jax import (
        ...     heldout_gap, smoothout, smoothout_metrics, smoothout_report, uniform)
        >>> optimizer = smoothout(
        ...     optax.sgd(0.1), uniform(1.0), key=0, loss_rise=heldout_gap())
        >>> params = jnp.ones(3)
        >>> state = optimizer.init(params)
        >>> for heldout_loss in (0.6, 0.7, 0.8, 0.9):
        ...     state = smoothout_report(
        ...         state, train_loss=0.1, heldout_loss=heldout_loss)
        ...     print(f"{smoothout_metrics(state)['loss_rise_target']:.2f}")
        0.00
        0.06
        0.12
        0.17
    """
    return HeldoutGap(share, start)


def init_loss_rise(loss_rise: Rise | None = None) -> LossRiseState:
    """The state before the first step of `smoothout_value_and_grad` with `loss_rise`.

    Args:
        loss_rise: the same `loss_rise`; needed only for `heldout_gap`.
    """
    # Each in its own buffer, so that it can be donated.
    target, gap = jnp.zeros([], jnp.float32), None
    if isinstance(loss_rise, HeldoutGap):
        target = jnp.array(loss_rise.start, jnp.float32)
        known = loss_rise.share, 0, jnp.inf
        gap = LossGapState(*(jnp.array(each, jnp.float32) for each in known))
    return LossRiseState(
        noise_scale=jnp.zeros([], jnp.float32),
        loss_rise_estimate=jnp.zeros([], jnp.float32),
        rise_per_square=jnp.zeros([], jnp.float32),
        rise_weight=jnp.zeros([], jnp.float32),
        rise_step=jnp.zeros([], jnp.int32),
        loss_rise_target=target,
        gap_state=gap,
    )


def smoothout_report(
    state: Any,
    *,
    train_loss: jax.typing.ArrayLike,
    heldout_loss: jax.typing.ArrayLike,
    chance_loss: jax.typing.ArrayLike | None = None,
) -> Any:
    """Reports the training and held-out loss to `heldout_gap`.

    Call it once an epoch or so, with both losses at the clean parameters, the training
    loss on a few hundred training examples, without augmentation and dropout. The gap
    is max(0, min(heldout_loss, chance_loss) - train_loss). A report with a loss that is
    not finite is ignored.

    Args:
        state: the optimizer's state, or any tree that contains it, such as a
            `TrainState`, or the state of the rise itself; it may be inside chains and
            wrappers.
        train_loss: mean loss on training data: a number, traced or not, or, for the
            stacked states of several runs, an array with one loss for each run.
        heldout_loss: mean loss on held-out data, likewise.
        chance_loss: loss of guessing, likewise: the log of the number of classes for
            cross entropy, the variance of the targets for squared error. It caps the
            held-out loss: a network that is confidently wrong has a far higher one,
            which would bring too much noise.

    Returns:
        A tree like `state`. The report updates every rise in it that `heldout_gap`
        controls.

    Raises:
        TypeError: if a loss is not a real number.
        ValueError: if `heldout_gap` controls no rise in the state, or a loss has
            another shape than the runs.
    """
    losses = {"train_loss": train_loss, "heldout_loss": heldout_loss}
    if chance_loss is not None:
        losses["chance_loss"] = chance_loss
    held = [rise for rise in _found(state) if rise.gap_state is not None]
    if not held:
        raise ValueError(
            "state holds no gap to report to: pass loss_rise=heldout_gap() to smoothout"
            f" (or to init_loss_rise); got {_checks.describe(state)}"
        )
    _checks.real(**losses)
    runs = jnp.shape(_array(held[0].noise_scale))
    for name, loss in losses.items():
        if jnp.shape(loss) not in ((), runs):
            raise ValueError(
                f"{name} must be a number, or of the shape of the runs, {runs}; got"
                f" shape {jnp.shape(loss)}"
            )
    train, *above = (jnp.asarray(loss, jnp.float32) for loss in losses.values())

    def report(node):
        if not _is_rise(node) or node.gap_state is None:
            return node
        # An optimizer of NNX wraps the arrays.
        leaves, boxed = jax.tree.flatten(node)
        gap = LossGapState(*leaves[-3:])
        rise = LossRiseState(*leaves[:-3], gap_state=gap)
        return boxed.unflatten(jax.tree.leaves(_reported(rise, gap, train, *above)))

    return jax.tree.map(report, state, is_leaf=_is_rise)


def _reported(
    state: LossRiseState,
    gap: LossGapState,
    train: jax.Array,
    heldout: jax.Array,
    chance: jax.Array | float = jnp.inf,
) -> LossRiseState:
    """The state after a report of finite losses."""
    now = jnp.maximum(jnp.minimum(heldout, chance) - train, 0)
    change = GAP_STEP * (gap.gap_share * now - state.loss_rise_target)
    learns = heldout < gap.least_heldout_loss
    change = jnp.where(learns, jnp.minimum(change, 0), change)
    least = jnp.minimum(heldout, gap.least_heldout_loss)
    new = state._replace(
        loss_rise_target=state.loss_rise_target + change,
        gap_state=LossGapState(gap.gap_share, now, least),
    )
    counts = jnp.isfinite(train) & jnp.isfinite(heldout) & (chance > -jnp.inf)
    return jax.tree.map(functools.partial(jnp.where, counts), new, state)


def smoothout_metrics(state: Any) -> dict[str, jax.Array]:
    """Metrics of the noise, for a log.

    Args:
        state: the optimizer's state, or any tree that contains it, with exactly one
            `loss_rise`; as for `smoothout_report`.

    Returns:
        `noise_scale`, the factor in [0, 1] of the current noise; `loss_rise_target` and
        `loss_rise_estimate`, the rise that it should cause and that it has caused in
        the last steps, in the units of the loss; and `loss_gap` with `heldout_gap`.
        Scalars, or arrays over runs.

    Raises:
        ValueError: if the state contains no `loss_rise`, or several.
    """
    rises = _found(state)
    if len(rises) != 1:
        raise ValueError(
            f"state must hold one loss_rise, as smoothout's does, but has {len(rises)};"
            f" got {_checks.describe(state)}"
        )
    names = "noise_scale", "loss_rise_target", "loss_rise_estimate"
    metrics = {name: _array(getattr(rises[0], name)) for name in names}
    gap = rises[0].gap_state
    return metrics if gap is None else metrics | {"loss_gap": _array(gap.loss_gap)}


def _is_rise(node: Any) -> bool:
    return isinstance(node, LossRiseState)


def _found(state: Any) -> list[LossRiseState]:
    """All states of a rise in a tree."""
    return list(filter(_is_rise, jax.tree.leaves(state, is_leaf=_is_rise)))


def _array(field: Any) -> jax.Array:
    """The array of a field, which an optimizer of NNX wraps."""
    (array,) = jax.tree.leaves(field)
    return array


@dataclasses.dataclass(frozen=True)
class LossRise:
    """Holds the rise of the loss under noise at a target.

    Attributes:
        target: the rise δ, in the units of the loss: a number of at least 0, a traced
            scalar, a schedule of the step, or a share of the gap.
        copies: number of gradients in a step, observed one after another.
    """

    target: Rise
    copies: int = 1

    def __post_init__(self):
        if not (callable(self.target) or isinstance(self.target, HeldoutGap)):
            _checks.nonnegative(loss_rise=self.target)

    def scaled(self, state: LossRiseState) -> LossRiseState:
        """The state with the scale of the next noise."""
        target, curvature = self._now(state), state.rise_per_square
        held = jnp.where(curvature > target, target / jnp.abs(curvature), 1)
        growth = GROWTH ** (1 / self.copies)
        most = jnp.clip(growth * state.noise_scale, START, 1)
        scale = jnp.clip(jnp.sqrt(held), LEAST, most)
        scale = jnp.where(target > 0, scale, 0)
        # When the noise weakens, the weight of all steps so far falls with the square
        # of the scale. Otherwise those under stronger noise would dominate the means
        # for too long.
        old = state.noise_scale
        weaker = (scale > 0) & (scale < old)
        ratio = jnp.where(weaker, scale / jnp.where(weaker, old, 1), 1)
        return state._replace(
            noise_scale=scale,
            rise_weight=state.rise_weight * jnp.square(ratio),
            loss_rise_target=target,
        )

    def observed(self, state: LossRiseState, rise: jax.Array) -> LossRiseState:
        """The state after a gradient under that noise, given its estimate of the rise.

        An estimate that is not finite is ignored.
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
        if isinstance(self.target, HeldoutGap):
            return state.loss_rise_target
        step = state.rise_step // self.copies
        target = jnp.asarray(at_step("loss_rise", self.target, step), jnp.float32)
        return jnp.where(jnp.isfinite(target), target, 0)


def rise_of(noise: Params, grads: optax.Updates) -> jax.Array:
    """½⟨ε, ∇f(θ + ε)⟩ in float32, for noise ε and the gradients at θ + ε.

    Skips leaves of the noise that are `None` or not floating.
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
    # No conjugate: JAX's gradient of a complex weight is conjugated already.
    return (noise.astype(wide) * grad.astype(wide)).real


def scaled(noise: Params, scale: jax.Array) -> Params:
    """The noise times a factor, in float32 or wider."""

    def scale_leaf(leaf):
        if not _checks.is_inexact(leaf):
            return leaf
        wide = accumulator_dtype(jnp.result_type(leaf))
        return jnp.asarray(leaf, wide) * scale.astype(wide)

    return jax.tree.map(scale_leaf, noise)


def require_rise(name: str, held: Any, given: LossRiseState | None) -> None:
    """Requires a rise, and a gap, in the state exactly if the function holds one."""
    if (held is None) != (given is None):
        made, takes = ("without", "with") if given is None else ("with", "without")
        raise ValueError(
            f"state was made {made} loss_rise, but {name} is {takes} it: take the state"
            " from its own init"
        )
    if given is not None and isinstance(held, HeldoutGap) != (
        given.gap_state is not None
    ):
        raise ValueError(
            f"state was made for another loss_rise than that of {name}: only one is"
            " heldout_gap(); take the state from its own init, or from"
            " init_loss_rise(loss_rise)"
        )
