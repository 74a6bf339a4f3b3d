"""Commands as the tests run them, what they print, and the files that they write."""

import csv
import json
import shutil

import numpy as np
import pytest

from smoothout_jax.experiments import cli
from smoothout_jax.experiments.training.checkpoints import steps_of

SMALL = "--hidden-sizes 4 --batch-size 8"
COMPARE = f"{SMALL} --steps 4 --seeds 2 --methods sgd --noise-samples 2"
TRAIN = f"{SMALL} --steps 4 --evaluate-every 2 --checkpoint-minutes 0 --method sgd"
QUICK = "--noise-samples 2 --repetitions 1 --probes 2 --measures expected sam"


def write(folder, part="train", **changed):
    """24 images of 4 × 4 pixels, of three classes."""
    folder.mkdir(exist_ok=True)
    labels = np.arange(24) % 3
    images = np.random.default_rng(0).uniform(0, 1, (24, 4, 4, 1)) + labels.reshape(
        -1, 1, 1, 1
    )
    arrays = {"images": images.astype(np.float32), "labels": labels} | changed
    np.savez(folder / f"{part}.npz", **arrays)
    return folder


def run(*arguments, output):
    cli.main([*map(str, arguments), "--output", str(output)])


def content(folder):
    """All that a folder holds; `None` if there is none."""
    if not folder.exists():
        return None
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def checked(shown, status, code=2):
    """The one line of a command that failed."""
    assert status == code, shown
    (line,) = shown.splitlines()
    assert line.startswith("smoothout: error: ")
    assert "usage:" not in line
    return line


def refused(capsys, *arguments, output):
    """The error line of a command that refuses to start and writes nothing."""
    before = content(output) or {}
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run(*arguments, output=output)
    shown = capsys.readouterr()
    line = checked(shown.err, ended.value.code)
    assert "wrote" not in shown.out
    assert (content(output) or {}) == before
    return line


def strict(text):
    """JSON by its standard, without NaN."""
    return json.loads(text, parse_constant=lambda word: pytest.fail(word))


def copied(folder, to):
    shutil.copytree(folder, to)
    return to


def digests(run):
    """The hashes of the last checkpoint of a run."""
    about = run / "checkpoints" / str(steps_of(run)[-1]) / "about" / "metadata"
    return json.loads(about.read_text())["digests"]


def logged(run):
    """The rows of the log, without the seconds."""
    with (run / "log.csv").open() as file:
        return [{**row, "seconds": None} for row in csv.DictReader(file)]


def commands_on(checkpoint, data):
    """Each command that reads such data."""
    own = ["--data", "npz", "--data-dir", data]
    return {
        "train": ["train", *TRAIN.split(), *own],
        "compare": ["compare", *COMPARE.split(), *own],
        "sharpness": ["sharpness", checkpoint, *QUICK.split(), "--data-dir", data],
        "landscape": ["landscape", checkpoint, "--points", 3, "--data-dir", data],
    }


def spied(monkeypatch, holder, name):
    """Lists the calls of a function."""
    calls, function = [], getattr(holder, name)

    def spy(*arguments, **options):
        calls.append(arguments)
        return function(*arguments, **options)

    monkeypatch.setattr(holder, name, spy)
    return calls
