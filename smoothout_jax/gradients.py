"""Where the gradient is taken: at perturbed copies of the network, averaged.

SmoothOut minimises the mean of the loss over noise added to the parameters::

    f_a(θ) = E[f(θ + ε)],   ∇f_a(θ) = E[∇f(θ + ε)],

and estimates both from `num_copies` perturbed copies of the network. One copy a step
is Stochastic SmoothOut; splitting the batch between the copies, each with noise of its
own, is what the authors' program does, at the cost of one gradient over the batch.

Reference:
    Wen et al., `SmoothOut: Smoothing Out Sharp Minima to Improve Generalization in
    Deep Learning <https://arxiv.org/abs/1805.07898>`_, 2018.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from smoothout_jax import _checks
from smoothout_jax._copies import Aux, Copies, Execution
from smoothout_jax._execution import AxisNames
from smoothout_jax._trees import Params
from smoothout_jax.loss_rise import LossRiseState, rise_first
from smoothout_jax.noise import Noise, Size


def smooth(
    fun: Callable[..., Any],
    noise: Noise,
    *,
    num_copies: int = 1,
    has_aux: bool = False,
    batch_argnums: int | Sequence[int] = (),
    copy_argnums: int | Sequence[int] = (),
    antithetic: bool = False,
    clean_weight: float = 0.0,
    aux: Aux = "mean",
    execution: Execution = "auto",
    chunk_size: int | None = None,
    axis_name: AxisNames = None,
    spmd_axis_name: AxisNames = None,
    compute_dtype: Any = None,
) -> Callable[..., Any]:
    """The function averaged over noise in its parameters: f_a, estimated.

    Args:
        fun: function `fun(params, *args, **kwargs)` of a scalar, or of any tree of
            floating arrays; `(value, aux)` with `has_aux`.
        noise: the law of the noise, such as `uniform(0.01)`.
        num_copies: number of perturbed copies.
        has_aux: whether `fun` returns a pair, the second of which is auxiliary.
        batch_argnums: as for `smoothout_value_and_grad`, like all that follow.
        copy_argnums: positions of the arguments with one slice for each copy.
        antithetic: whether the copies come in pairs at θ + ε and θ - ε.
        clean_weight: weight of the value at θ itself.
        aux: what becomes of the copies' auxiliary outputs.
        execution: how the copies run.
        chunk_size: number of copies vmapped together inside a scan.
        axis_name: the axis of devices that each draw noise of their own.
        spmd_axis_name: the mesh axis that the copies are laid over.
        compute_dtype: the dtype that the function gets perturbed parameters in.

    Returns:
        The function `smoothed(key, params, *args, **kwargs)` of the mean value, or of
        `(value, aux)`. It may be differentiated, but `smoothout_value_and_grad` takes
        less memory, as it need not hold the intermediate values of two copies.

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
    copies = Copies(
        noise=noise,
        num_copies=num_copies,
        has_aux=has_aux,
        batch_argnums=batch_argnums,
        copy_argnums=copy_argnums,
        antithetic=antithetic,
        clean_weight=clean_weight,
        aux=aux,
        execution=execution,
        chunk_size=chunk_size,
        axis_name=axis_name,
        spmd_axis_name=spmd_axis_name,
        compute_dtype=compute_dtype,
    )
    _checks.loss(fun=fun)

    @_checks.key_first
    def smoothed(key: jax.Array, params: Params, /, *args: Any, **kwargs: Any) -> Any:
        def value_and_aux(params, *args):
            outputs = fun(params, *args, **kwargs)
            return outputs if has_aux else (outputs, None)

        value, aux = copies.mean(value_and_aux, key, params, args)
        return (value, aux) if has_aux else value

    return smoothed


def smoothout_value_and_grad(
    fun: Callable[..., Any],
    noise: Noise,
    *,
    num_copies: int = 1,
    has_aux: bool = False,
    batch_argnums: int | Sequence[int] = (),
    copy_argnums: int | Sequence[int] = (),
    antithetic: bool = False,
    clean_weight: float = 0.0,
    aux: Aux = "mean",
    execution: Execution = "auto",
    chunk_size: int | None = None,
    axis_name: AxisNames = None,
    spmd_axis_name: AxisNames = None,
    loss_rise: Size | None = None,
    compute_dtype: Any = None,
) -> Callable[..., Any]:
    """Value and gradient averaged over perturbed copies of the parameters.

    The counterpart of `jax.value_and_grad` for SmoothOut. The value estimates the mean
    loss f_a, the gradient is an unbiased estimate of ∇f_a, and the parameters
    themselves are left alone: there is nothing to de-noise.

    Copies are numbered 0 to num_copies - 1; with a `clean_weight` the network at the
    clean parameters is one more copy, numbered `num_copies`. It too takes its part of
    a split batch and its slice of the `copy_argnums`.

    Args:
        fun: loss `fun(params, *args, **kwargs)`, a scalar, or `(loss, aux)` with
            `has_aux`.
        noise: the law of the noise, such as `uniform(0.01)`, or any function
            `noise(key, params, step=None)` to a tree like the parameters.
        num_copies: number M of perturbed copies, each at the cost of one gradient.
        has_aux: whether `fun` returns a pair, the second of which is auxiliary.
        batch_argnums: positions of the arguments, trees of arrays, that are split
            between the copies along their leading axis: of C copies, copy m takes the
            rows m, m + C, m + 2C, …, so that a batch sharded over devices stays where
            it is. Positions are those of `fun`, whose params are 0; other arguments,
            and keyword arguments, are passed unsplit to every copy. Every copy weighs
            the same: a loss that is a mean over the valid tokens of its rows averages
            means of unequal numbers of tokens. To weigh each token alike, return the
            sum over the rows divided by a number that is the same for every copy.
        copy_argnums: positions of the arguments with one slice for each copy along
            their leading axis, such as keys of dropout.
        antithetic: whether the copies come in pairs at θ + ε and θ - ε, which cancels
            the odd part of the Monte-Carlo error. Takes an even `num_copies`.
        clean_weight: weight λ in [0, 1) of the gradient at θ itself, in
            λ · clean + (1 - λ) · noisy, as RWP mixes them.
        aux: `"mean"` averages the copies' auxiliary outputs (floating ones, weighted
            as the gradients are), `"stack"` stacks them along a new leading axis, the
            clean copy last, `"first"` takes those of copy 0, `"clean"` those of the
            clean copy: the choice for BatchNorm's statistics. A function gets the
            stacked outputs, and its result is taken: for states that count in integers
            beside their means, as Haiku's and Equinox's BatchNorm do.
        execution: how the copies run; the results are the same to rounding. `"vmap"`
            runs them together, in the memory of all; `"scan"` one after another, in
            the memory of one; `"unroll"` likewise but without a loop, which compiles
            longest. `"auto"` takes `"unroll"` up to 16 copies, then `"scan"`: on CPU
            convolutions are many times slower in a loop or under `"vmap"`, as
            docs/performance shows. On accelerators, copies of a split batch, which
            fit in the memory of one plain step, take `"vmap"`; this is unmeasured. On
            a mesh of explicit axes, copies of a split batch whose rows lie along one
            that the parameters do not are laid over it, as by `spmd_axis_name`, if
            their number allows and the batch is smaller than the gradients would be:
            the batch is moved, and the gradients are sent once.
        chunk_size: number of copies vmapped together inside a scan; it divides the
            number of copies. Implies `execution="scan"`.
        axis_name: name, or names, of the mapped axis of devices inside `jax.shard_map`
            (or `jax.vmap`): each device draws noise of its own, and the value, the
            gradients and `"mean"` or `"clean"` auxiliary outputs are averaged over the
            axis. `"stack"`, `"first"` and what a function makes of them stay each
            device's own.
        spmd_axis_name: name, or names, of the mesh axis that the copies are laid over
            under `jax.jit`, with the mesh set by `jax.set_mesh`; as many copies as
            devices, or a multiple. The copies run together, each where its devices
            are, and a batch is split into blocks, copy m taking the m-th, so that one
            sharded over the axis stays where it is. Excludes `axis_name`, other
            `execution` than `"vmap"`, and `chunk_size`.
        loss_rise: the rise δ of the loss that the noise may cost, as for `smoothout`:
            the noise given is the largest, and is scaled to hold the rise at δ. What
            is known of it is a state, which the function then takes first and returns
            last: `(value, grads), rise = fn(rise, key, params, *args, **kwargs)`,
            beginning with `init_loss_rise()`.
        compute_dtype: the dtype that the loss gets real floating parameters in, such as
            `jnp.bfloat16`, where it computes in half precision from parameters in
            float32: they are perturbed in their own dtype, rounded once, and written
            once. Gradients come back in the dtypes of the parameters.

    Returns:
        The function `fn(key, params, *args, **kwargs)` to `(value, grads)`, or
        `((value, aux), grads)`, with the gradients in the structure and dtypes of the
        parameters. It raises a `ValueError` when a batch does not divide between the
        copies or a `copy_argnums` argument has not one slice for each, and a
        `TypeError` when the loss is not a real scalar.

    Raises:
        TypeError: if `fun` or `noise` is not a function, or a count not an integer.
        ValueError: if an option is out of its range, or two exclude each other.

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

        With noise as strong as a rise of the loss by 0.1 allows:

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
    copies = Copies(
        noise=noise,
        num_copies=num_copies,
        has_aux=has_aux,
        batch_argnums=batch_argnums,
        copy_argnums=copy_argnums,
        antithetic=antithetic,
        clean_weight=clean_weight,
        aux=aux,
        execution=execution,
        chunk_size=chunk_size,
        axis_name=axis_name,
        spmd_axis_name=spmd_axis_name,
        loss_rise=loss_rise,
        compute_dtype=compute_dtype,
    )
    _checks.loss(fun=fun)
    plain = jax.value_and_grad(fun, has_aux=has_aux)

    def mean(rise, key, params, args, kwargs):
        def value_and_grad_and_aux(params, *args):
            outputs, grads = plain(params, *args, **kwargs)
            value, aux = outputs if has_aux else (outputs, None)
            return (value, grads), aux

        (value, grads), aux, rise = copies.mean_gradients(
            value_and_grad_and_aux, rise, key, params, args
        )
        return ((value, aux) if has_aux else value, grads), rise

    @_checks.key_first
    def value_and_grad(
        key: jax.Array, params: Params, /, *args: Any, **kwargs: Any
    ) -> Any:
        return mean(None, key, params, args, kwargs)[0]

    @rise_first
    def held(
        rise: LossRiseState,
        key: jax.Array,
        params: Params,
        /,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        return mean(rise, key, params, args, kwargs)

    return value_and_grad if loss_rise is None else held
