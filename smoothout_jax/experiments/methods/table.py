"""The table of methods, `METHODS`, each built on the same optimizer.

A new method is a new row. A method has one strength, such as a radius, which may be
traced, so that several strengths can train side by side in one program.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from smoothout_jax import smoothout, smoothout_eval_params
from smoothout_jax.experiments.averaging import averaged_params
from smoothout_jax.experiments.methods.method import Context, Method
from smoothout_jax.experiments.methods.settings import (
    FIXED,
    radius_schedule,
    rising_schedule,
)
from smoothout_jax.experiments.regime import gradient_rule, update_rule
from smoothout_jax.rivals import msam, msam_eval_params

__all__ = ["METHODS", "METHODS_HELP", "Context", "Method"]


def _smoothout(context, strength, key):
    noise, rise = context.noise_and_rise(strength)
    return smoothout(context.optimizer(), noise, key=key, loss_rise=rise)


def _sam(context, strength, key):
    ascent = optax.chain(optax.contrib.normalize(), optax.sgd(strength))
    return optax.contrib.sam(context.optimizer(), ascent, opaque_mode=True)


def _msam(context, strength, key):
    """Takes gradients, and coupled weight decay, at the perturbed weights."""
    update = update_rule(context.settings, context.steps)
    return optax.chain(gradient_rule(context.settings), msam(update, strength))


def _no_denoising(context, strength, key):
    """The authors' ablation: noise is added after each update, and stays."""
    noise, _ = context.noise_and_rise(strength)

    def update(updates, step, params=None):
        updated = optax.tree.add(params, updates)
        added = noise(jax.random.fold_in(key, step), updated, step)
        return optax.tree.add(updates, added), optax.safe_increment(step)

    staying = optax.GradientTransformation(
        lambda params: jnp.zeros([], jnp.int32),
        update,  # pyright: ignore[reportArgumentType]
    )
    return optax.chain(context.optimizer(), staying)


# SmoothOut around the optimizer, and AdaSmoothOut, which differs in its noise.
_SMOOTHOUT = Method(
    label="SmoothOut",
    color="#56b4e9",
    help="uniform noise in every weight",
    strength="radius",
    noise=Context.uniform,
    transform=_smoothout,
    eval_params=smoothout_eval_params,
)
_ADASMOOTHOUT = dataclasses.replace(
    _SMOOTHOUT,
    label="AdaSmoothOut",
    color="#0072b2",
    help="noise relative to every filter",
    strength="relative_radius",
    noise=Context.relative,
)
# Options of the split methods, where each copy takes its part of the batch.
_SPLIT: dict[str, Any] = {
    "copies": lambda settings: {"num_copies": settings.copies},
    "parts": lambda settings: settings.copies,
}
_MIX = Method(
    label="mix",
    color="#8c564b",
    help="half the batch at the clean weights",
    strength="relative_radius",
    noise=Context.relative,
    copies=lambda settings: {"clean_weight": 0.5, "aux": "clean"},
    parts=lambda settings: 2,
)
# Colours of Okabe and Ito and tints of them, which colour-blind readers distinguish.
METHODS = {
    "sgd": Method(
        label="SGD",
        color="#000000",
        help="the optimizer alone",
        strength="learning_rate",
        transform=lambda context, strength, key: context.optimizer(peak=strength),
    ),
    "smoothout": _SMOOTHOUT,
    "adasmoothout": _ADASMOOTHOUT,
    "smoothout-fixed": dataclasses.replace(
        _SMOOTHOUT,
        label="SmoothOut, fixed",
        color="#a6d8f5",
        help=f"{_SMOOTHOUT.help}, of a fixed radius, by default {FIXED['radius']}",
        fixed=True,
    ),
    "adasmoothout-fixed": dataclasses.replace(
        _ADASMOOTHOUT,
        label="AdaSmoothOut, fixed",
        color="#6699cc",
        help=f"{_ADASMOOTHOUT.help}, of a fixed radius, by default"
        f" {FIXED['relative_radius']}",
        fixed=True,
    ),
    "sam": Method(
        label="SAM",
        color="#d55e00",
        help="sharpness-aware minimization",
        strength="rho",
        transform=_sam,
        gradients=2,
    ),
    "msam": Method(
        label="MSAM",
        color="#e69f00",
        help="SAM along the momentum",
        strength="msam_rho",
        transform=_msam,
        eval_params=msam_eval_params,
    ),
    "smoothout-split": Method(
        label="split SmoothOut",
        color="#44cfa6",
        help="each copy takes its part of the batch, and BatchNorm its statistics there"
        " (ghost batches)",
        strength="radius",
        noise=Context.uniform,
        **_SPLIT,
    ),
    "adasmoothout-split": Method(
        label="split AdaSmoothOut",
        color="#009e73",
        help="the same with noise relative to every filter",
        strength="relative_radius",
        noise=Context.relative,
        **_SPLIT,
    ),
    "two-sided": Method(
        label="two-sided",
        color="#cc79a7",
        help="a pair of copies at opposite noises",
        strength="relative_radius",
        noise=Context.relative,
        copies=lambda settings: {"num_copies": 2, "antithetic": True},
        gradients=2,
    ),
    "mix": _MIX,
    "lpf-sgd": Method(
        label="LPF-SGD",
        color="#b391cc",
        help="low-pass filtering: split Gaussian noise that rises, in BatchNorm too",
        strength="std",
        noise=Context.gaussian,
        schedule=rising_schedule,
        fixed=True,
        **_SPLIT,
    ),
    "rwp": dataclasses.replace(
        _MIX,
        label="RWP",
        color="#c4a19b",
        help="random weight perturbation: mix, with Gaussian noise of a fixed strength",
        strength="std",
        noise=Context.gaussian,
        fixed=True,
    ),
    "smoothout-gaussian": dataclasses.replace(
        _SMOOTHOUT,
        label="SmoothOut, Gaussian",
        color="#3b7a99",
        help="Gaussian noise in every weight, of the variance that uniform noise of the"
        " fixed radius has",
        noise=Context.normal,
        schedule=lambda settings, strength, steps: radius_schedule(
            settings, strength / math.sqrt(3), steps
        ),
        fixed=True,
    ),
    "ema": Method(
        label="EMA",
        color="#bcbd22",
        help="an exponential moving average of the weights of SGD",
        strength="ema_decay",
        transform=lambda context, strength, key: context.optimizer(ema_decay=strength),
        eval_params=lambda state, params: averaged_params(state),
    ),
    "nesterov": Method(
        label="Nesterov",
        color="#777733",
        help="SGD with Nesterov's momentum",
        strength="momentum",
        transform=lambda context, strength, key: context.optimizer(
            momentum=strength, nesterov=True
        ),
    ),
    "no-denoising": Method(
        label="no de-noising",
        color="#999999",
        help="the noise stays in the weights",
        strength="radius",
        noise=Context.uniform,
        fixed=True,
        transform=_no_denoising,
    ),
}
METHODS_HELP = "; ".join(f"{name}: {row.help}" for name, row in METHODS.items())
