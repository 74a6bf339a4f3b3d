"""Evenly spaced random levels in (-1, 1) for the leaves of a tree, drawn cheaply.

Random bits are the price of noise, in time and in compilation, so they are spared:

- A weight takes 8, 16 or 32 bits, and a random word of 32 serves as many as it can.
- Small leaves share one draw, since each kernel of a generator takes as long to compile
  as that of a layer. Large leaves are drawn one by one, each in the shape of its
  leaf, with the words packed along the last axis, so that a sharded leaf's words are
  drawn in place, shard by shard. XLA does this where it lays arrays out, so axes of the
  mesh that are explicit are left to it while drawing.
- On CPU, `jax.random` runs the rounds of Threefry in a loop over arrays in memory. Here
  they are written out, to be compiled to one pass: the words are the same.
"""

import functools
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from smoothout_jax._jax import apart, on_one_cpu, threefry2x32
from smoothout_jax._sharding import by_parts, explicit_sharding
from smoothout_jax._trees import accumulator_dtype

# From this many weights on, a leaf is drawn on its own.
LARGE = 2**16


def uniform_levels(
    key: jax.Array, leaves: Sequence[jax.ShapeDtypeStruct], bits: int
) -> list[jax.Array]:
    """Independent levels for every element of every leaf.

    Args:
        key: PRNG key, typed or raw.
        leaves: shapes and real dtypes, float32 or float64, of the levels, and their
            shardings where axes of the mesh are explicit.
        bits: random bits of each level: 8, 16 or 32.

    Returns:
        Arrays of `2**bits` equally likely, evenly spaced levels, symmetric about zero
        and never zero, strictly within (-1, 1); `2**24` levels for 32 bits in float32.
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    small = [leaf.size for leaf in leaves if leaf.size < LARGE]
    draw = functools.partial(_integers, bits=bits)
    shared = functools.partial(draw, group=0, shape=(sum(small),))
    together = by_parts(shared, _whole(leaves))(key)
    ends = iter(np.cumsum(small))
    groups = iter(range(1, len(leaves) + 1))

    def levels(leaf):
        if leaf.size < LARGE:
            source = together
            own = functools.partial(_part, end=next(ends), shape=leaf.shape)
        else:
            source = key
            own = functools.partial(draw, group=next(groups), shape=leaf.shape)
        return _levels(by_parts(own, leaf.sharding)(source), bits, leaf.dtype)

    return [levels(leaf) for leaf in leaves]


def _whole(leaves: Sequence[jax.ShapeDtypeStruct]) -> NamedSharding | None:
    """The sharding of what every device has whole, where axes are explicit."""
    shardings = (leaf.sharding for leaf in leaves if leaf.sharding is not None)
    first = next(shardings, None)
    return first and NamedSharding(first.mesh, jax.P())


def _part(together: jax.Array, end: int, shape: tuple[int, ...]) -> jax.Array:
    """The elements before an end, where every device has them all.

    A static offset lets XLA shard the whole draw like its parts and then reshuffle it.
    """
    size = math.prod(shape)
    if on_one_cpu():
        return together[end - size : end].reshape(shape)
    start = jax.lax.optimization_barrier(jnp.int32(end - size))
    return jax.lax.dynamic_slice_in_dim(together, start, size).reshape(shape)


def _integers(
    key: jax.Array, group: int, shape: tuple[int, ...], bits: int
) -> jax.Array:
    """Unsigned integers of some bits each, packed in words along the last axis."""
    *leading, last = shape
    words = _words(key, group=group, shape=(*leading, -(-last * bits // 32)))
    if bits == 32:
        return words
    unsigned = {8: jnp.uint8, 16: jnp.uint16}[bits]
    packed = jax.lax.bitcast_convert_type(words, unsigned)
    return packed.reshape(*leading, -1)[..., :last]


def _levels(integers: jax.Array, bits: int, dtype) -> jax.Array:
    if bits == 32 and dtype != jnp.float64:
        # A float32 holds 24 bits exactly; more would round, the outermost to ±1.
        integers, bits = integers >> 8, 24
    half_step = 2.0**-bits
    return integers.astype(dtype) * (2 * half_step) + (half_step - 1)


def _draw_words(key: jax.Array, group: int, shape: tuple[int, ...]) -> jax.Array:
    """Random words of 32 bits, independent between groups.

    Those of a Threefry key and group 0 are `jax.random.bits(key, shape)`.
    """
    if jax.random.key_impl(key) != "threefry2x32" or math.prod(shape) > 2**32:
        return jax.random.bits(jax.random.fold_in(key, group), shape, jnp.uint32)
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    index = jnp.zeros(shape, jnp.uint32)
    for axis, stride in enumerate(strides):
        along = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        index += along * np.uint32(stride)
    threefry = _threefry if on_one_cpu() else threefry2x32
    key_data = jax.random.key_data(key)
    high = jnp.full_like(index, group)
    first, second = threefry(key_data[0], key_data[1], high, index)
    return first ^ second


def _threefry(key_0, key_1, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Threefry-2x32 of 20 rounds: two random words from a key and a counter of two.

    Reference:
        Salmon et al., `Parallel random numbers: as easy as 1, 2, 3
        <https://doi.org/10.1145/2063384.2063405>`_, 2011.
    """
    schedule = (key_0, key_1, key_0 ^ key_1 ^ np.uint32(0x1BD11BDA))
    x, y = x + schedule[0], y + schedule[1]
    for number in range(1, 6):
        for distance in (13, 15, 26, 6) if number % 2 else (17, 29, 16, 24):
            x = x + y
            y = x ^ ((y << np.uint32(distance)) | (y >> np.uint32(32 - distance)))
        x = x + schedule[number % 3]
        y = y + schedule[(number + 1) % 3] + np.uint32(number)
    return x, y


def random_like(law, key, leaves, bits: int) -> list[jax.Array]:
    """Samples of a law like the leaves, in float32 at least."""
    parts = [2 if jnp.iscomplexobj(leaf) else 1 for leaf in leaves]
    levels = uniform_levels(
        key,
        [
            jax.ShapeDtypeStruct(
                leaf.shape,
                jnp.finfo(accumulator_dtype(leaf.dtype)).dtype,
                sharding=explicit_sharding(leaf),
            )
            for leaf, count in zip(leaves, parts, strict=True)
            for _ in range(count)
        ],
        bits,
    )
    remaining = iter(levels)
    return [law(*itertools.islice(remaining, count)) for count in parts]


def real_or_complex(*parts: jax.Array) -> jax.Array:
    return jax.lax.complex(*parts) if len(parts) == 2 else parts[0]


_words = apart(_draw_words, "group", "shape")
