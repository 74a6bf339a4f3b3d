"""The methods compared: each one an Optax transformation around the same optimizer."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax

from smoothout_jax import smoothout, smoothout_eval_params, uniform
from smoothout_jax.experiments.settings import Settings


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to train.

    Attributes:
        label: its name in tables and pictures.
        wrap: function (optimizer, settings, key) to the transformation that trains.
        eval_params: function (state, params) to the parameters to evaluate.
    """

    label: str
    wrap: Callable[[Any, Settings, jax.Array], optax.GradientTransformation]
    eval_params: Callable[[Any, Any], Any] = lambda state, params: params


def _smoothout(optimizer, settings, key):
    return smoothout(optimizer, uniform(settings.radius), key=key)


def _adasmoothout(optimizer, settings, key):
    noise = uniform(settings.relative_radius, relative_to="filter")
    return smoothout(optimizer, noise, key=key)


def _sam(optimizer, settings, key):
    ascent = optax.chain(optax.contrib.normalize(), optax.sgd(settings.rho))
    return optax.contrib.sam(optimizer, ascent, opaque_mode=True)


METHODS = {
    "sgd": Method("SGD", lambda optimizer, settings, key: optimizer),
    "smoothout": Method("SmoothOut", _smoothout, smoothout_eval_params),
    "adasmoothout": Method("AdaSmoothOut", _adasmoothout, smoothout_eval_params),
    "sam": Method("SAM", _sam),
}


def optimizer(settings: Settings) -> optax.GradientTransformation:
    """Momentum SGD with cosine decay, which every method is built on."""
    learning_rate = optax.cosine_decay_schedule(settings.learning_rate, settings.steps)
    return optax.chain(
        optax.add_decayed_weights(settings.weight_decay),
        optax.sgd(learning_rate, momentum=settings.momentum),
    )
