"""A mean of independent samples, with its standard error."""

from typing import NamedTuple, Self

import numpy as np


class Estimate(NamedTuple):
    """A mean of independent samples.

    Two networks measured with the same key share their random numbers, so compare them
    in pairs: `Estimate.from_samples(one.samples - other.samples)`.

    Attributes:
        value: mean of the samples.
        standard_error: standard error of that mean; NaN for a single sample.
        samples: the samples, float64, (samples,).

    Example:
        >>> import numpy as np
        >>> from smoothout_jax.sharpness import Estimate
        >>> print(Estimate.from_samples(np.array([1.0, 2.0, 3.0])))
        2 ± 0.58
    """

    value: float
    standard_error: float
    samples: np.ndarray

    @classmethod
    def from_samples(cls, samples: np.ndarray) -> Self:
        """The mean of samples, float, (samples,)."""
        samples = np.asarray(samples, np.float64)
        error = (
            samples.std(ddof=1) / np.sqrt(samples.size) if samples.size > 1 else np.nan
        )
        return cls(float(samples.mean()), float(error), samples)

    def __str__(self) -> str:
        return f"{self.value:.4g} ± {self.standard_error:.2g}"
