"""How noise follows the gap, on digits with right and wrong labels."""

import jax
import numpy as np
import optax
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

from pages import pictures
from smoothout_jax import (
    heldout_gap,
    smoothout,
    smoothout_eval_params,
    smoothout_metrics,
    smoothout_report,
    uniform,
)

REPORTS = 100
COLORS = {"held-out loss": "#d55e00", "training loss": "#0072b2"}


def losses(wrong: float, share: float) -> dict[str, np.ndarray]:
    """Both losses and the target of the rise, every ten steps, (reports,).

    Args:
        wrong: the fraction of the labels that are drawn at random.
        share: the rise over the gap; without one there is no noise.
    """
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

    noise = uniform(relative_to="filter")
    optimizer = smoothout(optax.adam(3e-3), noise, key=0, loss_rise=heldout_gap(share))

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, *train), state, params)
        return (optax.apply_updates(params, updates), state), None

    def report(carry, _):
        params, state = jax.lax.scan(step, carry, length=10)[0]
        clean = smoothout_eval_params(state, params)
        train_loss, heldout_loss = loss(clean, *train), loss(clean, *heldout)
        state = smoothout_report(
            state,
            train_loss=train_loss,
            heldout_loss=heldout_loss,
            chance_loss=np.log(10),
        )
        found = {"held-out loss": heldout_loss, "training loss": train_loss}
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
    figure = Figure(figsize=(pictures.WIDTH, 4.6), layout="constrained")
    rows = figure.subplots(2, 2, sharex=True, sharey="row")
    steps = 10 * np.arange(1, REPORTS + 1)
    for axes, wrong in zip(rows, (0.0, 0.4), strict=True):
        for ax, share in zip(axes, (0.0, 0.5), strict=True):
            found = losses(wrong, share)
            for name, color in COLORS.items():
                ax.plot(steps, found[name], color=color, label=name)
            if share:
                drawn = {"color": "#009e73", "alpha": 0.35, "label": "δ, half the gap"}
                ax.fill_between(steps, found["δ"], **drawn)
            labels = "wrong labels" if wrong else "right labels"
            ax.set_title(f"{labels}, {'SmoothOut' if share else 'Adam'}", size=10)
            ax.set_ylim(0, 3.5 if wrong else 0.8)
            ax.tick_params(labelsize=9)
            ax.grid(alpha=0.3)
        axes[0].set_ylabel("loss, nats", size=10)
    for ax in rows[-1]:
        ax.set_xlabel("steps", size=10)
    handles, names = rows[0, 1].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside upper center", ncols=3, frameon=False, fontsize=9
    )
    return figure
