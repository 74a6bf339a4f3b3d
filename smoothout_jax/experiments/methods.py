"""The methods compared: each one an Optax transformation around the same optimizer."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax

from smoothout_jax import (
    cosine_schedule,
    gaussian,
    smooth_gradients,
    smoothout,
    smoothout_eval_params,
    uniform,
)
from smoothout_jax.experiments.settings import Settings


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to train.

    Attributes:
        label: its name in tables and pictures.
        wrap: function (optimizer, settings, key) to the transformation that trains.
        eval_params: function (state, params) to the parameters to evaluate.
        parts: function of the settings to the number of parts of the batch, of which
            `grad_fn(params, copy)` takes the one numbered by the copy.
    """

    label: str
    wrap: Callable[[Any, Settings, jax.Array], optax.GradientTransformation]
    eval_params: Callable[[Any, Any], Any] = lambda state, params: params
    parts: Callable[[Settings], int] = lambda settings: 1


def _smoothout(optimizer, settings, key):
    return smoothout(optimizer, uniform(settings.radius), key=key)


def _adasmoothout(optimizer, settings, key):
    return smoothout(optimizer, _relative_noise(settings), key=key)


def _relative_noise(settings):
    return uniform(settings.relative_radius, relative_to="filter")


def _averaged(optimizer, settings, key, **options):
    gradients = smooth_gradients(_relative_noise(settings), key=key, **options)
    return optax.chain(gradients, optimizer)


def _split(optimizer, settings, key):
    return _averaged(optimizer, settings, key, num_copies=settings.copies)


def _two_sided(optimizer, settings, key):
    return _averaged(optimizer, settings, key, num_copies=2, antithetic=True)


def _mix(optimizer, settings, key):
    return _averaged(optimizer, settings, key, clean_weight=0.5)


def _gaussian(optimizer, settings, key):
    growth = 20
    std = cosine_schedule(settings.std / growth, growth, settings.steps)
    return smoothout(optimizer, gaussian(std, relative_to="filter"), key=key)


def _sam(optimizer, settings, key):
    ascent = optax.chain(optax.contrib.normalize(), optax.sgd(settings.rho))
    return optax.contrib.sam(optimizer, ascent, opaque_mode=True)


METHODS = {
    "sgd": Method("SGD", lambda optimizer, settings, key: optimizer),
    "smoothout": Method("SmoothOut", _smoothout, smoothout_eval_params),
    "adasmoothout": Method("AdaSmoothOut", _adasmoothout, smoothout_eval_params),
    "sam": Method("SAM", _sam),
    "split": Method("split", _split, parts=lambda settings: settings.copies),
    "two-sided": Method("two-sided", _two_sided),
    "mix": Method("mix", _mix, parts=lambda settings: 2),
    "gaussian": Method("Gaussian", _gaussian, smoothout_eval_params),
}


def optimizer(settings: Settings) -> optax.GradientTransformation:
    """Momentum SGD with cosine decay, which every method is built on."""
    learning_rate = optax.cosine_decay_schedule(settings.learning_rate, settings.steps)
    return optax.chain(
        optax.add_decayed_weights(settings.weight_decay),
        optax.sgd(learning_rate, momentum=settings.momentum),
    )
