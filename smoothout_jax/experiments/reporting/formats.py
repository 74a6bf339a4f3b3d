"""How numbers are written: with their errors, or with their intervals."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def json_text(document: Any) -> str:
    """A document in JSON, which has no number that is not finite: `null` for those."""
    return json.dumps(_finite(document), indent=1, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    if isinstance(value, np.ndarray):
        return _finite(value.tolist())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def with_error(pair: Sequence[float], form: str = ".2f", error_form: str = "") -> str:
    """A mean with its standard error, such as `97.41 ± 0.09`.

    Args:
        pair: the mean and the error.
        form: format of the mean.
        error_form: format of the error; by default that of the mean.
    """
    mean, error = pair
    return f"{mean:{form}} ± {error:{error_form or form}}"


def with_interval(triple: Sequence[float]) -> str:
    """A difference with its interval, such as `+0.31 [+0.12, +0.50]`."""
    mean, low, high = triple
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def to_first_digit(mean: float, error: float) -> str:
    """A mean with its standard error, both to the first digit of the error."""
    if not 0 < error < np.inf:
        return f"{mean:.3g}"
    if abs(mean) < 1e-3:
        return f"{mean:.1e} ± {error:.0e}".replace("e-0", "e-")
    decimals = max(0, -int(np.floor(np.log10(error))))
    return with_error((mean, error), f".{decimals}f")
