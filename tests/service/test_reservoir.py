"""The reservoir: what it keeps, for how long, and that switching it off leaves nothing behind."""

import asyncio
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.prediction.reservoir import (
    Reservoirs,
    Share,
    claim,
    count_kept,
    delete_others,
    most_images,
    read_reservoir,
)
from service.settings import Settings
from service.store.tables import ReservoirPlan
from tests.service.conftest import Labelled, Server, as_parts
from training.manifest import InputSpec

SPEC = InputSpec(height=2, width=3, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
PLAN = ReservoirPlan("r1", size=10, retention_hours=1.0)


def picture(number: int) -> np.ndarray:
    """An image that says which one it is."""
    return np.full((2, 3, 3), number, dtype=np.uint8)


def numbers(images: np.ndarray | None) -> list[int]:
    return [] if images is None else sorted(images[:, 0, 0, 0].tolist())


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, workers=2)


def claimed(settings: Settings, plan: ReservoirPlan = PLAN) -> Share:
    share = claim(settings, plan, SPEC)
    assert share is not None
    return share


def kept(settings: Settings, plan: ReservoirPlan = PLAN) -> list[int]:
    found = numbers(read_reservoir(settings, plan, SPEC))
    assert count_kept(settings, plan, SPEC) == len(found)
    return found


def test_everything_is_kept_while_there_is_room(settings: Settings) -> None:
    shares = [claimed(settings), claimed(settings)]
    assert claim(settings, PLAN, SPEC) is None
    now = time.time()
    for position, share in enumerate(shares):
        share.offer([picture(5 * position + number) for number in range(5)], now)
        share.write(share.take_changes(now))
        assert share.take_changes(now) == {}
    assert kept(settings) == list(range(10))
    for share in shares:
        share.close()


def test_every_image_is_kept_with_the_same_probability(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, workers=1)
    counts = np.zeros(50)
    for run in range(300):
        plan = ReservoirPlan(f"r{run}", size=10, retention_hours=1.0)
        share = claimed(settings, plan)
        for number in range(50):
            share.offer([picture(number)], time.time())
        share.write(share.take_changes(time.time()))
        share.close()
        found = kept(settings, plan)
        assert len(found) == 10
        counts[found] += 1
    # Each is there in a fifth of 300 runs, give or take five standard deviations.
    assert np.abs(counts - 60).max() < 5 * np.sqrt(300 * 0.2 * 0.8)


def test_images_leave_when_their_time_is_over(settings: Settings) -> None:
    share = claimed(settings)
    now = time.time()
    share.offer([picture(1), picture(2)], now - 3600 + 1)
    share.offer([picture(3)], now)
    share.write(share.take_changes(now))
    assert kept(settings) == [1, 2, 3]
    share.write(share.take_changes(now + 2))
    assert kept(settings) == [3]
    (path,) = (settings.reservoirs_path / "r1").iterdir()
    assert bytes([1] * 18) not in path.read_bytes()  # overwritten, not only passed over
    share.offer([picture(number) for number in (4, 5, 6, 7)], now)
    share.write(share.take_changes(now))
    assert kept(settings) == [3, 4, 5, 6, 7]
    share.close()


def test_reader_passes_over_what_no_living_worker_clears(settings: Settings) -> None:
    share = claimed(settings)
    share.offer([picture(1)], time.time() - 3600 - 1)
    share.write({0: (time.time() - 3600 - 1, picture(1)), 1: (time.time(), picture(2))})
    share.close()
    assert kept(settings) == [2]


def test_restarted_worker_goes_on_with_what_is_there(settings: Settings) -> None:
    share = claimed(settings)
    now = time.time()
    share.offer([picture(number) for number in range(4)], now)
    share.write(share.take_changes(now))
    share.close()
    share = claimed(settings)
    share.offer([picture(9)], now)
    share.write(share.take_changes(now))
    assert kept(settings) == [0, 1, 2, 3, 9]
    share.close()


def test_fewer_workers_leave_no_share_behind(settings: Settings) -> None:
    shares = [claimed(settings), claimed(settings)]
    for number, share in enumerate(shares):
        share.write({0: (time.time(), picture(number))})
        share.close()
    alone = Settings(home=settings.home, workers=1)
    claimed(alone).close()
    assert kept(alone) == [0]


def test_file_that_broke_off_is_read_as_far_as_it_goes(settings: Settings) -> None:
    share = claimed(settings)
    share.write({0: (time.time(), picture(1)), 1: (time.time(), picture(2))})
    share.close()
    (path,) = (settings.reservoirs_path / "r1").iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    assert kept(settings) == [1]
    claimed(settings).close()
    assert kept(settings) == [1]


def test_images_are_counted_without_a_read_each(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    share = claimed(settings)
    share.offer([picture(number) for number in range(5)], time.time())
    share.write(share.take_changes(time.time()))
    monkeypatch.delattr("service.prediction.reservoir.os.pread")
    assert count_kept(settings, PLAN, SPEC) == 5
    share.close()


def test_share_that_became_smaller_keeps_no_image_beyond(settings: Settings) -> None:
    """It is not cut off: whoever counts has it mapped, and would be killed."""
    share = claimed(Settings(home=settings.home, workers=1))
    share.offer([picture(number + 1) for number in range(10)], time.time())
    share.write(share.take_changes(time.time()))
    share.close()
    path = settings.reservoirs_path / "r1" / "0-2x3.bin"
    size = path.stat().st_size
    smaller = claimed(settings)
    assert len(kept(settings)) == 5
    assert path.stat().st_size == size
    assert bytes([6] * 18) not in path.read_bytes()
    smaller.close()


def test_size_is_bounded_in_bytes(settings: Settings) -> None:
    assert most_images(settings, SPEC) == 256_000_000 // (8 + 18)
    small = Settings(home=settings.home, workers=2, max_reservoir_mb=1e-4)
    few = claim(small, PLAN._replace(id="few"), SPEC)  # made for a base set of a smaller input
    assert few is not None
    few.offer([picture(number) for number in range(9)], time.time())
    assert len(few.take_changes(time.time())) == 2
    share = claimed(settings)
    share.offer([picture(number % 200) for number in range(500)], time.time())
    share.write(share.take_changes(time.time()))
    share.close()
    assert (settings.reservoirs_path / "r1" / "0-2x3.bin").stat().st_size == 5 * (8 + 18)


def test_reservoirs_follow_the_registry(settings: Settings) -> None:
    async def run() -> None:
        reservoirs = Reservoirs(settings)
        reservoirs.start()
        reservoirs.offer("one", [picture(1)])
        await reservoirs.refresh({"one": (PLAN, SPEC)})
        reservoirs.offer("one", [picture(2)])
        reservoirs.offer("two", [picture(3)])
        await reservoirs.flush()
        assert kept(settings) == [2]
        other = PLAN._replace(id="r2", size=20)
        await reservoirs.refresh({"one": (other, SPEC)})
        reservoirs.offer("one", [picture(4)])
        await reservoirs.stop()
        assert [folder.name for folder in settings.reservoirs_path.iterdir()] == ["r2"]
        assert kept(settings, other) == [4]

    asyncio.run(run())


def test_a_deployment_that_moves_to_another_input_size_begins_anew(settings: Settings) -> None:
    large = SPEC.model_copy(update={"height": 4, "width": 4})

    async def run() -> None:
        reservoirs = Reservoirs(settings)
        reservoirs.start()
        await reservoirs.refresh({"one": (PLAN, SPEC)})
        reservoirs.offer("one", [picture(1)])
        reservoirs.offer("one", [np.full((4, 4, 3), 2, dtype=np.uint8)])  # already of the other base set
        await reservoirs.flush()
        assert kept(settings) == [1]
        await reservoirs.refresh({"one": (PLAN, large)})
        reservoirs.offer("one", [picture(3)])  # still of the one before
        reservoirs.offer("one", [np.full((4, 4, 3), 4, dtype=np.uint8)])
        await reservoirs.stop()
        assert numbers(read_reservoir(settings, PLAN, large)) == [4]
        assert [path.name for path in (settings.reservoirs_path / PLAN.id).iterdir()] == ["0-4x4.bin"]

    asyncio.run(run())


def test_a_fault_of_one_write_does_not_end_the_writing(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def odd(*_: Any) -> int:
        raise ValueError("odd")

    async def run() -> None:
        monkeypatch.setattr("service.prediction.reservoir.FLUSH_SECONDS", 0.01)
        reservoirs = Reservoirs(settings)
        await reservoirs.refresh({"one": (PLAN, SPEC)})
        with monkeypatch.context() as patched:
            patched.setattr("service.prediction.reservoir.os.pwrite", odd)
            reservoirs.offer("one", [picture(1)])
            reservoirs.start()
            await asyncio.sleep(0.1)
        reservoirs.offer("one", [picture(2)])
        await asyncio.sleep(0.1)
        assert 2 in kept(settings)
        await reservoirs.stop()

    asyncio.run(run())


def test_switching_off_deletes_the_images(settings: Settings) -> None:
    async def run() -> None:
        reservoirs = Reservoirs(settings)
        await reservoirs.refresh({"one": (PLAN, SPEC)})
        reservoirs.offer("one", [picture(1)])
        await reservoirs.refresh({})
        reservoirs.offer("one", [picture(2)])
        await reservoirs.stop()
        assert list(settings.reservoirs_path.iterdir()) == []

    asyncio.run(run())


def test_disk_that_takes_no_more_stops_nobody(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    async def run() -> None:
        reservoirs = Reservoirs(settings)
        await reservoirs.refresh({"one": (PLAN, SPEC)})
        with monkeypatch.context() as patched:
            patched.setattr("service.prediction.reservoir.os.pwrite", full)
            reservoirs.offer("one", [picture(1)])
            await reservoirs.flush()
        reservoirs.offer("one", [picture(2)])
        await reservoirs.stop()
        assert kept(settings) == [1, 2]

    asyncio.run(run())


def test_what_belongs_to_no_reservoir_is_deleted(settings: Settings) -> None:
    for name in ("r1", "gone"):
        claimed(settings, PLAN._replace(id=name)).close()
    delete_others(settings, lambda: {"r1", "later"})
    assert [folder.name for folder in settings.reservoirs_path.iterdir()] == ["r1"]


@pytest.fixture
def camera(server: Server) -> Iterator[str]:
    """The path of a deployment of its own."""
    assert server.client.put("/deployments/camera", json={"base_set": "tiny"}).status_code == 201
    yield "/deployments/camera"
    assert server.client.delete("/deployments/camera").status_code == 204


def folders(server: Server) -> list[str]:
    path = server.home / "reservoirs"
    return [folder.name for folder in path.iterdir()] if path.is_dir() else []


@pytest.mark.e2e
def test_reservoir_is_off_until_asked_for_and_feeds_adaptations(
    server: Server, labelled: Labelled, camera: str
) -> None:
    client = server.client

    def predict(start: int, stop: int) -> None:
        for file in labelled.files[start:stop]:  # on new connections: both workers take some
            sent = {"content": file, "headers": {"content-type": "image/png"}}
            assert httpx.post(f"{server.url}/predict?deployment=camera", **sent).status_code == 200

    predict(100, 110)
    assert client.get(camera).json()["reservoir"] is None
    made = client.put(f"{camera}/reservoir", json={"size": 200, "retention_hours": 2})
    assert made.status_code == 201, made.text
    assert made.json()["reservoir"] == {"size": 200, "retention_hours": 2.0, "kept": 0}
    assert client.put(f"{camera}/reservoir", json={"size": 200, "retention_hours": 2}).status_code == 200
    server.wait_for(lambda: len(list((server.home / "reservoirs").glob("*/*.bin"))) == 2, "shares of both workers", 10)
    predict(110, 140)
    server.wait_for(lambda: client.get(camera).json()["reservoir"]["kept"] == 30, "images", 10)

    request = labelled.request(0, 20)
    job = client.post("/adapt?deployment=camera&promote=never", **request).json()
    assert (job["support"]["n"], job["support"]["unlabelled"]) == (20, 30)
    predict(140, 150)
    assert client.post("/adapt?deployment=camera&promote=never", **request).json() == job  # no second try
    request["files"] += as_parts(labelled.files[20:25], "unlabelled")
    job = client.post("/adapt?deployment=camera&promote=never", **request).json()
    assert job["support"]["unlabelled"] == 5

    smaller = client.put(f"{camera}/reservoir", json={"size": 4})
    assert smaller.status_code == 200
    assert smaller.json()["reservoir"] == {"size": 4, "retention_hours": 24.0, "kept": 0}
    assert len(folders(server)) == 1

    def is_full() -> bool:
        predict(150, 160)  # each worker keeps two, once it has heard of the smaller one
        return bool(client.get(camera).json()["reservoir"]["kept"] == 4)

    server.wait_for(is_full, "images", 20)
    for _ in range(2):
        assert client.delete(f"{camera}/reservoir").status_code == 204
        assert client.get(camera).json()["reservoir"] is None
    server.wait_for(lambda: not folders(server), "deletion", 5)


@pytest.mark.e2e
def test_deleted_deployment_takes_its_reservoir_along(server: Server, labelled: Labelled) -> None:
    client = server.client
    assert client.put("/deployments/gone", json={"base_set": "tiny"}).status_code == 201
    assert client.put("/deployments/gone/reservoir", json={"size": 9}).status_code == 201
    client.post("/predict?deployment=gone", files=as_parts(labelled.files[:3]))
    assert client.delete("/deployments/gone").status_code == 204
    server.wait_for(lambda: not folders(server), "deletion", 5)


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"size": 0}, "size"),
        ({"size": 10**9}, "size"),
        ({"size": "10"}, "size"),
        ({"size": 10, "retention_hours": 0}, "retention_hours"),
        ({"size": 10, "retention_hours": 10_000}, "retention_hours"),
        ({"size": 10, "days": 1}, "days"),
        ({}, "size"),
    ],
)
def test_unusable_reservoir_is_a_422(server: Server, body: dict[str, Any], field: str) -> None:
    answer = server.client.put("/deployments/default/reservoir", json=body)
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == [field]
    assert server.client.get("/deployments/default").json()["reservoir"] is None
    assert server.client.put("/deployments/nobody/reservoir", json={"size": 1}).status_code == 404
    assert server.client.delete("/deployments/nobody/reservoir").status_code == 404


def test_what_could_not_be_written_is_written_later(settings: Settings) -> None:
    """The fault: an image whose time was over while the disk failed stayed in its file."""
    share = claimed(settings)
    reservoirs = Reservoirs(settings)
    reservoirs._shares["default"] = share
    share.offer([picture(1)], time.time() - 3600 + 3)
    asyncio.run(reservoirs.flush())
    (path,) = (settings.reservoirs_path / "r1").iterdir()
    assert bytes([1] * 18) in path.read_bytes()
    time.sleep(3.1)
    share.offer([picture(2)], time.time())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # no file can be written
    try:
        asyncio.run(reservoirs.flush())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    asyncio.run(reservoirs.flush())
    assert bytes([1] * 18) not in path.read_bytes()
    assert kept(settings) == [2]
    share.close()
