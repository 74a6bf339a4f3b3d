"""The trace of the Hessian of a loss, and the density of its eigenvalues.

Both take products of the Hessian with random probes; the matrix is never built.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from smoothout_jax import _checks
from smoothout_jax._extras import require
from smoothout_jax._trees import Params
from smoothout_jax.sharpness.estimate import Estimate
from smoothout_jax.sharpness.objective import Batches, Loss, VectorLoss


class SpectralDensity(NamedTuple):
    """Density of the eigenvalues of a Hessian.

    Attributes:
        eigenvalues: points at which the density is evaluated, float64, (points,).
        density: fraction of the eigenvalues per unit, float64, (points,): the density
            of the eigenvalues convolved with a Gaussian; its integral is one.
        standard_error: of the density at each point, over the probes; NaN for a single
            probe.
        nodes: Ritz values of each probe, (probes, depth); padded with NaN if the
            Lanczos iteration ended early because it had found every eigenvalue.
        weights: their weights, (probes, depth); those of each probe sum to one.
    """

    eigenvalues: np.ndarray
    density: np.ndarray
    standard_error: np.ndarray
    nodes: np.ndarray
    weights: np.ndarray


def hessian_trace(
    loss: Loss,
    params: Params,
    *,
    key: jax.Array | int,
    num_samples: int = 100,
    batches: Batches | None = None,
) -> Estimate:
    """Trace of the Hessian of the loss: the sum of its eigenvalues.

    Hutchinson's estimator: the mean of vᵀ H v over vectors v of random signs.

    Args:
        loss: `loss(params)` or `loss(params, batch)`, as for `hessian_eigenvalues`.
        params: parameters, in float32 or float64.
        key: PRNG key of the vectors, or an integer seed; networks measured with the
            same key get the same vectors.
        num_samples: number of vectors; each costs about two gradients.
        batches: batches of the loss's second argument; not an iterator.

    Returns:
        The estimate.

    Raises:
        TypeError: if a parameter is not in float32 or float64.
        ValueError: if `num_samples` is less than 1, or the loss is not finite.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from smoothout_jax.sharpness import hessian_trace
        >>> def loss(w):
        ...     return jnp.sum(jnp.array([1.0, 2.0, 3.0]) * w**2) / 2
        >>> trace = hessian_trace(loss, jnp.ones(3), key=jax.random.key(0))
        >>> print(f"{trace.value:.3f}")  # exact, as this Hessian is diagonal
        6.000

    Reference:
        Hutchinson, A stochastic estimator of the trace of the influence matrix for
        Laplacian smoothing splines, 1990.
    """
    key = _checks.key_or_seed(key)
    _checks.count(num_samples=num_samples)
    with VectorLoss(
        loss, params, batches, "trace of the Hessian", num_samples
    ) as objective:
        samples = [
            jnp.vdot(probe, objective.hessian_vector(probe))
            for probe in _probes(objective.params, key, num_samples)
        ]
    return Estimate.from_samples(np.array(samples))


def hessian_density(
    loss: Loss,
    params: Params,
    *,
    key: jax.Array | int,
    num_samples: int = 10,
    depth: int = 64,
    num_points: int = 1000,
    width: float | None = None,
    batches: Batches | None = None,
) -> SpectralDensity:
    """Density of the eigenvalues of the Hessian, by stochastic Lanczos quadrature.

    Args:
        loss: `loss(params)` or `loss(params, batch)`, as for `hessian_eigenvalues`.
        params: parameters, in float32 or float64.
        key: PRNG key of the probes, vectors of random signs, or an integer seed.
        num_samples: number of probes.
        depth: Lanczos iterations for each probe, one Hessian-vector product each; fewer
            if every eigenvalue is found earlier. At most the number of weights.
        num_points: number of points at which the density is evaluated; they must not be
            further apart than the width.
        width: standard deviation of the Gaussian that replaces each eigenvalue, in the
            units of eigenvalues; by default a hundredth of the spectrum's range.
        batches: batches of the loss's second argument; not an iterator.

    Returns:
        The density.

    Raises:
        ImportError: if SciPy is not installed (extra `sharpness`).
        TypeError: if a parameter is not in float32 or float64.
        ValueError: if an argument is out of range, or the loss is not finite.

    Reference:
        Ghorbani, Krishnan and Xiao, `An Investigation into Neural Net Optimization via
        Hessian Eigenvalue Density <https://arxiv.org/abs/1901.10159>`_, 2019.
    """
    key = _checks.key_or_seed(key)
    _checks.count(num_samples=num_samples, depth=depth, num_points=num_points)
    if width is not None:
        _checks.positive(width=width)
    linalg = require("scipy.linalg", "sharpness")
    with VectorLoss(
        loss, params, batches, "density of the Hessian", num_samples * depth
    ) as objective:
        if depth > objective.params.size:
            raise ValueError(
                f"depth={depth} is more than the {objective.params.size} weights"
            )
        rules = [
            _gauss_rule(linalg, objective.hessian_vector, probe, depth)
            for probe in _probes(objective.params, key, num_samples)
        ]
    nodes, weights = (np.stack(parts) for parts in zip(*rules, strict=True))
    low, high = float(np.nanmin(nodes)), float(np.nanmax(nodes))
    if width is None:
        width = 0.01 * (high - low) or 0.01 * abs(high) or 1.0
    eigenvalues = np.linspace(low - 5 * width, high + 5 * width, num_points)
    needed = math.ceil((high - low) / width) + 10
    if num_points < needed:
        raise ValueError(
            f"num_points={num_points} is too coarse for width={width:.2g} between the"
            f" eigenvalues {low:.2g} and {high:.2g}; use at least {needed}"
        )
    densities = np.stack(
        [_gaussian_mixture(eigenvalues, *rule, width) for rule in rules]
    )
    points = [Estimate.from_samples(samples) for samples in densities.T]
    return SpectralDensity(
        eigenvalues,
        density=np.array([point.value for point in points]),
        standard_error=np.array([point.standard_error for point in points]),
        nodes=nodes,
        weights=weights,
    )


def _probes(like, key, num_samples: int):
    """Vectors of random signs, drawn one at a time."""
    for probe_key in jax.random.split(key, num_samples):
        yield jax.random.rademacher(probe_key, like.shape, like.dtype)


def _gauss_rule(linalg, product, probe, depth: int):
    """Nodes and weights of the quadrature rule that Lanczos derives from a probe."""
    diagonal, couplings = _tridiagonalize(product, probe, depth)
    values, vectors = linalg.eigh_tridiagonal(diagonal, couplings)
    nodes, weights = np.full((2, depth), np.nan)
    nodes[: len(values)], weights[: len(values)] = values, vectors[0] ** 2
    return nodes, weights


def _tridiagonalize(product, start, depth: int):
    """The Lanczos iteration: diagonal and off-diagonal of a tridiagonal matrix.

    It ends early once a coupling vanishes: every eigenvalue has been found, and the
    rest would be rounding errors. Vectors are not reorthogonalised, so only three are
    in memory.
    """
    vector, previous = start / jnp.linalg.norm(start), jnp.zeros_like(start)
    diagonal, couplings = [], [0.0]
    for _ in range(depth):
        entry, coupling, following = _lanczos_step(
            product(vector), vector, previous, couplings[-1]
        )
        vector, previous = following, vector
        diagonal.append(float(entry))
        couplings.append(float(coupling))
        if couplings[-1] <= 1e-6 * max(map(abs, diagonal + couplings)):
            break
    return np.array(diagonal), np.array(couplings[1:-1])


@jax.jit
def _lanczos_step(image, vector, previous, coupling):
    """A diagonal entry, the off-diagonal entry, and the next vector."""
    entry = jnp.vdot(vector, image)
    residual = image - entry * vector - jnp.asarray(coupling, image.dtype) * previous
    norm = jnp.linalg.norm(residual)
    return entry, norm, residual / norm


def _gaussian_mixture(points, nodes, weights, width):
    kept = ~np.isnan(nodes)
    distances = (points[:, None] - nodes[kept]) / width
    peaks = np.exp(-0.5 * distances**2) / (width * np.sqrt(2 * np.pi))
    return peaks @ weights[kept]
