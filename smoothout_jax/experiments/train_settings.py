"""What one run of training is set up with, checked before any work is done."""

import dataclasses
from pathlib import Path

from smoothout_jax import _checks
from smoothout_jax.experiments.options import option, parse_mesh
from smoothout_jax.experiments.settings import METHODS, METHODS_HELP, TrainingSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings(TrainingSettings):
    """Settings of `smoothout train`; each is an option of the command.

    Raises:
        TypeError, ValueError: when one is out of its range, or two do not fit.
    """

    method: str = option("adasmoothout", METHODS_HELP, choices=METHODS)
    seed: int = option(0, "fixes initial parameters, batches and noise")
    evaluate_every: int | None = option(
        None,
        "steps between evaluations, each a line of the log; an epoch, or a hundredth of"
        " training where that is longer, if not given",
    )
    checkpoint_minutes: float = option(
        1.0, "least minutes between checkpoints, which follow evaluations"
    )
    keep: int = option(2, "last checkpoints that are kept")
    mesh: str | None = option(
        None,
        "devices as axes: data, over which batches are laid, and model, over which"
        " filters are, such as data=4,model=2; the first device alone if not given",
        "AXES",
    )
    distributed: bool = option(
        False,
        "run in several processes, found by the environment, as SLURM, GKE and TPU"
        " pods set it, or given by the three options that follow",
    )
    coordinator_address: str | None = option(
        None, "address and port of process 0, such as 10.0.0.1:1234", "ADDRESS"
    )
    num_processes: int | None = option(None, "number of processes")
    process_id: int | None = option(None, "number of this process, from 0")
    output: Path = option(
        Path("smoothout-run"), "folder for checkpoints, logs and settings", "FOLDER"
    )

    def __post_init__(self):
        _checks.count(keep=self.keep)
        _checks.nonnegative(checkpoint_minutes=self.checkpoint_minutes)
        if self.evaluate_every is not None:
            _checks.count(evaluate_every=self.evaluate_every)
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed must be in [0, 2³¹), got {self.seed}")
        super().__post_init__()
        self.check_parts(self.method)
        self._check_processes()

    def _check_processes(self) -> None:
        names = ("coordinator_address", "num_processes", "process_id")
        given = [name for name in names if getattr(self, name) is not None]
        if given and len(given) < len(names):
            raise ValueError(f"give all of {', '.join(names)}, not {given[0]} alone")
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
    def all_seeds(self) -> tuple[int, ...]:
        """The seed that the network is trained from."""
        return (self.seed,)
