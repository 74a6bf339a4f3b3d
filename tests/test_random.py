"""Random words come from one stream, and a step draws them once."""

import math
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smoothout_jax import _random

KEY = jax.random.key(3)


PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)


@pytest.mark.parametrize(
    ("counter_and_key", "words"),
    [
        ((0, 0, 0, 0), (0x9D1C5EC6, 0x8BD50731)),
        ((2**32 - 1,) * 4, (0xFD36D048, 0x2D17272C)),
        (PI, (0xBA3E4725, 0xF27D669E)),
    ],
)
def test_thirteen_rounds_are_those_of_the_authors_of_threefry(counter_and_key, words):
    """Known answers from Random123."""
    x, y, *key = map(jnp.uint32, counter_and_key)
    assert tuple(map(int, _random.threefry(*key, x, y))) == words


def test_draws_are_parts_of_one_stream():
    whole = _random._draw_words(KEY, 0, 0, (60,))
    for start, shape in ((0, (5,)), (7, (3, 4)), (30, (2, 3, 5))):
        words = _random._draw_words(KEY, 0, start, shape)
        np.testing.assert_array_equal(words.ravel(), whole[start:][: words.size])
    assert len(np.unique(whole)) == 60


@pytest.mark.parametrize(("bits", "row"), [(8, 1), (8, 256), (16, 4), (32, 256)])
def test_every_leaf_has_its_place_in_the_stream(monkeypatch, bits, row):
    """Small leaves in sequence, then every row of a large leaf in whole words."""
    monkeypatch.setattr(_random, "LARGE", 50)
    monkeypatch.setattr(_random, "ROW", row)
    shapes = [(7,), (9, 6), (3,), (2, 5, 9), (61,), (4, 4), (200,)]
    leaves = [jnp.zeros(shape) for shape in shapes]
    stream = np.asarray(_random._draw_words(KEY, 0, 0, (600,))).view(f"<u{bits // 8}")
    rest = 32 // bits - 1
    small = iter(np.split(stream[:26], np.cumsum([7, 3])))
    start = (26 + rest) // (rest + 1) * (rest + 1)
    for leaf, levels in zip(
        leaves, _random.uniform_levels(KEY, leaves, bits), strict=True
    ):
        if leaf.size < 50:
            expected = next(small).reshape(leaf.shape)
        else:
            *lead, last = leaf.shape
            row_size = (last + rest) // (rest + 1) * (rest + 1)
            end = start + math.prod(lead) * row_size
            expected = stream[start:end].reshape(*lead, row_size)[..., :last]
            start = end
        if bits == 32:
            expected = expected >> 8
        half_step = 2.0 ** -min(bits, 24)
        np.testing.assert_array_equal(
            levels, (2.0 * expected.astype(np.float64) + 1) * half_step - 1
        )


@pytest.mark.parametrize("start", [2**32 - 60, 2**32 - 30, 2**33])
def test_words_beyond_the_end_of_the_stream_are_others(start):
    first = _random._draw_words(KEY, 0, 0, (60,))
    at_end = _random._draw_words(KEY, 5, start, (60,))
    assert len(np.unique(np.concatenate([first, at_end]))) == 120


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_large_and_small_leaves_are_uncorrelated(implementation):
    key = jax.random.key(7, impl=implementation)
    sizes = [_random.LARGE, _random.LARGE - 1, _random.LARGE, _random.LARGE - 1]
    leaves = [jnp.zeros(size) for size in sizes]
    levels = _random.uniform_levels(key, leaves, 8)
    assert [level.size for level in levels] == sizes
    correlations = np.corrcoef([level[: min(sizes)] for level in levels]) - np.eye(4)
    assert np.abs(correlations).max() < 5 / np.sqrt(min(sizes))


def test_a_step_draws_its_words_once_and_in_the_memory_of_one_copy():
    program = """
    import jax, jax.numpy as jnp
    from smoothout_jax import smoothout_value_and_grad, uniform
    from smoothout_jax._jax import on_one_cpu

    def loss(params, x):
        for bias in params["biases"]:
            x = jnp.tanh(x * bias + bias)
        return jnp.mean(x @ params["kernel"])

    noise = uniform(0.01)
    params = {"biases": [jnp.ones(300)] * 5, "kernel": jnp.ones((300, 300))}
    x = jnp.ones((4000, 300))
    compiled = [
        jax.jit(fun).lower(*args).compile()
        for fun, args in (
            (noise, (jax.random.key(0), params)),
            (smoothout_value_and_grad(loss, noise), (jax.random.key(0), params, x)),
            (jax.value_and_grad(loss), (params, x)),
            (smoothout_value_and_grad(loss, noise, num_copies=4),
             (jax.random.key(0), params, x)),
            *(
                (smoothout_value_and_grad(
                    loss, uniform(0.01, relative_to="filter"), num_copies=num_copies),
                 (jax.random.key(0), params, x[:40]))
                for num_copies in (1, 12)
            ),
        )
    ]
    rounds = [program.as_text().count(" xor(") for program in compiled]
    memory = [program.memory_analysis().temp_size_in_bytes for program in compiled]
    print(on_one_cpu(), *rounds[:2], *memory[2:], 4 * (300 * 300 + 5 * 300))
    """
    one_cpu, alone, in_step, *memory, params = subprocess.check_output(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
        text=True,
    ).split()
    plain, four_copies, one_relative, twelve_relative = map(int, memory)
    assert one_cpu == "True"
    assert int(alone) == int(in_step) > 13
    assert four_copies < 1.3 * plain + 2 * int(params)
    assert twelve_relative < one_relative + 2 * int(params)


def test_words_are_kept_apart_from_the_levels_made_of_them():
    """Otherwise XLA computes a word again for each of the levels it serves."""
    leaves = [jnp.zeros(_random.LARGE)]
    draw = jax.jit(lambda key: _random.uniform_levels(key, leaves, 8))
    assert "optimization_barrier" in draw.lower(KEY).as_text()
