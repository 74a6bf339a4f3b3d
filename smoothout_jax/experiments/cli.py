"""The command `smoothout`: parses its options, and tells errors in a line."""

import argparse
import dataclasses
import importlib
import sys
from collections.abc import Sequence
from typing import get_args, get_origin

from smoothout_jax import __version__
from smoothout_jax.experiments.settings import Settings

EXTRA = ("flax", "matplotlib", "rich", "sklearn")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command.

    Args:
        arguments: the words after `smoothout`; by default those of the command line.
    """
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    _require_extra(parser)
    try:
        settings = Settings(**options)
        settings.prepare_output()
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"output: cannot write to {options['output']}: {error.strerror}")
    _compare(settings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="smoothout",
        description="Flat minima by SmoothOut: the evidence, on real data.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    compare = commands.add_parser(
        "compare",
        help="train several methods from several seeds, and compare them",
        description="Trains SGD, SmoothOut, AdaSmoothOut and SAM on scikit-learn's"
        " digits from the same seeds, prints a table and writes results.csv,"
        " results.json, accuracy.png and landscape.png.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for field in dataclasses.fields(Settings):
        several = get_origin(field.type) is tuple
        compare.add_argument(
            "--" + field.name.replace("_", "-"),
            dest=field.name,
            type=get_args(field.type)[0] if several else field.type,
            nargs="+" if several else None,
            default=field.default,
            help=field.metadata["help"],
            metavar=field.metadata["metavar"],
        )
    return parser


def _require_extra(parser: argparse.ArgumentParser) -> None:
    for module in EXTRA:
        try:
            importlib.import_module(module)
        except ImportError:
            parser.error(
                f"{module} is not installed; the command needs the extra: pip install"
                ' "smoothout-jax[experiments]"'
            )


def _compare(settings: Settings) -> None:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from smoothout_jax.experiments import report
    from smoothout_jax.experiments.compare import compare

    console = Console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("preparing")

        def progress(done: int, turns: int, what: str) -> None:
            bar.update(task, completed=done, total=turns, description=what)

        results = compare(settings, progress)
    console.print(report.table(results))
    for path in report.write(results):
        console.print(f"wrote {path}")


if __name__ == "__main__":
    main(sys.argv[1:])
