"""A loss over all the data, with one batch in memory at a time."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from smoothout_jax import _checks
from smoothout_jax._extras import progress
from smoothout_jax._trees import named_leaves
from smoothout_jax.sharpness.vectors import ravel

Batches = Iterable[Any]
Loss = Callable[..., Any]
ARRAYS = jax.Array, np.ndarray


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
        # Wait, so that batches do not pile up on the device.
        value = jax.block_until_ready(fn(batch))
        size = _num_examples(batch)
        total += size
        mean = value if mean is None else _move(mean, value, size / total)
    if mean is None:
        raise ValueError("batches is empty")
    return mean


def check_batches(batches: Any, name: str = "batches", *, passes: int = 2) -> None:
    """Requires an iterable of batches, or `None`.

    Args:
        batches: the value to check.
        name: its name in error messages.
        passes: number of passes over it; an iterator allows only one.
    """
    if batches is None:
        return
    must = f"{name} must be an iterable of batches, such as [(x, y)]; got"
    if isinstance(batches, ARRAYS):
        raise TypeError(f"{must} {_checks.describe(batches)}")
    if isinstance(batches, tuple) and any(isinstance(b, ARRAYS) for b in batches):
        raise TypeError(
            f"{must} a tuple of arrays, which is one batch: put it in a list"
        )
    if isinstance(batches, (Mapping, str)) or not isinstance(batches, Iterable):
        raise TypeError(f"{must} {_checks.describe(batches)}")
    if passes > 1 and isinstance(batches, Iterator):
        raise ValueError(
            f"{name} is an iterator, used up by one pass; give a list, or an iterable"
            " that starts over each time"
        )


def real_scalar(value: Any, name: str = "loss") -> jax.Array:
    """Returns the value as an array; raises TypeError unless it is a real scalar."""
    must = f"{name} must be a real scalar, the mean over the batch; got"
    if not isinstance(value, (*_checks.NUMBERS, *ARRAYS)):
        raise TypeError(f"{must} {_checks.describe(value)}")
    result = jnp.asarray(value)
    if result.shape or not jnp.issubdtype(result.dtype, jnp.floating):
        raise TypeError(f"{must} {result.dtype} of shape {result.shape}")
    return result


def finite(value: float, where: str = "at params") -> float:
    """Returns the loss; raises ValueError unless it is finite."""
    if not np.isfinite(value):
        raise ValueError(f"the loss {where} must be finite, got {value}")
    return value


def loss_arguments(batches: Any) -> tuple[str, ...]:
    """The names of the loss's arguments."""
    return ("params",) if batches is None else ("params", "batch")


def as_partial(fun: Any, *arguments: str, name: str = "loss") -> Partial:
    """A function as a pytree, so that jitted functions can take it as an argument.

    It is compared by identity, so networks measured with the same loss share compiled
    programs. If it already is a `Partial`, the arrays bound to it are arguments of the
    program rather than constants.

    Args:
        fun: the function.
        arguments: names of the arguments it will be called with; without any, the
            signature is not checked.
        name: its name in error messages.
    """
    check_function(fun, *arguments, name=name)
    return fun if isinstance(fun, Partial) else Partial(fun)


def check_function(fun: Any, *arguments: str, name: str) -> None:
    """Requires a function that takes these arguments, in this order.

    A function with a parameter of the same name in another place is refused, so that a
    noise is not mistaken for a loss.
    """
    if not callable(fun):
        raise TypeError(f"{name} must be a function; got {_checks.describe(fun)}")
    if not arguments:
        return
    try:
        signature = inspect.signature(fun)
    except (TypeError, ValueError):  # of functions that are not written in Python
        return
    own = [p.name for p in signature.parameters.values() if p.kind != p.KEYWORD_ONLY]
    if not _accepts(signature, arguments) or any(
        argument in own and own.index(argument) != place
        for place, argument in enumerate(arguments)
    ):
        batches = {"params": " without batches", "batch": " with batches"}
        raise TypeError(
            f"{name} must be a function of ({', '.join(arguments)})"
            f"{batches.get(arguments[-1], '')}; got one of ({', '.join(own)})"
        )


def _accepts(signature, arguments) -> bool:
    try:
        signature.bind(*arguments)
    except TypeError:
        return False
    return True


class VectorLoss:
    """A loss over all the data as a function of the parameters in one vector.

    A context manager that shows the number of gradients or products computed.

    Args:
        loss: function `loss(params)`, or `loss(params, batch)`, to a real scalar.
        params: parameters in float32 or float64.
        batches: the batches, or `None`.
        description: the label of the progress bar.
        total: number of gradients or products, if known.

    Attributes:
        params: the parameters, (weights,).
        clean: loss at the parameters.
        unravel: function from a vector to a tree like the parameters.
    """

    def __init__(self, loss, params, batches, description, total=None):
        check_batches(batches)
        self._loss = as_partial(loss, *loss_arguments(batches))
        self._batches = batches
        _checks.arrays(params=params)
        for name, leaf in named_leaves(params):
            if jnp.result_type(leaf) not in (jnp.float32, jnp.float64):
                raise TypeError(
                    f"params must be in float32 or float64, but {name!r} is"
                    f" {jnp.result_type(leaf)}: cast it, or leave it to the loss"
                )
        self.params, self.unravel = ravel(params)
        if not self.params.size:
            raise ValueError("params has no weights")
        self.clean = finite(float(self._mean(_value, self.params)))
        self._bar = progress(description, total=total)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._bar.close()

    def value_and_grad(self, params: jax.Array, where: str) -> tuple[float, jax.Array]:
        """The loss and its gradient; raises ValueError unless the loss is finite."""
        value, grad = self._mean(_value_and_grad, params)
        self._bar.update()
        return finite(float(value), where), grad

    def hessian_vector(self, vector: jax.Array) -> jax.Array:
        """The product of the Hessian at the parameters with a vector."""
        product = self._mean(_hessian_vector, self.params, vector)
        self._bar.update()
        if not jnp.isfinite(product).all():
            raise ValueError("the Hessian of the loss at params must be finite")
        return product

    def _mean(self, kernel, *vectors):
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
    sizes = {np.shape(leaf)[:1]: np.shape(leaf) for leaf in jax.tree.leaves(batch)}
    if len(sizes) != 1 or sizes.keys() & {(), (0,)}:
        shapes = " and ".join(map(str, list(sizes.values())[:2])) or "none"
        raise ValueError(
            "a batch must be a tree of arrays with the same number of examples, at"
            f" least 1, along the leading axis; got {shapes}"
        )
    return next(iter(sizes))[0]
