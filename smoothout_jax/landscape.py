"""The loss on lines and planes through the parameters.

A line or plane is θ + c₁ d₁ (+ c₂ d₂): parameters θ, directions d, trees like the
parameters, and coordinates c in units of the directions' lengths.

References:
    Li et al., `Visualizing the Loss Landscape of Neural Nets
    <https://arxiv.org/abs/1712.09913>`_, 2018.

    Goodfellow et al., `Qualitatively characterizing neural network optimization
    problems <https://arxiv.org/abs/1412.6544>`_, 2015.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smoothout_jax import _checks
from smoothout_jax._grid import Landscape as Landscape
from smoothout_jax._grid import evaluate_grid
from smoothout_jax._trees import Params, accumulator_dtype, map_leaves, require_like
from smoothout_jax.filters import FilterAxis
from smoothout_jax.masks import Mask
from smoothout_jax.noise import RelativeTo, gaussian
from smoothout_jax.sharpness.objective import (
    Batches,
    as_partial,
    check_batches,
    loss_arguments,
    mean_over_batches,
    real_scalar,
)

__all__ = [
    "Landscape",
    "direction_between",
    "filter_normalized_direction",
    "interpolate",
    "line_points",
    "loss_curve",
    "loss_surface",
]


def filter_normalized_direction(
    key: jax.Array | int,
    params: Params,
    *,
    relative_to: RelativeTo = "filter",
    filter_axis: FilterAxis = -1,
    mask: Mask | None = None,
) -> Params:
    """A random direction whose filters have the norms of the network's filters.

    Networks whose weights differ in scale can then be compared: a distance of one
    changes every filter by its own norm.

    Args:
        key: PRNG key, or an integer seed. Networks with the same structure get the same
            direction up to scale.
        params: the parameters.
        relative_to: `"filter"`; `"layer"` for the norms of whole leaves; `"weight"` for
            normal entries times each weight's size; `None` for normal entries.
        filter_axis: the axes that number the filters, as for `uniform`.
        mask: which leaves move, by Optax's convention: `exclude("bias", "Norm")` keeps
            biases and norm layers fixed, as Li et al. do.

    Returns:
        A tree like the parameters.

    Raises:
        TypeError, ValueError: as for the noise of `gaussian`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from smoothout_jax.landscape import filter_normalized_direction
        >>> params = {"kernel": jnp.array([[3.0, 0.0], [4.0, 1.0]])}
        >>> direction = filter_normalized_direction(jax.random.key(0), params)
        >>> print(jnp.linalg.norm(direction["kernel"], axis=0).round(3))
        [5. 1.]

    Reference:
        Li et al., 2018, section 4.
    """
    noise = gaussian(
        1.0,
        relative_to=relative_to,
        filter_axis=filter_axis,
        mask=mask,
        normalize=relative_to in ("filter", "layer"),
    )
    return noise(_checks.key_or_seed(key), params)


def direction_between(params: Params, other: Params) -> Params:
    """The direction from one network, at coordinate 0, to another, at coordinate 1.

    Leaves that are not floating or complex do not move.

    Raises:
        TypeError: if they are not trees of arrays.
        ValueError: if their leaves do not have the same paths and shapes.
    """
    _checks.arrays(params=params)
    require_like(params, "other", other)

    def difference(leaf, other):
        return other - leaf if _checks.is_inexact(leaf) else jnp.zeros_like(leaf)

    return map_leaves(difference, params, other)


def interpolate(params: Params, other: Params, coordinate: Any) -> Params:
    """The parameters between two networks, or beyond: (1 - c) params + c other.

    Args:
        params: the network at coordinate 0.
        other: the network at coordinate 1.
        coordinate: a number c.

    Example:
        >>> from smoothout_jax.landscape import interpolate
        >>> print(interpolate(1.0, 3.0, 0.25))
        1.5
    """
    return _move(params, (direction_between(params, other),), (coordinate,))


def line_points(
    low: float, high: float, num: int, *, spacing: str = "linear"
) -> np.ndarray:
    """Coordinates from one end to the other.

    Args:
        low: first coordinate.
        high: last coordinate, above the first.
        num: number of coordinates, at least 2.
        spacing: `"linear"`, or `"sine"`, which is denser at the ends: (1 - cos πs) / 2
            for evenly spaced s.

    Returns:
        The coordinates, float64, (num,).

    Example:
        >>> from smoothout_jax.landscape import line_points
        >>> print(line_points(0, 1, 5, spacing="sine").round(2))
        [0.   0.15 0.5  0.85 1.  ]
    """
    _checks.count(num=num)
    _checks.choice(("linear", "sine"), spacing=spacing)
    if num < 2 or not -np.inf < low < high < np.inf:
        raise ValueError(
            f"need low < high and num of at least 2; got {low=}, {high=}, {num=}"
        )
    unit = np.linspace(0, 1, num)
    if spacing == "sine":
        unit = (1 - np.cos(np.pi * unit)) / 2
    return low + (high - low) * unit


def loss_curve(
    loss: Callable[..., Any],
    params: Params,
    direction: Params,
    points: Any,
    *,
    batches: Batches | Mapping[str, Batches] | None = None,
    statistics: Callable[..., Any] | None = None,
    note: str | None = None,
    path: Any = None,
) -> Landscape:
    """The loss, and any metric, on a line through the parameters.

    Args:
        loss: `loss(params)` or `loss(params, batch)`: a scalar, the mean over the
            batch, or a dict of scalars by name, such as `{"loss": …, "accuracy": …}`.
        params: the parameters θ, at coordinate 0.
        direction: direction d, a tree like the parameters: random, from
            `direction_between` two networks, or an eigenvector of the Hessian.
        points: coordinates, increasing, (points,).
        batches: batches of the loss's second argument, or a dict of them by data set,
            whose name then precedes the quantity's: `"train loss"`.
        statistics: for networks with BatchNorm: a function `statistics(params, batch)`
            that returns the statistics of a batch. At each point, their mean over the
            batches (of the first data set) is passed to the loss as its last argument.
            Without it, the loss keeps the running statistics that it holds.
        note: text for pictures, such as "BatchNorm: running statistics"; by default it
            says so if statistics are re-estimated.
        path: `.npz` file to which the values are written from time to time. Values that
            an interrupted call left there are kept.

    Returns:
        A landscape with one axis.

    Raises:
        OSError: if no file can be written at `path`.
        TypeError: if the loss returns no real scalars, or an argument is of another
            type.
        ValueError: if points are not finite and increasing, the direction does not
            match the parameters, or the file at `path` belongs to another landscape.

    Example:
        >>> import jax.numpy as jnp
        >>> from smoothout_jax.landscape import loss_curve
        >>> curve = loss_curve(jnp.square, jnp.array(1.0), jnp.array(2.0), [-0.5, 0, 1])
        >>> curve.values["loss"]
        array([0., 1., 9.])

    References:
        Goodfellow et al., 2015: the line between two networks.

        Li et al., 2018: random directions.
    """
    evaluator = _Evaluator(loss, params, (direction,), batches, statistics)
    note = _default_note(statistics) if note is None else note
    return evaluate_grid(evaluator, (points,), note, path, (params, direction))


def loss_surface(
    loss: Callable[..., Any],
    params: Params,
    directions: Sequence[Params],
    points: Sequence[Any],
    *,
    batches: Batches | Mapping[str, Batches] | None = None,
    statistics: Callable[..., Any] | None = None,
    note: str | None = None,
    path: Any = None,
) -> Landscape:
    """The loss, and any metric, on a plane through the parameters.

    Args:
        loss: as for `loss_curve`.
        params: the parameters θ, at coordinates (0, 0).
        directions: two directions, trees like the parameters.
        points: the coordinates along each, increasing: two arrays, of any lengths.
        batches: as for `loss_curve`.
        statistics: as for `loss_curve`.
        note: as for `loss_curve`.
        path: as for `loss_curve`.

    Returns:
        A landscape with two axes: values of shape (first points, second points).

    Raises:
        OSError, TypeError, ValueError: as for `loss_curve`.

    Example:
        >>> import jax.numpy as jnp
        >>> from smoothout_jax.landscape import loss_surface
        >>> def loss(w):
        ...     return w[0] ** 2 + 10 * w[1] ** 2
        >>> unit = jnp.eye(2)
        >>> surface = loss_surface(loss, jnp.zeros(2), unit, ([0, 1], [0, 1, 2]))
        >>> surface.values["loss"]
        array([[ 0., 10., 40.], [ 1., 11., 41.]])

    Reference:
        Li et al., 2018.
    """
    for name, pair in (("directions", directions), ("points", points)):
        if isinstance(pair, Mapping) or not hasattr(pair, "__len__"):
            raise TypeError(f"{name} must be a pair, got {_checks.describe(pair)}")
        if len(pair) != 2:
            raise ValueError(
                f"{name} must be a pair, one for each axis; got {len(pair)}"
            )
    evaluator = _Evaluator(loss, params, tuple(directions), batches, statistics)
    note = _default_note(statistics) if note is None else note
    return evaluate_grid(evaluator, points, note, path, (params, directions))


class _Evaluator:
    """All the quantities at one point of a line or plane."""

    def __init__(self, loss, params, directions, batches, statistics):
        named = isinstance(batches, Mapping)
        self._data_sets = dict(batches) if named else {"": batches}
        for name, data_set in self._data_sets.items():
            check_batches(data_set, f"batches[{name!r}]" if named else "batches")
        if not self._data_sets:
            raise ValueError("batches is an empty dict")
        arguments = loss_arguments(batches)
        self._statistics = None
        if statistics is not None:
            self._statistics = as_partial(statistics, *arguments, name="statistics")
            arguments = (*arguments, "statistics")
        self._loss = as_partial(loss, *arguments)
        _checks.arrays(params=params)
        for direction in directions:
            require_like(params, "direction", direction)
        self._place = params, directions

    def __call__(self, coordinates: Sequence[float]) -> dict[str, float]:
        params = _moved(*self._place, np.asarray(coordinates, np.float64))
        extra = ()
        if self._statistics:
            first = next(iter(self._data_sets.values()))
            extra = (_mean(_call, self._statistics, params, (), first),)
        return {
            f"{name} {quantity}".strip(): float(value)
            for name, batches in self._data_sets.items()
            for quantity, value in _mean(
                _quantities, self._loss, params, extra, batches
            ).items()
        }


def _default_note(statistics) -> str:
    return "" if statistics is None else "statistics re-estimated at every point"


def _move(params, directions, coordinates):
    """The parameters moved along the directions, in their own dtypes."""

    def move(leaf, *steps):
        leaf = jnp.asarray(leaf)
        if not _checks.is_inexact(leaf):
            return leaf
        wide = accumulator_dtype(leaf.dtype)
        moved = leaf.astype(wide)
        for coordinate, step in zip(coordinates, steps, strict=True):
            moved += jnp.asarray(coordinate, wide) * jnp.asarray(step, wide)
        return moved.astype(leaf.dtype)

    return map_leaves(move, params, *directions)


_moved = jax.jit(_move)


@jax.jit
def _call(fun, params, batch, extra):
    return fun(params, *batch, *extra)


@jax.jit
def _quantities(loss, params, batch, extra):
    """The scalars by name; raises TypeError unless each is a real scalar."""
    result = loss(params, *batch, *extra)
    named = result if isinstance(result, Mapping) else {"loss": result}
    return OrderedDict((name, real_scalar(named[name], name)) for name in named)


def _mean(kernel, fun, params, extra, batches):
    return mean_over_batches(lambda *batch: kernel(fun, params, batch, extra), batches)
