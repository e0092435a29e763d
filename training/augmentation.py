"""Batches of training images, in random order and randomly changed, reproducible from any step on."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from training.data import ImageSet
from training.manifest import Frozen


class Augmentation(Frozen):
    """Random changes of training images."""

    pad: int = Field(default=0, ge=0, description="pixels of reflected border from which a random crop is taken")
    flip: bool = Field(default=False, description="mirror left-right half of the time")


class Part(NamedTuple):
    """Which share of every batch a process gets."""

    number: int = 0
    of: int = 1


def seeded(*numbers: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator whose stream follows from the numbers, and differs for each combination of them."""
    entropy = int(np.random.SeedSequence([len(numbers), *numbers]).generate_state(1, np.uint64)[0])
    return torch.Generator(device).manual_seed(entropy >> 1)


def batches(
    data: ImageSet,
    batch_size: int,
    augmentation: Augmentation,
    *,
    seed: int,
    epoch: int = 0,
    start: int = 0,
    part: Part = Part(),  # noqa: B008 (immutable)
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of one shuffled epoch; the last, smaller batch is dropped.

    A batch follows from (seed, epoch, its number) alone: an epoch may be entered anywhere.

    Args:
        data: the training images.
        batch_size: images per batch over all parts, at most len(data), a multiple of the parts.
        augmentation: crop and flip.
        seed: decides order and augmentation.
        epoch: number of the epoch, from 0.
        start: number of the first batch to yield.
        part: the share of each batch to yield.

    Yields:
        images float32 (B / parts, 3, H, W) in [0, 1], channels_last; labels int64 (B / parts,).
    """
    padded = np.pad(data.images, ((0, 0), (augmentation.pad,) * 2, (augmentation.pad,) * 2, (0, 0)), mode="reflect")
    images, labels = torch.from_numpy(padded), torch.from_numpy(data.labels)
    height, width = data.images.shape[1:3]
    order = torch.randperm(len(data), generator=seeded(seed, epoch))
    mine = slice(part.number * batch_size // part.of, (part.number + 1) * batch_size // part.of)
    for number in range(start, len(data) // batch_size):
        generator = seeded(seed, epoch, number)
        index = order[number * batch_size : (number + 1) * batch_size][mine]
        offsets = torch.randint(0, 2 * augmentation.pad + 1, (2, batch_size, 1), generator=generator)[:, mine]
        rows, columns = offsets[0] + torch.arange(height), offsets[1] + torch.arange(width)
        if augmentation.flip:
            mirrored = torch.rand(batch_size, 1, generator=generator)[mine] < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        batch = images[index[:, None, None], rows[:, :, None], columns[:, None, :]]
        # (B, H, W, 3) permuted to (B, 3, H, W) is channels_last already.
        yield batch.permute(0, 3, 1, 2).float() / 255, labels[index]
