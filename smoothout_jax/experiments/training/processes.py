"""A run in several processes: how they start, agree, and end together."""

import dataclasses
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from smoothout_jax import _checks
from smoothout_jax.experiments import interruptions
from smoothout_jax.experiments.options import Settings, option
from smoothout_jax.experiments.training.placement import parse_mesh

# Seconds without a sign of life after which a process counts as dead.
TIMEOUT = 20
FAILED = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessSettings(Settings):
    """Settings of the devices and processes that a run takes.

    Raises:
        TypeError, ValueError: if a value is out of its range, or two values conflict.
    """

    mesh: str | None = option(
        None,
        "devices as axes: data, which batches are sharded over, and model, which"
        " filters are, such as data=4,model=2; by default the first device alone",
        "AXES",
        machine=True,
    )
    distributed: bool = option(
        False,
        "run in several processes, which the environment describes, as with SLURM, GKE"
        " and TPU pods, or the next three options",
        machine=True,
    )
    coordinator_address: str | None = option(
        None,
        "address and port of process 0, such as 10.0.0.1:1234",
        "ADDRESS",
        machine=True,
    )
    num_processes: int | None = option(None, "number of processes", machine=True)
    process_id: int | None = option(
        None, "number of this process, from 0", machine=True
    )

    def __post_init__(self):
        super().__post_init__()
        names = "coordinator_address", "num_processes", "process_id"
        given = self._given(*names)
        if given and len(given) < len(names):
            raise ValueError(
                f"give all of {', '.join(names)}, not {next(iter(given))} alone"
            )
        if self.num_processes is not None and self.process_id is not None:
            _checks.count(num_processes=self.num_processes)
            if not 0 <= self.process_id < self.num_processes:
                raise ValueError(
                    f"process_id must be in 0 to {self.num_processes - 1}, got"
                    f" {self.process_id}"
                )
            self._set(distributed=True)
        if self.mesh is not None:
            parse_mesh(self.mesh)
        elif self.distributed:
            raise ValueError("distributed needs mesh, such as --mesh data=8")

    @property
    def several_processes(self) -> bool:
        """Whether several processes share the output folder."""
        return self.distributed


@contextmanager
def processes(settings: ProcessSettings, output: Path) -> Iterator[None]:
    """Joins the other processes of a distributed run.

    When one of them dies, JAX ends this one within `TIMEOUT` seconds, wherever it
    waits. A parent process, which only watches it, then says what to do.

    Args:
        settings: the settings of the processes.
        output: the folder of the run.
    """
    if not settings.distributed:
        yield
        return
    _watch(
        "a process of the run failed, so the others ended too; start all of them again"
        f" with --resume, to continue from the last checkpoint in {output}"
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
        os._exit(FAILED)  # an ordinary exit would wait for the others


def _watch(message: str) -> None:
    """Continues in a child process; the parent reports if the child aborts."""
    child = os.fork()
    if not child:
        return
    interruptions.leave_to_child()  # a terminal sends them to both
    signal.signal(signal.SIGTERM, lambda number, frame: os.kill(child, number))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code in (-signal.SIGABRT, FAILED):
        print(f"smoothout: error: {message}", file=sys.stderr, flush=True)
    os._exit(code if code >= 0 else FAILED)


def is_first() -> bool:
    """Whether this process is the one that writes files and reports on the run."""
    return jax.process_index() == 0


def any_process(*flags: bool) -> tuple[bool, ...]:
    """Whether each flag is set in any process; all processes must call this."""
    if jax.process_count() == 1:
        return flags
    gathered = multihost_utils.process_allgather(np.array(flags))
    return tuple(map(bool, gathered.any(0)))
