"""Settings for every test: eight CPU devices, quick compiles, no silent promotion.

Compiled programs are kept for the next run and for processes that tests start;
``--cache-clear`` removes them. With
``XLA_FLAGS=--xla_backend_optimization_level=3`` they are compiled as users have them.
"""

import gc
import os

import jax
import jaxlib
import pytest

# The tests compile much and run little.
QUICK = ["--xla_backend_optimization_level=0"]
if jaxlib.version.__version_info__ < (0, 11):
    QUICK.append("--xla_cpu_use_fusion_emitters=false")


def flags(given):
    """The flags of XLA; a worker inherits those of the process that started it."""
    wanted = ["--xla_force_host_platform_device_count=8"]
    if "--xla_backend_optimization_level" not in given:
        wanted += QUICK
    return " ".join([given, *(flag for flag in wanted if flag not in given)]).strip()


# JAX reads them at its first computation.
os.environ["XLA_FLAGS"] = flags(os.environ.get("XLA_FLAGS", ""))
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Compiled programs stay alive, so frequent garbage collection only costs time.
gc.set_threshold(100_000)


@pytest.fixture(scope="module")
def standard_promotion():
    """JAX's default promotion of dtypes, which Optax's schedules need."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def double_precision():
    with jax.enable_x64(True):
        yield


def pytest_configure(config):
    """Keep compiled programs in pytest's cache.

    Each worker has its own folder: JAX writes a program in place, so others could read
    one that is half written.
    """
    if not config.pluginmanager.hasplugin("cacheprovider"):
        return
    worker = os.environ.get("PYTEST_XDIST_WORKER", "alone")
    folder = str(config.cache.mkdir(f"compilations-{worker}"))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
