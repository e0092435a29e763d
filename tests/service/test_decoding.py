"""One file is the same pixels wherever it is read, and limits count what the file has."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adapt.images.support import from_archive, from_folder, from_images, load_unlabelled
from benchmarks.pictures import photograph, photographs
from service.http.adaptation import Upload, check_upload
from service.http.decoding import LARGE_PIXELS, Threads, decode_prepared, load_in_order
from service.http.inflight import Inflight, Share
from service.http.problems import Problem
from service.settings import Settings
from tests.hostile.archives import zipped
from tests.hostile.pictures import saved
from training.augmentation import Augmentation, batches
from training.data import find_files
from training.images import load_image
from training.manifest import Manifest, read_manifest

PHOTOS = Path(__file__).parents[2] / "bases" / "photos"


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return read_manifest(PHOTOS, check_files=False)


async def decode(files: Sequence[bytes], manifest: Manifest, settings: Settings, share: Share | None = None) -> Any:
    return await decode_prepared(files, manifest.input, settings, Threads(), share or Share(Inflight(settings)))


def test_a_file_is_the_same_pixels_everywhere(tmp_path: Path, manifest: Manifest) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = photograph(1100, 1700, seed=5)
    files = [saved(image, "JPEG", quality=90, exif=exif), saved(image.convert("RGBA"), "WEBP", method=0)]
    spec, names = manifest.input, manifest.class_names[:2]
    for name, file, suffix in zip(names, files, ("jpg", "webp"), strict=True):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"a.{suffix}").write_bytes(file)
    found = find_files(tmp_path, spec, manifest.class_names)
    ((batch, labels),) = batches(found, 2, Augmentation(), seed=0)
    expected = np.stack([load_image(file, spec).pixels for file in files])
    settings = Settings()
    archive = zipped({f"{name}/a.jpg": file for name, file in zip(names, files, strict=True)})
    uploaded = check_upload(Upload(files, list(names), None, []), manifest, settings).support
    unlabelled = check_upload(Upload([], [], None, files), manifest, settings).unlabelled
    assert uploaded is not None
    ways = {
        "training, evaluation": found.load().images,
        "training, files": batch[labels.argsort()].permute(0, 2, 3, 1).numpy(),
        "adapt, folder": from_folder(tmp_path, manifest).images,
        "adapt, archive": from_archive(archive, manifest).images,
        "adapt, files": from_images(files, names, manifest).images,
        "adapt, unlabelled": load_unlabelled(tmp_path, manifest),
        "/adapt": uploaded.images,
        "/adapt, unlabelled": unlabelled,
        "/predict": np.stack(asyncio.run(decode(files, manifest, settings))),
    }
    for way, images in ways.items():
        assert np.array_equal(images, expected), way
    hashes = tuple(load_image(file, spec).hash for file in files)
    assert found.load().hashes == uploaded.hashes == hashes


def test_limits_count_the_pixels_of_the_file(manifest: Manifest) -> None:
    (file,) = photographs(1, 1000, 1500, seed=6)
    upload = Upload([file], [manifest.class_names[0]], None, [file])
    check_upload(upload, manifest, Settings(max_request_pixels=3_000_000))
    with pytest.raises(Problem, match="pixels in one request"):
        check_upload(upload, manifest, Settings(max_request_pixels=2_999_999))
    with pytest.raises(Problem, match="expected at most 1499999 pixels, got 1500 x 1000"):
        list(load_in_order([file], manifest.input, Settings(max_image_pixels=1_499_999)))


def grey(width: int, height: int) -> bytes:
    return saved(Image.new("L", (width, height), 128), "PNG")


def test_too_many_pixels_are_refused_before_any_is_decoded(manifest: Manifest) -> None:
    start = time.monotonic()
    with pytest.raises(Problem, match="pixels in one request") as caught:
        asyncio.run(decode([grey(7000, 7000)] * 21, manifest, Settings()))
    assert caught.value.status == 413
    assert time.monotonic() - start < 1


def test_pixels_of_others_leave_less_room(manifest: Manifest) -> None:
    settings = Settings(max_inflight_pixels=5_000_000)
    inflight = Inflight(settings)
    first, second = Share(inflight), Share(inflight)
    photo = grey(2000, 2000)
    assert len(asyncio.run(decode([photo] * 2, manifest, settings, first))) == 2  # alone, any number is taken
    with pytest.raises(Problem, match="try again") as caught:
        asyncio.run(decode([photo], manifest, settings, second))
    assert (caught.value.status, caught.value.reason) == (503, "busy")
    first.release()
    assert len(asyncio.run(decode([photo], manifest, settings, second))) == 1


def test_small_picture_does_not_wait_for_large_ones(manifest: Manifest) -> None:
    large, small = grey(7000, 7000), photographs(1, 600, 800, seed=8)
    assert LARGE_PIXELS < 7000 * 7000

    async def run() -> tuple[bool, bool]:
        threads, share = Threads(), Share(Inflight(Settings()))
        tasks = [
            asyncio.create_task(decode_prepared([large] * 3, manifest.input, Settings(), threads, share))
            for _ in range(4)
        ]
        await asyncio.sleep(0.2)
        await decode_prepared(small, manifest.input, Settings(), threads, share)
        were_done = any(task.done() for task in tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        started = time.monotonic()
        threads.close()
        for executor in (threads.ordinary, threads.large):
            executor.shutdown(wait=True)
        return were_done, time.monotonic() - started < 6  # one picture, of twelve, was at hand

    assert asyncio.run(run()) == (False, True)
