"""`smoothout check`: reads every image of a folder, and says what it found."""

import collections
import dataclasses
import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from smoothout_jax.experiments.commands import Report
from smoothout_jax.experiments.data.image_folder import Files, each_image, find_images
from smoothout_jax.experiments.data.images import open_image
from smoothout_jax.experiments.options import InputError, Settings, argument, option
from smoothout_jax.experiments.reporting.files import write_json
from smoothout_jax.experiments.reporting.tables import terminal_table

# Faults that are named in the terminal; check.json has all.
SHOWN = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckSettings(Settings):
    """Settings of `smoothout check`."""

    folder: Path = argument(
        "folder of images, as --data takes it", "FOLDER", machine=True
    )
    output: Path = option(
        Path("smoothout-check"), "folder for check.json, which names each file"
    )


class Found(NamedTuple):
    """What an image file holds."""

    digest: str
    width: int
    height: int


def run(settings: CheckSettings) -> Report:
    """Runs `smoothout check`: the table to print, and the path written."""
    train, test = find_images(settings.folder)
    parts = {"training": train, "testing": test}
    rows, faults, sides = [], [], []
    classes: dict[str, set[str]] = collections.defaultdict(set)
    for part, files in parts.items():
        if files is None:
            continue
        good, bad = _read(files, part)
        counts = np.bincount(files.labels, minlength=len(files.classes))
        rows += [
            (f"{part} images", str(len(good))),
            ("… of a class", f"{counts.min()} to {counts.max()}"),
        ]
        faults += bad
        for path, found in good.items():
            sides.append(min(found.width, found.height))
            classes[found.digest].add(path)
    for paths in classes.values():
        if len({Path(path).parent.name for path in paths}) > 1:
            faults.append(
                f"the same image is in two classes: {', '.join(sorted(paths))}"
            )
    if sides:
        rows.append(("shorter side", f"{min(sides)} to {max(sides)} pixels"))
    rows.append(("classes", str(len(train.classes))))
    rows.append(("faults", str(len(faults))))
    document = {"folder": str(settings.folder), "summary": dict(rows), "faults": faults}
    path = write_json(settings.output / "check.json", document)
    table = terminal_table(f"{settings.folder}", rows)
    more = [f"and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
    return Report(table, [path], fault="; ".join(faults[:SHOWN] + more))


def _read(files: Files, part: str) -> tuple[dict[str, Found], list[str]]:
    """What the files hold that can be read, and what is wrong with the others."""

    def read(path: Path) -> Found:
        image = open_image(path)
        return Found(hashlib.sha256(path.read_bytes()).hexdigest(), *image.size)

    good, bad = {}, []
    for path, found in each_image(f"{part} images", files, read):
        if isinstance(found, InputError):
            bad.append(str(found))
        else:
            good[str(files.folder / path)] = found
    return good, bad
