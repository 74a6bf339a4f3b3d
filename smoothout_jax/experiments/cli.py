"""The command `smoothout`: parses options, and reports errors in one line."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from smoothout_jax import __version__
from smoothout_jax._extras import require
from smoothout_jax.experiments.commands import COMMANDS, load
from smoothout_jax.experiments.options import (
    InputError,
    Kind,
    Settings,
    prepare_folder,
    read_settings,
)

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


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command.

    Args:
        arguments: the words after `smoothout`; by default those of the command line.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    parser, subparsers = _parsers()
    name = next((word for word in arguments if word in COMMANDS), None)
    if name is None:  # help, version, or an error
        parser.parse_args(arguments)
        return
    _require_extra(parser)
    # Only the command that runs is imported.
    module, settings_class = load(name)
    _add_options(subparsers[name], name, settings_class)
    options = vars(parser.parse_args(arguments))
    del options["command"]
    try:
        settings, resume = _settings(settings_class, options)
        prepare_folder(settings.output)
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"output: cannot write to {error.filename}: {error.strerror}")
    try:
        _run(module, settings, **resume)
    except InputError as error:
        parser.exit(error.status, f"smoothout: error: {error}\n")


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser, and those of the commands by name, without their options."""
    parser = argparse.ArgumentParser(
        prog="smoothout",
        description="Flat minima by SmoothOut: the evidence, on real data.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    return parser, {
        name: commands.add_parser(
            name, help=command.help, description=command.description
        )
        for name, command in COMMANDS.items()
    }


def _require_extra(parser: argparse.ArgumentParser) -> None:
    for module in EXTRA:
        try:
            require(module, "experiments")
        except ImportError as error:
            parser.error(str(error))


def _add_options(
    parser: argparse.ArgumentParser, name: str, settings_class: type[Settings]
) -> None:
    if COMMANDS[name].reads_settings:
        parser.add_argument(
            "--settings",
            type=Path,
            metavar="FILE",
            default=argparse.SUPPRESS,
            help="JSON file of settings, by the names of the options, such as the"
            " settings.json that a run wrote; options on the command line override it",
        )
    if COMMANDS[name].resumes:
        parser.add_argument(
            "--resume",
            action="store_true",
            default=argparse.SUPPRESS,
            help="continue the run in the output folder from its last checkpoint",
        )
    for field in dataclasses.fields(settings_class):
        _add_option(parser, field)


def _add_option(parser: argparse.ArgumentParser, field: dataclasses.Field) -> None:
    """Adds the option, or the positional argument, for a field of the settings.

    The parser leaves out options that are not given, so that a file of settings can
    give them.
    """
    kind = Kind.of(field)
    help = field.metadata["help"].replace("%", "%%")
    options: dict[str, Any] = {"metavar": field.metadata["metavar"]}
    if kind.several:
        options["nargs"] = "+"
    elif kind.choices:
        options["choices"] = tuple(kind.choices)
    if field.default is dataclasses.MISSING:
        parser.add_argument(field.name, type=kind.type, help=help, **options)
        return
    shown = field.default
    if isinstance(shown, tuple):
        shown = " ".join(map(str, shown))
    options |= {
        "dest": field.name,
        "default": argparse.SUPPRESS,
        "help": help if shown in (None, "") else f"{help} (default: {shown})",
    }
    if kind.type is bool:
        options["action"] = argparse.BooleanOptionalAction
    else:
        options["type"] = kind.type
    parser.add_argument("--" + field.name.replace("_", "-"), **options)


def _settings(
    settings_class: type[Settings], options: dict[str, Any]
) -> tuple[Any, dict[str, bool]]:
    """The settings: options over those of a file, or of the run to resume."""
    path = options.pop("settings", None)
    resume = {"resume": True} if options.pop("resume", False) else {}
    if resume and path is None:
        path = options.get("output", _default_output(settings_class)) / SETTINGS_FILE
    from_file = read_settings(path, settings_class) if path is not None else {}
    return settings_class(**from_file | options), resume


def _default_output(settings_class: type[Settings]) -> Path:
    (field,) = (f for f in dataclasses.fields(settings_class) if f.name == "output")
    return field.default  # pyright: ignore[reportReturnType]


def _run(module: ModuleType, settings: Settings, **options: bool) -> None:
    from rich.console import Console

    table, paths = module.run(settings, **options)
    console = Console()
    if table is not None:
        console.print(table)
    for path in paths:
        console.print(f"wrote {path}", soft_wrap=True)


if __name__ == "__main__":
    main()
