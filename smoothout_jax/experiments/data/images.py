"""Images: read upright and in RGB, cropped and resized."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from smoothout_jax.experiments.options import InputError

MOST_PIXELS = 100_000_000
# Ratios of width to height of random crops.
RATIOS = 3 / 4, 4 / 3
Crop = Callable[[Image.Image, int], np.ndarray]


def open_image(path: Path) -> Image.Image:
    """Reads an image upright, in RGB; what is transparent becomes white.

    Raises:
        InputError: if it is no image, is damaged or empty, cannot be read, or has more
            than 100 million pixels.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MOST_PIXELS:
                raise Image.DecompressionBombError
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return _in_rgb(image)
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{path} has more than {MOST_PIXELS // 10**6} million pixels"
        ) from error
    except Image.UnidentifiedImageError as error:
        empty = path.stat().st_size == 0
        raise InputError(f"{path} is {'empty' if empty else 'no image'}") from error
    except Exception as error:  # Pillow's formats raise errors of any kind
        reason = getattr(error, "strerror", None)
        raise InputError(
            f"{path} cannot be read: {reason}"
            if reason
            else f"{path} is damaged: {error}"
        ) from error


def _in_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    elif image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip
        image = Image.fromarray(
            (np.asarray(image) // 257).clip(0, 255).astype(np.uint8)
        )
    return image if image.mode == "RGB" else image.convert("RGB")


def centre(image: Image.Image, size: int) -> np.ndarray:
    """The central square of an image, uint8, (size, size, 3)."""
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return _resized(image, size, (left, top, left + side, top + side))


def random_crop(
    image: Image.Image, size: int, least: float, draw: np.random.Generator
) -> np.ndarray:
    """A random part of an image, resized to uint8, (size, size, 3).

    Args:
        image: the image.
        size: sides of the result, in pixels.
        least: least part of the area, in (0, 1].
        draw: makes the random numbers.

    Reference:
        Szegedy et al., `Going Deeper with Convolutions
        <https://arxiv.org/abs/1409.4842>`_, 2015, section 6.
    """
    width, height = image.size
    for _ in range(10):
        area = width * height * draw.uniform(least, 1)
        ratio = np.exp(draw.uniform(*np.log(RATIOS)))
        across, down = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < across <= width and 0 < down <= height:
            left = draw.integers(width - across, endpoint=True)
            top = draw.integers(height - down, endpoint=True)
            return _resized(image, size, (left, top, left + across, top + down))
    return centre(image, size)


def _resized(image: Image.Image, size: int, box: Any) -> np.ndarray:
    bilinear = Image.Resampling.BILINEAR
    return np.asarray(image.resize((size, size), bilinear, box, reducing_gap=2.0))
