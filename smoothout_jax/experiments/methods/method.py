"""What a method is, and what it is built from."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from smoothout_jax import exclude, flax_filters, gaussian, heldout_gap, uniform
from smoothout_jax.experiments.methods.settings import (
    FIXED,
    LARGEST,
    MethodSettings,
    Strength,
    growing_rise,
    radius_schedule,
    repeated_rise,
)
from smoothout_jax.experiments.regime import make_optimizer
from smoothout_jax.masks import Mask
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

    def optimizer(self, **changed: Any) -> optax.GradientTransformation:
        """The optimizer of the settings; `changed` goes to its `update_rule`."""
        return make_optimizer(self.settings, self.steps, **changed)

    def noise_and_rise(self, strength: Strength) -> tuple[Noise, Any]:
        """The noise, and the rise that it may cost; `None` if its size is fixed."""
        method, settings = self.method, self.settings
        noise: Any = method.noise
        changing = method.schedule(settings, strength, self.steps)
        if not method.holds_rise(settings):
            return noise(self, changing), None
        if not method.follows_gap(settings):
            rise: Any = growing_rise(settings, changing, self.steps_per_epoch)
        elif jnp.ndim(strength):
            rise = repeated_rise(strength, self.steps)
        else:
            rise = heldout_gap(share=strength)
        return noise(self, method.largest(settings)), rise

    def uniform(self, size: Size, relative_to: RelativeTo = None) -> Noise:
        """Uniform noise, by default of one size in every weight."""
        return uniform(
            size, relative_to=relative_to, filter_axis=flax_filters, mask=self._mask
        )

    def relative(self, size: Size) -> Noise:
        """Uniform noise relative to each filter."""
        return self.uniform(size, "filter")

    def gaussian(self, size: Size) -> Noise:
        """LPF-SGD's noise, which BatchNorm's parameters get too."""
        return gaussian(size, relative_to="filter", filter_axis=_whole_vectors)

    def normal(self, size: Size) -> Noise:
        """Gaussian noise of one standard deviation in every weight."""
        return gaussian(size, mask=self._mask)

    @property
    def _mask(self) -> Mask:
        """Excludes BatchNorm, unless noise follows the gap, as in the library."""
        everywhere = self.settings.noise_in_batch_norm
        everywhere |= self.method.follows_gap(self.settings)
        return exclude("BatchNorm") if self.batch_norm and not everywhere else None


def _whole_vectors(params: Any) -> Any:
    """The filters of Flax's layers, where each vector is one, as in LPF-SGD."""
    return jax.tree.map(
        lambda leaf, axes: () if leaf.ndim == 1 else axes, params, flax_filters(params)
    )


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
    transform: Callable[..., optax.GradientTransformation] = (
        lambda context, strength, key: context.optimizer()
    )
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

    def follows_gap(self, settings: MethodSettings) -> bool:
        """Whether that rise is a share of the gap, and its strength that share."""
        return settings.loss_rise == "gap" and self.holds_rise(settings)

    def strength_of(self, settings: MethodSettings) -> tuple[str, float]:
        """The setting that is its strength, and its value; a learning rate's peak."""
        if self.strength == "learning_rate":
            return self.strength, settings.peak_learning_rate
        if self.follows_gap(settings):
            return "gap_share", settings.gap_share
        if self.holds_rise(settings):
            rise: Any = settings.loss_rise
            return "loss_rise", LOSS_RISE if rise is None else rise
        size = getattr(settings, self.strength)
        return self.strength, FIXED[self.strength] if size is None else size

    def largest(self, settings: MethodSettings) -> float:
        """The largest size of its noise, where the rise decides about it."""
        size = getattr(settings, self.strength)
        return LARGEST[self.strength] if size is None else size

    def what_to_lower(self, settings: MethodSettings) -> str:
        """Advice for training that failed, as `lower the learning_rate (0.1)`."""
        name, value = self.strength_of(settings)
        other = "" if name == "learning_rate" else f" or {name} ({value:g})"
        return f"lower the learning_rate ({settings.peak_learning_rate:g}){other}"

    def how_to_learn(self, settings: MethodSettings, loss: float, guess: float) -> str:
        """Why it did not learn, and advice."""
        return (
            f"its training loss, {loss:.4g} nats, is not below that of guessing,"
            f" {guess:.4g}: train for longer, or {self.what_to_lower(settings)}"
        )
