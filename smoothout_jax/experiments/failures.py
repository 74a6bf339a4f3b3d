"""Failures of the machine, such as a full disk, in one line."""

import errno
import logging
import os
import sys
import threading

import jax

FULL = errno.ENOSPC, errno.EDQUOT, errno.EFBIG


def of_the_machine(error: BaseException) -> str | None:
    """What failed; `None` if it is a fault of the program."""
    texts = " ".join(f"{each}" for each in _causes(error))
    for number in FULL:  # TensorStore, which Orbax writes with, says it in words
        if os.strerror(number) in texts:
            return f"cannot write{_where(error)}: {os.strerror(number)}"
    if isinstance(error, BrokenPipeError):
        return "output pipe closed"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot read or write{_where(error)}: {error.strerror}"
    exhausted = "RESOURCE_EXHAUSTED" in texts or "Out of memory" in texts
    if isinstance(error, MemoryError) or (
        isinstance(error, jax.errors.JaxRuntimeError) and exhausted
    ):
        return "out of memory: use a smaller network or batch, or fewer seeds"
    return None


def silence_threads() -> None:
    """Hides what threads of Orbax log when storage fails: the command reports it."""
    for name in ("absl", "asyncio", "orbax"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    threading.excepthook = lambda arguments: None
    sys.unraisablehook = lambda arguments: None


def _causes(error: BaseException | None):
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _where(error: BaseException) -> str:
    name = getattr(error, "filename", None)
    return f" {name}" if name else ""
