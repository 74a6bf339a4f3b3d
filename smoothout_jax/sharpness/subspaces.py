"""Random subspaces of the parameters, without storing the matrix that spans them."""

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 8192


class WholeSpace:
    """The whole space: every map is the identity."""

    def coordinates(self, vector: jax.Array) -> np.ndarray:
        """The coordinates of a vector, float64."""
        return np.asarray(vector, np.float64)

    def lift(self, point: jax.Array) -> jax.Array:
        """The vector with the given coordinates."""
        return point

    def project(self, grad: jax.Array) -> jax.Array:
        """The gradient with respect to the coordinates."""
        return grad


class Subspace:
    """The span of the columns of a matrix A with standard normal entries.

    The matrix is redrawn, in blocks of rows, whenever it is used.

    Args:
        key: PRNG key of the matrix.
        size: number of weights, and of rows.
        dimension: dimension of the subspace, and number of columns.

    Raises:
        ValueError: if there are more columns than rows.
    """

    def __init__(self, key: jax.Array, size: int, dimension: int):
        if dimension > size:
            raise ValueError(
                f"subspace_dim={dimension} is more than the {size} weights of params"
            )
        self._key, self._size, self._dimension = key, size, dimension

    def coordinates(self, vector: jax.Array) -> np.ndarray:
        """The coordinates A⁺ v = (Aᵀ A)⁻¹ Aᵀ v of a vector, float64, (dimension,)."""
        gram = np.asarray(_gram(self._key, self._size, self._dimension), np.float64)
        return np.linalg.solve(gram, np.asarray(self.project(vector), np.float64))

    def lift(self, point: jax.Array) -> jax.Array:
        """The vector A z, (size,), of coordinates z, (dimension,)."""
        return _lift(self._key, self._size, point)

    def project(self, grad: jax.Array) -> jax.Array:
        """Aᵀ g, (dimension,), of a vector g, (size,)."""
        return _project(self._key, self._dimension, grad)


def _num_blocks(size: int) -> int:
    return -(-size // BLOCK)


def _rows(key, index, size: int, dimension: int, dtype):
    """A block of rows of the matrix; those beyond the last are zero."""
    drawn = jax.random.normal(jax.random.fold_in(key, index), (BLOCK, dimension), "f4")
    inside = index * BLOCK + jnp.arange(BLOCK) < size
    return jnp.where(inside[:, None], drawn, 0).astype(dtype)


@jax.jit(static_argnums=(1, 2))
def _gram(key, size, dimension):
    def add(total, index):
        rows = _rows(key, index, size, dimension, jnp.float32)
        return total + rows.T @ rows, None

    zero = jnp.zeros((dimension, dimension), jnp.float32)
    return jax.lax.scan(add, zero, jnp.arange(_num_blocks(size)))[0]


@jax.jit(static_argnums=1)
def _lift(key, size, point):
    def block(index):
        return _rows(key, index, size, point.size, point.dtype) @ point

    return jax.lax.map(block, jnp.arange(_num_blocks(size))).reshape(-1)[:size]


@jax.jit(static_argnums=1)
def _project(key, dimension, grad):
    blocks = jnp.pad(grad, (0, -grad.size % BLOCK)).reshape(-1, BLOCK)

    def add(total, indexed):
        index, block = indexed
        rows = _rows(key, index, grad.size, dimension, grad.dtype)
        return total + block @ rows, None

    indexed = jnp.arange(len(blocks)), blocks
    return jax.lax.scan(add, jnp.zeros(dimension, grad.dtype), indexed)[0]
