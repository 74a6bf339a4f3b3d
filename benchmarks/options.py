"""The options that all benchmarks have."""

import argparse
from pathlib import Path


def parser(
    module: str, description: str | None, output: str
) -> argparse.ArgumentParser:
    """A parser of `python -m module`, with the file of the raw figures as an option."""
    found = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    found.add_argument(
        "--output",
        type=Path,
        default=Path("docs/performance") / output,
        help="file of the raw figures",
    )
    return found
