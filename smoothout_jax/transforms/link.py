"""`smooth_gradients`: a link of a chain, with gradients of its own."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from smoothout_jax import _checks
from smoothout_jax._copies import Copies
from smoothout_jax._options import AxisNames, Execution
from smoothout_jax._trees import Params
from smoothout_jax.loss_rise import LossRiseState, init_loss_rise, require_rise
from smoothout_jax.noise import Noise, Size
from smoothout_jax.transforms.state import (
    NO_PARAMS,
    fold,
    key_data_of,
    warn_of_lost_noise,
)

NO_GRAD_FN = """smooth_gradients takes the gradients itself, so update needs a grad_fn:

    grad_fn = jax.grad(lambda params, copy: loss(params, batch))
    updates, state = optimizer.update(grads, state, params, grad_fn=grad_fn)
"""


class SmoothGradientsState(NamedTuple):
    """State of `smooth_gradients`.

    Attributes:
        smooth_gradients_key_data: data of the PRNG key, from which noise is folded.
        smooth_gradients_step: number of updates, int32.
        smooth_gradients_rise: how strong the noise is, if `loss_rise` is held; else
            `None`.
    """

    smooth_gradients_key_data: jax.Array
    smooth_gradients_step: jax.typing.ArrayLike
    smooth_gradients_rise: LossRiseState | None = None


def smooth_gradients(
    noise: Noise,
    *,
    key: jax.Array | int,
    num_copies: int = 1,
    antithetic: bool = False,
    clean_weight: float = 0.0,
    execution: Execution = "auto",
    chunk_size: int | None = None,
    axis_name: AxisNames = None,
    spmd_axis_name: AxisNames = None,
    loss_rise: Size | None = None,
    compute_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Replaces the gradients by gradients averaged over perturbed copies.

    The first link of a chain: whatever comes before it is dropped. Each update calls
    `grad_fn(params, copy)`, as `optax.contrib.sam` calls its own, at every copy's
    perturbed parameters, and the parameters stay clean throughout.

    Args:
        noise: the law of the noise, such as `uniform(0.01)`. A schedule of its radius
            gets the number of updates.
        key: PRNG key of the noise, typed or raw, or an integer seed.
        num_copies: number of perturbed copies.
        antithetic: as for `smoothout_value_and_grad`, like all that follow.
        clean_weight: weight of the gradient at the parameters themselves, taken by
            `grad_fn(params, num_copies)`.
        execution: how the copies run. The number of the copy that `grad_fn` gets is an
            integer under `"unroll"`, and traced under `"vmap"` and `"scan"`.
        chunk_size: copies vmapped together inside a scan.
        axis_name: the axis of devices that each draw noise of their own.
        spmd_axis_name: the mesh axis that the copies are laid over.
        loss_rise: the rise δ of the loss that the noise may cost, as for `smoothout`.
        compute_dtype: the dtype that `grad_fn` gets perturbed parameters in.

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
        loss_rise=loss_rise,
        compute_dtype=compute_dtype,
    )
    key = _checks.key_or_seed(key)

    def init(params: Params) -> Any:
        _checks.arrays(params=params)
        warn_of_lost_noise(noise, key, params)
        rise = None if loss_rise is None else init_loss_rise()
        return SmoothGradientsState(key_data_of(key), jnp.zeros([], jnp.int32), rise)

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
        key_data, step, rise = state
        require_rise("smooth_gradients", loss_rise, rise)

        def value_and_grad(params, copy):
            return (None, _checked_grads(grad_fn(params, copy), params)), None

        (_, grads), _, rise = copies.mean_gradients(
            value_and_grad,
            rise,
            fold(key, key_data, step),
            params,
            [np.arange(copies.total)],
            step,
        )
        return grads, SmoothGradientsState(key_data, optax.safe_increment(step), rise)

    return optax.GradientTransformationExtraArgs(init, update)


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
