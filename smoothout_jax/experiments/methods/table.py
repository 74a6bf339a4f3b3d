"""The table of methods, each built on the same optimizer.

`METHODS` is that table: a new method is a new row. A method has one strength, such as a
radius, which may be traced, so that several strengths can train side by side in one
program.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import optax

from smoothout_jax import (
    exclude,
    flax_filters,
    gaussian,
    smoothout,
    smoothout_eval_params,
    uniform,
)
from smoothout_jax.experiments.methods import rivals
from smoothout_jax.experiments.methods.settings import (
    FIXED,
    LARGEST,
    MethodSettings,
    Strength,
    growing_rise,
    radius_schedule,
    rising_schedule,
)
from smoothout_jax.experiments.regime import (
    gradient_rule,
    make_optimizer,
    update_rule,
)
from smoothout_jax.noise import Noise, RelativeTo, Size
from smoothout_jax.schedules import LOSS_RISE


@dataclasses.dataclass(frozen=True)
class Context:
    """What methods are built from.

    Attributes:
        settings: the settings.
        steps: updates in the whole of training.
        method: the method.
        steps_per_epoch: updates in a pass over the training images.
        batch_norm: whether the network has BatchNorm, which gets no uniform noise.
    """

    settings: MethodSettings
    steps: int
    method: "Method"
    steps_per_epoch: int = 1
    batch_norm: bool = False

    def optimizer(self, peak: Strength | None = None) -> optax.GradientTransformation:
        """The optimizer, by default with the learning rate of the settings."""
        return make_optimizer(self.settings, self.steps, peak)

    def noise_and_rise(self, strength: Strength) -> tuple[Noise, Any]:
        """The noise, and the rise that it may cost; `None` if its size is fixed."""
        method, settings = self.method, self.settings
        if method.noise is None:
            raise ValueError(f"{method.label} has no noise")
        changing = method.schedule(settings, strength, self.steps)
        if not method.holds_rise(settings):
            return method.noise(self, changing), None
        rise = growing_rise(settings, changing, self.steps_per_epoch)
        return method.noise(self, method.largest(settings)), rise

    def uniform(self, size: Size, relative_to: RelativeTo = None) -> Noise:
        """Uniform noise."""
        mask = exclude("BatchNorm") if self.batch_norm else None
        return uniform(
            size, relative_to=relative_to, filter_axis=flax_filters, mask=mask
        )

    def relative(self, size: Size) -> Noise:
        """Uniform noise relative to each filter."""
        return self.uniform(size, "filter")

    def gaussian(self, size: Size) -> Noise:
        """LPF-SGD's noise, which BatchNorm's parameters get too."""
        return gaussian(
            size, relative_to="filter", filter_axis=flax_filters, one_axis="layer"
        )

    def silence(self, size: Size) -> Noise:
        """No noise."""
        del size
        return uniform(0.0)


def _optimizer(context, strength, key):
    return context.optimizer()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A row of the table: a way to train.

    A method with noise holds the rise of the loss under it: its strength is then that
    rise, unless the settings give the size of the noise.

    Attributes:
        label: its name in tables and figures.
        color: its colour in figures.
        help: what it does, in a few words.
        strength: the setting that is its strength: of its noise, the size.
        transform: function of (context, strength, key) to the transformation
            that trains; by default the optimizer alone.
        noise: function of (context, size) to the noise.
        schedule: function of (settings, strength, steps) to the strength over time.
        fixed: whether the size of the noise is fixed, whatever rise it costs.
        copies: function of the settings to options of `smoothout_value_and_grad`, which
            then takes the gradients; without it, they are taken at the parameters of
            the loop.
        parts: function of the settings to the number of parts that copies divide the
            batch into; without it, every copy takes the whole batch.
        gradients: gradients of a whole batch that a step takes.
        eval_params: function of (state, params) to the parameters to evaluate.
    """

    label: str
    color: str
    help: str
    strength: str
    transform: Callable[..., optax.GradientTransformation] = _optimizer
    noise: Callable[[Context, Size], Noise] | None = None
    schedule: Callable[[MethodSettings, Strength, int], Any] = radius_schedule
    fixed: bool = False
    copies: Callable[[MethodSettings], dict[str, Any]] | None = None
    parts: Callable[[MethodSettings], int] | None = None
    gradients: int = 1
    eval_params: Callable[[Any, Any], Any] = lambda state, params: params

    @property
    def splits(self) -> bool:
        """Whether copies divide the batch between them."""
        return self.parts is not None

    def num_parts(self, settings: MethodSettings) -> int:
        """Number of parts that copies divide the batch into; 1 if they do not."""
        return self.parts(settings) if self.parts else 1

    def holds_rise(self, settings: MethodSettings) -> bool:
        """Whether its strength is the rise of the loss that its noise may cost."""
        if self.noise is None or self.fixed:
            return False
        given = getattr(settings, self.strength) is not None
        return settings.loss_rise is not None or not given

    def strength_of(self, settings: MethodSettings) -> tuple[str, float]:
        """The setting that is its strength, and its value; a learning rate's peak."""
        if self.strength == "learning_rate":
            return self.strength, settings.peak_learning_rate
        if self.holds_rise(settings):
            rise = settings.loss_rise
            return "loss_rise", LOSS_RISE if rise is None else rise
        size = getattr(settings, self.strength)
        return self.strength, FIXED[self.strength] if size is None else size

    def largest(self, settings: MethodSettings) -> float:
        """The largest size of its noise, where the rise decides about it."""
        size = getattr(settings, self.strength)
        return LARGEST[self.strength] if size is None else size


def _sgd(context, strength, key):
    return context.optimizer(strength)


def _smoothout(context, strength, key):
    noise, rise = context.noise_and_rise(strength)
    return smoothout(context.optimizer(), noise, key=key, loss_rise=rise)


def _sam(context, strength, key):
    ascent = optax.chain(optax.contrib.normalize(), optax.sgd(strength))
    return optax.contrib.sam(context.optimizer(), ascent, opaque_mode=True)


def _msam(context, strength, key):
    """Takes gradients, and coupled weight decay, at the perturbed weights."""
    update = update_rule(context.settings, context.steps)
    return optax.chain(gradient_rule(context.settings), rivals.msam(update, strength))


def _no_denoising(context, strength, key):
    noise, _ = context.noise_and_rise(strength)
    return optax.chain(context.optimizer(), rivals.staying_noise(noise, key))


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

# Colours of Okabe and Ito, and tints of them: readers of every colour vision can tell
# them apart.
METHODS = {
    "sgd": Method(
        label="SGD",
        color="#000000",
        help="the optimizer alone",
        strength="learning_rate",
        transform=_sgd,
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
        eval_params=rivals.msam_eval_params,
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
    "mix": Method(
        label="mix",
        color="#8c564b",
        help="half the batch at the clean weights",
        strength="relative_radius",
        noise=Context.relative,
        copies=lambda settings: {"clean_weight": 0.5, "aux": "clean"},
        parts=lambda settings: 2,
    ),
    "gaussian": Method(
        label="rising Gaussian",
        color="#7f3c8d",
        help="LPF-SGD, split, with noise that rises, in BatchNorm too",
        strength="std",
        noise=Context.gaussian,
        schedule=rising_schedule,
        **_SPLIT,
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
    "sgd-split": Method(
        label="split SGD",
        color="#555555",
        help="the optimizer in ghost batches",
        strength="learning_rate",
        transform=_sgd,
        noise=Context.silence,
        fixed=True,
        **_SPLIT,
    ),
}
METHODS_HELP = "; ".join(f"{name}: {row.help}" for name, row in METHODS.items())
