"""Where figures come from: date, versions and machine, written beside them."""

import datetime
import os
import platform
from importlib import metadata
from typing import Any

import jax

PACKAGES = (
    "smoothout-jax",
    "jax",
    "jaxlib",
    "optax",
    "flax",
    "numpy",
    "scipy",
    "scikit-learn",
)


def provenance() -> dict[str, Any]:
    """The date, the versions of the packages and the machine."""
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
