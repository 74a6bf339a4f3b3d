"""The networks of the experiments, as Flax Linen modules."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

Norm = Callable[[], Any]
Dropout = Callable[[jax.Array], jax.Array]
Conv = functools.partial(nn.Conv, use_bias=False)


def keep(x: jax.Array) -> jax.Array:
    """Drops nothing."""
    return x


def max_pool(images: jax.Array) -> jax.Array:
    """Max-pooling by 2 along every axis, as `nn.max_pool`, but quicker on CPU.

    The gradient of Flax's searches each window for its maximum once more.
    """
    for axis in range(images.ndim - 2, 0, -1):
        even, before = images.shape[axis] // 2 * 2, (slice(None),) * axis
        first, second = (images[*before, start:even:2] for start in (0, 1))
        images = jnp.where((second > first) | jnp.isnan(second), second, first)
    return images


class MLP(nn.Module):
    """A multilayer perceptron with ReLU units.

    `norm` comes before each ReLU and `drop` follows it. With five hidden layers of 512
    and BatchNorm it is F1 of the large-batch literature.

    Reference:
        Keskar et al., `On Large-Batch Training for Deep Learning
        <https://arxiv.org/abs/1609.04836>`_, 2016: F1.
    """

    hidden_sizes: tuple[int, ...]
    num_classes: int = 10
    norm: Norm | None = None
    drop: Dropout = keep

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns the logits, (images, classes), of images of any shape."""
        x = images.reshape(len(images), -1)
        for size in self.hidden_sizes:
            x = nn.Dense(size)(x)
            x = self.drop(nn.relu(self.norm()(x) if self.norm else x))
        return nn.Dense(self.num_classes)(x)


class CNet(nn.Module):
    """The shallow, AlexNet-like convolutional network, for images of any dimension.

    Two convolutions of width 5, each with normalisation, ReLU and max-pooling by 2, and
    two hidden layers with six and three times as many units as channels.

    Reference:
        Keskar et al., `On Large-Batch Training for Deep Learning
        <https://arxiv.org/abs/1609.04836>`_, 2016: C1.
    """

    channels: int
    num_classes: int
    norm: Norm
    drop: Dropout = keep

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns the logits of images (images, sizes…, channels)."""
        x, axes = images, images.ndim - 2
        for _ in range(2):
            x = Conv(self.channels, (5,) * axes)(x)
            x = max_pool(nn.relu(self.norm()(x)))
        x = x.reshape(len(x), -1)
        for size in (6 * self.channels, 3 * self.channels):
            x = self.drop(nn.relu(self.norm()(nn.Dense(size, use_bias=False)(x))))
        return nn.Dense(self.num_classes)(x)


class AlexNet(nn.Module):
    """AlexNet in one column, of 61.1 M parameters for 224 × 224 pixels.

    Reference:
        Krizhevsky, `One Weird Trick for Parallelizing Convolutional Neural Networks
        <https://arxiv.org/abs/1404.5997>`_, 2014.
    """

    channels: int
    num_classes: int
    drop: Dropout = keep

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns the logits of images (images, height, width, channels)."""
        x, layers = images, ((1, 11, 4, 2), (3, 5, 1, 2), (6, 3, 1, 1), (4, 3, 1, 1))
        for number, (times, size, stride, pad) in enumerate((*layers, layers[-1])):
            pads = ((pad, pad),) * 2
            conv = nn.Conv(times * self.channels, (size,) * 2, stride, padding=pads)
            x = nn.relu(conv(x))
            if number in (0, 1, 4):
                x = nn.max_pool(x, (3, 3), (2, 2))
        x = x.reshape(len(x), -1)
        for _ in range(2):
            x = nn.relu(nn.Dense(64 * self.channels)(self.drop(x)))
        return nn.Dense(self.num_classes)(x)


# Images with as many pixels on each side are large for a residual network.
LARGE = 96


class ResNet(nn.Module):
    """A residual network: depth 6n + 2, or 8n + 2 in four stages.

    Stages of n blocks, each with twice the channels of the one before; shortcuts that
    change the shape are 1×1 convolutions. With four stages from 64 channels and a depth
    of 18 it is ResNet-18, for large images as published, with 11.7 M parameters for
    1,000 classes, and for smaller ones without halving them first. With blocks of
    (3, 4, 6, 3) bottlenecks it is ResNet-50, with 25.6 M parameters.

    Reference:
        He et al., `Deep Residual Learning for Image Recognition
        <https://arxiv.org/abs/1512.03385>`_, 2015, table 1 and section 4.2.
    """

    depth: int = 20
    num_classes: int = 10
    norm: Norm = lambda: nn.GroupNorm(num_groups=8)
    channels: int = 16
    stages: int = 3
    blocks: tuple[int, ...] = ()
    bottleneck: bool = False

    def __post_init__(self):
        """Checks that the depth is 6n + 2, or what it must be with other stages."""
        super().__post_init__()
        layers = 2 * self.stages
        if not self.blocks and (self.depth < layers + 2 or self.depth % layers != 2):
            raise ValueError(
                f"depth must be {layers}n + 2, such as {3 * layers + 2}; got"
                f" {self.depth}"
            )

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns the logits of images (images, height, width, channels)."""
        if self.stages == 4 and min(images.shape[1:3]) >= LARGE:
            x = Conv(self.channels, (7, 7), 2, padding=((3, 3),) * 2)(images)
            x = nn.relu(self.norm()(x))
            pads: Any = ((1, 1),) * 2
            x = nn.max_pool(x, (3, 3), (2, 2), pads)
        else:
            x = nn.relu(self.norm()(Conv(self.channels, (3, 3))(images)))
        equal = ((self.depth - 2) // (2 * self.stages),) * self.stages
        for stage, blocks in enumerate(self.blocks or equal):
            channels = self.channels * 2**stage
            for block in range(blocks):
                strides = 2 if stage and not block else 1
                y = self._branch(x, channels, strides)
                if x.shape != y.shape:
                    x = self.norm()(Conv(y.shape[-1], (1, 1), strides)(x))
                x = nn.relu(x + y)
        return nn.Dense(self.num_classes)(x.mean((1, 2)))

    def _branch(self, x: jax.Array, channels: int, strides: int) -> jax.Array:
        if self.bottleneck:
            x = nn.relu(self.norm()(Conv(channels, (1, 1))(x)))
            x = nn.relu(self.norm()(Conv(channels, (3, 3), strides)(x)))
            return self.norm()(Conv(4 * channels, (1, 1))(x))
        x = nn.relu(self.norm()(Conv(channels, (3, 3), strides)(x)))
        return self.norm()(Conv(channels, (3, 3))(x))


class ViT(nn.Module):
    """A small transformer: three heads, mean over positions.

    Tokens are patches of 4 × 4, or the positions of a sequence.

    Reference:
        Dosovitskiy et al., `An Image is Worth 16x16 Words
        <https://arxiv.org/abs/2010.11929>`_, 2020.
    """

    depth: int
    channels: int
    num_classes: int

    def __post_init__(self):
        """Checks that the heads divide the embedding."""
        super().__post_init__()
        if self.channels % 3:
            raise ValueError(f"width must be a multiple of 3, got {self.channels}")

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns the logits of images, or of sequences (…, positions, channels)."""
        x = nn.Dense(self.channels)(images if images.ndim == 3 else _patches(images))
        position = nn.initializers.normal(0.02)
        x = x + self.param("position", position, (1, *x.shape[1:]))
        for _ in range(self.depth):
            x = x + nn.MultiHeadDotProductAttention(3)(nn.LayerNorm()(x))
            hidden = nn.gelu(nn.Dense(4 * self.channels)(nn.LayerNorm()(x)))
            x = x + nn.Dense(self.channels)(hidden)
        return nn.Dense(self.num_classes)(nn.LayerNorm()(x).mean(1))


def _patches(images: jax.Array) -> jax.Array:
    """Cuts images into patches of 4 × 4: (images, patches, values)."""
    count, height, width, channels = images.shape
    patches = images.reshape(count, height // 4, 4, width // 4, 4, channels)
    return patches.swapaxes(2, 3).reshape(count, -1, 16 * channels)


class Transformer(nn.Module):
    """A decoder of text, of GPT-2 small's shape by default: 124 M parameters.

    Reference:
        Radford et al., `Language Models are Unsupervised Multitask Learners
        <https://openai.com/index/better-language-models/>`_, 2019.
    """

    vocabulary: int = 50_257
    width: int = 768
    layers: int = 12
    heads: int = 12
    length: int = 1024

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Returns the logits of the next tokens, (texts, positions, vocabulary)."""
        embed = nn.Embed(self.vocabulary, self.width)
        positions = nn.Embed(self.length, self.width)(jnp.arange(tokens.shape[1]))
        x = embed(tokens) + positions[None]
        mask = nn.make_causal_mask(tokens)
        for _ in range(self.layers):
            attention = nn.MultiHeadDotProductAttention(self.heads)
            x = x + attention(nn.LayerNorm()(x), mask=mask)
            hidden = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x)))
            x = x + nn.Dense(self.width)(hidden)
        return embed.attend(nn.LayerNorm()(x))
