"""The command `smoothout`: parses options, and reports errors in one line."""

import argparse
import contextlib
import dataclasses
import difflib
import inspect
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import jax
from rich.console import Console

from smoothout_jax import __version__
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
from smoothout_jax.experiments.regime import PUBLISHED

SETTINGS_FILE = "settings.json"
SUPPRESS: Any = argparse.SUPPRESS
METAVARS = {int: "N", float: "X"}
# The help of a command with more options leaves out the rare ones.
MANY = 20


class _Numbers:
    """Distinguishes negative numbers from options: all that `float` reads, as -1e30."""

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
        _exit(InputError.status, f"{message}; see {self.prog} --help")

    def reject(self, word: str) -> NoReturn:
        """Reports a word that is no option, with the one that is most like it."""
        name = word.partition("=")[0]
        like = difflib.get_close_matches(name, self._option_string_actions, 1, 0.75)
        hint = f" (did you mean {like[0]}?)" if like else ""
        self.error(f"unrecognized arguments: {word}{hint}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command.

    Args:
        arguments: the words after `smoothout`; by default those of the command line.

    Raises:
        SystemExit: with 2, after one line on the standard error, if it fails; with 130
            if it was interrupted.
    """
    interruptions.advise("")
    try:
        _main(sys.argv[1:] if arguments is None else arguments)
    except InputError as error:
        _exit(error.status, str(error))
    except KeyboardInterrupt:
        _exit(130, interruptions.line())
    except Exception as error:
        message = failures.of_the_machine(error)
        if message is None:
            raise
        _exit(InputError.status, f"{message}; {interruptions.line()}")


def run_process() -> None:
    """Runs the command as a process of its own.

    After an error, the process ends without waiting for what JAX and Orbax still do in
    their threads.
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
        status = InputError.status
    if status and not jax.distributed.is_initialized():
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


def _main(arguments: Sequence[str]) -> None:
    parser, parsers = _parsers()
    name = next((word for word in arguments if word in COMMANDS), None)
    if name is None:  # help, version, or an error
        parser.parse_args(arguments)
        return
    # Only the command that runs is imported.
    module, settings_class = load(name)
    _add_options(parsers[name], name, settings_class, "--help-all" in arguments)
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        parsers[name].reject(unknown[0])
    options = vars(options)
    del options["command"]
    try:
        settings, resume = _settings(settings_class, options)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        parsers[name].error(str(error))
    prepare_folder(settings.output)
    # Of several processes, the first holds the folder.
    alone = not settings.several_processes
    with held(settings.output) if alone else contextlib.nullcontext():
        _run(module, settings, **resume)


def _run(module: ModuleType, settings: Settings, **options: bool) -> None:
    """Runs a command, and prints what it reports."""
    with shown():
        report = module.run(settings, **options)
    console = Console()
    if report.table is not None:
        console.print(report.table)
    for path in report.paths:
        console.print(f"wrote {path}", soft_wrap=True, markup=False)
    if report.conclusion:
        console.print(f"\n{report.conclusion}", highlight=False, markup=False)
    if report.fault:
        raise InputError("; ".join(filter(None, (report.fault, report.warning))))
    if report.warning:
        print(f"smoothout: warning: {report.warning}", file=sys.stderr)


def _exit(status: int, message: str) -> NoReturn:
    interruptions.say(message)
    raise SystemExit(status)


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
            name,
            help=each.help,
            description=each.description,
            add_help=False,
        )
        for name, each in COMMANDS.items()
    }


def _add_options(
    parser: Parser, name: str, settings_class: type[Settings], all_shown: bool
) -> None:
    """Adds the options of a command, in the groups of its settings."""
    groups, fields = {}, dataclasses.fields(settings_class)
    all_shown |= len(fields) <= MANY
    for field in fields:
        owner = next(
            each
            for each in settings_class.__mro__
            if field.name in inspect.get_annotations(each)
        )
        shown = field.metadata["common"] or all_shown
        if owner.group not in groups:
            groups[owner.group] = parser.add_argument_group(owner.group)
        _add_option(groups[owner.group], field, shown)
    own = groups[settings_class.group]
    if COMMANDS[name].reads_settings:
        own.add_argument(
            "--settings",
            type=Path,
            metavar="FILE",
            help="JSON file of settings, by the names of the options, such as the"
            " settings.json of a run; or those that papers trained ImageNet with:"
            f" {', '.join(PUBLISHED)}; options on the command line override them",
        )
    if COMMANDS[name].resumes:
        own.add_argument(
            "--resume",
            action="store_true",
            default=SUPPRESS,
            help="continue the run in the output folder from its last checkpoint",
        )
    words = [f.metadata["metavar"] for f in fields if f.default is dataclasses.MISSING]
    parser.usage = " ".join(["smoothout", name, *words, "[OPTIONS]"])
    few = "" if all_shown else " but the rare ones"
    own.add_argument("-h", "--help", action="help", help=f"show all options{few}")
    own.add_argument("--help-all", action="help", help="show all options")


def _add_option(group: Any, field: dataclasses.Field, shown: bool) -> None:
    """Adds the option, or the positional argument, for a field of the settings.

    The parser leaves out options that are not given, so that a file of settings can
    give them.
    """
    kind = Kind.of(field)
    help = field.metadata["help"].replace("%", "%%")
    metavar = field.metadata["metavar"] or METAVARS.get(kind.type)
    options: dict[str, Any] = {"metavar": metavar}
    if kind.several:
        options["nargs"] = "+"
    elif kind.choices:
        options["choices"] = tuple(kind.choices)
    if kind.type is bool:
        options["action"] = argparse.BooleanOptionalAction
    # argparse words its messages by plain types.
    elif kind.type is Path or kind.words:
        options["type"] = lambda word: _read(kind, word)
    else:
        options["type"] = kind.type
    if field.default is dataclasses.MISSING:
        group.add_argument(field.name, help=help, **options)
        return
    default = field.default
    if isinstance(default, tuple):
        default = " ".join(map(str, default))
    if default not in (None, ""):
        help += f" (default: {default})"
    group.add_argument(
        "--" + field.name.replace("_", "-"),
        default=SUPPRESS,
        help=help if shown else SUPPRESS,
        **options,
    )


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
        defaults = {
            field.name: field.default for field in dataclasses.fields(settings_class)
        }
        path = options.get("output", defaults["output"]) / SETTINGS_FILE
    given: Any = {}
    if str(path) in PUBLISHED:
        given = PUBLISHED[str(path)]
    elif path is not None:
        given = read_settings(path, settings_class)
    elif "data" in options:
        given = _for_photographs(options)
    return settings_class(**given | options), resume


def _for_photographs(options: dict[str, Any]) -> dict[str, Any]:
    """Defaults for a folder of images: a small convolutional network, and its rate."""
    from smoothout_jax.experiments.data.datasets import DATA_SETS

    given: dict[str, Any] = {}
    if options["data"] in DATA_SETS:
        return given
    if not {"network", "hidden_sizes", "width"} & options.keys():
        given |= {"network": "cnet", "width": 12}
    if not {"learning_rate", "optimizer"} & options.keys():
        given["learning_rate"] = 0.03
    return given


if __name__ == "__main__":
    run_process()
