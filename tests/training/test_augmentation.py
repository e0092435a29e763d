import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.augmentation import Augmentation, Part, batches, seeded
from training.data import ImageSet, from_arrays, load_digits


def test_an_epoch_shows_every_image_once_and_augments_within_the_border() -> None:
    images = np.arange(12, dtype=np.uint8)[:, None, None, None] * np.ones((1, 6, 6, 3), np.uint8)
    data = from_arrays(images, np.arange(12) % 3, ["a", "b", "c"])
    seen = []
    for batch, labels in batches(data, 4, Augmentation(pad=2, flip=True), seed=0):
        assert batch.shape == (4, 3, 6, 6)
        assert batch.is_contiguous(memory_format=torch.channels_last)
        shades = (batch.amax(dim=(1, 2, 3)) * 255).round().long()
        assert torch.equal(shades % 3, labels)
        seen += shades.tolist()
    assert sorted(seen) == list(range(12))


def test_without_augmentation_the_batch_holds_the_images_themselves() -> None:
    few = load_digits()[0].subset(range(8))
    ((batch, _),) = batches(few, 8, Augmentation(), seed=0)
    found = {(image.permute(1, 2, 0) * 255).round().byte().numpy().tobytes() for image in batch}
    assert found == {image.tobytes() for image in few.images}


def test_flips_mirror_about_half_of_the_images() -> None:
    ramp = np.repeat(np.arange(0, 60, 10, dtype=np.uint8)[None, None, :, None], 400, axis=0)
    images = np.broadcast_to(ramp, (400, 6, 6, 3)).copy()
    data = from_arrays(images, np.arange(400) % 2, ["a", "b"])
    ((batch, _),) = batches(data, 400, Augmentation(flip=True), seed=0)
    mirrored = (batch[:, 0, 0, 0] > batch[:, 0, 0, -1]).float().mean()
    assert 0.4 < mirrored < 0.6


def noise(n: int) -> ImageSet:
    images = np.random.default_rng(0).integers(0, 256, (n, 6, 6, 3), dtype=np.uint8)
    return from_arrays(images, np.arange(n) % 3, ["a", "b", "c"])


@given(first=st.integers(0, 4), epoch=st.integers(0, 3))
def test_an_epoch_can_be_entered_at_any_batch(first: int, epoch: int) -> None:
    data, augmentation = noise(20), Augmentation(pad=2, flip=True)
    whole = list(batches(data, 4, augmentation, seed=1, epoch=epoch))
    rest = list(batches(data, 4, augmentation, seed=1, epoch=epoch, start=first))
    assert len(whole) == 5
    assert len(rest) == 5 - first
    for (images, labels), (their_images, their_labels) in zip(whole[first:], rest, strict=True):
        assert torch.equal(images, their_images)
        assert torch.equal(labels, their_labels)


@given(count=st.sampled_from([1, 2, 3, 6]))
def test_the_parts_of_a_batch_make_up_the_batch(count: int) -> None:
    data, augmentation = noise(20), Augmentation(pad=2, flip=True)
    parts = [list(batches(data, 6, augmentation, seed=1, part=Part(index, count))) for index in range(count)]
    for number, (images, labels) in enumerate(batches(data, 6, augmentation, seed=1)):
        assert torch.equal(torch.cat([part[number][0] for part in parts]), images)
        assert torch.equal(torch.cat([part[number][1] for part in parts]), labels)


def test_seeds_and_epochs_differ() -> None:
    firsts = [
        next(batches(noise(20), 4, Augmentation(), seed=seed, epoch=epoch))[0]
        for seed, epoch in [(0, 0), (0, 1), (1, 0)]
    ]
    assert not torch.equal(firsts[0], firsts[1])
    assert not torch.equal(firsts[0], firsts[2])
    streams = {float(torch.rand((), generator=seeded(*numbers))) for numbers in [(0,), (0, 0, 1), (0, 1), (1, 0), (1,)]}
    assert len(streams) == 5
