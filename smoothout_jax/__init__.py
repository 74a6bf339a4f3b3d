"""SmoothOut for JAX and Optax: train on the loss without its sharp minima."""

from smoothout_jax.gradients import smooth, smoothout_value_and_grad
from smoothout_jax.landscape import (
    Landscape,
    direction_between,
    filter_normalized_direction,
    interpolate,
    line_points,
    loss_curve,
    loss_surface,
    plot_contour,
    plot_curve,
    plot_density,
    plot_side_by_side,
    plot_surface,
)
from smoothout_jax.noise import exclude, gaussian, uniform
from smoothout_jax.schedules import anneal_schedule, cosine_schedule, tanh_schedule
from smoothout_jax.sharpness import (
    Eigenpairs,
    Estimate,
    SpectralDensity,
    expected_sharpness,
    hessian_density,
    hessian_eigenvalues,
    hessian_trace,
    keskar_sharpness,
    per_layer,
    sam_sharpness,
)
from smoothout_jax.transforms import (
    SmoothGradientsState,
    SmoothoutState,
    smooth_gradients,
    smoothout,
    smoothout_eval_params,
)

__version__ = "0.1.0"

__all__ = [
    "Eigenpairs",
    "Estimate",
    "Landscape",
    "SmoothGradientsState",
    "SmoothoutState",
    "SpectralDensity",
    "anneal_schedule",
    "cosine_schedule",
    "direction_between",
    "exclude",
    "expected_sharpness",
    "filter_normalized_direction",
    "gaussian",
    "hessian_density",
    "hessian_eigenvalues",
    "hessian_trace",
    "interpolate",
    "keskar_sharpness",
    "line_points",
    "loss_curve",
    "loss_surface",
    "per_layer",
    "plot_contour",
    "plot_curve",
    "plot_density",
    "plot_side_by_side",
    "plot_surface",
    "sam_sharpness",
    "smooth",
    "smooth_gradients",
    "smoothout",
    "smoothout_eval_params",
    "smoothout_value_and_grad",
    "tanh_schedule",
    "uniform",
]
