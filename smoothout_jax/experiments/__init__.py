"""The evidence: the command `smoothout`, which trains, measures and draws.

    smoothout train        one network
    smoothout compare      several methods, from several seeds, on one data set
    smoothout evidence     an experiment of the results page, repeated
    smoothout sharpness    how flat the minima of checkpoints are
    smoothout landscape    the loss around networks, or between two
    smoothout predict      the classes of images, by a trained network
    smoothout check        what is wrong with a folder of images

Needs the extra: `pip install "smoothout-jax[experiments]"`.
"""

from typing import Any


def load(folder: Any, seed: int | None = None) -> Any:
    """Loads a trained network; see `smoothout_jax.experiments.inference.load_network`.

    >>> trained = load("smoothout-run")  # doctest: +SKIP
    >>> trained.probabilities(trained.read(["cat.jpg"]))  # doctest: +SKIP
    """
    from smoothout_jax.experiments.inference import load_network

    return load_network(folder, seed)
