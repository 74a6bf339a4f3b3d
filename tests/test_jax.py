"""What the package takes from private or experimental parts of JAX still works."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smoothout_jax import _jax


def test_noise_that_depends_on_the_parameters_is_recognised():
    assert _jax.reads_its_input(lambda tree: tree["w"] * 2, {"w": jnp.ones(2)})
    assert not _jax.reads_its_input(
        lambda tree: jnp.zeros_like(tree["w"]) + 1, {"w": jnp.ones(2)}
    )


@pytest.mark.parametrize("one_cpu", [True, False])
def test_noise_is_compiled_apart_from_what_reads_it(one_cpu, monkeypatch):
    monkeypatch.setattr(_jax, "on_one_cpu", lambda: one_cpu)
    doubled = _jax.apart(lambda x: x * 2)
    program = jax.jit(lambda x: doubled(x) + 1).lower(jnp.ones(2)).as_text()
    assert "optimization_barrier" in program
    assert ("inlineable" in program) == one_cpu
    np.testing.assert_array_equal(doubled(jnp.ones(2)), 2.0)


def test_traced_values_are_recognised():
    assert not _jax.is_traced(jnp.ones(2))
    assert not _jax.is_traced(1.0)
    jax.jit(lambda x: pytest.fail("known") if not _jax.is_traced(x) else x)(1.0)
