"""The leading eigenvalues of the Hessian of a loss, and their eigenvectors.

They come from Hessian-vector products, each of which costs about two gradients; the
matrix is never built. The products are computed batch by batch. SciPy's ARPACK
restarts, so memory is bounded, and a repeated eigenvalue is found as often as it
occurs.
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from smoothout_jax import _checks
from smoothout_jax._extras import require
from smoothout_jax._trees import Params
from smoothout_jax.sharpness.objective import Batches, Loss, VectorLoss

WHICH = ("LA", "SA", "LM")


class Eigenpairs(NamedTuple):
    """Leading eigenvalues and eigenvectors of a Hessian.

    Attributes:
        values: eigenvalues λ, float64, (eigenvalues,), leading one first.
        vectors: unit eigenvectors v, a tree like the parameters with a leading axis
            over the eigenvalues.
        residuals: norms of H v - λ v, float64, (eigenvalues,). Some eigenvalue of H
            lies within this distance of λ.
    """

    values: np.ndarray
    vectors: Any
    residuals: np.ndarray

    def vector(self, index: int) -> Params:
        """One eigenvector, a tree like the parameters: a direction of a landscape."""
        return jax.tree.map(lambda stacked: stacked[index], self.vectors)


def hessian_eigenvalues(
    loss: Loss,
    params: Params,
    *,
    num_eigenvalues: int = 1,
    which: Literal["LA", "SA", "LM"] = "LA",
    tolerance: float = 1e-4,
    max_iterations: int = 1000,
    key: jax.Array | int = 0,
    batches: Batches | None = None,
) -> Eigenpairs:
    """Leading eigenvalues of the Hessian of the loss, with their eigenvectors.

    Takes tens of Hessian-vector products, plus about ten for each eigenvalue, including
    a final search for missed ones. It keeps 3 · num_eigenvalues + 1 vectors in memory,
    at least 20.

    Args:
        loss: `loss(params)` or `loss(params, batch)`, a real scalar that can be
            differentiated twice, by forward over reverse mode.
        params: parameters, in float32 or float64.
        num_eigenvalues: number of eigenvalues.
        which: `"LA"` for the largest, `"SA"` for the smallest, `"LM"` for the largest
            in magnitude.
        tolerance: residual norm at which a pair has converged, relative to its
            eigenvalue plus the root mean square of all eigenvalues; above 0, and above
            1e-6 in float32.
        max_iterations: restarts after which to give up.
        key: PRNG key of the start vector, or an integer seed.
        batches: batches of the loss's second argument; not an iterator.

    Returns:
        The eigenvalues and eigenvectors.

    Raises:
        ImportError: if SciPy is not installed (extra `sharpness`).
        RuntimeError: if they do not converge within `max_iterations`.
        TypeError: if a parameter is not in float32 or float64.
        ValueError: if an argument is out of range, or the loss is not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> from smoothout_jax.sharpness import hessian_eigenvalues
        >>> def loss(w):
        ...     return jnp.sum(jnp.array([1.0, 2.0, 3.0]) * w**2) / 2
        >>> pairs = hessian_eigenvalues(loss, jnp.ones(3), num_eigenvalues=2)
        >>> print(pairs.values.round(3))
        [3. 2.]

    Reference:
        Lehoucq, Sorensen and Yang, ARPACK Users' Guide, 1998: the implicitly restarted
        Lanczos iteration.
    """
    _checks.count(num_eigenvalues=num_eigenvalues, max_iterations=max_iterations)
    _checks.choice(WHICH, which=which)
    _checks.positive(tolerance=tolerance)
    key = _checks.key_or_seed(key)
    with VectorLoss(loss, params, batches, "eigenvalues of the Hessian") as objective:
        size, dtype = objective.params.size, objective.params.dtype
        if num_eigenvalues > size:
            raise ValueError(
                f"num_eigenvalues={num_eigenvalues} is more than the {size} weights"
            )

        def product(vector):
            return np.asarray(objective.hessian_vector(jnp.asarray(vector, dtype)))

        solve = _dense if size <= _num_vectors(num_eigenvalues) else _arpack
        values, vectors = solve(
            product, size, num_eigenvalues, which, tolerance, max_iterations, key
        )
        order = np.argsort(_rank(values, which), stable=True)[:num_eigenvalues]
        values, rows = values[order].astype(np.float64), vectors.T[order]
        residuals = [
            np.linalg.norm(product(row) - value * row)
            for value, row in zip(values, rows, strict=True)
        ]
        trees = jax.vmap(objective.unravel)(jnp.asarray(rows, dtype))
    return Eigenpairs(values, trees, np.array(residuals))


def _num_vectors(num_eigenvalues: int) -> int:
    """The number of vectors that ARPACK keeps."""
    return max(2 * num_eigenvalues + 1, 20)


def _dense(product, size, *_):
    """All eigenpairs of a matrix with no more rows than ARPACK would keep vectors."""
    matrix = np.stack([product(row) for row in np.eye(size)])
    return np.linalg.eigh((matrix + matrix.T) / 2)


def _arpack(product, size, num_eigenvalues, which, tolerance, max_iterations, key):
    """The leading eigenvalues, and eigenvectors in columns.

    The Lanczos iteration sees one vector of each eigenspace; only rounding brings in
    the others. So the search is repeated with the found pairs projected out, until no
    new eigenvalue ranks among those wanted.
    """
    linalg = require("scipy.sparse.linalg", "sharpness")
    search = functools.partial(
        _search, linalg, which=which, tolerance=tolerance, max_iterations=max_iterations
    )
    keys = iter(jax.random.split(key, num_eigenvalues + 2))
    start = np.asarray(jax.random.normal(next(keys), (size,)))
    image = product(start)
    scale = np.linalg.norm(image) / np.linalg.norm(start)
    if not scale:
        return np.zeros(num_eigenvalues), np.eye(size, num_eigenvalues)
    # Keeps the remaining eigenvalues ahead of zero, that of the pairs projected out.
    shift = start.dtype.type({"LA": scale, "SA": -scale, "LM": 0}[which])
    values, found = np.zeros(0), np.zeros((size, 0), start.dtype)

    def without_found(vector):
        return vector - found @ (found.T @ vector) if len(values) else vector

    def shifted(vector):
        vector = without_found(vector)
        return without_found(product(vector) + shift * vector)

    wanted, start = num_eigenvalues, image + shift * start
    while len(values) < size:
        new, vectors = search(shifted, start, wanted)
        new = new.astype(np.float64) - shift
        if len(values):
            last = np.sort(_rank(values, which))[num_eigenvalues - 1]
            if _rank(new, which)[0] >= last - tolerance * (abs(last) + scale):
                break
        values, found = np.r_[values, new], np.c_[found, vectors]
        start = shifted(np.asarray(jax.random.normal(next(keys), (size,))))
        wanted = 1
    return values, found


def _search(
    linalg, product, start, num_eigenvalues, *, which, tolerance, max_iterations
):
    """Eigenvalues and eigenvectors as ARPACK finds them."""
    operator = linalg.LinearOperator(
        (len(start),) * 2, matvec=product, dtype=start.dtype
    )
    try:
        return linalg.eigsh(
            operator,
            num_eigenvalues,
            which=which,
            v0=start,
            ncv=_num_vectors(num_eigenvalues),
            maxiter=max_iterations,
            tol=tolerance,
        )
    except linalg.ArpackNoConvergence as error:
        raise RuntimeError(
            f"only {len(error.eigenvalues)} of num_eigenvalues={num_eigenvalues}"
            f" converged to tolerance={tolerance} in max_iterations={max_iterations}"
        ) from error


def _rank(values, which: str):
    """Sort keys that put the leading eigenvalue first."""
    return {"LA": -values, "SA": values, "LM": -np.abs(values)}[which]
