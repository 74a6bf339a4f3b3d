"""How the noise grows: schedules of its radius, or of the rise of the loss.

A schedule is a function of the step, as in Optax, so those of `optax.schedules` work
too. These are the schedules of SmoothOut's and LPF-SGD's programs, and one for
`loss_rise`.

Reference:
    Wen et al., `SmoothOut <https://arxiv.org/abs/1805.07898>`_, 2018, and the authors'
    program.
"""

import jax
import jax.numpy as jnp
import optax

from smoothout_jax import _checks

# The final rise of the loss, in nats, and the epochs over which it grows.
LOSS_RISE, RISE_EPOCHS = 0.15, 50.0
# So that the rise does not outpace training with large batches.
LEAST_RISE_STEPS = 200


def anneal_schedule(init_value: float, decay: float = 0.55) -> optax.Schedule:
    """Noise that fades: `init_value · (1 + step)^(-decay / 2)`.

    Args:
        init_value: radius at step 0, at least 0.
        decay: exponent γ by which the variance of the noise decays, at least 0.

    Returns:
        The schedule of the radius.

    Raises:
        TypeError, ValueError: if an argument is not a finite number of at least 0.

    Example:
        >>> from smoothout_jax import anneal_schedule
        >>> print(f"{anneal_schedule(0.1, decay=1.0)(3):.3f}")
        0.050

    References:
        Wen et al., 2018: the `anneal` option of the authors' program.

        Neelakantan et al., `Adding Gradient Noise Improves Learning for Very Deep
        Networks <https://arxiv.org/abs/1511.06807>`_, 2015.
    """
    _checks.nonnegative(init_value=init_value, decay=decay)
    return lambda step: init_value * (1.0 + _real(step)) ** (-decay / 2)


def tanh_schedule(
    end_value: float, transition_steps: int, steepness: float = 10.0
) -> optax.Schedule:
    """Noise that sets in halfway: `end_value · (1 + tanh(s · (step / T - ½))) / 2`.

    Args:
        end_value: radius approached after step T, at least 0.
        transition_steps: number T of steps; after half of them, half the radius is
            reached.
        steepness: s, at least 0: the larger, the more abruptly it sets in. Halfway, the
            radius grows by s / 2 of `end_value` per T steps.

    Returns:
        The schedule of the radius. At step T it is `end_value / (1 + exp(-s))`, by
        default less than `end_value` by 5 in 10^5.

    Raises:
        TypeError, ValueError: if an argument is not a number or is out of range.

    Example:
        >>> from smoothout_jax import tanh_schedule
        >>> schedule = tanh_schedule(0.1, transition_steps=100)
        >>> [f"{schedule(step):.6f}" for step in (0, 50, 100)]
        ['0.000005', '0.050000', '0.099995']

    Reference:
        Wen et al., 2018: the `tanh` option of the authors' program.
    """
    _checks.nonnegative(end_value=end_value, steepness=steepness)
    _checks.count(transition_steps=transition_steps)
    return lambda step: (
        end_value
        * (1.0 + jnp.tanh(steepness * (_real(step) / float(transition_steps) - 0.5)))
        / 2
    )


def cosine_schedule(
    init_value: float, growth: float, transition_steps: int
) -> optax.Schedule:
    """Noise that grows: `init_value · (1 + (growth - 1)(1 - cos(π step / T)) / 2)`.

    Args:
        init_value: radius γ₀ at step 0, at least 0.
        growth: factor α by which the radius has grown at the end, at least 0.
        transition_steps: number T of steps of growth, after which the radius stays.

    Returns:
        The schedule of the radius.

    Raises:
        TypeError, ValueError: if an argument is not a number or is out of range.

    Example:
        >>> from smoothout_jax import cosine_schedule
        >>> schedule = cosine_schedule(5e-4, growth=15, transition_steps=100)
        >>> [f"{schedule(step):.4f}" for step in (0, 50, 100, 200)]
        ['0.0005', '0.0040', '0.0075', '0.0075']

    Reference:
        Bisla et al., `Low-Pass Filtering SGD for Recovering Flat Optima in the Deep
        Learning Optimization Landscape <https://arxiv.org/abs/2201.08025>`_, 2022.
    """
    _checks.nonnegative(init_value=init_value, growth=growth)
    _checks.count(transition_steps=transition_steps)

    def schedule(step):
        progress = jnp.minimum(_real(step) / float(transition_steps), 1.0)
        return init_value * (1 + (growth - 1) * (1 - jnp.cos(jnp.pi * progress)) / 2)

    return schedule


def rise_schedule(
    steps_per_epoch: int, *, loss_rise: float = LOSS_RISE, epochs: float = RISE_EPOCHS
) -> optax.Schedule:
    """A rise of the loss that grows over the epochs, for `loss_rise`.

    It grows from 0 over `epochs` epochs, by default by 0.003 nats an epoch, but over at
    least 200 steps, and then stays. It is meant for cross entropy, and for trainings
    that continue for many epochs after the network fits its images; over a few epochs
    it has almost no effect. Where labels are wrong, a fixed radius chosen on held-out
    labels helps more.

    Args:
        steps_per_epoch: updates in a pass over the training data, at least 1.
        loss_rise: the final rise, in nats, at least 0.
        epochs: passes over the training data during which it grows, at least 0.

    Returns:
        The schedule of the rise.

    Raises:
        TypeError, ValueError: if an argument is not a number or is out of range.

    Example:
        >>> from smoothout_jax import rise_schedule
        >>> schedule = rise_schedule(steps_per_epoch=100)
        >>> [f"{schedule(step):.2f}" for step in (0, 1000, 3000, 10_000)]
        ['0.00', '0.03', '0.09', '0.15']
    """
    _checks.count(steps_per_epoch=steps_per_epoch)
    _checks.nonnegative(loss_rise=loss_rise, epochs=epochs)
    steps = max(epochs * steps_per_epoch, LEAST_RISE_STEPS)
    growth = optax.linear_schedule(0.0, loss_rise, round(steps))
    return lambda step: growth(_real(step))


def _real(step) -> jax.Array:
    """The step as a floating-point number, in the working precision."""
    return jnp.asarray(step, float)
