"""The commands: one module each, with its settings and its function `run`.

`COMMANDS` is the table of them: a new command is a new module and a new row.
"""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from smoothout_jax.experiments.options import Settings


class Command(NamedTuple):
    """A row of the table. The name of a command is that of its module.

    Attributes:
        settings: the class of its settings in its module.
        help: what it does, in one line.
        description: what it does, and what it writes.
        reads_settings: whether it takes its settings from a file too.
        resumes: whether it can continue an earlier run.
    """

    settings: str
    help: str
    description: str
    reads_settings: bool = False
    resumes: bool = False


class Report(NamedTuple):
    """What the function `run` of a command returns.

    Attributes:
        table: the table to print, or several; `None` for none.
        paths: the paths written.
        fault: why the command failed all the same; empty if it did not.
        warning: what to know of the results; empty if they speak for themselves.
        conclusion: what follows from them, in a sentence.
    """

    table: Any
    paths: list[Path]
    fault: str = ""
    warning: str = ""
    conclusion: str = ""


COMMANDS = {
    "train": Command(
        "TrainSettings",
        "train one network",
        "Trains one network, by AdaSmoothOut by default. Writes checkpoints, log.csv,"
        " logs for TensorBoard, and settings.json, which repeats the run. However a run"
        " ended, --resume continues it from its last checkpoint, at most a minute"
        " before, to the same bits.",
        reads_settings=True,
        resumes=True,
    ),
    "compare": Command(
        "CompareSettings",
        "train several methods from several seeds, and compare them",
        "Trains SGD, SmoothOut, AdaSmoothOut and SAM on a data set, by default"
        " scikit-learn's digits, from the same seeds; prints a table and writes"
        " settings.json, results.csv, results.json, accuracy.png, landscape.png and a"
        " checkpoint of each method. Interrupted, it keeps the training that is done;"
        " the same command continues it.",
        reads_settings=True,
    ),
    "evidence": Command(
        "EvidenceSettings",
        "repeat an experiment of the results page",
        "Tries the same number of strengths for each method on held-out training"
        " images, compares all methods at their best on the test images, and writes"
        " EXPERIMENT-FORM.json. Interrupted, it keeps the cases and trials that are"
        " done; the same command continues with the rest.",
    ),
    "sharpness": Command(
        "SharpnessSettings",
        "measure how flat the minima of checkpoints are",
        "Measures the sharpness of every network of the checkpoints, prints a table"
        " with the rank correlation of each measure with the test error, and writes"
        " sharpness.csv, sharpness.json and the spectral density of the Hessian."
        " Interrupted, it keeps the networks that are measured; the same command"
        " continues with the rest.",
    ),
    "landscape": Command(
        "LandscapeSettings",
        "draw the loss around networks, or between two",
        "Draws the training loss on a plane or line through a network of each"
        " checkpoint, or loss and accuracy on the line between two, as PNG and PDF, and"
        " writes the arrays behind the pictures.",
    ),
    "predict": Command(
        "PredictSettings",
        "classify images by a trained network",
        "Prints the classes of images and their probabilities, by a network of"
        " smoothout train or compare, and writes predictions.csv.",
    ),
    "check": Command(
        "CheckSettings",
        "say what is wrong with a folder of images",
        "Reads every image of a folder that --data could take, says how many there are"
        " and which cannot be read or are in two classes, and writes check.json.",
    ),
}


def load(name: str) -> tuple[ModuleType, type[Settings]]:
    """Imports the module of a command; the module, and the class of its settings."""
    module = importlib.import_module(f"{__name__}.{name}")
    return module, getattr(module, COMMANDS[name].settings)
