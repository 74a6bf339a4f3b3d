"""A run in several processes: how they begin, agree, and end together."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from smoothout_jax.experiments.settings import TrainSettings

# Seconds after which a process that is silent counts as dead.
TIMEOUT = 20


@contextmanager
def processes(settings: TrainSettings) -> Iterator[None]:
    """Joins the other processes of a distributed run.

    When one of them dies, this process ends with a message too: at once, if it waits
    for data of the other, and within `TIMEOUT` seconds in any case.

    Args:
        settings: the settings of the run.
    """
    if not settings.distributed:
        yield
        return
    jax.distributed.initialize(
        settings.coordinator_address,
        settings.num_processes,
        settings.process_id,
        heartbeat_timeout_seconds=TIMEOUT,
        shutdown_timeout_seconds=TIMEOUT,
    )
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        print(
            f"smoothout: error: process {jax.process_index()} of"
            f" {jax.process_count()} cannot go on, as another one failed: {reason}."
            " Start all of them again with --resume, to go on from the last checkpoint"
            f" in {settings.output}",
            file=sys.stderr,
            flush=True,
        )
        # The ordinary way out waits for the process that is gone.
        os._exit(3)


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
