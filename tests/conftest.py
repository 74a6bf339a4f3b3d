"""Settings for every test: eight CPU devices, quick compiles, no silent promotion."""

import os

os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        # The tests compile much and run little.
        "--xla_backend_optimization_level=0",
    )
)

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
