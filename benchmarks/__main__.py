"""Measures, prints the tables and writes the raw figures: `python -m benchmarks`."""

import json

import jax
import numpy as np

from benchmarks import tables
from benchmarks.contenders import averaged, contenders
from benchmarks.measure import measure, measure_copies, measure_noise
from benchmarks.options import parser
from benchmarks.problems import PROBLEMS, mlp
from smoothout_jax import uniform
from smoothout_jax.experiments.reporting.provenance import provenance

EXECUTIONS = ("unroll", "scan", "vmap")


def executions():
    """Four copies, run in every way."""
    noise = uniform(0.01)
    return {"plain": contenders()["plain"]} | {
        f"{execution}, {'split' if split else 'whole'}": averaged(
            "uniform", noise, 4, split=split, execution=execution
        )
        for execution in EXECUTIONS
        for split in (True, False)
    }


def main() -> None:
    """Runs the command."""
    command = parser("benchmarks", __doc__, "cpu.json")
    command.add_argument(
        "--problems",
        nargs="+",
        choices=PROBLEMS,
        default=["mlp", "resnet20"],
        help="networks to time",
    )
    command.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        default="float32",
        help="precision of the network; its parameters are in float32",
    )
    command.add_argument(
        "--rounds", type=int, default=25, help="steps timed, of an MLP"
    )
    command.add_argument(
        "--slow-rounds", type=int, default=5, help="steps timed, of other networks"
    )
    command.add_argument(
        "--compile-rounds", type=int, default=3, help="compilations timed"
    )
    options = command.parse_args()
    if min(options.rounds, options.slow_rounds, options.compile_rounds) < 1:
        command.error("rounds must be at least 1")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    print(provenance()["machine"], flush=True)
    results = provenance() | {"problems": {}, "executions": {}}
    for name in options.problems:
        problem = PROBLEMS[name](dtype=options.dtype)
        rounds = options.rounds if name == "mlp" else options.slow_rounds
        results["problems"][name] = measure(
            problem, contenders(), rounds=rounds, compile_rounds=options.compile_rounds
        )
        print(tables.costs(results["problems"][name]), flush=True)
        results["executions"][name] = measure(
            problem, executions(), rounds=min(rounds, 2), compile_rounds=1
        )
        print(tables.costs(results["executions"][name]), flush=True)
    results["noise"] = measure_noise(min(options.rounds, 10))
    print(tables.noise(results["noise"]), flush=True)
    results["copies"] = measure_copies(
        mlp(), lambda m: averaged("uniform", uniform(0.01), m), 2 ** np.arange(7), 10
    )
    print(tables.costs(results["copies"]), flush=True)
    options.output.write_text(json.dumps(results, indent=1) + "\n")
    print(f"wrote {options.output}; {jax.device_count()} device")


if __name__ == "__main__":
    main()
