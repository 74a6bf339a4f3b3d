"""Values and gradients averaged over perturbed copies of the network.

SmoothOut minimises the mean of the loss over noise added to the parameters::

    f_a(θ) = E[f(θ + ε)],   ∇f_a(θ) = E[∇f(θ + ε)],

and estimates both from `num_copies` perturbed copies of the network. One copy per step
is Stochastic SmoothOut; the authors' program splits the batch between several copies,
which costs one gradient over the batch.

Reference:
    Wen et al., `SmoothOut: Smoothing Out Sharp Minima to Improve Generalization in
    Deep Learning <https://arxiv.org/abs/1805.07898>`_, 2018.
"""

from collections.abc import Callable
from typing import Any, Concatenate, NamedTuple, TypeVar, Unpack, overload

import jax
import jax.numpy as jnp
import numpy as np
import optax

from smoothout_jax import _checks
from smoothout_jax._copies import Copies
from smoothout_jax._keys import fold, implementation, key_data
from smoothout_jax._options import CopyOptions, SharedOptions, SmoothOptions, takes
from smoothout_jax._trees import Params, require_like
from smoothout_jax.loss_rise import LossRiseState, Rise, init_loss_rise, require_rise
from smoothout_jax.noise import Noise

__all__ = [
    "CopyOptions",
    "SharedOptions",
    "SmoothGradientsState",
    "SmoothOptions",
    "smooth",
    "smooth_gradients",
    "smoothout_value_and_grad",
]

NO_GRAD_FN = """\
smooth_gradients takes the gradients itself, so update needs params and a grad_fn:

    grad_fn = jax.grad(lambda params, copy: loss(params, batch))
    updates, state = optimizer.update(grads, state, params, grad_fn=grad_fn)
"""

P = TypeVar("P")
Fun = Callable[..., Any]
# Functions of a key and parameters, after the state of the rise if one is held.
ValueAndGrad = Callable[Concatenate[jax.Array, P, ...], tuple[Any, P]]
HeldValueAndGrad = Callable[
    Concatenate[LossRiseState, jax.Array, P, ...],
    tuple[tuple[Any, P], LossRiseState],
]


@takes(SmoothOptions)
def smooth(
    fun: Fun, noise: Noise, **options: Unpack[SmoothOptions]
) -> Callable[Concatenate[jax.Array, Any, ...], Any]:
    """Averages a function over noise in its parameters: an estimate of f_a.

    Args:
        fun: function `fun(params, *args, **kwargs)` to a scalar, or any tree of
            floating arrays; to `(value, aux)` with `has_aux`.
        noise: the law of the noise, such as `uniform(0.01)`.
        **options: those of `smoothout_jax.gradients.SmoothOptions` and
            `SharedOptions`.

    Returns:
        The function `smoothed(key, params, *args, **kwargs)` to the mean value, or to
        `(value, aux)`. It can be differentiated, but `smoothout_value_and_grad` uses
        less memory: unless copies run together (`execution="vmap"`), it never holds the
        intermediate values of two copies at once.

    Raises:
        TypeError, ValueError: as for `smoothout_value_and_grad`.

    Example:
        The mean of w² over a box of half-width a around w is w² + a²/3:

        >>> import jax, jax.numpy as jnp
        >>> from smoothout_jax import smooth, uniform
        >>> f_a = smooth(jnp.square, uniform(3.0), num_copies=10_000, execution="vmap")
        >>> print(f"{f_a(jax.random.key(0), jnp.array(2.0)):.0f}")
        7
    """
    copies = Copies(noise=noise, **options)
    _checks.loss(fun=fun)

    def smoothed(key: jax.Array, params: Any, /, *args: Any, **kwargs: Any) -> Any:
        _checks.prng_key(key)

        def outputs_of(params, noise, *args):
            outputs = fun(params, *args, **kwargs)
            return outputs if copies.has_aux else (outputs, None)

        outputs = copies.mean(outputs_of, key, params, args)
        return outputs if copies.has_aux else outputs[0]

    return smoothed


@overload
def smoothout_value_and_grad(
    fun: Fun, noise: Noise, *, loss_rise: None = None, **options: Unpack[SmoothOptions]
) -> ValueAndGrad[P]: ...
@overload
def smoothout_value_and_grad(
    fun: Fun, noise: Noise, *, loss_rise: Rise, **options: Unpack[SmoothOptions]
) -> HeldValueAndGrad[P]: ...
@takes(SmoothOptions)
def smoothout_value_and_grad(
    fun: Fun,
    noise: Noise,
    *,
    loss_rise: Rise | None = None,
    **options: Unpack[SmoothOptions],
) -> ValueAndGrad[Any] | HeldValueAndGrad[Any]:
    """Value and gradient averaged over perturbed copies of the parameters.

    The counterpart of `jax.value_and_grad` for SmoothOut. The value estimates the mean
    loss f_a, the gradient is an unbiased estimate of ∇f_a, and the parameters
    themselves stay clean, so there is nothing to de-noise.

    Args:
        fun: loss `fun(params, *args, **kwargs)` to a scalar, or to `(loss, aux)` with
            `has_aux`.
        noise: the law of the noise, such as `uniform(0.01)`, or any function
            `noise(key, params, step=None)` to a tree like the parameters.
        loss_rise: the rise δ of the loss that the noise may cause, as for `smoothout`:
            the given noise is the largest, and is scaled to hold the rise at δ. The
            function then takes a state first and returns the next one last:
            `(value, grads), rise = fn(rise, key, params, *args, **kwargs)`. Start with
            `init_loss_rise(loss_rise)`.
        **options: those of `smoothout_jax.gradients.SmoothOptions` and
            `SharedOptions`.

    Returns:
        The function `fn(key, params, *args, **kwargs)` to `(value, grads)`, or
        `((value, aux), grads)`, with the gradients in the structure and dtypes of the
        parameters.

    Raises:
        TypeError: if `fun` or `noise` is not a function, a count is not an integer, or
            an option is unknown; from the function, if the loss is not a real scalar.
        ValueError: if an option is out of its range, or two exclude each other; from
            the function, if a batch does not divide between the copies, a
            `copy_argnums` argument does not have one slice for each, or several copies
            would average the fp8 scales of Flax's `_overwrite_with_gradient`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from smoothout_jax import smoothout_value_and_grad, uniform
        >>> def loss(params, x, y):
        ...     return jnp.mean((x @ params["w"] - y) ** 2)
        >>> value_and_grad = jax.jit(smoothout_value_and_grad(
        ...     loss, uniform(0.01), num_copies=4, batch_argnums=(1, 2)))
        >>> params = {"w": jnp.ones(3)}
        >>> x, y = jnp.ones((8, 3)), jnp.zeros(8)
        >>> value, grads = value_and_grad(jax.random.key(0), params, x, y)
        >>> print(f"{value:.1f}", {name: g.shape for name, g in grads.items()})
        9.0 {'w': (3,)}

        With noise as strong as a rise of the loss of 0.1 allows:

        >>> from smoothout_jax import init_loss_rise
        >>> value_and_grad = jax.jit(smoothout_value_and_grad(
        ...     loss, uniform(1.0), num_copies=2, antithetic=True, loss_rise=0.1))
        >>> rise = init_loss_rise()
        >>> for key in jax.random.split(jax.random.key(0), 100):
        ...     (value, grads), rise = value_and_grad(rise, key, params, x, y)
        >>> print(f"{rise.noise_scale:.1f} {rise.loss_rise_estimate:.1f}")
        0.3 0.1

    References:
        Wen et al., 2018: SmoothOut and Stochastic SmoothOut.

        Li et al., `Revisiting Random Weight Perturbation for Efficiently Improving
        Generalization <https://arxiv.org/abs/2404.00357>`_, 2024: `clean_weight`.
    """
    copies = Copies(noise=noise, loss_rise=loss_rise, **options)
    _checks.loss(fun=fun)
    plain = jax.value_and_grad(fun, has_aux=copies.has_aux)

    def averaged(rise, key, params, args, kwargs) -> tuple[Any, Any]:
        _checks.prng_key(key)

        def of_copy(params, *args):
            outputs, grads = plain(params, *args, **kwargs)
            value, aux = outputs if copies.has_aux else (outputs, None)
            return (value, grads), aux

        mean, aux, rise = copies.mean_gradients(of_copy, rise, key, params, args)
        value, grads = mean
        return ((value, aux) if copies.has_aux else value, grads), rise

    def value_and_grad(key: jax.Array, params: Any, /, *args: Any, **kwargs: Any):
        return averaged(None, key, params, args, kwargs)[0]

    def held(
        rise: LossRiseState, key: jax.Array, params: Any, /, *args: Any, **kwargs: Any
    ):
        if not isinstance(rise, LossRiseState):
            raise TypeError(
                "rise must be the state that init_loss_rise, or the previous call,"
                " returned, and come before key and params; got"
                f" {_checks.describe(rise)}"
            )
        require_rise("smoothout_value_and_grad", loss_rise, rise)
        return averaged(rise, key, params, args, kwargs)

    return value_and_grad if loss_rise is None else held


class SmoothGradientsState(NamedTuple):
    """State of `smooth_gradients`.

    Attributes:
        smooth_gradients_key_data: data of the PRNG key; each step folds its number in.
        smooth_gradients_step: number of updates, int32.
        smooth_gradients_rise: how strong the noise is, with `loss_rise`.
    """

    smooth_gradients_key_data: jax.Array
    smooth_gradients_step: jax.typing.ArrayLike
    smooth_gradients_rise: LossRiseState | None = None


@takes(CopyOptions)
def smooth_gradients(
    noise: Noise, *, key: jax.Array | int, **options: Unpack[CopyOptions]
) -> optax.GradientTransformationExtraArgs:
    """Replaces the gradients with gradients averaged over perturbed copies.

    Put it first in a chain: it drops the updates that it is given. Each update calls
    `grad_fn(params, copy)` at the perturbed parameters of every copy, as
    `optax.contrib.sam` calls its own. The parameters themselves stay clean. `copy` is
    the number of the copy: an integer under `execution="unroll"`, otherwise traced. The
    clean copy has the number `num_copies`.

    Args:
        noise: the law of the noise, such as `uniform(0.01)`. A schedule of its radius
            is called with the number of updates.
        key: PRNG key of the noise, typed or raw, or an integer seed.
        **options: those of `smoothout_jax.gradients.CopyOptions` and `SharedOptions`.

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
    copies = Copies(noise=noise, copy_argnums=1, **options)
    key = _checks.key_or_seed(key)

    def init(params: Params) -> Any:
        _checks.arrays(params=params)
        held = copies.loss_rise
        rise = None if held is None else init_loss_rise(held)
        return SmoothGradientsState(key_data(key), jnp.zeros([], jnp.int32), rise)

    def update(
        updates: optax.Updates,
        state: Any,
        params: Params | None = None,
        *,
        grad_fn: Any = None,
        **_: Any,
    ) -> tuple[optax.Updates, Any]:
        if params is None or grad_fn is None:
            raise ValueError(NO_GRAD_FN)
        data, step, rise = state
        require_rise("smooth_gradients", copies.loss_rise, rise)

        def value_and_grad(params, copy):
            grads = grad_fn(params, copy)
            require_like(params, "what grad_fn returns", grads)
            return (None, grads), None

        step_key = fold(implementation(key), data, step)
        numbers = np.arange(copies.total)
        (_, grads), _, rise = copies.mean_gradients(
            value_and_grad, rise, step_key, params, [numbers], step
        )
        return grads, SmoothGradientsState(data, optax.safe_increment(step), rise)

    return optax.GradientTransformationExtraArgs(init, update)
