"""The command `smoothout`: parses options, and reports errors in one line."""

import argparse
import contextlib
import dataclasses
import functools
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import jax

from smoothout_jax import __version__
from smoothout_jax._extras import require
from smoothout_jax.experiments import failures, interruptions
from smoothout_jax.experiments.commands import COMMANDS, load
from smoothout_jax.experiments.folders import held, prepare_folder
from smoothout_jax.experiments.options import (
    InputError,
    Kind,
    Settings,
    read_settings,
)
from smoothout_jax.experiments.progress import shown

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


class _Numbers:
    """What tells negative numbers from options: any that `float` reads, as -1e30."""

    @staticmethod
    def match(text: str) -> bool:
        """Whether a word is a number."""
        try:
            float(text)
        except ValueError:
            return False
        return True


class Parser(argparse.ArgumentParser):
    """A parser that reports errors in one line, without a page of usage."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        numbers: Any = _Numbers
        self._negative_number_matcher = numbers

    def error(self, message: str) -> NoReturn:
        """Reports an error, and where to look."""
        _exit(failures.STATUS, f"{message}; see {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command.

    Args:
        arguments: the words after `smoothout`; by default those of the command line.

    Raises:
        SystemExit: with 2, after one line on the standard error, if it cannot do what
            it was told to; with 130 if it was interrupted.
    """
    interruptions.reset()
    try:
        with interruptions.giving_way():
            _main(sys.argv[1:] if arguments is None else arguments)
    except InputError as error:
        _exit(error.status, str(error))
    except KeyboardInterrupt:
        _exit(interruptions.STATUS, interruptions.line())
    except Exception as error:
        message = failures.of_the_machine(error)
        if message is None:
            raise
        _exit(failures.STATUS, f"{message}; {interruptions.line()}")


def run_process() -> None:
    """Runs the command as a process of its own.

    After an error or an interruption, the process ends without waiting for what JAX and
    Orbax still do in their threads.
    """
    interruptions.install()
    warnings.showwarning = _show_warning
    failures.silence_threads()
    status: Any = 0
    try:
        main()
        sys.stdout.flush()
    except SystemExit as end:
        status = end.code or 0
    except BrokenPipeError:  # such as of `smoothout train | head`
        status = failures.STATUS
    if status and not jax.distributed.is_initialized():
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


def _main(arguments: Sequence[str]) -> None:
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
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        subparsers[name].error(str(error))
    try:
        prepare_folder(settings.output)
    except OSError as error:
        raise InputError(
            f"output: cannot write to {error.filename}: {error.strerror}"
        ) from error
    if settings.several_processes:
        _run(module, settings, **resume)
        return
    with held(settings.output, name):
        _run(module, settings, **resume)


def _exit(status: int, message: str) -> NoReturn:
    raise SystemExit(interruptions.say_at_the_end(message, status))


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """Shows warnings of this package in one line, and no others."""
    del lineno, file, line
    if issubclass(category, UserWarning) and "smoothout_jax" in Path(filename).parts:
        text = " ".join(str(message).splitlines())
        print(f"smoothout: warning: {text}", file=sys.stderr)


def _parsers() -> tuple[Parser, dict[str, Parser]]:
    """The parser, and those of the commands by name, without their options."""
    parser = Parser(
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
    # The messages of argparse tell of plain types alone.
    plain = kind.type is not Path and not kind.words
    type = kind.type if plain else functools.partial(_read, kind)
    help = field.metadata["help"].replace("%", "%%")
    options: dict[str, Any] = {"metavar": field.metadata["metavar"]}
    if kind.several:
        options["nargs"] = "+"
    elif kind.choices:
        options["choices"] = tuple(kind.choices)
    if field.default is dataclasses.MISSING:
        parser.add_argument(field.name, type=type, help=help, **options)
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
        options["type"] = type
    parser.add_argument("--" + field.name.replace("_", "-"), **options)


def _read(kind: Kind, text: str) -> Any:
    try:
        return kind.read(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


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

    with shown():
        report = module.run(settings, **options)
    console = Console()
    if report.table is not None:
        console.print(report.table)
    for path in report.paths:
        console.print(f"wrote {path}", soft_wrap=True, markup=False)
    if report.fault:
        raise InputError("; ".join(filter(None, (report.fault, report.warning))))
    if report.warning:
        print(f"smoothout: warning: {report.warning}", file=sys.stderr)


if __name__ == "__main__":
    run_process()
