"""The regime of training that all methods share: optimizer, schedules, augmentation."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from smoothout_jax import anneal_schedule, cosine_schedule, tanh_schedule
from smoothout_jax.experiments.settings import TrainingSettings

GROWTH = 20


def num_steps(settings: TrainingSettings, num_images: int) -> int:
    """Updates in the whole of training."""
    if settings.steps is not None:
        return settings.steps
    epochs = settings.epochs or 1.0
    if settings.adapt_epochs:
        epochs *= settings.batch_size / (settings.base_batch_size or 1)
    return max(1, round(epochs * (num_images // settings.batch_size)))


def peak_learning_rate(settings: TrainingSettings) -> float:
    """The learning rate of the settings, by their rule for the batch size."""
    ratio = settings.batch_size / (settings.base_batch_size or settings.batch_size)
    power = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}[settings.learning_rate_rule]
    return (settings.learning_rate or 0.0) * ratio**power


def learning_rate_schedule(
    settings: TrainingSettings, peak: Any, steps: int
) -> optax.Schedule:
    """The learning rate by the step, from its peak, which may be traced."""
    if settings.schedule == "cosine":
        shape = optax.cosine_decay_schedule(1.0, steps)
    elif settings.schedule == "multistep":
        drops = {round(milestone * steps): 0.1 for milestone in settings.milestones}
        shape = optax.piecewise_constant_schedule(1.0, drops)
    else:
        shape = optax.constant_schedule(1.0)
    rise = max(1.0, settings.warmup * steps)
    return lambda step: peak * shape(step) * jnp.minimum(1.0, (step + 1.0) / rise)


def make_optimizer(
    settings: TrainingSettings, steps: int, peak: Any = None
) -> optax.GradientTransformation:
    """The optimizer that every method is built on: its gradient, then its update.

    Args:
        settings: the settings.
        steps: updates in the whole of training.
        peak: the peak learning rate; by default that of the settings.
    """
    return optax.chain(gradient_rule(settings), update_rule(settings, steps, peak))


def gradient_rule(settings: TrainingSettings) -> optax.GradientTransformation:
    """What the optimizer adds to the gradient: clipping, and coupled weight decay."""
    coupled = settings.weight_decay if settings.optimizer != "adamw" else 0.0
    decay = optax.add_decayed_weights(coupled)
    if settings.clip_norm is None:
        return decay
    return optax.chain(optax.clip_by_global_norm(settings.clip_norm), decay)


def update_rule(
    settings: TrainingSettings, steps: int, peak: Any = None
) -> optax.GradientTransformation:
    """The step that the optimizer takes along that gradient, adamw's decay included.

    Args:
        settings: the settings.
        steps: updates in the whole of training.
        peak: the peak learning rate; by default that of the settings.
    """
    peak = peak_learning_rate(settings) if peak is None else peak
    learning_rate = learning_rate_schedule(settings, peak, steps)
    match settings.optimizer:
        case "sgd":
            return optax.sgd(learning_rate, momentum=settings.momentum)
        case "adam":
            return optax.adam(learning_rate, b1=settings.momentum)
        case _:
            return optax.adamw(
                learning_rate,
                b1=settings.momentum,
                weight_decay=settings.weight_decay,
            )


def radius_schedule(settings: TrainingSettings, radius: Any, steps: int) -> Any:
    """The radius of the noise, or its schedule by the step."""
    match settings.radius_schedule:
        case "anneal":
            return anneal_schedule(radius)
        case "tanh":
            return tanh_schedule(radius, steps)
        case "cosine":
            return cosine_schedule(radius / GROWTH, GROWTH, steps)
        case _:
            return radius


def augment(settings: TrainingSettings, key: jax.Array, images: jax.Array) -> jax.Array:
    """Moves each image by some pixels, zeros coming in, and mirrors about half of them.

    Args:
        settings: the settings.
        key: PRNG key.
        images: (images, height, width, channels).
    """
    if not (settings.shift or settings.flip):
        return images
    shift_key, flip_key = jax.random.split(key)
    if settings.shift:
        margin = settings.shift
        padded = jnp.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
        corners = jax.random.randint(shift_key, (len(images), 2), 0, 2 * margin + 1)
        crop = jax.vmap(
            lambda image, corner: jax.lax.dynamic_slice(
                image, (corner[0], corner[1], 0), images.shape[1:]
            )
        )
        images = crop(padded, corners)
    if settings.flip:
        mirrored = jax.random.bernoulli(flip_key, shape=(len(images), 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    return images
