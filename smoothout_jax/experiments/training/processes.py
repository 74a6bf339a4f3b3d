"""A run in several processes: how they start, agree, and end together."""

import dataclasses
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

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
    """Settings of the devices and processes that a run uses."""

    group: ClassVar[str] = "devices and processes"

    mesh: str | None = option(
        None,
        "axes of the devices: data, over which batches are sharded, and model, over"
        " which filters are, such as data=4,model=2; by default the first device alone",
        "AXES",
        machine=True,
        common=True,
    )
    distributed: bool = option(
        False,
        "run in several processes, set up by the environment (SLURM, GKE, TPU pods) or"
        " by the next three options",
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
    """Joins the other processes of a distributed run, which writes to `output`.

    When one of them dies, JAX ends this one within `TIMEOUT` seconds, wherever it
    waits.
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
    except jax.errors.JaxRuntimeError:
        traceback.print_exc()
        interruptions.say(
            "a process of the run failed: start all of them again with --resume, to"
            f" continue from the last checkpoint in {output}"
        )
        os._exit(FAILED)  # an ordinary exit would wait for the others


def is_first() -> bool:
    """Whether this process is the one that writes files and reports on the run."""
    return jax.process_index() == 0


def any_process(flag: bool) -> bool:
    """Whether a flag is set in any process; all processes must call this."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())
