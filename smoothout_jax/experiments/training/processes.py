"""A run in several processes: how they begin, agree, and end together."""

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from smoothout_jax.experiments.train_settings import TrainSettings

# Seconds after which a process that is silent counts as dead.
TIMEOUT = 20
FAILED = 3


@contextmanager
def processes(settings: TrainSettings) -> Iterator[None]:
    """Joins the other processes of a distributed run.

    When one of them dies, JAX ends this one within `TIMEOUT` seconds, wherever it
    waits; a process that did nothing but watch it then tells what to do.

    Args:
        settings: the settings of the run.
    """
    if not settings.distributed:
        yield
        return
    _watch(
        "a process of the run failed, so that the others ended too; start all of them"
        " again with --resume, to go on from the last checkpoint in"
        f" {settings.output}"
    )
    jax.distributed.initialize(
        settings.coordinator_address,
        settings.num_processes,
        settings.process_id,
        heartbeat_timeout_seconds=TIMEOUT,
        shutdown_timeout_seconds=TIMEOUT,
    )
    try:
        yield
    except jax.errors.JaxRuntimeError:
        traceback.print_exc()
        os._exit(FAILED)  # the ordinary way out would wait for the others


def _watch(message: str) -> None:
    """Goes on in a child, and tells in its parent of an abort of it."""
    child = os.fork()
    if not child:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to both
    signal.signal(signal.SIGTERM, lambda number, frame: os.kill(child, number))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code in (-signal.SIGABRT, FAILED):
        print(f"smoothout: error: {message}", file=sys.stderr, flush=True)
    os._exit(code if code >= 0 else FAILED)


def is_first() -> bool:
    """Whether this process is the one that writes files and tells of the run."""
    return jax.process_index() == 0


def any_process(*flags: bool) -> tuple[bool, ...]:
    """Whether each flag is set in any of the processes, which all must ask."""
    if jax.process_count() == 1:
        return flags
    gathered = multihost_utils.process_allgather(np.array(flags))
    return tuple(map(bool, gathered.any(0)))


@contextmanager
def interruption() -> Iterator[Any]:
    """Whether SIGINT or SIGTERM came; a second SIGINT ends the program at once."""
    came = []

    def handle(number, frame):
        came.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    numbers = signal.SIGINT, signal.SIGTERM
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
