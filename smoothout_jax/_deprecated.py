"""Names of 0.1 that were at the top level, and where they are now. For 0.2: delete."""

import importlib
import warnings
from typing import Any

MOVED = {
    "sharpness": (
        "Eigenpairs",
        "Estimate",
        "SpectralDensity",
        "expected_sharpness",
        "hessian_density",
        "hessian_eigenvalues",
        "hessian_trace",
        "keskar_sharpness",
        "per_layer",
        "sam_sharpness",
    ),
    "landscape": (
        "Landscape",
        "direction_between",
        "filter_normalized_direction",
        "interpolate",
        "line_points",
        "loss_curve",
        "loss_surface",
    ),
    "plots": (
        "plot_contour",
        "plot_curve",
        "plot_density",
        "plot_side_by_side",
        "plot_surface",
    ),
}


def moved(name: str) -> Any:
    """A name that has moved to a module; raises AttributeError for any other."""
    for module, names in MOVED.items():
        if name in names:
            warnings.warn(
                f"smoothout_jax.{name} is now smoothout_jax.{module}.{name}; the old"
                " name goes away in 0.2",
                DeprecationWarning,
                stacklevel=3,
            )
            return getattr(importlib.import_module(f"smoothout_jax.{module}"), name)
    raise AttributeError(f"module 'smoothout_jax' has no attribute {name!r}")
