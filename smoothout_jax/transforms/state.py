"""The state of `smoothout`, and the noise drawn from the key in it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from smoothout_jax import _checks
from smoothout_jax._jax import is_traced, reads_its_input
from smoothout_jax._trees import Params, add_noise
from smoothout_jax.loss_rise import LossRiseState, scaled_noise
from smoothout_jax.noise import Noise
from smoothout_jax.transforms.following import fingerprint, follow, where_any

NO_PARAMS = (
    "needs the parameters: call update(grads, state, params), not update(grads, state)"
)


class SmoothoutState(NamedTuple):
    """State of `smoothout`.

    Attributes:
        clean_params: the clean parameters, to evaluate and to save; `None` if they are
            not kept.
        smoothout_key_data: data of the PRNG key, from which every noise is folded.
        smoothout_step: number of updates of the clean parameters, int32.
        smoothout_copy: number of gradients taken since the last of them, int32.
        gradient_mean: mean of those gradients, in float32 at least; `None` if M = 1.
        smoothed_state: state of the wrapped optimizer.
        smoothout_fingerprint: a number for each leaf, by which a change of the loop's
            parameters is told; if the clean ones are not kept, of the noise in them.
            NaN where it is not known: the next update finds out.
        smoothout_rise: how strong the noise is, if `loss_rise` is held; else `None`.
    """

    clean_params: Params | None
    smoothout_key_data: jax.Array
    smoothout_step: jax.typing.ArrayLike
    smoothout_copy: jax.typing.ArrayLike
    gradient_mean: Params | None
    smoothed_state: optax.OptState
    smoothout_fingerprint: jax.Array
    smoothout_rise: LossRiseState | None = None


@dataclasses.dataclass(frozen=True)
class Noises:
    """The noises of a training, drawn from the key in its state.

    Attributes:
        noise: their law.
        key: a key of the implementation that the key in the state is of.
        num_copies: noises for each update of the clean parameters.
    """

    noise: Noise
    key: jax.Array
    num_copies: int

    def draw(self, state: SmoothoutState, params: Params) -> Params:
        """The noise of the state's copy in its step; none before has the same."""
        _, key_data, step, copy, *_ = state
        noise, rise = self.noise, state.smoothout_rise
        if rise is not None:
            noise = scaled_noise(noise, rise.noise_scale)
        number = step * self.num_copies + copy
        return noise(fold(self.key, key_data, number), params, step)

    def drawn(self, state: SmoothoutState, params: Params) -> Params:
        """The noise that the loop's parameters were handed out with."""
        added = self.draw(state, params)
        return jax.tree.map(lambda n: jnp.where(is_first(state), 0, n), added)

    def clean(
        self,
        state: SmoothoutState,
        params: Params,
        is_due: Any = False,
        look: Callable[[Params], Any] | None = None,
    ) -> tuple[Params, Any]:
        """The clean parameters of those that an update was given.

        With them, what a look at them shows if one is due; NaN else.
        """
        unseen = jnp.float32(jnp.nan)
        if state.clean_params is None:
            noise = self.drawn(state, params)
            clean = add_noise(params, jax.tree.map(jnp.negative, noise))
            if look is None:
                return clean, unseen
            return clean, where_any(is_due, lambda: look(clean), lambda: unseen)
        changed = state.smoothout_fingerprint != fingerprint(params)
        kept = jax.tree.map(
            lambda c, p: c if _checks.is_inexact(c) else jnp.asarray(p, c.dtype),
            state.clean_params,
            params,
        )

        def find():
            followed = functools.partial(self.followed, state, params, changed)
            return where_any(changed, followed, lambda: kept)

        if look is None:
            return find(), unseen

        def find_and_look():
            clean = find()
            return clean, look(clean)

        # One branch for both: XLA would copy the parameters from one to another.
        rare = jnp.any(changed) | is_due
        return where_any(rare, find_and_look, lambda: (kept, unseen))

    def followed(self, state: SmoothoutState, params, changed) -> Params:
        """The clean parameters that were kept, with what changed since."""
        noise = self.drawn(state, state.clean_params)
        first = is_first(state)
        return follow(state.clean_params, params, noise, changed, first)


def is_first(state: SmoothoutState) -> jax.Array:
    """Whether the loop's parameters are the initial ones, which have no noise."""
    return (jnp.asarray(state.smoothout_step) == 0) & (state.smoothout_copy == 0)


def fold(key: jax.Array, key_data: jax.Array, count: Any) -> jax.Array:
    """The key of one noise, from the data in the state.

    `key` only supplies the PRNG implementation.
    """
    folded = jnp.asarray(key_data)
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        folded = jax.random.wrap_key_data(folded, impl=jax.random.key_impl(key))
    return jax.random.fold_in(folded, count)


def key_data_of(key: jax.Array) -> jax.Array:
    """The data of a key, to be kept in a state: plain integers in their own buffer."""
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return fresh(jax.random.key_data(key) if typed else key)


def fresh(leaf: Any) -> jax.Array:
    """A copy in a buffer of its own, so that the parameters can be donated."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jnp.zeros_like(leaf)
    return jnp.array(leaf, jnp.result_type(leaf), copy=True)


def warn_of_lost_noise(noise: Noise, key: jax.Array, params: Params) -> None:
    """Draws once from half-precision parameters while their values are known."""
    leaves = jax.tree.leaves(params)
    if any(jnp.result_type(leaf).itemsize <= 2 for leaf in leaves) and not any(
        is_traced(leaf) or isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves
    ):
        noise(key, params, jnp.zeros([], jnp.int32))


def require_independent(noise: Noise, key: jax.Array, params: Params) -> None:
    """Requires a noise that is the same whatever the parameters' values are."""
    step = jnp.zeros([], jnp.int32)
    if reads_its_input(lambda params: noise(key, params, step), params):
        raise ValueError(
            "keep_clean=False draws the noise again at perturbed parameters, so it must"
            " not depend on their values, as noise relative to weights, filters or"
            " layers does; keep the clean parameters, or take relative_to=None"
        )
