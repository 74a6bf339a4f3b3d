"""The mean rise of the loss under noise, which SmoothOut lowers."""

import jax
import numpy as np

from smoothout_jax import _checks
from smoothout_jax._extras import progress
from smoothout_jax._trees import Params, add_noise
from smoothout_jax.noise import Noise
from smoothout_jax.sharpness.estimate import Estimate
from smoothout_jax.sharpness.objective import (
    Batches,
    Loss,
    as_partial,
    check_batches,
    check_function,
    finite,
    loss_arguments,
    mean_over_batches,
    real_scalar,
)


def expected_sharpness(
    loss: Loss,
    params: Params,
    noise: Noise,
    *,
    key: jax.Array | int,
    num_samples: int = 100,
    batches: Batches | None = None,
) -> Estimate:
    """Mean rise of the loss under noise, E f(θ + ε) - f(θ).

    This is what SmoothOut lowers. Of the measures that Bisla et al. tried, it predicts
    generalisation best. It makes one pass over the batches and redraws each sample's
    noise for every batch, so only one perturbed network is in memory at a time.

    Args:
        loss: `loss(params)` or `loss(params, batch)`, a real scalar.
        params: parameters θ.
        noise: the distribution of the noise ε, such as `uniform(0.5,
            relative_to="filter")`.
        key: PRNG key of the noise, or an integer seed. Networks measured with the same
            key get the same random numbers, so they can be compared in pairs.
        num_samples: number of noise samples; each costs one evaluation of the loss.
        batches: batches of the loss's second argument; may be an iterator.

    Returns:
        The estimate, in the units of the loss.

    Raises:
        TypeError: if the loss is not a real scalar, or an argument is of another type.
        ValueError: if there is no batch, `num_samples` is less than 1, or the loss at θ
            is not finite.

    Example:
        For f(w) = w², the rise is the variance of the noise, a²/3, whatever w is:

        >>> import jax, jax.numpy as jnp
        >>> from smoothout_jax import uniform
        >>> from smoothout_jax.sharpness import expected_sharpness
        >>> rise = expected_sharpness(
        ...     jnp.square, jnp.array(0.1), uniform(3.0), key=jax.random.key(0))
        >>> abs(rise.value - 3) < 3 * rise.standard_error
        True

    Reference:
        Bisla et al., 2022: the low-pass measure.
    """
    key = _checks.key_or_seed(key)
    _checks.count(num_samples=num_samples)
    check_function(noise, "key", "params", name="noise")
    check_batches(batches, passes=1)
    partial = as_partial(loss, *loss_arguments(batches))
    _checks.arrays(params=params)
    keys = jax.random.split(key, num_samples)

    def rises(*batch):
        clean = finite(float(_value(partial, batch, params)))
        samples = progress("samples of the noise", keys, num_samples)
        noisy = [float(_noisy_value(partial, noise, batch, params, k)) for k in samples]
        return np.array(noisy) - clean

    if batches is not None:
        batches = progress("expected sharpness", batches)
    return Estimate.from_samples(mean_over_batches(rises, batches))


@jax.jit
def _value(loss, batch, params):
    return real_scalar(loss(params, *batch))


@jax.jit(static_argnums=1)
def _noisy_value(loss, noise, batch, params, key):
    return real_scalar(loss(add_noise(params, noise(key, params)), *batch))
