"""What the leading eigenvalues cost beyond their products with the Hessian.

`python -m benchmarks.eigenvalues` finds those of an MLP of 1.46 M parameters, and times
the whole call and the products in it; `python -m pages.eigenvalues` makes its page.
"""

import json
import time

import jax

from benchmarks.options import parser
from benchmarks.problems import mlp
from smoothout_jax.experiments.reporting.provenance import provenance
from smoothout_jax.sharpness import hessian_eigenvalues
from smoothout_jax.sharpness.objective import VectorLoss


def measure(num_examples: int, num_eigenvalues: int) -> dict[str, float]:
    """Times one call, once everything is compiled.

    Args:
        num_examples: examples that the loss is the mean over.
        num_eigenvalues: number of leading eigenvalues.

    Returns:
        The number of products, the seconds they took and those of the whole call.
    """
    problem = mlp(batch_size=num_examples)
    params = problem.init(jax.random.key(0))
    data = [problem.batch(jax.random.key(1))]
    hessian_eigenvalues(problem.loss, params, batches=data)
    seconds = []
    product = VectorLoss.hessian_vector

    def timed(self, vector):
        start = time.perf_counter()
        result = jax.block_until_ready(product(self, vector))
        seconds.append(time.perf_counter() - start)
        return result

    VectorLoss.hessian_vector = timed
    try:
        start = time.perf_counter()
        hessian_eigenvalues(
            problem.loss, params, num_eigenvalues=num_eigenvalues, batches=data
        )
        total = time.perf_counter() - start
    finally:
        VectorLoss.hessian_vector = product
    return {
        "examples": num_examples,
        "products": len(seconds),
        "product_seconds": sum(seconds),
        "seconds": total,
    }


def main() -> None:
    """Runs the command."""
    command = parser("benchmarks.eigenvalues", __doc__, "eigenvalues.json")
    command.add_argument("--examples", type=int, nargs="+", default=[512, 2048, 8192])
    command.add_argument("--eigenvalues", type=int, default=20)
    options = command.parse_args()
    runs = [measure(number, options.eigenvalues) for number in options.examples]
    results = provenance() | {"eigenvalues": options.eigenvalues, "runs": runs}
    options.output.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(runs, indent=1))


if __name__ == "__main__":
    main()
