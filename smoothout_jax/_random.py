"""Evenly spaced random levels in (-1, 1) for the leaves of a tree, drawn cheaply.

Random bits are the price of noise, in time and in compilation, so they are spared:

- A weight takes 8, 16 or 32 bits, and a random word of 32 serves as many as it can.
- Small leaves share one draw, since each kernel of a generator takes as long to compile
  as that of a layer. Large leaves are drawn one by one, each in the shape of its
  leaf, with the words packed along the last axis, so that a sharded leaf's words are
  drawn in place, shard by shard. XLA does this where it lays arrays out, so axes of the
  mesh that are explicit are left to it while drawing.
- The generator is Threefry of as few rounds as pass the tests of randomness.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from smoothout_jax._jax import apart, on_one_cpu
from smoothout_jax._sharding import by_parts, everywhere, explicit_sharding
from smoothout_jax._trees import accumulator_dtype

# From this many weights on, a leaf is drawn on its own.
LARGE = 2**16
# So many words are drawn at once, where that spares compilation.
BLOCK = 2**19
# Words of a row of those: XLA divides rows between threads well, and single words ill.
ROW = 256
# By which Threefry's rounds rotate.
DISTANCES = (13, 15, 26, 6, 17, 29, 16, 24, 13, 15, 26, 6, 17)


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
    large = [leaf.shape for leaf in leaves if leaf.size >= LARGE]
    shared, *own = _draws(key, [(sum(small),), *large], bits)
    together = by_parts(shared, _whole(leaves))(key)
    ends, draws = iter(np.cumsum(small)), iter(own)

    def levels(leaf):
        if leaf.size < LARGE:
            source = together
            part = functools.partial(_part, end=next(ends), shape=leaf.shape)
        else:
            source, part = key, next(draws)
        return _levels(by_parts(part, leaf.sharding)(source), bits, leaf.dtype)

    return [levels(leaf) for leaf in leaves]


def _draws(
    key: jax.Array, shapes: Sequence[tuple[int, ...]], bits: int
) -> list[Callable[[jax.Array], jax.Array]]:
    """Functions of the key that draw integers of these shapes, from a stream of words.

    On one CPU, which compiles a generator for every draw, the stream is drawn at once.
    """
    packed = [(*lead, -(-last * bits // 32)) for *lead, last in shapes]
    starts = [0, *itertools.accumulate(map(math.prod, packed))]
    blocks = {}
    if on_one_cpu() and _is_threefry(key) and starts[-1] <= 2**32:
        blocks = _blocks(key, starts)

    def draw(key, group, shape):
        start, end = starts[group], starts[group + 1]
        if group in blocks:
            first, block = blocks[group]
            words = block[start - first : end - first].reshape(packed[group])
        else:
            words = _words(key, group=group, start=start, shape=packed[group])
        return _unpacked(words, shape[-1], bits)

    return [
        functools.partial(draw, group=group, shape=shape)
        for group, shape in enumerate(shapes)
    ]


def _blocks(key: jax.Array, starts: Sequence[int]) -> dict[int, tuple[int, jax.Array]]:
    """The words that neighbouring draws take, by draw: their start, and themselves."""
    blocks, first = {}, 0
    for last in range(1, len(starts)):
        whole = last + 1 == len(starts)
        if whole or starts[last + 1] - starts[first] > BLOCK:
            rows = -(-(starts[last] - starts[first]) // ROW)
            words = _words(key, group=0, start=starts[first], shape=(rows, ROW)).ravel()
            blocks |= dict.fromkeys(range(first, last), (starts[first], words))
            first = last
    return blocks


def _whole(leaves: Sequence[jax.ShapeDtypeStruct]) -> NamedSharding | None:
    """The sharding of what every device has whole, where axes are explicit."""
    shardings = (leaf.sharding for leaf in leaves if leaf.sharding is not None)
    first = next(shardings, None)
    return first and everywhere(first)


def _part(together: jax.Array, end: int, shape: tuple[int, ...]) -> jax.Array:
    """The elements before an end, where every device has them all.

    A static offset lets XLA shard the whole draw like its parts and then reshuffle it.
    """
    size = math.prod(shape)
    if on_one_cpu():
        return together[end - size : end].reshape(shape)
    start = jax.lax.optimization_barrier(jnp.int32(end - size))
    return jax.lax.dynamic_slice_in_dim(together, start, size).reshape(shape)


def _unpacked(words: jax.Array, last: int, bits: int) -> jax.Array:
    """Unsigned integers of some bits each, of which `last` are packed in each row."""
    if bits == 32:
        return words
    unsigned = {8: jnp.uint8, 16: jnp.uint16}[bits]
    packed = jax.lax.bitcast_convert_type(words, unsigned)
    return packed.reshape(*words.shape[:-1], -1)[..., :last]


def _levels(integers: jax.Array, bits: int, dtype) -> jax.Array:
    if bits == 32 and dtype != jnp.float64:
        # A float32 holds 24 bits exactly; more would round, the outermost to ±1.
        integers, bits = integers >> 8, 24
    half_step = 2.0**-bits
    return integers.astype(dtype) * (2 * half_step) + (half_step - 1)


def _is_threefry(key: jax.Array) -> bool:
    return jax.random.key_impl(key) == "threefry2x32"


def _draw_words(
    key: jax.Array, group: int, start: int, shape: tuple[int, ...]
) -> jax.Array:
    """Random words of 32 bits, independent between groups.

    Those of a Threefry key lie from a start on in the key's one stream of words.
    """
    end = start + math.prod(shape)
    if not _is_threefry(key) or end > 2**32:
        return jax.random.bits(jax.random.fold_in(key, group), shape, jnp.uint32)
    index = jnp.full(shape, start, jnp.uint32)
    for axis in range(len(shape)):
        along = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        index += along * np.uint32(math.prod(shape[axis + 1 :]))
    key_data = jax.random.key_data(key)
    first, second = threefry(key_data[0], key_data[1], jnp.zeros_like(index), index)
    return first ^ second


def threefry(
    key_0: jax.Array, key_1: jax.Array, x: jax.Array, y: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Threefry-2x32 of 13 rounds: two random words from a key and a counter of two.

    Thirteen are the fewest that pass BigCrush, and for noise, which keeps no secrets,
    seven more have nothing to add. Written out, they are compiled to one pass; JAX runs
    its own twenty on CPU in a loop over arrays in memory.

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


_words = apart(_draw_words, "group", "start", "shape")
