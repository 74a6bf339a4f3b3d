"""The page of convolutions in loops on CPU.

`python -m pages.convolutions` makes docs/performance/convolutions.md from the JSON file
beside it, which `python -m benchmarks.convolutions` writes.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from pages.source import DOCS, measured_on
from smoothout_jax.experiments.reporting.tables import markdown


def page(results: Mapping[str, Any]) -> str:
    """The figures as a page of Markdown."""
    rows = []
    for network, seconds in results["networks"].items():
        medians = {way: float(np.median(each)) for way, each in seconds.items()}
        base = medians.pop("one by one")
        rows.append(
            (
                network,
                f"{1e3 * base:.0f} ms",
                *(f"{median / base:.2f}" for median in medians.values()),
            )
        )
    ways = [way for way in seconds if way != "one by one"]
    layers = [_layer(*each["layer"], each) for each in results["layers"]]
    return "\n\n".join(
        (
            "# Convolutions in loops on CPU",
            f"{measured_on(results)} `python -m benchmarks.convolutions` repeats it.",
            f"A step of SGD on {results['batch']} images of 32 × 32 × 3: dispatched one"
            " by one, and in a `lax.scan` of ten. XLA's fast kernel for CPU takes"
            " convolutions in one form. Outside loops XLA rewrites others to it; inside"
            " it leaves them, and the two gradients of a convolution, as JAX derives"
            " them, fall to a slow kernel. `convolve` in"
            " smoothout_jax/experiments/convolutions.py, for"
            " `nn.Conv(..., conv_general_dilated=convolve)`, writes the gradients in"
            " that form, so that loops are no slower. The commands train with it.",
            markdown(("network", "one by one", *(f"{way} ×" for way in ways)), rows),
            "The fast kernel is slow where outputs are few, most of all for images"
            " whose channels are no multiple of 4. There `convolve` takes tiles of 2 or"
            " 4 neighbouring pixels for one pixel with as many times the channels, but"
            " not for kernels of 3 pixels over a multiple of 4 channels, for which it"
            " is too much work. The forward pass of one layer,"
            f" {results['batch']} images:",
            markdown(("images", "kernel", "JAX", "convolve ×"), layers) + "\n",
        )
    )


def _layer(size: int, channels: int, width: int, outputs: int, seconds) -> tuple:
    """A row of the table of single convolutions."""
    jax, ours = (float(np.median(seconds[name])) for name in ("JAX", "convolve"))
    return (
        f"{size} × {size} × {channels}",
        f"{width} × {width}, {outputs} outputs",
        f"{1e3 * jax:.1f} ms",
        f"{ours / jax:.2f}",
    )


def main() -> None:
    """Writes the page."""
    path = DOCS / "performance" / "convolutions.json"
    path.with_suffix(".md").write_text(page(json.loads(path.read_text())))


if __name__ == "__main__":
    main()
