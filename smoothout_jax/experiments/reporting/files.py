"""Files of results, each of which replaces an earlier one once it is complete."""

import csv
import datetime
import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from smoothout_jax._files import whole_file

PACKAGES = (
    "smoothout-jax", "jax", "jaxlib", "optax", "flax", "numpy", "scipy", "scikit-learn",
)  # fmt: skip


def provenance() -> dict[str, Any]:
    """Where results come from: the date, the versions of packages and the machine."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()}
        | {package: metadata.version(package) for package in PACKAGES},
        "machine": {
            "system": platform.system(),
            "architecture": platform.machine(),
            "cores": os.cpu_count(),
            "device": jax.devices()[0].device_kind,
            "backend": jax.default_backend(),
        },
    }


def write_json(path: Path, document: Any) -> Path:
    """Writes JSON; numbers that are not finite become `null`."""
    with whole_file(path) as unfinished:
        unfinished.write_text(json_text(document))
    return path


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Writes rows that all have the columns of the first."""
    with whole_file(path) as unfinished, unfinished.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def json_text(document: Any) -> str:
    """A document in JSON; numbers that are not finite become `null`."""
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
