from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import INPUT
from tests.training.test_data import write_folder
from training.augmentation import Augmentation, Part, batches, mix, seeded, to_device
from training.data import ImageFiles, ImageSet, find_files, from_arrays
from training.named_sets import load_digits


def test_an_epoch_shows_every_image_once_and_augments_within_the_border() -> None:
    images = np.arange(12, dtype=np.uint8)[:, None, None, None] * np.ones((1, 6, 6, 3), np.uint8)
    data = from_arrays(images, np.arange(12) % 3, ["a", "b", "c"])
    seen = []
    for batch, labels in batches(data, 4, Augmentation(pad=2, flip=True), seed=0):
        assert batch.shape == (4, 3, 6, 6)
        assert batch.is_contiguous(memory_format=torch.channels_last)
        shades = batch.amax(dim=(1, 2, 3)).long()
        assert torch.equal(shades % 3, labels)
        seen += shades.tolist()
    assert sorted(seen) == list(range(12))


def test_without_augmentation_the_batch_holds_the_images_themselves() -> None:
    few = load_digits()[0].subset(range(8))
    ((batch, _),) = batches(few, 8, Augmentation(), seed=0)
    found = {image.permute(1, 2, 0).numpy().tobytes() for image in batch}
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


@pytest.fixture
def files(tmp_path: Path) -> ImageFiles:
    return find_files(write_folder(tmp_path, {"cat": 7, "ship": 6}), INPUT)


HARD = Augmentation(crop=(0.2, 1.0), flip=True, rand_augment="rand-m9-n2-mstd0.5")


@pytest.mark.parametrize("augmentation", [Augmentation(pad=2, flip=True), HARD])
def test_files_give_reproducible_batches_from_any_step_in_any_part(
    files: ImageFiles, augmentation: Augmentation
) -> None:
    whole = list(batches(files, 4, augmentation, seed=1, epoch=2))
    assert len(whole) == 3
    for images, labels in whole:
        assert images.shape == (4, 3, INPUT.height, INPUT.width)
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert images.dtype == torch.uint8
        assert images.min() < images.max()
        assert labels.dtype == torch.int64
    ((images, labels),) = batches(files, 4, augmentation, seed=1, epoch=2, start=2, part=Part(1, 2))
    assert torch.equal(images, whole[2][0][2:])
    assert torch.equal(labels, whole[2][1][2:])
    other = next(batches(files, 4, augmentation, seed=1, epoch=3))[0]
    assert not torch.equal(other, whole[0][0])


def test_files_without_augmentation_are_the_images_in_memory(files: ImageFiles) -> None:
    loaded = files.load()
    for (images, labels), (expected, same) in zip(
        batches(files, 4, Augmentation(), seed=1), batches(loaded, 4, Augmentation(), seed=1), strict=True
    ):
        assert torch.equal(images, expected)
        assert torch.equal(labels, same)


def test_a_broken_file_is_named(files: ImageFiles) -> None:
    files.files[3].write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"cat/3\.png"):
        list(batches(files, 13, Augmentation(), seed=0))


def test_a_crop_needs_the_original_files() -> None:
    with pytest.raises(ValueError, match=r"set data\.in_memory to false"):
        next(batches(noise(8), 4, Augmentation(crop=(0.2, 1)), seed=0))


@pytest.mark.parametrize("changes", [{"crop": (0.9, 0.2)}, {"crop": (0.2, 1), "pad": 2}, {"rand_augment": "rand-m9"}])
def test_settings_that_exclude_one_another_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="crop"):
        Augmentation.model_validate(changes)


def test_mixing_leaves_the_generators_of_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    reseeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", reseeded.append)
    mix(torch.rand(4, 3, 8, 8), torch.arange(4), Augmentation(mixup=0.8, cutmix=1.0), num_classes=4, seed=5)
    assert not reseeded


def test_a_batch_is_widened_after_its_journey() -> None:
    images, labels = torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8), torch.tensor([7])
    found, their = to_device(images, labels, "meta")
    assert (found.device.type, found.dtype, their.device.type) == ("meta", torch.float32, "meta")
    found, their = to_device(images, labels, "cpu")
    assert torch.equal(found, torch.tensor([[[[0, 0.2, 1]]]]))
    assert torch.equal(their, labels)


@pytest.mark.parametrize("settings", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_mixing_blends_images_and_labels_alike(settings: dict[str, float]) -> None:
    augmentation = Augmentation.model_validate(settings)
    labels = torch.arange(8)
    images = torch.nn.functional.one_hot(labels, 8).float()[:, :3, None, None].expand(-1, -1, 8, 8).clone()
    before = torch.random.get_rng_state()
    mixed, targets = mix(images, labels, augmentation, num_classes=8, seed=5)
    again, _ = mix(images, labels, augmentation, num_classes=8, seed=5)
    assert torch.equal(torch.random.get_rng_state(), before)  # the global generator is left alone
    assert torch.equal(mixed, again)
    torch.testing.assert_close(targets.sum(1), torch.ones(8))
    # The first three channels are one-hot classes: their means are the shares that the targets claim.
    torch.testing.assert_close(mixed.mean(dim=(2, 3)), targets[:, :3], atol=1e-4, rtol=0)
    assert not torch.equal(mixed, images)
