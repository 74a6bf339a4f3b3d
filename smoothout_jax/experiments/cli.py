"""The command `smoothout`: parses its options, and tells errors in a line."""

import argparse
import dataclasses
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from smoothout_jax import __version__
from smoothout_jax._extras import require
from smoothout_jax.experiments.measure_settings import (
    LandscapeSettings,
    SharpnessSettings,
)
from smoothout_jax.experiments.options import (
    InputError,
    prepare_folder,
    read_settings,
    value_type,
)
from smoothout_jax.experiments.plans import EvidenceSettings
from smoothout_jax.experiments.settings import Settings, TrainingSettings
from smoothout_jax.experiments.train_settings import TrainSettings

EXTRA = (
    "flax",
    "matplotlib",
    "orbax",
    "rich",
    "sklearn",
    "tensorboardX",
    "tqdm",
)
SETTINGS_FILE = "settings.json"


class Command(NamedTuple):
    """A command.

    Attributes:
        settings: the dataclass of its options.
        module: the module of the function `run(settings)`, which returns a table to
            print and the paths written.
        help: what it does, in a line.
        description: what it does, and what it writes.
    """

    settings: type
    module: str
    help: str
    description: str


COMMANDS = {
    "train": Command(
        TrainSettings,
        "commands.train",
        "train one network",
        "Trains one network, by AdaSmoothOut by default. Writes checkpoints, log.csv,"
        " logs for TensorBoard, and settings.json, which repeats the run. Ctrl-C leaves"
        " a checkpoint; after it, or after any other end, --resume goes on from the"
        " last checkpoint to the same bits.",
    ),
    "compare": Command(
        Settings,
        "reporting.figures",
        "train several methods from several seeds, and compare them",
        "Trains SGD, SmoothOut, AdaSmoothOut and SAM on a data set, scikit-learn's"
        " digits by default, from the same seeds, prints a table and writes"
        " settings.json, results.csv, results.json, accuracy.png, landscape.png and a"
        " checkpoint of each method.",
    ),
    "evidence": Command(
        EvidenceSettings,
        "commands.evidence",
        "repeat an experiment of the results page",
        "Tries as many strengths of each method on held-out training images, compares"
        " all at the best on the test images, and writes EXPERIMENT-FORM.json.",
    ),
    "sharpness": Command(
        SharpnessSettings,
        "commands.sharpness",
        "measure how flat the minima of checkpoints are",
        "Measures the sharpness of every network of the checkpoints, prints a table"
        " with the rank correlation of each measure with the test error, and writes"
        " sharpness.csv, sharpness.json and the spectral density of the Hessian.",
    ),
    "landscape": Command(
        LandscapeSettings,
        "commands.landscape",
        "draw the loss around networks, or between two",
        "Draws the training loss on a plane or line through a network of each"
        " checkpoint, or loss and accuracy on the line between two, as PNG and PDF,"
        " and writes the arrays behind the pictures; an interrupted run goes on from"
        " them.",
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command.

    Args:
        arguments: the words after `smoothout`; by default those of the command line.
    """
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    command = COMMANDS[options.pop("command")]
    _require_extra(parser)
    try:
        settings, resume = _settings(command, options)
        prepare_folder(settings.output)
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"output: cannot write to {error.filename}: {error.strerror}")
    try:
        _run(command, settings, **resume)
    except InputError as error:
        parser.exit(error.status, f"smoothout: error: {error}\n")


def _settings(command: Command, options: dict[str, Any]) -> tuple[Any, dict[str, bool]]:
    """The settings: of a file, or of the run that goes on, and then of the options."""
    path = options.pop("settings", None)
    resume = {"resume": True} if options.pop("resume", False) else {}
    if resume and path is None:
        output = options.get("output", _default_output(command.settings))
        path = output / SETTINGS_FILE
    given = read_settings(path, command.settings) if path is not None else {}
    return command.settings(**given | options), resume


def _default_output(settings: type) -> Any:
    (field,) = (f for f in dataclasses.fields(settings) if f.name == "output")
    return field.default


def _run(command: Command, settings: Any, **options: bool) -> None:
    from rich.console import Console

    module = importlib.import_module(f"smoothout_jax.experiments.{command.module}")
    table, paths = module.run(settings, **options)
    console = Console()
    if table is not None:
        console.print(table)
    for path in paths:
        console.print(f"wrote {path}", soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="smoothout",
        description="Flat minima by SmoothOut: the evidence, on real data.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(
            name,
            help=command.help,
            description=command.description,
        )
        if issubclass(command.settings, TrainingSettings):
            subparser.add_argument(
                "--settings",
                type=Path,
                metavar="FILE",
                default=argparse.SUPPRESS,
                help="JSON file of settings, by the names of the options, such as the"
                " settings.json that a run wrote; options given beside it count more",
            )
        if command.settings is TrainSettings:
            subparser.add_argument(
                "--resume",
                action="store_true",
                default=argparse.SUPPRESS,
                help="go on with the run in the output folder from its last checkpoint",
            )
        for field in dataclasses.fields(command.settings):
            _add_option(subparser, field)
    return parser


def _add_option(parser: argparse.ArgumentParser, field: dataclasses.Field) -> None:
    """Adds the option, or the argument, that a field of the settings is.

    Options that are not given stay out of what is parsed, so that a file of settings
    can give them.
    """
    if field.default is dataclasses.MISSING:
        kind, several = value_type(field)
        nargs = "+" if several else None
        parser.add_argument(field.name, type=kind, nargs=nargs, **field.metadata)
        return
    shown = field.default
    if isinstance(shown, tuple):
        shown = " ".join(map(str, shown))
    help = field.metadata["help"].replace("%", "%%")
    options: dict[str, Any] = {
        "dest": field.name,
        "default": argparse.SUPPRESS,
        "help": help if shown in (None, "") else f"{help} (default: {shown})",
    }
    flag = "--" + field.name.replace("_", "-")
    if field.type is bool:
        action = argparse.BooleanOptionalAction
        parser.add_argument(flag, action=action, **options)
        return
    kind, several = value_type(field)
    options |= {name: field.metadata[name] for name in ("metavar", "choices")}
    parser.add_argument(flag, type=kind, nargs="+" if several else None, **options)


def _require_extra(parser: argparse.ArgumentParser) -> None:
    for module in EXTRA:
        try:
            require(module, "experiments")
        except ImportError as error:
            parser.error(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
