"""A loss over all the data, with one batch of them in memory."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from smoothout_jax import _checks
from smoothout_jax._extras import progress
from smoothout_jax.noise import leaf_name

Batches = Iterable[Any]


def mean_over_batches(fn: Callable[..., Any], batches: Batches | None) -> Any:
    """The mean of `fn(batch)`, each batch weighted by its number of examples.

    Args:
        fn: function of a batch to a tree of arrays, means over the batch's examples.
        batches: trees of arrays whose leading axis is the example. Without batches,
            the value of `fn()`.
    """
    if batches is None:
        return fn()
    mean, total = None, 0
    for batch in batches:
        # Waits, lest batches pile up on the device.
        value = jax.block_until_ready(fn(batch))
        size = _num_examples(batch)
        total += size
        mean = value if mean is None else _move(mean, value, size / total)
    if mean is None:
        raise ValueError("batches is empty")
    return mean


def as_iterable(batches: Any) -> Batches:
    """The batches, once they are seen to be an iterable."""
    if not isinstance(batches, Iterable):
        raise TypeError(f"batches must be an iterable of batches, got {batches!r}")
    return batches


def check_batches(batches: Any) -> None:
    """Requires an iterable that can be gone through again and again, or `None`."""
    if batches is not None and isinstance(as_iterable(batches), Iterator):
        raise ValueError(
            "batches is an iterator, used up by one pass; give a list, or an iterable"
            f" that starts afresh each time; got {batches!r}"
        )


def real_scalar(value: Any, name: str = "loss") -> jax.Array:
    """The value, once it is seen to be a real scalar."""
    result = jnp.asarray(value)
    if result.shape or not jnp.issubdtype(result.dtype, jnp.floating):
        raise TypeError(
            f"{name} must be a real scalar, the mean over the batch; got {result.dtype}"
            f" of shape {result.shape}"
        )
    return result


def as_partial(loss: Any) -> Partial:
    """The loss as a pytree, so that jitted functions can take it as an argument.

    Its function is compared by identity: networks measured with one loss share their
    compiled programs. Arrays it is bound to, if it is a `Partial` already, are
    arguments too, and not constants of the program.
    """
    _checks.function("loss(params) or loss(params, batch)", loss=loss)
    return loss if isinstance(loss, Partial) else Partial(loss)


class VectorLoss:
    """A loss over all the data as a function of the parameters in one vector.

    A context manager, which shows how many times it was evaluated.

    Args:
        loss: function `loss(params)`, or `loss(params, batch)`, to a real scalar.
        params: parameters in float32 or float64.
        batches: the batches, or `None`.
        description: what it is evaluated for.
        total: number of evaluations, if it is known.

    Attributes:
        params: the parameters, (weights,).
        clean: loss at the parameters.
        unravel: function from a vector to a tree like the parameters.
    """

    def __init__(self, loss, params, batches, description, total=None):
        check_batches(batches)
        for path, leaf in jax.tree.leaves_with_path(params):
            if jnp.result_type(leaf) not in (jnp.float32, jnp.float64):
                raise TypeError(
                    f"params must be in float32 or float64, but {leaf_name(path)!r} is"
                    f" {jnp.result_type(leaf)}: cast it, or leave it to the loss"
                )
        self._loss, self._batches = as_partial(loss), batches
        self.params, self.unravel = ravel_pytree(params)
        if not self.params.size:
            raise ValueError("params has no weights")
        self._bar = progress(description, total=total)
        self.clean = self.value(self.params)
        if not np.isfinite(self.clean):
            raise ValueError(f"the loss at params must be finite, got {self.clean}")

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._bar.close()

    def value(self, params: jax.Array) -> float:
        """The loss."""
        return float(self._mean(_value, params))

    def value_and_grad(self, params: jax.Array) -> tuple[float, jax.Array]:
        """The loss and its gradient."""
        loss, grad = self._mean(_value_and_grad, params)
        return float(loss), grad

    def hessian_vector(self, vector: jax.Array) -> jax.Array:
        """The product of the Hessian at the parameters with a vector."""
        return self._mean(_hessian_vector, self.params, vector)

    def _mean(self, kernel, *vectors):
        self._bar.update()
        return mean_over_batches(
            lambda *batch: kernel(self._loss, self.unravel, batch, *vectors),
            self._batches,
        )


@jax.jit(static_argnums=1)
def _value(loss, unravel, batch, params):
    return real_scalar(loss(unravel(params), *batch))


@jax.jit(static_argnums=1)
def _value_and_grad(loss, unravel, batch, params):
    return jax.value_and_grad(_value, argnums=3)(loss, unravel, batch, params)


@jax.jit(static_argnums=1)
def _hessian_vector(loss, unravel, batch, params, vector):
    def grad(params):
        return _value_and_grad(loss, unravel, batch, params)[1]

    return jax.jvp(grad, (params,), (vector,))[1]


def _move(mean, value, share: float):
    return jax.tree.map(lambda old, new: old + (new - old) * share, mean, value)


def _num_examples(batch) -> int:
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        shapes = [np.shape(leaf) for leaf in jax.tree.leaves(batch)]
        raise ValueError(
            "a batch must be a tree of arrays with the same number of examples, at"
            f" least 1, along the leading axis; got the shapes {shapes}"
        )
    return sizes.pop()[0]
