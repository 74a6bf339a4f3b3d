"""The methods compared, each built on the same optimizer.

A method has one strength, such as a radius, which may be traced: so several strengths
can train side by side in one program.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import optax

from smoothout_jax import (
    cosine_schedule,
    exclude,
    gaussian,
    smoothout,
    smoothout_eval_params,
    uniform,
)
from smoothout_jax.experiments import rivals
from smoothout_jax.experiments.regime import (
    GROWTH,
    gradient_rule,
    make_optimizer,
    radius_schedule,
    update_rule,
)
from smoothout_jax.experiments.settings import TrainingSettings
from smoothout_jax.noise import Noise, RelativeTo


@dataclasses.dataclass(frozen=True)
class Context:
    """What methods are built from.

    Attributes:
        settings: the settings.
        steps: updates in the whole of training.
        batch_norm: whether the network has BatchNorm, which gets no uniform noise.
    """

    settings: TrainingSettings
    steps: int
    batch_norm: bool = False

    def optimizer(self, peak: Any = None) -> optax.GradientTransformation:
        """The optimizer, by default with the learning rate of the settings."""
        return make_optimizer(self.settings, self.steps, peak)

    def uniform(self, radius: Any, relative_to: RelativeTo = None) -> Noise:
        """Uniform noise, its radius along the schedule of the settings."""
        scheduled = radius_schedule(self.settings, radius, self.steps)
        return uniform(scheduled, relative_to=relative_to, mask=self._mask)

    def relative(self, radius: Any) -> Noise:
        """Uniform noise relative to each filter."""
        return self.uniform(radius, "filter")

    def rising_gaussian(self, std: Any) -> Noise:
        """LPF-SGD's noise, which BatchNorm's parameters get too."""
        rising = cosine_schedule(std / GROWTH, GROWTH, self.steps)
        return gaussian(rising, relative_to="filter", one_axis="layer")

    @property
    def _mask(self):
        return exclude("BatchNorm") if self.batch_norm else None


def _optimizer(context, strength, key):
    return context.optimizer()


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to train.

    Attributes:
        label: its name in tables and pictures.
        strength: the setting that is its strength.
        transform: function of (context, strength, key) to the transformation that
            trains; by default the optimizer alone.
        noise: function of (context, strength) to the noise at which gradients are
            taken, if they are not taken at the parameters of the loop.
        copies: function of the settings to options of `smoothout_value_and_grad`.
        splits: whether the copies divide the batch between them.
        gradients: gradients of a whole batch that a step takes.
        eval_params: function (state, params) to the parameters to evaluate.
    """

    label: str
    strength: str
    transform: Callable[..., optax.GradientTransformation] = _optimizer
    noise: Callable[[Context, Any], Noise] | None = None
    copies: Callable[[TrainingSettings], dict[str, Any]] = lambda settings: {}
    splits: bool = False
    gradients: int = 1
    eval_params: Callable[[Any, Any], Any] = lambda state, params: params


def _sgd(context, strength, key):
    return context.optimizer(strength)


def _smoothout(context, strength, key):
    return smoothout(context.optimizer(), context.uniform(strength), key=key)


def _adasmoothout(context, strength, key):
    return smoothout(context.optimizer(), context.relative(strength), key=key)


def _sam(context, strength, key):
    ascent = optax.chain(optax.contrib.normalize(), optax.sgd(strength))
    return optax.contrib.sam(context.optimizer(), ascent, opaque_mode=True)


def _msam(context, strength, key):
    """Gradients are taken at the perturbed weights, coupled weight decay with them."""
    update = update_rule(context.settings, context.steps)
    return optax.chain(gradient_rule(context.settings), rivals.msam(update, strength))


def _no_denoising(context, strength, key):
    noise = rivals.staying_noise(context.uniform(strength), key)
    return optax.chain(context.optimizer(), noise)


def _split(label, strength, noise, transform=_optimizer):
    return Method(
        label,
        strength,
        transform,
        noise,
        copies=lambda settings: {"num_copies": settings.copies},
        splits=True,
    )


METHODS = {
    "sgd": Method("SGD", "learning_rate", _sgd),
    "smoothout": Method(
        "SmoothOut", "radius", _smoothout, eval_params=smoothout_eval_params
    ),
    "adasmoothout": Method(
        "AdaSmoothOut",
        "relative_radius",
        _adasmoothout,
        eval_params=smoothout_eval_params,
    ),
    "sam": Method("SAM", "rho", _sam, gradients=2),
    "msam": Method("MSAM", "msam_rho", _msam, eval_params=rivals.msam_eval_params),
    "smoothout-split": _split("split SmoothOut", "radius", Context.uniform),
    "adasmoothout-split": _split(
        "split AdaSmoothOut", "relative_radius", Context.relative
    ),
    "two-sided": Method(
        "two-sided",
        "relative_radius",
        noise=Context.relative,
        copies=lambda settings: {"num_copies": 2, "antithetic": True},
        gradients=2,
    ),
    "mix": Method(
        "mix",
        "relative_radius",
        noise=Context.relative,
        copies=lambda settings: {"clean_weight": 0.5, "aux": "clean"},
        splits=True,
    ),
    "gaussian": _split("rising Gaussian", "std", Context.rising_gaussian),
    "no-denoising": Method("no de-noising", "radius", _no_denoising),
    "sgd-split": _split(
        "split SGD", "learning_rate", lambda context, strength: uniform(0.0), _sgd
    ),
}
