"""What a generator of noise costs a step: `python -m benchmarks.generators`.

The package's own Threefry beside that of `jax.random`, in the training step of an MLP
and in adding noise to parameters.
"""

import json

from benchmarks import tables
from benchmarks.contenders import (
    RADIUS,
    averaged,
    bits_by_leaf,
    plain,
    uniform_by_leaf,
    words_by_leaf,
)
from benchmarks.measure import measure, measure_noise
from benchmarks.options import parser
from benchmarks.problems import mlp
from smoothout_jax import uniform
from smoothout_jax.experiments.reporting.provenance import provenance

GENERATORS = {
    "uniform": uniform(RADIUS),
    "jax.random.bits in words by leaf": words_by_leaf,
    "jax.random.bits in 8 bits by leaf": bits_by_leaf,
    "jax.random.uniform by leaf": uniform_by_leaf,
}


def main() -> None:
    """Runs the command."""
    command = parser("benchmarks.generators", __doc__, "generators.json")
    command.add_argument("--rounds", type=int, default=100, help="steps timed of each")
    options = command.parse_args()
    contenders = {"plain": plain()} | {
        name: averaged(name, noise) for name, noise in GENERATORS.items()
    }
    steps = measure(mlp(), contenders, rounds=options.rounds, compile_rounds=5)
    noise = measure_noise(min(options.rounds, 10))
    print(tables.costs(steps), tables.noise(noise), sep="\n\n")
    results = provenance() | {"steps": steps, "noise": noise}
    options.output.write_text(json.dumps(results, indent=1) + "\n")
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
