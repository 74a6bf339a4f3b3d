"""What is added: the distribution of the noise that perturbs the parameters.

A noise is a function `noise(key, params, step=None)` that returns a tree like
`params`, with the same structure, shapes and dtypes, to be added to the parameters. Any
function with this signature is a noise; this module provides those of SmoothOut
(uniform), AdaSmoothOut (uniform, relative to each filter's norm) and LPF-SGD
(Gaussian).

The loss treats noise as a constant: no gradient flows through the norms that scale it.

References:
    Wen et al., `SmoothOut: Smoothing Out Sharp Minima to Improve Generalization in
    Deep Learning <https://arxiv.org/abs/1805.07898>`_, 2018.

    Bisla et al., `Low-Pass Filtering SGD for Recovering Flat Optima in the Deep
    Learning Optimization Landscape <https://arxiv.org/abs/2201.08025>`_, 2022.
"""

import abc
import dataclasses
import itertools
import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from operator import add
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import optax

from smoothout_jax import _checks
from smoothout_jax._jax import on_one_gpu
from smoothout_jax._random import random_like, real_or_complex
from smoothout_jax._resolution import warn_if_lost
from smoothout_jax._sharding import place_like
from smoothout_jax._trees import Params, leaf_names, named_leaves
from smoothout_jax.filters import (
    FilterAxis,
    Numbering,
    check_filter_axis,
    numbering,
    raw_axes,
)
from smoothout_jax.masks import (
    Mask,
    check_noisy,
    check_patterns,
    first_match,
    mask_leaves,
    warn_of_unmatched,
)

Size = float | jax.Array | optax.Schedule

RelativeTo = Literal["weight", "filter", "layer"] | None


class Noise(Protocol):
    """A function that draws noise for a tree of parameters."""

    def __call__(self, key: jax.Array, params: Params, step: Any = None, /) -> Params:
        """Returns a tree like `params`, to be added to it."""
        ...


def uniform(
    radius: Size = 1.0,
    *,
    relative_to: RelativeTo = None,
    filter_axis: FilterAxis = "auto",
    mask: Mask | None = None,
    bits: int = 8,
) -> Noise:
    r"""Uniform noise: SmoothOut's, or AdaSmoothOut's when relative to filters.

    With u uniform on (-1, 1), independent for each weight, the noise of weight w in
    filter F of layer L is

    ============ =========================== =====================================
    relative_to  noise                       used by
    ============ =========================== =====================================
    `None`       radius · u                  SmoothOut
    `"weight"`   radius · \|w\| · u          the authors' program, `adapt weight`
    `"filter"`   radius · ‖F‖ · u / ‖u_F‖    AdaSmoothOut: its norm is radius · ‖F‖
    `"layer"`    radius · ‖L‖ · u / ‖u_L‖    one norm for a whole leaf
    ============ =========================== =====================================

    The levels of u are evenly spaced, symmetric about zero, and never zero. A filter of
    zeros gets no noise.

    Args:
        radius: half-width of the noise, in the units of the weights, or, for relative
            noise, a fraction of the norm. A number of at least 0, a traced scalar, or
            an Optax schedule of the step.
        relative_to: `None`, `"weight"`, `"filter"` or `"layer"`.
        filter_axis: the axis, or tuple of axes, that indexes the filters; a filter is
            all weights of one output. -1 for Flax's dense layers and convolutions, 0
            for Equinox. `"auto"` selects `flax_filters`, `equinox_filters` or
            `haiku_filters` by the names of the parameters. A mapping from regular
            expressions, searched for in the path, to axes uses the first match, or -1
            without a match. A function of the parameters, such as `stacked`, returns a
            tree of axes. With no axes, `()`, the whole leaf is one filter. By default
            each weight of a bias or norm layer is a filter of its own, as in the
            authors' program.
        mask: which leaves get noise, by Optax's convention: a tree (or prefix tree) of
            booleans like the parameters, or a function that makes one from them.
        bits: random bits for each weight, 8, 16 or 32: u has 2**bits levels (2**24 for
            32 bits below float64), and its variance is smaller than that of continuous
            noise by one part in 4**bits: 15 in 10^6 for eight bits, which are the
            fastest. Sixteen take twice as many random words, 32 four times as many;
            32 are meant for double precision.

    Returns:
        The noise function. It raises a `ValueError` if no leaf can be perturbed, if
        `radius` is a schedule and no step is given, if a leaf does not have
        `filter_axis`, or if the mask does not fit the parameters.

    Raises:
        TypeError: if `radius` is not a number or function, or `filter_axis` is invalid.
        ValueError: if `radius` is negative or not finite, or an option is unknown.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from smoothout_jax import uniform
        >>> params = {"kernel": jnp.ones((4, 2)), "step": jnp.array(7)}
        >>> noise = uniform(0.5, relative_to="filter")
        >>> added = noise(jax.random.key(0), params)
        >>> print(jnp.linalg.norm(added["kernel"], axis=0).round(3), added["step"])
        [1. 1.] 0

    Reference:
        Wen et al., 2018: SmoothOut; AdaSmoothOut with `relative_to="filter"`.
    """
    _checks.choice((8, 16, 32), bits=bits)
    return _Law(
        law=real_or_complex,
        bits=bits,
        name="radius",
        size=radius,
        relative_to=relative_to,
        filter_axis=filter_axis,
        mask=mask,
        normalize=True,
    )


def gaussian(
    std: Size,
    *,
    relative_to: RelativeTo = None,
    filter_axis: FilterAxis = "auto",
    mask: Mask | None = None,
    normalize: bool = False,
) -> Noise:
    """Gaussian noise: LPF-SGD's when relative to filters.

    The noise of every weight is normal with mean zero and standard deviation std, or
    std times the size of the weight, the norm of its filter or the norm of its layer.
    `uniform` fixes the norm of a filter's noise; this fixes the standard deviation of
    each weight's, as LPF-SGD does, so the noise of a filter of n weights has a norm of
    about std · √n · ‖F‖. The real and imaginary parts of a complex weight share the
    variance.

    Args:
        std: standard deviation, in the units of the weights or relative to a norm. A
            number of at least 0, a traced scalar, or an Optax schedule of the step.
        relative_to: `None`, `"weight"`, `"filter"` or `"layer"`.
        filter_axis: the axes that number the filters, as for `uniform`.
        mask: which leaves get noise, as for `uniform`.
        normalize: whether to scale the noise of each filter or layer to a norm of
            exactly std · ‖F‖, like `uniform` and the authors' program.

    Returns:
        The noise function; it raises the same errors as that of `uniform`.

    Raises:
        TypeError: if `std` is not a number or function, or `filter_axis` is invalid.
        ValueError: if `std` is negative or not finite, an option is unknown, or
            `normalize` is set for noise that is not relative to filters or layers.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from smoothout_jax import gaussian
        >>> noise = gaussian(0.1)(jax.random.key(0), jnp.ones(10_000))
        >>> print(f"{noise.mean():.2f} {noise.std():.2f}")
        0.00 0.10

    Reference:
        Bisla et al., 2022: LPF-SGD with `relative_to="filter"`. It treats each bias and
        each leaf of a norm layer as one filter: `filter_axis={"bias$|scale$": ()}`.
    """
    if normalize and relative_to not in ("filter", "layer"):
        raise ValueError(
            "normalize needs noise relative to a 'filter' or 'layer'; got"
            f" relative_to={relative_to!r}"
        )

    def normal(*levels):
        deviation = math.sqrt(2 / len(levels))
        return real_or_complex(*(deviation * jax.lax.erf_inv(u) for u in levels))

    return _Law(
        law=normal,
        bits=32,
        name="std",
        size=std,
        relative_to=relative_to,
        filter_axis=filter_axis,
        mask=mask,
        normalize=normalize,
    )


def by_path(noises: Mapping[str, Noise]) -> Noise:
    """Different noise for different groups of parameters.

    Args:
        noises: a mapping from patterns, regular expressions searched for in the path of
            a leaf such as `"embedding"`, to noises. The first match counts; leaves
            without a match get no noise. A pattern that matches no leaf warns.

    Returns:
        The noise function. The mask of each noise must be a function, such as
        `exclude`: it gets only the parameters of the group, as a dictionary by path.

    Raises:
        TypeError: if a pattern is not a string or a noise not a function.
        ValueError: if there is no pattern, or one is not a regular expression.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from smoothout_jax import by_path, uniform
        >>> noise = by_path({
        ...     "embedding": uniform(0.1, relative_to="filter", filter_axis=0),
        ...     "kernel": uniform(0.3, relative_to="filter"),
        ... })
        >>> params = {"embedding": jnp.ones((5, 4)), "kernel": jnp.ones((4, 2))}
        >>> added = noise(jax.random.key(0), params)
        >>> print(jnp.linalg.norm(added["kernel"], axis=0).round(3))
        [0.6 0.6]
    """
    if not noises:
        raise ValueError("by_path needs at least one pattern, got none")
    check_patterns("by_path", tuple(noises))
    for pattern, noise in noises.items():
        _checks.function("such as uniform(0.01)", **{f"noises[{pattern!r}]": noise})
    return _ByPath(dict(noises))


class _Drawn(abc.ABC):
    """A noise of this module: checks its arguments, knows which leaves it perturbs."""

    def __call__(self, key: jax.Array, params: Params = ..., step: Any = None) -> Any:
        """Noise like the parameters."""
        _checks.prng_key(key, alone=params is ...)
        if params is ...:
            raise TypeError("params is missing: call noise(key, params)")
        _checks.arrays(params=params)
        return self.draw(key, params, step)

    @abc.abstractmethod
    def draw(self, key: jax.Array, params: Params, step: Any) -> Params:
        """Noise like the parameters, after the checks."""

    @abc.abstractmethod
    def where(self, params: Params) -> list[bool]:
        """Whether each leaf gets noise."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Law(_Drawn):
    """Noise of one distribution.

    Attributes:
        law: function from uniform levels, one array or two for a complex leaf, to
            samples of unit size.
        bits: random bits of each level.
        name: the name of the argument that scales it.
        size: the value of that argument.
        relative_to: as in `uniform`, like the next two.
        filter_axis: the axes that index the filters.
        mask: which leaves get noise.
        normalize: whether a sample is divided by its own norm over the filter or layer.
        specs: how the leaves are sharded by hand in `jax.shard_map`, by their names.
    """

    law: Callable[..., jax.Array]
    bits: int
    name: str
    size: Size
    relative_to: RelativeTo
    filter_axis: FilterAxis
    mask: Mask | None
    normalize: bool
    specs: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if not callable(self.size):
            _checks.nonnegative(**{self.name: self.size})
        _checks.choice(
            (None, "weight", "filter", "layer"), relative_to=self.relative_to
        )
        check_filter_axis(self.filter_axis)

    def draw(self, key: jax.Array, params: Params, step: Any) -> Params:
        scale = at_step(self.name, self.size, step)
        leaves, structure = jax.tree.flatten(params)
        leaves = list(map(jnp.asarray, leaves))
        noisy = self.where(params)
        chosen = list(itertools.compress(leaves, noisy))
        drawn = iter(random_like(self.law, key, chosen, self.bits))
        rows = zip(leaf_names(params), leaves, noisy, self._axes(params), strict=True)
        noises = []
        for path, leaf, is_noisy, axes in rows:
            if is_noisy:
                warn_if_lost(leaf, path, self.name, scale, self.relative_to)
                axes = self._norm_axes(axes, leaf.shape, path)
                shards = spec_names(self.specs.get(path, ()), axes)
                noises.append(self._scaled(next(drawn), leaf, axes, shards, scale))
            else:
                noises.append(jnp.zeros_like(leaf))
        return jax.tree.unflatten(structure, noises)

    def where(self, params: Params) -> list[bool]:
        leaves = jax.tree.leaves(params)
        if leaves and not any(map(_checks.is_inexact, leaves)):
            dtypes = sorted({str(jnp.result_type(leaf)) for leaf in leaves})
            raise ValueError(
                "params has no floating or complex leaf to perturb, only"
                f" {', '.join(dtypes)}"
            )
        masks = mask_leaves(self.mask, params)
        rows = list(zip(masks, leaves, strict=True))
        check_noisy(params, [its and _checks.is_inexact(leaf) for its, leaf in rows])
        return [its and _checks.may_bear_noise(leaf) for its, leaf in rows]

    def _axes(self, params: Params) -> list[Any]:
        """The axes of each leaf's filters as given, if they matter."""
        if self.relative_to == "filter" or (
            self.relative_to == "layer" and callable(self.filter_axis)
        ):
            return raw_axes(self.filter_axis, params)
        return [None] * len(jax.tree.leaves(params))

    def _norm_axes(self, axes: Any, shape, path: str) -> tuple[int, ...]:
        """The axes over which to take the norm that scales the noise."""
        if self.relative_to not in ("filter", "layer"):
            return ()
        if self.relative_to == "layer":
            kept = axes.layers if isinstance(axes, Numbering) else ()
        else:
            kept = numbering(axes, shape, path).filters
        return tuple(axis for axis in range(len(shape)) if axis not in kept)

    def _scaled(self, drawn, leaf, axes, shards: tuple[str, ...], scale) -> jax.Array:
        """A sample of unit size, scaled to the leaf."""
        weight = jax.lax.stop_gradient(leaf).astype(drawn.dtype)
        factor = jnp.asarray(scale, jnp.finfo(drawn.dtype).dtype)
        if self.relative_to == "weight":
            factor *= jnp.abs(weight)
        elif self.relative_to is not None:
            norm, *own = _norms([weight, drawn][: 1 + self.normalize], axes, shards)
            factor = factor * norm / own[0] if own else factor * norm
        return place_like(leaf, (factor.astype(drawn.dtype) * drawn).astype(leaf.dtype))


@dataclasses.dataclass(frozen=True, eq=False)
class _ByPath(_Drawn):
    """Several noises, each for the paths that its pattern matches."""

    noises: Mapping[str, Noise]

    def draw(self, key: jax.Array, params: Params, step: Any) -> Params:
        drawn = {path: jnp.zeros_like(leaf) for path, leaf in named_leaves(params)}
        steps = () if step is None else (step,)
        for number, (noise, group) in enumerate(self._groups(params)):
            if group:
                drawn |= noise(jax.random.fold_in(key, number), group, *steps)
        return jax.tree.unflatten(jax.tree.structure(params), drawn.values())

    def where(self, params: Params) -> list[bool]:
        noisy = dict.fromkeys(leaf_names(params), False)
        for noise, group in self._groups(params):
            if group:
                noisy |= zip(sorted(group), noisy_leaves(noise, group), strict=True)
        return list(noisy.values())

    def _groups(self, params: Params) -> list[tuple[Noise, dict[str, Any]]]:
        """Each noise with its leaves by path."""
        named = dict(named_leaves(params))
        warn_of_unmatched("by_path", tuple(self.noises), list(named))
        matches = {path: first_match(self.noises, path) for path in named}
        check_noisy(params, [match is not None for match in matches.values()])
        return [
            (noise, {path: named[path] for path in named if matches[path] == pattern})
            for pattern, noise in self.noises.items()
        ]


def _norms(
    arrays: Sequence[jax.Array], axes: tuple[int, ...], shards: tuple[str, ...]
) -> list[jax.Array]:
    """Euclidean norms over axes, which are kept with size one, and over shards."""
    if not axes:
        return list(map(jnp.abs, arrays))
    squares = [jnp.square(jnp.abs(array)) for array in arrays]
    if len(arrays) > 1 and on_one_gpu():
        # One kernel for both.
        zeros = [jnp.zeros([], each.dtype) for each in squares]
        sums = jax.lax.reduce(
            squares,
            zeros,
            lambda x, y: list(map(add, x, y)),
            axes,
        )
        sums = [jnp.expand_dims(each, axes) for each in sums]
    else:
        sums = [jnp.sum(each, axes, keepdims=True) for each in squares]
    return [jnp.sqrt(jax.lax.psum(each, shards) if shards else each) for each in sums]


def spec_names(spec: Iterable[Any], axes: Container[int] | None = None) -> tuple:
    """The axes of the mesh along which a leaf, or some of its axes, is sharded."""
    return tuple(
        name
        for axis, names in enumerate(spec)
        if names is not None and (axes is None or axis in axes)
        for name in ((names,) if isinstance(names, str) else names)
    )


def noisy_leaves(noise: Noise, params: Params) -> list[bool]:
    """Whether each leaf gets noise, as far as is known without drawing it."""
    if isinstance(noise, _Drawn):
        return noise.where(params)
    return [_checks.is_inexact(leaf) for leaf in jax.tree.leaves(params)]


def sharded_noise(noise: Noise, specs: Mapping[str, Any]) -> Noise:
    """The noise, its norms taken over shards; `specs` are by the names of leaves."""
    if isinstance(noise, _Law):
        return dataclasses.replace(noise, specs=specs)
    if isinstance(noise, _ByPath):
        return _ByPath({p: sharded_noise(n, specs) for p, n in noise.noises.items()})
    return noise


def at_step(name: str, size: Any, step: Any) -> Any:
    """The size at a step, evaluating a schedule; `name` is the argument's name."""
    if not callable(size):
        return size
    if step is None:
        raise ValueError(
            f"{name} is a schedule, which needs the step: call noise(key, params, step)"
            " or pass functools.partial(noise, step=step) on as the noise"
        )
    scale = size(step)
    _checks.nonnegative(**{f"{name} at step {step}": scale})
    return scale
