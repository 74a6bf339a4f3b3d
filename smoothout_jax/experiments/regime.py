"""The regime of training that all methods share: optimizer, schedule, augmentation."""

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import optax

from smoothout_jax import _checks
from smoothout_jax.experiments.averaging import averaging
from smoothout_jax.experiments.options import Settings, check_not_negative, option

Traced = jax.typing.ArrayLike
LEARNING_RATES = {"sgd": 0.1, "adam": 1e-3, "adamw": 1e-3}
_IMAGENET: dict[str, Any] = {
    "image_size": 224,
    "epochs": 90.0,
    "schedule": "multistep",
    "crop_area": 0.08,
    "flip": True,
}
_RESNET = _IMAGENET | {
    "batch_size": 256,
    "learning_rate": 0.1,
    "learning_rate_batch": 256,
    "warmup": 5 / 90,
    "milestones": (30 / 90, 60 / 90, 80 / 90),
    "weight_decay": 1e-4,
    "decay_all": False,
}
# Settings with which papers trained on ImageNet: Krizhevsky et al. 2012, with
# milestones instead of plateaus; He et al. 2015, with the linear scaling, the warm-up
# and the undecayed normalisation of Goyal et al. 2017
# (https://arxiv.org/abs/1706.02677).
PUBLISHED = {
    "alexnet": _IMAGENET
    | {
        "network": "alexnet",
        "batch_size": 128,
        "learning_rate": 0.01,
        "learning_rate_batch": 128,
        "milestones": (1 / 3, 2 / 3),
        "weight_decay": 5e-4,
        "dropout": 0.5,
    },
    "resnet18": _RESNET | {"network": "resnet18"},
    "resnet50": _RESNET | {"network": "resnet50"},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegimeSettings(Settings):
    """Settings of the regime."""

    group: ClassVar[str] = "training"

    steps: int | None = option(
        None,
        "updates of the parameters; 1000 unless epochs are given",
        common=True,
    )
    epochs: float | None = option(
        None,
        "passes over the training images, instead of steps",
        common=True,
    )
    batch_size: int = option(100, "training images in each batch", common=True)
    optimizer: Literal["sgd", "adam", "adamw"] = option(
        "sgd",
        "optimizer that every method is built on; sgd has momentum",
        common=True,
    )
    learning_rate: float | None = option(
        None,
        "peak learning rate; by default 0.1 with sgd and 0.001 with the others",
        common=True,
    )
    learning_rate_batch: int | None = option(
        None,
        "batch size that the learning rate is for; it scales with the actual one",
    )
    schedule: Literal["cosine", "multistep", "constant"] = option(
        "cosine",
        "learning rate: falls to zero along a cosine, drops to a tenth at each"
        " milestone, or stays constant",
    )
    milestones: tuple[float, ...] = option(
        (0.5, 0.75), "milestones of multistep, as fractions of training", "FRACTION"
    )
    warmup: float = option(
        0.0, "fraction of training in which the learning rate rises from zero"
    )
    momentum: float = option(0.9, "momentum of sgd, and first decay of the others")
    weight_decay: float = option(
        0.0,
        "weight decay; added to the gradient, except by adamw",
    )
    decay_all: bool = option(True, "decay biases and the scales of normalisation too")
    clip_norm: float | None = option(
        None, "global norm to clip gradients at, after averaging copies"
    )
    label_smoothing: float = option(
        0.0,
        "probability that training targets spread evenly over all classes",
    )
    ema_decay: float | None = option(
        None,
        "decay of a running mean of the weights, which is evaluated instead of them",
    )
    shift: int = option(0, "augmentation: largest shift of images, in pixels")
    flip: bool = option(False, "augmentation: mirror images, each with probability 1/2")
    crop_area: float | None = option(
        None,
        "augmentation: take random crops of at least this fraction of the area, such as"
        " 0.08, and resize them",
    )
    accumulate: int = option(
        1, "parts of a batch, one after another, whose gradients are averaged"
    )

    def __post_init__(self):
        super().__post_init__()
        if self.learning_rate is None:
            self._set(learning_rate=LEARNING_RATES[self.optimizer])
        if self.steps is not None and self.epochs is not None:
            raise ValueError(
                f"steps={self.steps} and epochs={self.epochs} exclude each other"
            )
        if self.steps is None and self.epochs is None:
            self._set(steps=1000)
        _checks.count(
            accumulate=self.accumulate,
            **self._given("steps", "batch_size", "learning_rate_batch"),
        )
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size={self.batch_size} does not divide into the parts of"
                f" accumulate={self.accumulate}"
            )
        if not 0 < (self.crop_area or 1) <= 1:
            raise ValueError(f"crop_area must be in (0, 1], got {self.crop_area}")
        _checks.nonnegative(weight_decay=self.weight_decay)
        _checks.positive(**self._given("learning_rate", "epochs", "clip_norm"))
        check_not_negative(shift=self.shift)
        if (self.steps or 0) >= 2**31:
            raise ValueError(f"steps must be below 2³¹, got {self.steps}")
        fractions = self._given("momentum", "warmup", "label_smoothing", "ema_decay")
        milestones = (("milestones", each) for each in self.milestones)
        for name, value in (*fractions.items(), *milestones):
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be in [0, 1), got {value}")

    @property
    def peak_learning_rate(self) -> float:
        """The highest learning rate, for batches of this size."""
        scale = self.batch_size / (self.learning_rate_batch or self.batch_size)
        return scale * (self.learning_rate or 0.0)

    def num_steps(self, num_images: int) -> int:
        """Updates in the whole of training on `num_images` images."""
        if self.steps is not None:
            return self.steps
        return max(1, round((self.epochs or 1.0) * (num_images // self.batch_size)))


def learning_rate_schedule(
    settings: RegimeSettings, peak: Traced, steps: int
) -> optax.Schedule:
    """The learning rate as a function of the step; its peak may be traced."""
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
    settings: RegimeSettings, steps: int, **changed: Any
) -> optax.GradientTransformation:
    """The optimizer that every method is built on; `changed` as of `update_rule`."""
    return optax.chain(gradient_rule(settings), update_rule(settings, steps, **changed))


def gradient_rule(settings: RegimeSettings) -> optax.GradientTransformation:
    """Clips the gradient, and adds coupled weight decay."""
    coupled = settings.weight_decay if settings.optimizer != "adamw" else 0.0
    decay = optax.add_decayed_weights(coupled, _decayed(settings))
    if settings.clip_norm is None:
        return decay
    return optax.chain(optax.clip_by_global_norm(settings.clip_norm), decay)


def _decayed(settings: RegimeSettings) -> Any:
    """A mask of what weight decay applies to; `None` for all."""
    if settings.decay_all:
        return None
    return lambda params: jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, params)


def update_rule(
    settings: RegimeSettings,
    steps: int,
    *,
    peak: Traced | None = None,
    momentum: Traced | None = None,
    ema_decay: Traced | None = None,
    nesterov: bool = False,
) -> optax.GradientTransformation:
    """The step along that gradient, with the weight decay of adamw, and the averaging.

    The peak learning rate, momentum and decay of the mean of the weights are those of
    the settings unless they are given; they may be traced.
    """
    peak = settings.peak_learning_rate if peak is None else peak
    momentum = settings.momentum if momentum is None else momentum
    ema_decay = settings.ema_decay if ema_decay is None else ema_decay
    learning_rate = learning_rate_schedule(settings, peak, steps)
    if settings.optimizer == "sgd":
        update = optax.sgd(learning_rate, momentum, nesterov)
    elif settings.optimizer == "adam":
        update = optax.adam(learning_rate, b1=momentum, nesterov=nesterov)
    else:
        update = optax.adamw(
            learning_rate,
            b1=momentum,
            weight_decay=settings.weight_decay,
            mask=_decayed(settings),
            nesterov=nesterov,
        )
    return update if ema_decay is None else optax.chain(update, averaging(ema_decay))


def augment(
    settings: RegimeSettings, key: jax.Array, images: jax.Array, *, cropped=False
) -> jax.Array:
    """Crops images, unless they are `cropped`, shifts and mirrors them at random."""
    crop_area = None if cropped else settings.crop_area
    if not (settings.shift or settings.flip or crop_area):
        return images
    shift_key, flip_key = jax.random.split(key)
    if crop_area:
        images = random_crops(jax.random.fold_in(key, 2), images, crop_area)
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


def random_crops(key: jax.Array, images: jax.Array, least: float) -> jax.Array:
    """Random crops of images, (images, height, width, channels), resized to their size.

    The area of a crop is uniform from `least` to 1, relative to the image; the
    logarithm of width over height is uniform between those of 3/4 and 4/3. Crops end at
    the edges.

    Reference:
        Szegedy et al., `Going Deeper with Convolutions
        <https://arxiv.org/abs/1409.4842>`_, 2015, section 6.
    """
    area_key, ratio_key, place_key = jax.random.split(key, 3)
    area = jax.random.uniform(area_key, (len(images),), minval=least)
    log = jax.random.uniform(ratio_key, area.shape, minval=-1.0)
    ratio = jnp.exp(log * jnp.log(4 / 3))
    sides = jnp.sqrt(jnp.stack([area / ratio, area * ratio], 1)).clip(max=1.0)
    corners = jax.random.uniform(place_key, sides.shape) * (1 - sides)

    def crop(image, side, corner):
        size = jnp.array(image.shape[:2])
        return jax.image.scale_and_translate(
            image, image.shape, (0, 1), 1 / side, -corner * size / side, "linear"
        )

    return jax.vmap(crop)(images, sides, corners)
