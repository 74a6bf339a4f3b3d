"""The networks of the experiments, as Flax Linen modules."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


class MLP(nn.Module):
    """A multilayer perceptron with ReLU units.

    Attributes:
        hidden_sizes: widths of the hidden layers.
        num_classes: number of logits.
    """

    hidden_sizes: tuple[int, ...]
    num_classes: int = 10

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns the logits, (images, classes), of images of any shape."""
        images = images.reshape(len(images), -1)
        for size in self.hidden_sizes:
            images = nn.relu(nn.Dense(size)(images))
        return nn.Dense(self.num_classes)(images)


class ResNet(nn.Module):
    """The residual network for small images, of depth 6n + 2.

    Three stages of n blocks, of 16, 32 and 64 channels; shortcuts that change the
    shape are 1×1 convolutions.

    Attributes:
        depth: number of weight layers, 6n + 2: 20, 32, 44, …
        num_classes: number of logits.
        norm: the normalisation layer.

    Reference:
        He et al., `Deep Residual Learning for Image Recognition
        <https://arxiv.org/abs/1512.03385>`_, 2015, section 4.2.
    """

    depth: int = 20
    num_classes: int = 10
    norm: Callable[[], Any] = lambda: nn.GroupNorm(num_groups=8)

    def __post_init__(self):
        """Refuses a depth that is no 6n + 2."""
        super().__post_init__()
        if self.depth < 8 or self.depth % 6 != 2:
            raise ValueError(f"depth must be 6n + 2, such as 20; got {self.depth}")

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns the logits, (images, classes), of images (images, h, w, channels)."""
        x = nn.relu(self.norm()(_conv(16)(images)))
        for stage, channels in enumerate((16, 32, 64)):
            for block in range((self.depth - 2) // 6):
                strides = 2 if stage and not block else 1
                y = nn.relu(self.norm()(_conv(channels, strides)(x)))
                y = self.norm()(_conv(channels)(y))
                if x.shape != y.shape:
                    x = self.norm()(_conv(channels, strides, kernel=1)(x))
                x = nn.relu(x + y)
        return nn.Dense(self.num_classes)(x.mean((1, 2)))


def _conv(channels: int, strides: int = 1, *, kernel: int = 3) -> nn.Conv:
    return nn.Conv(channels, (kernel, kernel), strides, use_bias=False)


class Transformer(nn.Module):
    """A decoder of text, of GPT-2 small's shape by default: 124 M parameters.

    Attributes:
        vocabulary: number of tokens.
        width: size of the embedding.
        layers: number of blocks.
        heads: attention heads in each.
        length: largest number of positions.

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
