"""Files of results, each of which replaces an earlier one once it is complete."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smoothout_jax._files import whole_file
from smoothout_jax.experiments.reporting.formats import json_text


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
