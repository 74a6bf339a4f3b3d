"""Batches of images that are read while the network trains."""

import collections
import functools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from smoothout_jax.experiments.data.image_folder import ImageFiles
from smoothout_jax.experiments.data.images import random_crop

# Batches that are read ahead.
AHEAD = 3


def read_batches(
    images: ImageFiles,
    labels: np.ndarray,
    seed: int,
    steps: range,
    batch_size: int,
    *,
    crop_area: float | None = None,
    workers: int | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Reads the batches of some steps, by threads.

    They depend on the seed and the step alone, not on threads, processes or resuming.
    Each epoch has an order of its own, and skips images that do not fill a batch.

    Args:
        images: the images.
        labels: their labels, (images,).
        seed: of the order and the crops.
        steps: numbers of the steps.
        batch_size: images in a batch, those of all processes.
        crop_area: least part of an image in a random crop; central squares without.
        workers: number of threads; by default that of the cores.

    Yields:
        Images, uint8, (images, size, size, 3), and labels, (images,), of a step: those
        of this process.

    Raises:
        InputError: if an image cannot be read.
    """
    share, each_epoch = batch_size // jax.process_count(), len(labels) // batch_size
    pool = ThreadPoolExecutor(workers or os.cpu_count())

    @functools.lru_cache(1)
    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng((seed, epoch)).permutation(len(labels))

    def read(epoch: int, number: int) -> np.ndarray:
        if crop_area is None:
            return images.read(number)
        draw = np.random.default_rng((seed, epoch, number))
        return images.read(
            number, crop=functools.partial(random_crop, least=crop_area, draw=draw)
        )

    pending: collections.deque = collections.deque()
    try:
        for step in range(steps.start, steps.stop + AHEAD):
            if step in steps:
                epoch, batch = divmod(step, each_epoch)
                start = batch * batch_size + jax.process_index() * share
                numbers = order(epoch)[start : start + share]
                reads = [pool.submit(read, epoch, number) for number in numbers]
                pending.append((reads, labels[numbers]))
            if step >= steps.start + AHEAD:
                reads, chosen = pending.popleft()
                yield np.stack([each.result() for each in reads]), chosen
    finally:
        pool.shutdown(cancel_futures=True)
