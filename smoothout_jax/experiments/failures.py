"""Failures of the machine, such as a full disk, as a line that says what to do."""

import errno
import logging
import os
import sys
import threading

import jax

STATUS = 2
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# What TensorStore, which Orbax writes with, says of them.
FULL_TEXTS = tuple(map(os.strerror, FULL))


def of_the_machine(error: BaseException) -> str | None:
    """What a failure of the machine is; `None` if it is a fault of the program."""
    if is_full(error):
        return f"cannot write{_where(error)}: {_reason(error)}"
    if isinstance(error, BrokenPipeError):
        return "nobody reads the output any more"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot read or write{_where(error)}: {error.strerror}"
    exhausted = "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error)
    if isinstance(error, MemoryError) or (
        isinstance(error, jax.errors.JaxRuntimeError) and exhausted
    ):
        return (
            "there is not enough memory: choose a smaller network or batch, or fewer"
            " seeds"
        )
    return None


def is_full(error: BaseException) -> bool:
    """Whether an error, or one that caused it, is a disk or quota that is full."""
    return any(
        getattr(each, "errno", None) in FULL
        or any(text in str(each) for text in FULL_TEXTS)
        for each in _causes(error)
    )


def silence_threads() -> None:
    """Hides what threads of Orbax and TensorStore log when their storage fails.

    What they raise reaches the command, which reports it.
    """
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


def _reason(error: BaseException) -> str:
    for each in _causes(error):
        for text in FULL_TEXTS:
            if text in str(each):
                return text
    return os.strerror(errno.ENOSPC)
