"""SmoothOut for JAX and Optax: train on the loss without its sharp minima.

This module holds the training functions. `smoothout_jax.sharpness` measures how flat a
minimum is, `smoothout_jax.landscape` evaluates the loss around it,
`smoothout_jax.plots` draws both, and `smoothout_jax.rivals` has methods to compare
with.
"""

import importlib
from typing import Any

from smoothout_jax.filters import (
    equinox_filters,
    flax_filters,
    haiku_filters,
    stacked,
)
from smoothout_jax.gradients import (
    SmoothGradientsState,
    smooth,
    smooth_gradients,
    smoothout_value_and_grad,
)
from smoothout_jax.loss_rise import (
    LossRiseState,
    heldout_gap,
    init_loss_rise,
    smoothout_metrics,
    smoothout_report,
)
from smoothout_jax.masks import exclude, only
from smoothout_jax.noise import Noise, by_path, gaussian, uniform
from smoothout_jax.schedules import (
    anneal_schedule,
    cosine_schedule,
    rise_schedule,
    tanh_schedule,
)
from smoothout_jax.smoothout import (
    SmoothoutState,
    smoothout,
    smoothout_eval_params,
)

__version__ = "0.2.0"

__all__ = [
    "LossRiseState",
    "Noise",
    "SmoothGradientsState",
    "SmoothoutState",
    "anneal_schedule",
    "by_path",
    "cosine_schedule",
    "equinox_filters",
    "exclude",
    "flax_filters",
    "gaussian",
    "haiku_filters",
    "heldout_gap",
    "init_loss_rise",
    "only",
    "rise_schedule",
    "smooth",
    "smooth_gradients",
    "smoothout",
    "smoothout_eval_params",
    "smoothout_metrics",
    "smoothout_report",
    "smoothout_value_and_grad",
    "stacked",
    "tanh_schedule",
    "uniform",
]


def __getattr__(name: str) -> Any:
    """Imports the other modules when they are first used."""
    if name in ("sharpness", "landscape", "plots", "rivals"):
        return importlib.import_module(f"smoothout_jax.{name}")
    raise AttributeError(f"module 'smoothout_jax' has no attribute {name!r}")
