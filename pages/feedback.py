"""The picture of how noise follows the gap, on digits with right and wrong labels.

It trains four small networks.
"""

import jax
import numpy as np
import optax
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

from pages import pictures
from smoothout_jax import (
    smoothout,
    smoothout_eval_params,
    smoothout_metrics,
    smoothout_report,
)

REPORTS = 100
COLORS = {"held-out loss": "#d55e00", "training loss": "#0072b2"}


def losses(wrong: float, has_noise: bool) -> dict[str, np.ndarray]:
    """Both losses and the target of the rise, every ten steps, (reports,)."""
    images, right = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(right))
    x, right = np.float32(images[order] / 16), right[order]
    is_drawn = rng.random(len(right)) < wrong
    labels = np.where(is_drawn, rng.integers(10, size=len(right)), right)
    train, heldout = (x[:400], labels[:400]), (x[400:600], labels[400:600])

    def loss(params, x, y):
        hidden = jax.nn.relu(x @ params["hidden"]["kernel"])
        logits = hidden @ params["out"]["kernel"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    optimizer = optax.adam(3e-3)
    optimizer = smoothout(optimizer, key=0) if has_noise else optimizer

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, *train), state, params)
        return (optax.apply_updates(params, updates), state), None

    def report(carry, _):
        params, state = jax.lax.scan(step, carry, length=10)[0]
        clean = smoothout_eval_params(state, params) if has_noise else params
        found = {"held-out loss": loss(clean, *heldout)}
        found |= {"training loss": loss(clean, *train)}
        if has_noise:
            state = smoothout_report(
                state,
                train_loss=found["training loss"],
                heldout_loss=found["held-out loss"],
                chance_loss=np.log(10),
            )
            found["δ"] = smoothout_metrics(state)["loss_rise_target"]
        return (params, state), found

    normal = jax.nn.initializers.he_normal()
    first, second = jax.random.split(jax.random.key(0))
    params = {
        "hidden": {"kernel": normal(first, (64, 200))},
        "out": {"kernel": normal(second, (200, 10))},
    }
    run = jax.jit(lambda carry: jax.lax.scan(report, carry, length=REPORTS)[1])
    return jax.tree.map(np.asarray, run((params, optimizer.init(params))))


def draw() -> Figure:
    """A panel without noise and one with it, for right and for wrong labels."""
    figure = Figure(figsize=(pictures.WIDTH, 5), layout="constrained")
    rows = figure.subplots(2, 2, sharex=True, sharey="row")
    steps = 10 * np.arange(1, REPORTS + 1)
    for axes, wrong in zip(rows, (0.0, 0.4), strict=True):
        for ax, has_noise in zip(axes, (False, True), strict=True):
            found = losses(wrong, has_noise)
            for name, color in COLORS.items():
                ax.plot(steps, found[name], color=color, label=name)
            if has_noise:
                drawn = {"color": "#009e73", "alpha": 0.35, "label": "δ, half the gap"}
                ax.fill_between(steps, found["δ"], **drawn)
            labels = "wrong labels" if wrong else "right labels"
            ax.set_title(f"{labels},\n{'SmoothOut' if has_noise else 'Adam'}", size=10)
            ax.set_ylim(0, 3.5 if wrong else 0.8)
            ax.tick_params(labelsize=9)
            ax.grid(alpha=0.3)
        axes[0].set_ylabel("loss, nats", size=10)
    for ax in rows[-1]:
        ax.set_xlabel("steps", size=10)
    handles, names = rows[0, 1].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside upper center", ncols=2, frameon=False, fontsize=9
    )
    return figure
