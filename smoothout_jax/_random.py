"""Evenly spaced random levels in (-1, 1) for the leaves of a tree, drawn cheaply.

A random word of 32 bits yields as many levels of 8, 16 or 32 bits as fit. Small leaves
share one draw, because every draw has to be compiled. A large leaf is drawn
alone, in its own shape with words packed along the last axis, so that each device of a
mesh draws only its own part.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from smoothout_jax._jax import apart, on_one_cpu
from smoothout_jax._sharding import by_parts, everywhere, explicit_sharding
from smoothout_jax._trees import accumulator_dtype

# A leaf of this many elements or more is drawn alone.
LARGE = 2**16
# The words of small leaves are drawn in rows, which XLA splits well between threads.
ROW = 256
# The distances by which Threefry rotates, one for each round.
DISTANCES = (13, 15, 26, 6, 17, 29, 16, 24, 13, 15, 26, 6, 17)

Key = jax.Array
Shape = tuple[int, ...]


def random_like(
    law: Callable[..., jax.Array], key: Key, leaves: Sequence[jax.Array], bits: int
) -> list[jax.Array]:
    """Independent samples of a law in the shapes of the leaves, in at least float32.

    The law maps uniform levels to samples: one array, or two for a complex leaf.
    """
    counts = [2 if jnp.iscomplexobj(leaf) else 1 for leaf in leaves]
    parts = [leaf for leaf, n in zip(leaves, counts, strict=True) for _ in range(n)]
    levels = iter(uniform_levels(key, parts, bits))
    return [law(*itertools.islice(levels, count)) for count in counts]


def real_or_complex(*parts: jax.Array) -> jax.Array:
    """One real array as it is, or two as the parts of a complex array."""
    return jax.lax.complex(*parts) if len(parts) == 2 else parts[0]


def uniform_levels(key: Key, leaves: Sequence[jax.Array], bits: int) -> list[jax.Array]:
    """Independent levels in the shapes of the leaves.

    The `2**bits` levels (`2**24` for 32 bits in float32) are equally likely, evenly
    spaced, symmetric about zero, never zero, and strictly within (-1, 1).
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    shardings = [explicit_sharding(leaf) for leaf in leaves]
    whole = next((everywhere(its) for its in shardings if its), None)

    def packed(shape: Shape) -> Shape:
        return (*shape[:-1], -(-shape[-1] * bits // 32))

    def draw(group: int, start: int, shape: Shape, key: Key) -> jax.Array:
        """Random unsigned integers, several to a word along the last axis."""
        if stream is None:
            words = _words(key, group=group, start=start, shape=packed(shape))
        else:
            end = start + math.prod(packed(shape))
            words = stream[start:end].reshape(packed(shape))
        return words.view(f"uint{bits}")[..., : shape[-1]]

    (small,) = packed((sum(leaf.size for leaf in leaves if leaf.size < LARGE),))
    large = [packed(leaf.shape) for leaf in leaves if leaf.size >= LARGE]
    count, stream = small + sum(map(math.prod, large)), None
    if on_one_cpu() and _is_threefry(key) and count + 2 * ROW <= 2**32:
        # Nothing can be sharded, and one draw compiles faster than several.
        rows = -(-count // ROW) + 1, ROW
        stream = _words(key, group=0, start=0, shape=rows).ravel()
    rows = -(-small // ROW), ROW * 32 // bits
    together = by_parts(functools.partial(draw, 0, 0, rows), whole)(key)
    levels, taken, group, start = [], 0, 0, small
    for leaf, sharding in zip(leaves, shardings, strict=True):
        if leaf.size < LARGE:
            part = functools.partial(_part, start=taken, shape=leaf.shape)
            integers = by_parts(part, sharding)(together)
            taken += leaf.size
        else:
            group += 1
            own = functools.partial(draw, group, start, leaf.shape)
            integers = by_parts(own, sharding)(key)
            start += math.prod(packed(leaf.shape))
        levels.append(_levels(integers, bits, accumulator_dtype(leaf.dtype)))
    return levels


def _part(together: jax.Array, start: int, shape: Shape) -> jax.Array:
    """The integers of a small leaf, from those of all of them.

    XLA must not know the start: it would shard the shared draw like the leaf, and the
    devices would have to exchange what they drew.
    """
    hidden = jax.lax.optimization_barrier(jnp.int32(start))
    part = jax.lax.dynamic_slice_in_dim(together.ravel(), hidden, math.prod(shape))
    return part.reshape(shape)


def _is_threefry(key: Key) -> bool:
    return jax.random.key_impl(key) == "threefry2x32"


def _levels(integers: jax.Array, bits: int, dtype) -> jax.Array:
    dtype = jnp.finfo(dtype).dtype
    if bits == 32 and dtype != jnp.float64:
        # A float32 holds 24 bits exactly; more would round, the outermost to ±1.
        integers, bits = integers >> 8, 24
    half_step = 2.0**-bits
    return integers.astype(dtype) * (2 * half_step) + (half_step - 1)


def _draw_words(key: Key, group: int, start: int, shape: Shape) -> jax.Array:
    """Random words of 32 bits.

    Those of a Threefry key are one stream, read from `start`. Any other key draws
    independent words for each `group`.
    """
    if not _is_threefry(key) or start + math.prod(shape) > 2**32:
        return jax.random.bits(jax.random.fold_in(key, group), shape, jnp.uint32)
    index = jnp.full(shape, start, jnp.uint32)
    for axis in range(len(shape)):
        along = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        index += along * np.uint32(math.prod(shape[axis + 1 :]))
    key_0, key_1 = jax.random.key_data(key)
    first, second = threefry(key_0, key_1, jnp.zeros_like(index), index)
    return first ^ second


_words = apart(_draw_words, "group", "start", "shape")


def threefry(
    key_0: jax.Array, key_1: jax.Array, x: jax.Array, y: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Threefry-2x32 of 13 rounds: two random words from a key and a counter of two.

    Thirteen rounds are the fewest that pass BigCrush; JAX takes twenty. On CPU it also
    runs them in a loop over memory; written out, they compile to one pass.

    Reference:
        Salmon et al., `Parallel random numbers: as easy as 1, 2, 3
        <https://doi.org/10.1145/2063384.2063405>`_, 2011, table 2.
    """
    keys = (key_0, key_1, key_0 ^ key_1 ^ np.uint32(0x1BD11BDA))
    x, y = x + keys[0], y + keys[1]
    for number, distance in enumerate(DISTANCES, start=1):
        x = x + y
        y = x ^ ((y << np.uint32(distance)) | (y >> np.uint32(32 - distance)))
        if number % 4 == 0:
            block = number // 4
            x = x + keys[block % 3]
            y = y + keys[(block + 1) % 3] + np.uint32(block)
    return x, y
