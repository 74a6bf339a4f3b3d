"""The command `smoothout`: parses its options, and tells errors in a line."""

import argparse
import dataclasses
import importlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple, get_args, get_origin

from smoothout_jax import __version__
from smoothout_jax._extras import require
from smoothout_jax.experiments.settings import (
    InputError,
    LandscapeSettings,
    Settings,
    SharpnessSettings,
    prepare_folder,
)

EXTRA = ("flax", "matfree", "matplotlib", "orbax", "rich", "sklearn", "tqdm")


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
    "compare": Command(
        Settings,
        "report",
        "train several methods from several seeds, and compare them",
        "Trains SGD, SmoothOut, AdaSmoothOut and SAM on a data set, scikit-learn's"
        " digits by default, from the same seeds, prints a table and writes"
        " results.csv, results.json, accuracy.png, landscape.png and a checkpoint of"
        " each method.",
    ),
    "sharpness": Command(
        SharpnessSettings,
        "measures",
        "measure how flat the minima of checkpoints are",
        "Measures the sharpness of every network of the checkpoints, prints a table"
        " with the rank correlation of each measure with the test error, and writes"
        " sharpness.csv, sharpness.json and the spectral density of the Hessian.",
    ),
    "landscape": Command(
        LandscapeSettings,
        "pictures",
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
        settings = command.settings(**options)
        prepare_folder(settings.output)
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"output: cannot write to {options['output']}: {error.strerror}")
    try:
        _run(command, settings)
    except InputError as error:
        parser.exit(2, f"smoothout: error: {error}\n")


def _run(command: Command, settings: Any) -> None:
    from rich.console import Console

    module = importlib.import_module(f"smoothout_jax.experiments.{command.module}")
    table, paths = module.run(settings)
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
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        for field in dataclasses.fields(command.settings):
            _add_option(subparser, field)
    return parser


def _add_option(parser: argparse.ArgumentParser, field: dataclasses.Field) -> None:
    """Adds the option, or the argument, that a field of the settings is."""
    flag = "--" + field.name.replace("_", "-")
    if field.type is bool:
        parser.add_argument(flag, action="store_true", help=field.metadata["help"])
        return
    several = get_origin(field.type) is tuple
    value_type = get_args(field.type)[0] if get_args(field.type) else field.type
    options = {"type": value_type, "nargs": "+" if several else None, **field.metadata}
    if field.default is dataclasses.MISSING:
        parser.add_argument(field.name, **options)
    else:
        parser.add_argument(flag, dest=field.name, default=field.default, **options)


def _require_extra(parser: argparse.ArgumentParser) -> None:
    for module in EXTRA:
        try:
            require(module, "experiments")
        except ImportError as error:
            parser.error(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
