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
    cosine_schedule,
    exclude,
    gaussian,
    smoothout,
    smoothout_eval_params,
    uniform,
)
from smoothout_jax.experiments.methods import rivals
from smoothout_jax.experiments.methods.settings import (
    GROWTH,
    MethodSettings,
    Strength,
    radius_schedule,
)
from smoothout_jax.experiments.regime import (
    gradient_rule,
    make_optimizer,
    update_rule,
)
from smoothout_jax.noise import Noise, RelativeTo


@dataclasses.dataclass(frozen=True)
class Context:
    """What methods are built from.

    Attributes:
        settings: the settings.
        steps: updates in the whole of training.
        batch_norm: whether the network has BatchNorm, which gets no uniform noise.
    """

    settings: MethodSettings
    steps: int
    batch_norm: bool = False

    def optimizer(self, peak: Strength | None = None) -> optax.GradientTransformation:
        """The optimizer, by default with the learning rate of the settings."""
        return make_optimizer(self.settings, self.steps, peak)

    def uniform(self, radius: Strength, relative_to: RelativeTo = None) -> Noise:
        """Uniform noise; its radius follows the schedule of the settings."""
        scheduled = radius_schedule(self.settings, radius, self.steps)
        return uniform(scheduled, relative_to=relative_to, mask=self._mask)

    def relative(self, radius: Strength) -> Noise:
        """Uniform noise relative to each filter."""
        return self.uniform(radius, "filter")

    def rising_gaussian(self, std: Strength) -> Noise:
        """LPF-SGD's noise, which BatchNorm's parameters get too."""
        rising = cosine_schedule(std / GROWTH, GROWTH, self.steps)
        return gaussian(rising, relative_to="filter", one_axis="layer")

    @property
    def _mask(self):
        return exclude("BatchNorm") if self.batch_norm else None


def _optimizer(context, strength, key):
    return context.optimizer()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A row of the table: a way to train.

    Attributes:
        label: its name in tables and figures.
        color: its colour in figures.
        help: what it does, in a few words.
        strength: the setting that is its strength.
        transform: function of (context, strength, key) to the transformation that
            trains; by default the optimizer alone.
        noise: function of (context, strength) to the noise at which gradients are
            taken; without it, they are taken at the parameters of the loop.
        copies: function of the settings to options of `smoothout_value_and_grad`.
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
    noise: Callable[[Context, Strength], Noise] | None = None
    copies: Callable[[MethodSettings], dict[str, Any]] = lambda settings: {}
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

    def strength_in(self, settings: MethodSettings) -> float:
        """The method's strength in the settings; a learning rate by its rule."""
        if self.strength == "learning_rate":
            return settings.peak_learning_rate
        return getattr(settings, self.strength)


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
    """Takes gradients, and coupled weight decay, at the perturbed weights."""
    update = update_rule(context.settings, context.steps)
    return optax.chain(gradient_rule(context.settings), rivals.msam(update, strength))


def _no_denoising(context, strength, key):
    noise = rivals.staying_noise(context.uniform(strength), key)
    return optax.chain(context.optimizer(), noise)


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
    "smoothout": Method(
        label="SmoothOut",
        color="#56b4e9",
        help="uniform noise in every weight",
        strength="radius",
        transform=_smoothout,
        eval_params=smoothout_eval_params,
    ),
    "adasmoothout": Method(
        label="AdaSmoothOut",
        color="#0072b2",
        help="noise relative to every filter",
        strength="relative_radius",
        transform=_adasmoothout,
        eval_params=smoothout_eval_params,
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
        noise=Context.rising_gaussian,
        **_SPLIT,
    ),
    "no-denoising": Method(
        label="no de-noising",
        color="#999999",
        help="the noise stays in the weights",
        strength="radius",
        transform=_no_denoising,
    ),
    "sgd-split": Method(
        label="split SGD",
        color="#555555",
        help="the optimizer in ghost batches",
        strength="learning_rate",
        transform=_sgd,
        noise=lambda context, strength: uniform(0.0),
        **_SPLIT,
    ),
}
METHODS_HELP = "; ".join(f"{name}: {row.help}" for name, row in METHODS.items())
