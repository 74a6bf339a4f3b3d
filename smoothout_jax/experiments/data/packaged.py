"""Small data sets that packages bring, or generate.

Each is a function of the folder of the data sets, which they do not need.
"""

import random
from pathlib import Path

import numpy as np
from sklearn import datasets as sklearn

from smoothout_jax._extras import require
from smoothout_jax.experiments.data.readers import Split, checked_split


def digits(data_dir: Path) -> tuple[Split, None]:
    """The digits of scikit-learn, 8 × 8 pixels."""
    images, labels = sklearn.load_digits(return_X_y=True)
    return checked_split(images.reshape(-1, 8, 8, 1) / 16, labels, "digits"), None


def digit_pairs(data_dir: Path) -> tuple[Split, Split]:
    """Two digits side by side: 100 classes; no digit is in training and test pairs."""
    draw = np.random.default_rng(0)
    whole, _ = digits(data_dir)

    def pairs(count: int, available: np.ndarray) -> Split:
        left, right = draw.choice(available, (2, count))
        return checked_split(
            np.concatenate([whole.images[left], whole.images[right]], axis=2),
            10 * whole.labels[left] + whole.labels[right],
            "digit-pairs",
        )

    order = draw.permutation(len(whole.labels))
    return pairs(4000, order[:1200]), pairs(3000, order[1200:])


TEXTS = "breast_cancer", "diabetes", "digits", "iris", "linnerud", "wine"
WINDOW = 16
# Rarer characters of the text are left out.
FEWEST = 40


def text(data_dir: Path) -> tuple[Split, Split]:
    """The next character after 16 others, in scikit-learn's descriptions of data.

    Characters are one-hot, (positions, characters). The last fifth of the text is for
    testing; descriptions share phrases, so it repeats some of the rest.
    """
    text = "".join(getattr(sklearn, f"load_{name}")().DESCR for name in TEXTS).lower()
    characters = sorted(c for c in set(text) if text.count(c) >= FEWEST)
    tokens = np.array([characters.index(c) for c in text if c in characters])
    one_hot = np.eye(len(characters), dtype=np.float32)[tokens]

    def windows(first: int, last: int) -> Split:
        ends = np.arange(first + WINDOW, last)
        images = one_hot[ends[:, None] + np.arange(-WINDOW, 0)]
        return checked_split(images, tokens[ends], "text")

    middle = len(tokens) * 4 // 5
    return windows(0, middle), windows(middle, len(tokens))


def mnist1d(data_dir: Path) -> tuple[Split, Split]:
    """Generates Greydanus and Kobak's data from their seed.

    Reference:
        Greydanus and Kobak, `Scaling Down Deep Learning with MNIST-1D
        <https://arxiv.org/abs/2011.14439>`_, 2020.
    """
    mnist1d = require("mnist1d.data", "experiments")
    state = random.getstate(), np.random.get_state()
    try:  # it seeds the global generators
        made = mnist1d.make_dataset()
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])
    return (
        checked_split(made["x"][..., None], made["y"], "mnist1d"),
        checked_split(made["x_test"][..., None], made["y_test"], "mnist1d"),
    )
