"""What one GPU found in a published setting, by `smoothout evidence lpf-sgd`."""

from pages.evidence import cell, of_experiment
from smoothout_jax.experiments.methods.table import METHODS
from smoothout_jax.experiments.plans import EXPERIMENTS

(CASE,) = EXPERIMENTS["lpf-sgd"]["gpu"]
(RESULT,) = of_experiment("lpf-sgd", "gpu")


def setting() -> str:
    """The network and its batches, and what trained it."""
    return (
        f"a ResNet-18 on CIFAR-10, batch {CASE.batch_size},"
        f" {CASE.training['precision']}, one {RESULT.case['machine']['device']}"
    )


def step_times() -> str:
    """A sentence of the time of a step by SGD's."""
    times = ", ".join(
        f"{METHODS[name].label} {row['relative_step_time']:.2f}"
        for name, row in RESULT.summary.items()
        if name != "sgd"
    )
    return f"Step time / SGD's of {setting()}: {times}."


def differences() -> str:
    """The differences of all methods to SGD."""
    names = (name for name in RESULT.summary if name != "sgd")
    return ", ".join(f"{METHODS[name].label} {cell(RESULT, name)}" for name in names)
