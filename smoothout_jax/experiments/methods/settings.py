"""Settings of the methods: how strong their noise is, and what it does over time."""

import dataclasses
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import optax

from smoothout_jax import (
    _checks,
    anneal_schedule,
    cosine_schedule,
    heldout_gap,
    rise_schedule,
    tanh_schedule,
)
from smoothout_jax.experiments.options import option
from smoothout_jax.experiments.regime import RegimeSettings
from smoothout_jax.schedules import LEAST_RISE_STEPS, LOSS_RISE, RISE_EPOCHS

# A strength is a number, or traced: several then train side by side in one program.
# Where the rise follows the gap, it may be the targets that another training recorded.
Strength = Any
# How many times its first value a noise that rises along a cosine reaches.
GROWTH = 20
# The largest noise, where the rise decides how strong it is.
LARGEST = {"radius": 0.3, "relative_radius": 1.0}
# The size of noise of methods that do not hold the rise, unless it is given.
FIXED = {"radius": 0.1, "relative_radius": 0.2, "std": 0.02, "ema_decay": 0.99}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodSettings(RegimeSettings):
    """Settings of the methods, and of the regime that they share."""

    group: ClassVar[str] = "noise and methods"

    loss_rise: float | Literal["gap"] | None = option(
        None,
        "rise of the training loss (nats) that noise may cost, which sets how strong"
        " it is; or gap, for a share of the gap between held-out and training loss,"
        " which is measured once an epoch, but at least 10 steps apart; by default"
        f" {LOSS_RISE}, unless the size of the noise is given",
        "NATS|gap",
        common=True,
    )
    gap_share: float = option(heldout_gap().share, "that share, with --loss-rise gap")
    rise_epochs: float = option(
        RISE_EPOCHS,
        "epochs in which a rise in nats grows from 0, but at least"
        f" {LEAST_RISE_STEPS} steps",
    )
    radius: float | None = option(
        None,
        "fixed radius of SmoothOut, the half-width of the uniform noise in every"
        " weight; with --loss-rise, the largest (by default"
        f" {LARGEST['radius']})",
    )
    relative_radius: float | None = option(
        None,
        "fixed radius of AdaSmoothOut, noise norm over weight norm in every filter;"
        f" with --loss-rise, the largest (by default {LARGEST['relative_radius']:g})",
    )
    radius_schedule: Literal["constant", "anneal", "tanh", "cosine", "late"] = option(
        "constant",
        "how the radius of uniform noise, or the rise it may cost, changes over"
        " training: falls slowly (anneal), rises (tanh; cosine, from a twentieth), or"
        " is 0 in the first half (late)",
    )
    noise_in_batch_norm: bool = option(
        False, "add uniform noise to the scales and biases of BatchNorm too"
    )
    rho: float = option(0.3, "radius ρ of SAM's ball")
    msam_rho: float = option(0.3, "length ρ of MSAM's step along the momentum")
    copies: int = option(4, "copies between which the split methods divide the batch")
    std: float | None = option(
        None,
        "standard deviation of LPF-SGD's and RWP's noise, over the norm of each filter;"
        " LPF-SGD's rises to it from a twentieth along a cosine (by default"
        f" {FIXED['std']})",
    )

    def __post_init__(self):
        super().__post_init__()
        _checks.count(copies=self.copies)
        follows_gap = self.loss_rise == "gap"
        names = "rise_epochs", "gap_share", "rho", "msam_rho"
        names += "radius", "relative_radius", "std"
        names += () if follows_gap else ("loss_rise",)
        _checks.nonnegative(**self._given(*names))
        unused = ("rise_epochs", "radius_schedule") if follows_gap else ("gap_share",)
        for name in unused:
            value = getattr(self, name)
            if value != getattr(type(self), name):
                needs = "does not apply to" if follows_gap else "needs"
                raise ValueError(f"{name}={value} {needs} loss_rise=gap")


def radius_schedule(settings: MethodSettings, strength: Strength, steps: int) -> Any:
    """A radius or a rise, or its schedule as a function of the step."""
    match settings.radius_schedule:
        case "anneal":
            return anneal_schedule(strength)
        case "tanh":
            return tanh_schedule(strength, steps)
        case "cosine":
            return rising_schedule(settings, strength, steps)
        case "late":
            return lambda step: jnp.where(step < steps // 2, 0.0, strength)
        case _:
            return strength


def rising_schedule(settings: MethodSettings, strength: Strength, steps: int) -> Any:
    """A strength that rises along a cosine over the whole of training."""
    del settings
    return cosine_schedule(strength / GROWTH, GROWTH, steps)


def repeated_rise(targets: Strength, steps: int) -> optax.Schedule:
    """A rise that follows the targets that another training recorded, evenly spaced."""
    ends = jnp.linspace(0.0, steps, len(targets) + 1)
    return lambda step: jnp.interp(step, ends, jnp.append(0.0, targets))


def growing_rise(
    settings: MethodSettings, rise: Any, steps_per_epoch: int
) -> optax.Schedule:
    """A rise, or its schedule, that grows from 0 over the first epochs."""
    growth = rise_schedule(steps_per_epoch, loss_rise=1.0, epochs=settings.rise_epochs)
    at: Any = rise if callable(rise) else lambda step: rise
    return lambda step: growth(step) * at(step)
