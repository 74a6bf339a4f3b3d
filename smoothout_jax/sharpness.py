"""How flat it got: measures of the sharpness of a minimum.

Every measure takes `loss(params)`, or `loss(params, batch)` with an iterable of
`batches`: trees of arrays whose leading axis is the example, of which the loss is the
mean. Then the measure is that of the mean over all examples, in the memory of one
batch and a few trees like the parameters. Loss and measure share a unit, such as nats.

A loss is compiled once, for all networks of one structure that it is measured at. Pass
the same function each time, and large arrays by `jax.tree_util.Partial(loss, data)`.

References:
    Bisla et al., `Low-Pass Filtering SGD for Recovering Flat Optima in the Deep
    Learning Optimization Landscape <https://arxiv.org/abs/2201.08025>`_, 2022.

    Keskar et al., `On Large-Batch Training for Deep Learning: Generalization Gap and
    Sharp Minima <https://arxiv.org/abs/1609.04836>`_, 2016.

    Foret et al., `Sharpness-Aware Minimization for Efficiently Improving
    Generalization <https://arxiv.org/abs/2010.01412>`_, 2020.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from smoothout_jax import _checks
from smoothout_jax._estimate import Estimate as Estimate
from smoothout_jax._extras import progress, require
from smoothout_jax._hessian import Eigenpairs as Eigenpairs
from smoothout_jax._hessian import SpectralDensity as SpectralDensity
from smoothout_jax._hessian import hessian_density as hessian_density
from smoothout_jax._hessian import hessian_eigenvalues as hessian_eigenvalues
from smoothout_jax._hessian import hessian_trace as hessian_trace
from smoothout_jax._objective import (
    Batches,
    VectorLoss,
    as_partial,
    check_batches,
    check_function,
    finite,
    loss_arguments,
    mean_over_batches,
    real_scalar,
)
from smoothout_jax._subspace import Subspace, WholeSpace
from smoothout_jax._trees import layer_names
from smoothout_jax.noise import Noise, Params, add_noise

Loss = Callable[..., Any]


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

    The measure that SmoothOut lowers, and of those tried by Bisla et al. the one that
    predicts generalisation best. One pass over the batches draws each sample's noise
    anew for each batch, so that nothing is held but one perturbed network.

    Args:
        loss: `loss(params)` or `loss(params, batch)`, a real scalar.
        params: parameters θ.
        noise: the law of the noise ε, such as `uniform(0.5, relative_to="filter")`.
        key: PRNG key of the noise, or an integer seed. Networks measured with one key
            meet the same random numbers, so that they can be compared in pairs.
        num_samples: number of samples of the noise, each at the cost of one loss.
        batches: batches of the loss's second argument; an iterator will do.

    Returns:
        The estimate, in the units of the loss.

    Raises:
        TypeError: if the loss is no real scalar, or an argument is of another type.
        ValueError: if there is no batch, `num_samples` is less than 1, or the loss at θ
            is not finite.

    Example:
        Of f(w) = w², whatever w is, the rise is the variance of the noise, a²/3:

        >>> import jax, jax.numpy as jnp
        >>> from smoothout_jax import expected_sharpness, uniform
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


def keskar_sharpness(
    loss: Loss,
    params: Params,
    *,
    epsilon: float = 5e-4,
    subspace_dim: int | None = None,
    key: jax.Array | int = 0,
    num_samples: int = 1,
    num_starts: int = 2,
    max_iterations: int = 10,
    batches: Batches | None = None,
) -> Estimate:
    """Keskar's ε-sharpness: the highest loss in a small box, relative to the loss.

    In percent, with A the identity or a random matrix::

        φ = 100 · (max_z f(θ + A z) - f(θ)) / (1 + f(θ)),   |z_i| ≤ ε (|(A⁺ θ)_i| + 1)

    Climbs from random points of the box, as the gradient at a minimum is zero: first by
    steps whose gradient, clipped, is the next point, which lead to the largest
    curvature, then by SciPy's L-BFGS-B. The highest loss met counts. By default it
    takes some 45 gradients, and on quadratics and small networks of which many long
    climbs found the maximum it reached 95 % to 98 % of it on average, 77 % at least; 10
    iterations of L-BFGS-B alone took 13, and reached 88 % to 92 %, 59 % at least.

    Args:
        loss: `loss(params)` or `loss(params, batch)`, a real scalar above -1.
        params: parameters θ, in float32 or float64.
        epsilon: size ε of the box, above 0; 1e-3 and 5e-4 in the paper.
        subspace_dim: dimension p of a random subspace, whose (weights, p) matrix A has
            standard normal entries, drawn a block of rows at a time; `None` takes the
            whole space.
        key: PRNG key of the starts and subspaces, or an integer seed.
        num_samples: number of repetitions, each with starts and a subspace of its own.
        num_starts: points that each repetition climbs from.
        max_iterations: steps of each climb, and as many iterations of L-BFGS-B, each of
            one gradient or a few.
        batches: batches of the loss's second argument; not an iterator.

    Returns:
        The estimate, in percent: the mean over the repetitions, one of `samples` each.

    Raises:
        ImportError: if SciPy is not installed (extra `sharpness`).
        TypeError: if a parameter is not in float32 or float64.
        ValueError: if an argument is out of its range, or the loss at θ is not finite.

    Example:
        The box reaches from 1 - 0.2 to 1 + 0.2, where w² is 0.44 above f(1) = 1:

        >>> import jax.numpy as jnp
        >>> from smoothout_jax import keskar_sharpness
        >>> sharpness = keskar_sharpness(jnp.square, jnp.array(1.0), epsilon=0.1)
        >>> print(f"{sharpness.value:.1f} %")
        22.0 %

    Reference:
        Keskar et al., 2016, metric 2.1.
    """
    _checks.positive(epsilon=epsilon)
    _checks.count(
        num_samples=num_samples, num_starts=num_starts, max_iterations=max_iterations
    )
    key = _checks.key_or_seed(key)
    optimize = require("scipy.optimize", "sharpness")
    if subspace_dim is not None:
        _checks.count(subspace_dim=subspace_dim)

    def sample(objective, key):
        start_key, subspace_key = jax.random.split(key)
        if subspace_dim is None:
            space = WholeSpace()
        else:
            space = Subspace(subspace_key, objective.params.size, subspace_dim)
        climb = functools.partial(_climb, optimize, max_iterations)
        start_keys = jax.random.split(start_key, num_starts)
        rise = _highest_in_box(objective, space, epsilon, start_keys, climb)
        return 100 * rise / (1 + objective.clean)

    with VectorLoss(loss, params, batches, "Keskar's sharpness") as objective:
        if objective.clean <= -1:
            raise ValueError(f"loss must be above -1 at params, got {objective.clean}")
        return _repeat(sample, objective, key, num_samples)


def sam_sharpness(
    loss: Loss,
    params: Params,
    *,
    rho: float,
    key: jax.Array | int = 0,
    num_samples: int = 1,
    max_iterations: int = 20,
    batches: Batches | None = None,
) -> Estimate:
    """Rise of the loss at the worst point of a ball, max f(θ + ε) - f(θ), ‖ε‖ ≤ ρ.

    Normalised gradient ascent from a random point of the ball's surface, each step
    followed by the projection onto the ball. Steps have length ρ, and half of it each
    time that one does not rise; the highest point counts. Near a minimum the rise is
    ρ²/2 times the Hessian's leading eigenvalue.

    Args:
        loss: `loss(params)` or `loss(params, batch)`, a real scalar.
        params: parameters θ, in float32 or float64.
        rho: radius ρ of the ball, above 0, in the units of the weights.
        key: PRNG key of the starts, or an integer seed.
        num_samples: number of repetitions, each from a start of its own.
        max_iterations: steps of the ascent, each of one gradient.
        batches: batches of the loss's second argument; not an iterator.

    Returns:
        The estimate, in the units of the loss: the mean over the repetitions.

    Raises:
        TypeError: if a parameter is not in float32 or float64.
        ValueError: if an argument is out of its range, or the loss at θ is not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> from smoothout_jax import sam_sharpness
        >>> rise = sam_sharpness(lambda w: jnp.sum(w**2), jnp.array([3.0, 4.0]), rho=1)
        >>> print(f"{rise.value:.3f}")  # 6² - 5²
        11.000

    Reference:
        Foret et al., 2020, equation 1.
    """
    _checks.positive(rho=rho)
    _checks.count(num_samples=num_samples, max_iterations=max_iterations)
    key = _checks.key_or_seed(key)

    def sample(objective, key):
        centre = objective.params
        offset = _of_length(rho, jax.random.normal(key, centre.shape, centre.dtype))
        length = rho
        where = f"within rho={rho} of params"
        highest, grad = objective.value_and_grad(centre + offset, where)
        for _ in range(max_iterations):
            moved = _ascend(offset, grad, length, rho)
            value, moved_grad = objective.value_and_grad(centre + moved, where)
            if value > highest:
                offset, highest, grad = moved, value, moved_grad
            else:
                length /= 2
        return max(highest - objective.clean, 0.0)

    total = num_samples * (max_iterations + 1)
    with VectorLoss(loss, params, batches, "SAM's sharpness", total) as objective:
        return _repeat(sample, objective, key, num_samples)


def per_layer(
    measure: Callable[..., Any],
    loss: Loss,
    params: Params,
    *args: Any,
    **options: Any,
) -> dict[str, Any]:
    """A measure of each layer: with the weights of all others held where they are.

    Args:
        measure: `expected_sharpness`, `keskar_sharpness`, `sam_sharpness`, one of the
            `hessian_` functions, or any function `measure(loss, params, ...)`.
        loss: the loss of the whole network.
        params: the parameters of the whole network. A layer is what lies right below
            one node, such as a module's kernel and bias, whether Flax boxes them or
            not; leaves at the top are layers each.
        *args: further positional arguments of the measure.
        **options: its keyword arguments, the same for every layer.

    Returns:
        What the measure returns, by the path of the layer, such as `"params/Dense_0"`.

    Example:
        >>> import jax.numpy as jnp
        >>> from smoothout_jax import per_layer, sam_sharpness
        >>> def loss(params):
        ...     return params["first"] ** 2 + 9 * params["second"] ** 2
        >>> params = {"first": jnp.array(0.0), "second": jnp.array(0.0)}
        >>> for layer, rise in per_layer(sam_sharpness, loss, params, rho=1.0).items():
        ...     print(layer, f"{rise.value:.1f}")
        first 1.0
        second 9.0
    """
    check_function(measure, name="measure")
    partial = as_partial(loss)
    _checks.arrays(params=params)
    # Is called as the loss is, so that a measure can check it.
    whole = functools.update_wrapper(Partial(_with_layer, partial, params), partial)
    leaves, structure = jax.tree.flatten(params)
    names = layer_names(params)

    def layer(name):
        own = [
            leaf if other == name else None
            for other, leaf in zip(names, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, own)

    return {
        name: measure(whole, layer(name), *args, **options)
        for name in progress("layers", list(dict.fromkeys(names)))
    }


def _with_layer(loss, params, layer, *batch):
    """The loss of the whole network with one layer replaced."""

    def is_none(node):
        return node is None

    # Containers need not say that they are equal, but hold their leaves in one order.
    old, structure = jax.tree.flatten(params, is_leaf=is_none)
    new = jax.tree.leaves(layer, is_leaf=is_none)
    replaced = [o if n is None else n for o, n in zip(old, new, strict=True)]
    return loss(jax.tree.unflatten(structure, replaced), *batch)


@jax.jit
def _value(loss, batch, params):
    return real_scalar(loss(params, *batch))


@jax.jit(static_argnums=1)
def _noisy_value(loss, noise, batch, params, key):
    return real_scalar(loss(add_noise(params, noise(key, params)), *batch))


def _repeat(sample, objective, key, num_samples: int) -> Estimate:
    """The estimate from samples that are each a function of the loss and a key."""
    keys = jax.random.split(key, num_samples)
    return Estimate.from_samples(np.array([sample(objective, key) for key in keys]))


def _highest_in_box(objective, space, epsilon, start_keys, climb) -> float:
    """The largest rise met in the box, in climbs from a random start for each key."""
    half_widths = epsilon * (np.abs(space.coordinates(objective.params)) + 1)
    rises = [0.0]

    def rise_and_slope(point):
        """Of a point of the unit box."""
        offset = space.lift(jnp.asarray(point * half_widths, objective.params.dtype))
        value, grad = objective.value_and_grad(
            objective.params + offset, f"within epsilon={epsilon} of params"
        )
        rises.append(value - objective.clean)
        return rises[-1], np.asarray(space.project(grad), np.float64) * half_widths

    for key in start_keys:
        start = jax.random.uniform(key, half_widths.shape, minval=-1, maxval=1)
        climb(rise_and_slope, np.asarray(start, np.float64))
    return max(rises)


def _climb(optimize, max_iterations: int, rise_and_slope, point) -> None:
    """Climbs in the unit box, by SciPy's module `optimize` at last."""
    size = 1.0
    for _ in range(max_iterations):  # like the power method
        slope = rise_and_slope(point)[1]
        size = np.sqrt(np.mean(slope**2)) or 1.0
        point = np.clip(slope / size, -1, 1)

    def negative(point):
        """In units that make the first step long."""
        rise, slope = rise_and_slope(point)
        return -10 * rise / size, -10 * slope / size

    optimize.minimize(
        negative,
        point,
        jac=True,
        method="L-BFGS-B",
        bounds=optimize.Bounds(-np.ones(len(point)), np.ones(len(point))),
        options={"maxiter": max_iterations, "ftol": 0, "gtol": 0},
    )


def _of_length(length, vector):
    """The vector scaled to a length; zero stays zero."""
    norm = jnp.linalg.norm(vector)
    return jnp.where(norm > 0, vector * (length / jnp.where(norm > 0, norm, 1)), 0)


@jax.jit
def _ascend(offset, grad, length, rho):
    """A step up the gradient, and back into the ball of radius rho."""
    moved = offset + _of_length(length, grad)
    return jnp.where(jnp.linalg.norm(moved) > rho, _of_length(rho, moved), moved)
