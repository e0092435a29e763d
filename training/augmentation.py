"""Batches of training images, in random order and randomly changed, reproducible from any step on."""

import os
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, NamedTuple

import numpy as np
import torch
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from training.data import ImageFiles, Images
from training.documents import Frozen
from training.images import Pixels, decode_for_crops, load_image

MAX_WORKERS = 16

Share = Annotated[float, Field(gt=0, le=1)]


class Augmentation(Frozen):
    """Random changes of training images."""

    pad: int = Field(default=0, ge=0, description="pixels of reflected border from which a random crop is taken")
    flip: bool = Field(default=False, description="mirror left-right half of the time")
    crop: tuple[Share, Share] | None = Field(
        default=None, description="share of the picture's area that a random crop has, resized; needs in_memory: false"
    )
    rand_augment: str | None = Field(
        default=None, description="RandAugment by timm's name for it, such as rand-m9-n2-mstd0.5; needs a crop"
    )
    mixup: float = Field(default=0.0, ge=0, description="alpha of mixup; 0: none")
    cutmix: float = Field(default=0.0, ge=0, description="alpha of CutMix; 0: none; with mixup one of both is drawn")

    @model_validator(mode="after")
    def _check(self) -> "Augmentation":
        if self.crop is not None and (self.pad or self.crop[0] > self.crop[1]):
            raise ValueError(f"expected crop (low, high) without pad, got {self.crop} and pad {self.pad}")
        if self.rand_augment is not None and self.crop is None:
            raise ValueError("rand_augment needs a crop")
        return self

    @property
    def mixes(self) -> bool:
        """Whether images of different classes are blended."""
        return self.mixup > 0 or self.cutmix > 0


class Part(NamedTuple):
    """Which share of every batch a process gets."""

    number: int = 0
    of: int = 1


def seeded(*numbers: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator whose stream follows from the numbers, and differs for each combination of them."""
    return torch.Generator(device).manual_seed(stream(*numbers))


def stream(*numbers: int) -> int:
    """Return a seed that follows from the numbers, and differs for each combination of them."""
    entropy = np.random.SeedSequence([len(numbers), *numbers]).generate_state(1, np.uint64)[0]
    return int(entropy) >> 1


def batches(
    data: Images,
    batch_size: int,
    augmentation: Augmentation,
    *,
    seed: int,
    epoch: int = 0,
    start: int = 0,
    part: Part = Part(),  # noqa: B008 (immutable)
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of one shuffled epoch; the last, smaller batch is dropped.

    A batch follows from (seed, epoch, its number) alone: an epoch may be entered anywhere. Image files are decoded by
    processes of their own, ahead of time.

    Args:
        data: the training images.
        batch_size: images per batch over all parts, at most len(data), a multiple of the parts.
        augmentation: what is changed in an image; mixing is left to `mix`.
        seed: decides order and augmentation.
        epoch: number of the epoch, from 0.
        start: number of the first batch to yield.
        part: the share of each batch to yield.

    Yields:
        images uint8 (B / parts, 3, H, W), channels_last; labels int64 (B / parts,). `to_device` makes a network's
        input of them.

    Raises:
        ValueError: a crop was asked for of images that lie in memory at the network's input size.
    """
    order = torch.randperm(len(data), generator=seeded(seed, epoch))
    mine = slice(part.number * batch_size // part.of, (part.number + 1) * batch_size // part.of)
    numbers = range(start, len(data) // batch_size)
    if isinstance(data, ImageFiles):
        indices = [order[number * batch_size : (number + 1) * batch_size][mine].tolist() for number in numbers]
        yield from _from_files(data, augmentation, indices, seed=seed, epoch=epoch, num_processes=part.of)
        return
    if augmentation.crop is not None:
        raise ValueError("augmentation.crop needs the original files: set data.in_memory to false")
    padded = np.pad(data.images, ((0, 0), (augmentation.pad,) * 2, (augmentation.pad,) * 2, (0, 0)), mode="reflect")
    images, labels = torch.from_numpy(padded), torch.from_numpy(data.labels)
    height, width = data.images.shape[1:3]
    for number in numbers:
        generator = seeded(seed, epoch, number)
        index = order[number * batch_size : (number + 1) * batch_size][mine]
        offsets = torch.randint(0, 2 * augmentation.pad + 1, (2, batch_size, 1), generator=generator)[:, mine]
        rows, columns = offsets[0] + torch.arange(height), offsets[1] + torch.arange(width)
        if augmentation.flip:
            mirrored = torch.rand(batch_size, 1, generator=generator)[mine] < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        batch = images[index[:, None, None], rows[:, :, None], columns[:, None, :]]
        # (B, H, W, 3) permuted to (B, 3, H, W) is channels_last already.
        yield batch.permute(0, 3, 1, 2), labels[index]


def to_device(images: Tensor, labels: Tensor, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Send a batch of uint8 images and its labels to a device, and only there widen the images, to float32 in [0, 1].

    A quarter of the bytes travel, and from pinned memory they do so while the device computes.
    """
    return images.to(device, non_blocking=True).float() / 255, labels.to(device, non_blocking=True)


def _from_files(
    data: ImageFiles,
    augmentation: Augmentation,
    indices: Sequence[list[int]],
    *,
    seed: int,
    epoch: int,
    num_processes: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    loader: DataLoader[tuple[Tensor, int]] = DataLoader(
        _Files(data, augmentation, seed, epoch),
        batch_sampler=indices,
        num_workers=max(1, min(MAX_WORKERS, len(os.sched_getaffinity(0)) // num_processes)),
        multiprocessing_context="fork",
        pin_memory=torch.cuda.is_available(),
    )
    for images, labels in loader:
        yield images.permute(0, 3, 1, 2), labels


class _Files(Dataset[tuple[Tensor, int]]):
    """Image files as augmented uint8 pixels (H, W, 3) and labels; an item follows from seed, epoch and its position."""

    def __init__(self, data: ImageFiles, augmentation: Augmentation, seed: int, epoch: int) -> None:
        self._data, self._seed, self._epoch = data, seed, epoch
        self._augmentation = augmentation
        self._transform = _crop_transform(augmentation, data) if augmentation.crop is not None else None

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self._data.files[index], int(self._data.labels[index])
        _seed_everything(stream(self._seed, self._epoch, index))
        try:
            pixels = self._read(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        if self._transform is not None:
            return torch.from_numpy(pixels.copy()), label
        pad = self._augmentation.pad
        padded = np.pad(pixels, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
        row, column = random.randint(0, 2 * pad), random.randint(0, 2 * pad)
        pixels = padded[row : row + pixels.shape[0], column : column + pixels.shape[1]]
        if self._augmentation.flip and random.random() < 0.5:
            pixels = pixels[:, ::-1]
        return torch.from_numpy(pixels.copy()), label

    def _read(self, file: bytes) -> Pixels:
        """Return the picture at the network's size: whole, or a random part of it."""
        spec, share = self._data.input_spec, self._augmentation.crop
        if self._transform is None or share is None:
            return load_image(file, spec).pixels
        return np.asarray(self._transform(decode_for_crops(file, spec, share[0])))


def _crop_transform(augmentation: Augmentation, data: ImageFiles) -> "Callable[[Image.Image], Image.Image]":
    """Return PIL to PIL: random resized crop, flip, RandAugment."""
    from timm.data.auto_augment import rand_augment_transform  # slow to import and needed only here
    from torchvision import transforms

    size = (data.input_spec.height, data.input_spec.width)
    steps = [transforms.RandomResizedCrop(size, augmentation.crop, interpolation=Image.Resampling.BICUBIC)]
    if augmentation.flip:
        steps.append(transforms.RandomHorizontalFlip())
    if augmentation.rand_augment is not None:
        mean = tuple(round(255 * value) for value in data.input_spec.mean)
        steps.append(rand_augment_transform(augmentation.rand_augment, {"img_mean": mean}))
    transform: Callable[[Image.Image], Image.Image] = transforms.Compose(steps)
    return transform


def _seed_everything(seed: int) -> None:
    """Seed the global generators that torchvision and timm draw from, in a process of the loader."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)


def mix(
    images: Tensor, labels: Tensor, augmentation: Augmentation, *, num_classes: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Blend each image with another of the batch, by mixup or CutMix, and return images and class probabilities (B, K).

    Source: mixup, Zhang et al. 2018 (arXiv:1710.09412); CutMix, Yun et al. 2019 (arXiv:1905.04899).
    """
    from torchvision.transforms import v2

    kinds = [
        kind(alpha=alpha, num_classes=num_classes)
        for kind, alpha in ((v2.MixUp, augmentation.mixup), (v2.CutMix, augmentation.cutmix))
        if alpha > 0
    ]
    with torch.random.fork_rng(devices=[]):  # torchvision draws from the CPU's global generator
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed that of every GPU as well
        kind = kinds[int(torch.randint(len(kinds), ()))]
        mixed: tuple[Tensor, Tensor] = kind(images, labels)
    return mixed
