"""`saucier reference`, and what a floor does to a promotion."""

import json
import os
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from adapt.documents.soup import Soup, default_soup
from adapt.images.support import Support
from service.__main__ import main
from service.store.database import Database
from service.store.identity import read_owner
from service.store.migrate import upgrade
from service.store.objects import ObjectStore
from service.store.packs import FOLDER as PACKS
from service.store.packs import Packs, key_of
from service.store.references import FOLDER, ReferenceGone, References
from service.store.registry import Registry
from service.store.tables import COMMAND_LINE
from service.store.transactions import UnknownDeployment
from tests.hostile import archives
from tests.service.conftest import Labelled, Server
from training.bases import load_base_set
from training.images import to_input
from training.manifest import read_manifest


@pytest.fixture
def soup(prebuilt_bases: Path) -> Soup:
    return default_soup(read_manifest(prebuilt_bases / "tiny"))


def some(n: int, *, seed: int = 0) -> Support:
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)
    labels = np.arange(n) % 3
    return Support(pixels, labels, tuple(f"{seed}-{i}" for i in range(n)), ("cat", "dog", "ship"))


def test_reference_images_are_kept_replaced_and_really_deleted(database: Database, store_url: str, soup: Soup) -> None:
    objects = ObjectStore(store_url)
    references, registry = References(database, objects), Registry(database)
    registry.ensure_deployment("gate", soup)
    assert references.load("gate") is None
    references.put("gate", some(9), 0.5)
    found = references.load("gate")
    assert found is not None
    assert found.floor == 0.5
    assert np.array_equal(found.images.images, some(9).images)
    assert found.images.class_names == some(9).class_names
    references.put("gate", some(6, seed=1), 0.25, who=COMMAND_LINE)
    again = references.load("gate")
    assert again is not None
    assert (len(again.images), again.floor) == (6, 0.25)
    assert len(objects.list("")) == 1
    assert references.remove("gate", who=COMMAND_LINE)
    assert not references.remove("gate")
    assert objects.list("") == {}
    told = [(event.kind, event.who, event.reason) for event in reversed(registry.events("gate", limit=9))]
    assert told == [
        ("created", None, None),
        ("reference_on", None, "floor 0.5 on 9 images"),
        ("reference_on", "(command line)", "floor 0.25 on 6 images"),
        ("reference_off", "(command line)", None),
    ]
    with pytest.raises(UnknownDeployment):
        references.put("nowhere", some(3), 0.5)
    assert objects.list("") == {}


def test_what_no_deployment_refers_to_is_swept_once_it_is_old(
    database: Database, tmp_path: Path, soup: Soup, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = ObjectStore(str(tmp_path / "objects"))
    references = References(database, objects)
    Registry(database).ensure_deployment("gate", soup)
    references.put("gate", some(9), 0.5)
    kept = set(objects.list(""))
    objects.write(f"{read_owner(database).id}/{FOLDER}/left-by-a-crash.npz", b"x")
    references.sweep()
    assert len(objects.list("")) == 2
    monkeypatch.setattr("service.store.references.ORPHAN_SECONDS", -60)
    references.sweep()
    assert set(objects.list("")) == kept


def test_adapter_whose_clock_is_ahead_sweeps_away_nothing_new(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault: objects whose row was still to be written looked old."""
    objects, right, registry = ObjectStore(str(tmp_path / "objects")), time.time, read_owner(database).id
    objects.write(f"{registry}/{FOLDER}/about-to-be-recorded.npz", b"x")
    objects.write(key_of(PACKS, "about-to-be-recorded", registry), b"x")
    monkeypatch.setattr(time, "time", lambda: right() + 2 * 3600)
    References(database, objects).sweep()
    Packs(database, objects).sweep()
    assert len(objects.list("")) == 2


def test_lost_reference_images_are_told_not_passed_over(database: Database, tmp_path: Path, soup: Soup) -> None:
    objects = ObjectStore(str(tmp_path / "objects"))
    references = References(database, objects)
    Registry(database).ensure_deployment("gate", soup)
    references.put("gate", some(9), 0.5)
    (key,) = objects.list("")
    (tmp_path / "objects" / key).write_bytes(b"nothing")
    with pytest.raises(ReferenceGone, match="damaged: add them again"):
        references.load("gate")
    objects.delete([key])
    with pytest.raises(ReferenceGone, match="missing: add them again"):
        references.load("gate")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, prebuilt_bases: Path) -> Path:
    for name in [name for name in os.environ if name.startswith("SAUCIER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SAUCIER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SAUCIER_BASES", str(prebuilt_bases))
    return tmp_path / "home"


def write(support: Support, folder: Path) -> Path:
    for number, (pixels, label) in enumerate(zip(support.images, support.labels, strict=True)):
        place = folder / support.class_names[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


def call(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, dict[str, Any], str]:
    code = main(["reference", *args, "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out) if captured.out else {}, captured.err


def test_the_commands(environment: Path, tmp_path: Path, soup: Soup, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(some(9), tmp_path / "trusted")
    code, _, error = call(capsys, "add", "default", str(folder), "--floor", "0.5")
    assert code == 2
    assert "found no such file" in error
    environment.mkdir()
    with closing(Database(f"sqlite:///{environment / 'registry.db'}")) as database:
        upgrade(database)
        Registry(database).ensure_deployment("default", soup)
    code, found, _ = call(capsys, "add", "default", str(folder), "--floor", "0.5")
    assert code == 0
    assert found["reference"] == {"n": 9, "per_class": {"cat": 3, "dog": 3, "ship": 3}, "floor": 0.5}
    assert call(capsys, "show", "default")[1] == found
    for args, message in (
        (("add", "nowhere", str(folder), "--floor", "0.5"), "there is no deployment 'nowhere'"),
        (("add", "default", str(tmp_path / "nothing"), "--floor", "0.5"), "nothing"),
        (("add", "default", str(folder), "--floor", "1.5"), "floor"),
    ):
        code, _, error = call(capsys, *args)
        assert code == 2
        assert message in error
    assert call(capsys, "show", "default")[1] == found
    assert call(capsys, "remove", "default")[1]["removed"] is True
    assert call(capsys, "show", "default")[1]["reference"] is None


def test_hostile_archives_leave_the_reference_as_it_was(
    environment: Path, tmp_path: Path, soup: Soup, capsys: pytest.CaptureFixture[str]
) -> None:
    environment.mkdir()
    with closing(Database(f"sqlite:///{environment / 'registry.db'}")) as database:
        upgrade(database)
        Registry(database).ensure_deployment("default", soup)
    code, found, _ = call(capsys, "add", "default", str(write(some(9), tmp_path / "trusted")), "--floor", "0.5")
    assert code == 0
    for kind, (data, _) in archives.refused().items():
        (tmp_path / "archive").write_bytes(data)
        code, _, error = call(capsys, "add", "default", str(tmp_path / "archive"), "--floor", "0.5")
        assert (code, error.count("\n")) == (2, 1), (kind, error)
    assert call(capsys, "show", "default")[1] == found


def test_a_floor_keeps_what_the_evidence_would_promote(
    server: Server, labelled: Labelled, prebuilt_bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trusted labels are the default soup's own answers, so only that reaches a floor of 1."""
    client = server.client
    assert client.put("/deployments/floor", json={"base_set": "tiny"}).status_code == 201
    base = load_base_set(prebuilt_bases / "tiny")
    trusted = some(60, seed=5)
    with torch.no_grad():
        labels = base.model()(torch.from_numpy(to_input(trusted.images))).argmax(dim=1).numpy()
    folder = write(Support(trusted.images, labels, trusted.hashes, base.manifest.class_names), tmp_path / "trusted")
    monkeypatch.setenv("SAUCIER_HOME", str(server.home))
    monkeypatch.setenv("SAUCIER_BASES", str(prebuilt_bases))
    assert main(["reference", "add", "floor", str(folder), "--floor", "1"]) == 0
    assert client.get("/deployments/floor").json()["reference"]["floor"] == 1
    job = client.post("/adapt?deployment=floor&wait=50", **labelled.request(0, 120)).json()
    assert job["state"] == "kept"
    assert "below the floor of 1" in job["reason"]
    assert job["reference"]["n"] == len(set(map(bytes, trusted.images)))
    assert job["reference"]["accuracy"] < 1
    assert main(["reference", "remove", "floor"]) == 0
    promoted = client.post("/adapt?deployment=floor&wait=50", **labelled.request(100, 240)).json()
    assert (promoted["state"], promoted["reference"]) == ("promoted", None)
    assert main(["reference", "add", "floor", str(folder), "--floor", "0.1"]) == 0
    assert client.delete("/deployments/floor").status_code == 204
    assert list((server.home / "samples").glob(f"*/{FOLDER}/*")) == []
