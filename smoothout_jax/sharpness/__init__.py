"""Measures of sharpness: how flat a minimum is.

Every measure takes `loss(params)`, or `loss(params, batch)` and an iterable of
`batches`. A batch is a tree of arrays whose leading axis is the example, and the loss
is the mean over the batch. The measure is then that of the mean loss over all examples;
it needs memory for one batch and a few trees like the parameters. A rise has the unit
of the loss, such as nats.

A loss is compiled once for all networks with the same structure. Pass the same function
each time, and bind large arrays with `jax.tree_util.Partial(loss, data)`.

References:
    Bisla et al., `Low-Pass Filtering SGD for Recovering Flat Optima in the Deep
    Learning Optimization Landscape <https://arxiv.org/abs/2201.08025>`_, 2022.

    Keskar et al., `On Large-Batch Training for Deep Learning: Generalization Gap and
    Sharp Minima <https://arxiv.org/abs/1609.04836>`_, 2016.

    Foret et al., `Sharpness-Aware Minimization for Efficiently Improving
    Generalization <https://arxiv.org/abs/2010.01412>`_, 2020.
"""

from smoothout_jax.sharpness.eigenvalues import Eigenpairs, hessian_eigenvalues
from smoothout_jax.sharpness.estimate import Estimate
from smoothout_jax.sharpness.expected import expected_sharpness
from smoothout_jax.sharpness.layers import per_layer
from smoothout_jax.sharpness.spectrum import (
    SpectralDensity,
    hessian_density,
    hessian_trace,
)
from smoothout_jax.sharpness.worst import keskar_sharpness, sam_sharpness

__all__ = [
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
]
