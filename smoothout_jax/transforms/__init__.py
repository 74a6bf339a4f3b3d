"""How it trains: SmoothOut as transformations of Optax.

`smoothout` wraps an optimizer and leaves the training loop as it is: the parameters the
loop holds are perturbed, the clean ones live in the state. `smooth_gradients` is a link
of a chain: the parameters stay clean, and a `grad_fn` given to each update is called at
the perturbed copies.

Reference:
    Wen et al., `SmoothOut: Smoothing Out Sharp Minima to Improve Generalization in
    Deep Learning <https://arxiv.org/abs/1805.07898>`_, 2018: Stochastic SmoothOut, with
    its de-noising before the update.
"""

from smoothout_jax.transforms.evaluation import smoothout_eval_params
from smoothout_jax.transforms.link import SmoothGradientsState, smooth_gradients
from smoothout_jax.transforms.state import SmoothoutState
from smoothout_jax.transforms.wrapper import smoothout

__all__ = [
    "SmoothGradientsState",
    "SmoothoutState",
    "smooth_gradients",
    "smoothout",
    "smoothout_eval_params",
]
