"""Times of compiled programs: warm, blocked, and interleaved with each other."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np


def interleaved(
    runs: Mapping[str, Callable[[], Any]], rounds: int
) -> dict[str, np.ndarray]:
    """Seconds of every run, round after round, so that all see the same load.

    Each timed run follows an untimed one, so that none pays for the caches that the
    run before it emptied.

    Args:
        runs: functions that do their work and return arrays to wait for.
        rounds: timed runs of each function, after one to warm up.

    Returns:
        Seconds of each round, by name.
    """
    seconds = {name: [] for name in runs}
    for turn in range(-1, rounds):
        for name, run in runs.items():
            jax.block_until_ready(run())
            began = time.perf_counter()
            jax.block_until_ready(run())
            if turn >= 0:
                seconds[name].append(time.perf_counter() - began)
    return {name: np.array(values) for name, values in seconds.items()}


def compile_seconds(
    lower: Mapping[str, Callable[[], Any]], rounds: int
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Seconds to trace and compile, interleaved; and the compiled programs."""
    compiled = {}

    def compile_from_nothing(name):
        jax.clear_caches()
        began = time.perf_counter()
        compiled[name] = lower[name]().compile()
        return time.perf_counter() - began

    seconds = [
        {name: compile_from_nothing(name) for name in lower} for _ in range(rounds)
    ]
    return {
        name: np.array([turn[name] for turn in seconds]) for name in lower
    }, compiled


def ratio(seconds: np.ndarray, baseline: np.ndarray) -> tuple[float, float, float]:
    """Ratio of the medians; and the quartiles of the ratio within each round."""
    low, high = np.quantile(seconds / baseline, [0.25, 0.75])
    return float(np.median(seconds) / np.median(baseline)), float(low), float(high)
