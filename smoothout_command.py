"""Starts the command `smoothout`.

It imports nothing but the standard library before it handles interruptions and shows a
sign of life: to import JAX takes seconds.
"""

import os
import signal
import sys


def main() -> None:
    """Runs the command `smoothout` as a process of its own."""
    signal.signal(signal.SIGINT, _end)
    if sys.stderr.isatty() and sys.argv[1:2] and not sys.argv[1].startswith("-"):
        print("importing JAX", end="\r", file=sys.stderr, flush=True)
    try:
        from smoothout_jax.experiments.cli import run_process
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        print(
            f"smoothout: error: {missing} is not installed; this needs the extra: pip"
            ' install "smoothout-jax[experiments]"',
            file=sys.stderr,
        )
        sys.exit(2)
    run_process()


def _end(number, frame):
    os.write(2, b"smoothout: error: interrupted: nothing was done yet\n")
    os._exit(130)


if __name__ == "__main__":
    main()
