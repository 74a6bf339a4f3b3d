"""Images that are read while a network trains: `python -m benchmarks.images`.

Against a bare loop of Pillow in the same run, on generated JPEGs of 500 × 375 pixels;
and how long a network waits for them, how much memory reading many takes, and how soon
the first batch is there.
"""

import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from benchmarks.harness import command, count
from smoothout_jax.experiments.commands.train import TrainSettings
from smoothout_jax.experiments.data import image_folder
from smoothout_jax.experiments.data.image_folder import ImageFiles, find_images
from smoothout_jax.experiments.data.images import RATIOS
from smoothout_jax.experiments.data.stream import read_batches
from smoothout_jax.experiments.methods.table import METHODS
from smoothout_jax.experiments.training.task import Task
from smoothout_jax.experiments.training.trainer import Trainer

SIZE, BATCH, LEAST = 224, 20, 0.08
SHAPE = 375, 500, 3


def generate(folder: Path, classes: int, images: int) -> None:
    """Writes images, of which the files of a class are links to one another's."""
    draw = np.random.default_rng(0)
    for label in range(classes):
        place = folder / "train" / f"{label:04}"
        place.mkdir(parents=True)
        if label < 10:
            coarse = Image.fromarray(draw.integers(0, 256, (24, 32, 3), np.uint8))
            noise = draw.normal(0, 12, SHAPE)
            pixels = np.asarray(coarse.resize(SHAPE[1::-1])) + noise
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(folder / f"{label}.jpg", quality=90)
        for number in range(images):
            (place / f"{number}.jpg").hardlink_to(folder / f"{label % 10}.jpg")


def bare(path: Path, draw: np.random.Generator) -> np.ndarray:
    """What Pillow takes for a random crop, and no more."""
    with Image.open(path) as image:
        image = image.convert("RGB")
        area = image.width * image.height * draw.uniform(LEAST, 1)
        ratio = np.exp(draw.uniform(*np.log(RATIOS)))
        across = min(image.width, round((area * ratio) ** 0.5))
        down = min(image.height, round((area / ratio) ** 0.5))
        box = (0, 0, across, down)
        return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box))


def throughput(images: ImageFiles, rounds: int) -> dict[str, list[float]]:
    """Images a second of both, by one thread, in turns."""
    files, draw = images.files, np.random.default_rng(0)
    speed: dict[str, list[float]] = {"Pillow": [], "ours": []}
    steps = range(10)
    for _ in range(rounds):
        began = time.perf_counter()
        for number in range(len(steps) * BATCH):
            bare(files.path(number), draw)
        middle = time.perf_counter()
        labels = files.labels
        reads = read_batches(
            images, labels, 0, steps, BATCH, crop_area=LEAST, workers=1
        )
        for _ in reads:
            pass
        times = {"Pillow": middle - began, "ours": time.perf_counter() - middle}
        for name, seconds in times.items():
            speed[name].append(len(steps) * BATCH / seconds)
    return speed


def waiting(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of a step of ResNet-18 with images that are read, and that are there."""
    settings = TrainSettings(
        data=str(folder), network="resnet18", image_size=SIZE, batch_size=BATCH,
        crop_area=LEAST, steps=1000,
    )  # fmt: skip
    trainer = Trainer(METHODS["sgd"], Task(settings), (0,))
    trainer.advance(0, 1)
    batch = next(trainer._batches_of(0, range(1, 2)))
    reading, seconds = trainer._batches_of, {"read": [], "there": []}

    def there(run: int, steps: range, state: Any = None) -> Iterator[Any]:
        return (batch for _ in steps)

    for number in range(rounds):
        for name, batches in (("read", reading), ("there", there)):
            trainer._batches_of = batches
            first = 2 + 8 * number
            seconds[name].append(trainer.advance(first, first + 4)[1] / 4)
    return seconds


def measure(rounds: int) -> Iterator[dict[str, Any]]:
    """Measures all, and yields what is known so far."""
    image_folder.SMALL = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate(folder, 1000, 100)
        began = time.perf_counter()
        train, _ = find_images(folder)
        images = ImageFiles(train, SIZE)
        next(read_batches(images, train.labels, 0, range(1), BATCH, crop_area=LEAST))
        found: dict[str, Any] = {"first batch": time.perf_counter() - began}
        _ = train.digest
        found["and hash of the files"] = time.perf_counter() - began
        yield found
        found["images a second"] = throughput(images, rounds)
        yield found
        found["peak MB"] = [_peak()]
        small = range(200)
        for _ in read_batches(images, train.labels, 0, small, BATCH, crop_area=LEAST):
            pass
        found["peak MB"].append(_peak())
        yield found
        found["seconds of a step"] = waiting(folder, rounds)
        yield found


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    jax.config.update("jax_compilation_cache_dir", None)
    command(
        "images", "Times the reading of images.", measure,
        rounds={"type": count, "default": 5},
    )  # fmt: skip
