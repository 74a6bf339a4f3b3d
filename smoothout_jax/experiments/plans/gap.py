"""The plan of the experiment on the rise that follows the gap of the losses.

Its cases are those of questions that noise was asked before, by the same names, seeds
and trials of the learning rate, so that their results stand beside those. A tenth of
the training images is held out to measure the gap, and trained on the second time, with
the rise that the first time had; with wrong labels, the images that are watched serve.

Stated before they were run, but for seven cases of one training, which showed what the
held-out images cost: without any choice, noise that follows the gap gains as
much as the best of six fixed radii where SGD fits its images, and nine tenths of it
where labels are wrong, is not certainly below SGD in any such case, and is nowhere more
than 0.3 points below it where SGD does not fit.
"""

import dataclasses
from typing import Any

from smoothout_jax.experiments.plans.case import Case
from smoothout_jax.experiments.plans.questions import BATCHES, LABELS, NETWORKS, RECIPES


def _by_gap(case: Case) -> Case:
    training: dict[str, Any] = case.training | {"loss_rise": "gap"}
    training.pop("rise_epochs", None)
    if "watch_size" not in training:
        training |= {"heldout_size": training["train_size"] // 10, "retrain": True}
    return dataclasses.replace(case, methods=("sgd", "adasmoothout"), training=training)


GAP = tuple(map(_by_gap, (*BATCHES, *LABELS)))
# The same beside other recipes, and by transformers, text and a hundred classes.
GAP_OTHERS = tuple(
    _by_gap(case) for case in (*NETWORKS, *RECIPES) if "no recipe" not in case.name
)
# A twentieth held out instead of a tenth.
GAP_TWENTIETH = tuple(
    dataclasses.replace(
        case,
        training=case.training | {"heldout_size": case.training["train_size"] // 20},
    )
    for case in GAP
    if "label_noise" not in case.training and case.network in ("mlp", "f1")
)
# The share of the gap that the accuracy on held-out images prefers, of three.
GAP_SHARES = tuple(
    dataclasses.replace(case, trials=case.trials | {"gap_share": (0.25, 0.5, 1.0)})
    for case in GAP
    if "label_noise" in case.training and case.network != "cnet"
)
