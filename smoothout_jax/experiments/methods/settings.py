"""Settings of the methods: how strong their noise is, and what it does over time."""

import dataclasses
from typing import Any, Literal

from smoothout_jax import _checks, anneal_schedule, cosine_schedule, tanh_schedule
from smoothout_jax.experiments.options import option
from smoothout_jax.experiments.regime import RegimeSettings

# A strength is a number, or traced: several then train side by side in one program.
Strength = Any
# How many times its first value a noise that rises along a cosine reaches.
GROWTH = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodSettings(RegimeSettings):
    """Settings of the methods, and of the regime that they share.

    Raises:
        TypeError, ValueError: if a value is out of its range, or two values conflict.
    """

    radius: float = option(
        0.1, "radius of SmoothOut: half-width of the uniform noise in every weight"
    )
    relative_radius: float = option(
        0.5, "radius of AdaSmoothOut: noise norm over weight norm, in every filter"
    )
    radius_schedule: Literal["constant", "anneal", "tanh", "cosine"] = option(
        "constant",
        "how the radius of uniform noise changes over training: falls slowly (anneal)"
        " or rises (tanh; cosine, from a twentieth)",
    )
    rho: float = option(0.3, "radius ρ of SAM's ball")
    msam_rho: float = option(0.3, "length ρ of MSAM's step along the momentum")
    copies: int = option(4, "copies between which the split methods divide the batch")
    std: float = option(
        0.05,
        "standard deviation of the Gaussian noise at the end of training, over the norm"
        " of each filter, or of a whole bias; it rises from a twentieth of that along a"
        " cosine",
    )

    def __post_init__(self):
        super().__post_init__()
        _checks.count(copies=self.copies)
        _checks.nonnegative(
            radius=self.radius,
            relative_radius=self.relative_radius,
            rho=self.rho,
            msam_rho=self.msam_rho,
            std=self.std,
        )


def radius_schedule(settings: MethodSettings, radius: Strength, steps: int) -> Any:
    """The radius of the noise, or its schedule as a function of the step."""
    match settings.radius_schedule:
        case "anneal":
            return anneal_schedule(radius)
        case "tanh":
            return tanh_schedule(radius, steps)
        case "cosine":
            return cosine_schedule(radius / GROWTH, GROWTH, steps)
        case _:
            return radius
