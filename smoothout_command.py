"""Starts the command `smoothout`, with Ctrl-C in one line from the first moment on.

It imports nothing but the standard library before it handles interruptions: to import
JAX takes longer than some wait.
"""

import os
import signal


def main() -> None:
    """Runs the command `smoothout` as a process of its own."""
    signal.signal(signal.SIGINT, _end)
    from smoothout_jax.experiments.cli import run_process

    run_process()


def _end(number, frame):
    os.write(2, b"smoothout: error: interrupted: nothing was done yet\n")
    os._exit(130)


if __name__ == "__main__":
    main()
