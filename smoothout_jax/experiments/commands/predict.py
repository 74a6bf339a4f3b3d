"""`smoothout predict`: the classes of images, by a trained network."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np

from smoothout_jax import _checks
from smoothout_jax.experiments.commands import Report
from smoothout_jax.experiments.data.image_folder import SKIP
from smoothout_jax.experiments.inference import TrainedNetwork, load_network
from smoothout_jax.experiments.options import InputError, Settings, argument, option
from smoothout_jax.experiments.progress import Progress
from smoothout_jax.experiments.reporting.files import write_csv
from smoothout_jax.experiments.reporting.tables import terminal_table

# Images that are classified at once, and rows of the table in the terminal.
BATCH, ROWS = 100, 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictSettings(Settings):
    """Settings of `smoothout predict`."""

    run: Path = argument(
        "output folder of smoothout train, or a checkpoint of smoothout compare",
        "RUN",
        machine=True,
    )
    images: tuple[Path, ...] = argument(
        "image files, or folders of such files", "IMAGE", machine=True
    )
    bad_images: Literal["refuse", "skip"] = option(
        "refuse", "what to do with files that are no images, or damaged"
    )
    seed: int | None = option(
        None, "which network of a checkpoint, by its seed; by default the first"
    )
    top: int = option(1, "number of classes to name for each image")
    output: Path = option(
        Path("smoothout-predictions"), "folder for predictions.csv", "FOLDER"
    )

    def __post_init__(self):
        super().__post_init__()
        _checks.count(top=self.top)


def run(settings: PredictSettings) -> Report:
    """Runs `smoothout predict`: the table to print, and the path written."""
    trained = load_network(settings.run, settings.seed)
    paths = [path for given in settings.images for path in _files(given)]
    rows, bad = [], []
    for start in Progress("images", range(0, len(paths), BATCH)):
        good, images = [], []
        for path in paths[start : start + BATCH]:
            try:
                images.append(trained.read([path])[0])
                good.append(path)
            except InputError as error:
                if settings.bad_images == "refuse":
                    raise InputError(f"{error}{SKIP}") from error
                bad.append(str(error))
        if images:
            rows += _rows(trained, good, np.stack(images), settings.top)
    if not rows:
        raise InputError(f"no image can be read: {'; '.join(bad)}")
    shown = [[str(each) for each in row.values()] for row in rows[:ROWS]]
    left = f"and {len(rows) - ROWS} more" if len(rows) > ROWS else None
    table = terminal_table("Predictions", shown, header=list(rows[0]), caption=left)
    written = write_csv(settings.output / "predictions.csv", rows)
    return Report(table, [written], warning="; ".join(bad))


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if not path.is_dir():
        return [path]
    found = sorted(each for each in path.rglob("[!.]*") if each.is_file())
    if not found:
        raise InputError(f"{path} holds no files")
    return found


def _rows(
    trained: TrainedNetwork, paths: list[Path], images: np.ndarray, top: int
) -> list[dict[str, Any]]:
    """The most probable classes of images, one row for each."""
    found = np.asarray(trained.probabilities(images))
    rows = []
    for path, probabilities in zip(paths, found, strict=True):
        row: dict[str, Any] = {"image": str(path)}
        for place, label in enumerate(np.argsort(-probabilities)[:top], 1):
            number = "" if top == 1 else f" {place}"
            row[f"class{number}"] = trained.classes[label]
            row[f"probability{number}"] = f"{probabilities[label]:.4f}"
        rows.append(row)
    return rows
