"""The table of measures of sharpness, and their settings.

`MEASURES` is that table: a new measure is a new row.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax

from smoothout_jax import _checks, flax_filters, uniform
from smoothout_jax.experiments.options import Settings, option
from smoothout_jax.sharpness import (
    expected_sharpness,
    hessian_eigenvalues,
    hessian_trace,
    keskar_sharpness,
    sam_sharpness,
)


class Measure(NamedTuple):
    """A row of the table: a measure of sharpness.

    Attributes:
        label: its name and unit in printed tables.
        measure: function of the settings to the function `measure(loss, params,
            batches)`, which returns a value and its standard error.
    """

    label: str
    measure: Callable[["MeasureSettings"], Callable[..., tuple[float, float]]]


def _expected(settings):
    noise = uniform(
        settings.noise_radius, relative_to="filter", filter_axis=flax_filters
    )
    return _estimated(
        expected_sharpness,
        noise=noise,
        key=jax.random.key(0),
        num_samples=settings.noise_samples,
    )


def _keskar(settings):
    return _estimated(
        keskar_sharpness, epsilon=settings.epsilon, num_samples=settings.repetitions
    )


def _sam(settings):
    return _estimated(sam_sharpness, rho=settings.rho, num_samples=settings.repetitions)


def _eigenvalue(settings):
    def measure(loss, params, batches):
        pairs = hessian_eigenvalues(loss, params, batches=batches)
        return float(pairs.values[0]), float(pairs.residuals[0])

    return measure


def _trace(settings):
    return _estimated(hessian_trace, key=jax.random.key(0), num_samples=settings.probes)


def _estimated(function, **options):
    def measure(loss, params, batches):
        estimate = function(loss, params, batches=batches, **options)
        return estimate.value, estimate.standard_error

    return measure


MEASURES = {
    "expected": Measure("noise (nats)", _expected),
    "keskar": Measure("Keskar (%)", _keskar),
    "sam": Measure("SAM (nats)", _sam),
    "eigenvalue": Measure("Hessian's λmax", _eigenvalue),
    "trace": Measure("its trace", _trace),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasureSettings(Settings):
    """Settings of the measures.

    Raises:
        TypeError, ValueError: if a value is out of its range.
    """

    measures: tuple[str, ...] = option(
        tuple(MEASURES),
        f"measures of sharpness, of the training loss: {', '.join(MEASURES)}",
        "MEASURE",
        choices=MEASURES,
    )
    noise_radius: float = option(
        0.5, "expected sharpness: radius of uniform noise relative to filters"
    )
    noise_samples: int = option(100, "expected sharpness: samples of the noise")
    epsilon: float = option(5e-4, "Keskar's sharpness: size ε of the box")
    rho: float = option(0.3, "SAM's sharpness: radius ρ of the ball")
    repetitions: int = option(5, "Keskar's and SAM's sharpness: random starts")
    probes: int = option(100, "trace of the Hessian: random vectors")

    def __post_init__(self):
        super().__post_init__()
        chosen = tuple(name for name in MEASURES if name in self.measures)
        self._set(measures=chosen)
        _checks.count(
            noise_samples=self.noise_samples,
            repetitions=self.repetitions,
            probes=self.probes,
        )
        _checks.positive(
            noise_radius=self.noise_radius, epsilon=self.epsilon, rho=self.rho
        )
