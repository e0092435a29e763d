"""CIFAR-10 in torchvision's own format, made small, becomes folders of images."""

import hashlib
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets

from training.data import load_folder
from training.fetching import Fetch
from training.manifest import InputSpec
from training.named_sets import CIFAR10_ARCHIVE, CIFAR10_CLASSES, CIFAR10_FOLDER, load_cifar10

INPUT = InputSpec(height=32, width=32, mean=(0.5,) * 3, std=(0.5,) * 3)
BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
PER_BATCH = 20


@pytest.fixture
def download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with 120 images as torchvision unpacks them; torchvision is told the digests of these files."""
    folder = tmp_path / "download" / CIFAR10_FOLDER
    folder.mkdir(parents=True)
    random, digests = np.random.default_rng(0), {}

    def write(name: str, content: dict[str, object]) -> None:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        digests[name] = hashlib.md5(data).hexdigest()

    for name in BATCHES:
        pixels = random.integers(0, 256, (PER_BATCH, 3072), dtype=np.uint8)
        write(name, {"data": pixels, "labels": [(7 * index) % 10 for index in range(PER_BATCH)]})
    write("batches.meta", {"label_names": list(CIFAR10_CLASSES)})
    known = torchvision.datasets.CIFAR10
    monkeypatch.setattr(known, "train_list", [[name, digests[name]] for name in BATCHES[:5]])
    monkeypatch.setattr(known, "test_list", [[BATCHES[5], digests[BATCHES[5]]]])
    monkeypatch.setattr(known, "meta", known.meta | {"md5": digests["batches.meta"]})
    monkeypatch.setattr(known, "url", "http://127.0.0.1:9/nothing")  # nobody listens there
    return folder.parent


def pack(download: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with the archive alone."""
    folder = download.parent / "packed"
    folder.mkdir()
    with tarfile.open(folder / CIFAR10_ARCHIVE, "w:gz") as archive:
        archive.add(download / CIFAR10_FOLDER, CIFAR10_FOLDER)
    digest = hashlib.md5((folder / CIFAR10_ARCHIVE).read_bytes()).hexdigest()
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "tgz_md5", digest)
    return folder


@pytest.mark.parametrize("is_packed", [False, True])
def test_conversion_keeps_every_pixel_and_label(
    is_packed: bool, download: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = pack(download, monkeypatch) if is_packed else download
    before = sorted(given.rglob("*"))
    out = tmp_path / "data" / "cifar10"
    result = Fetch(source="cifar10", out=out, download=given).execute()
    assert json.loads(json.dumps(result.data))["images"] == {"train": 5 * PER_BATCH, "test": PER_BATCH}
    for part, original in load_cifar10(download).items():
        found = load_folder(out / part, INPUT, CIFAR10_CLASSES)
        assert sorted(zip(found.hashes, found.labels, strict=True)) == sorted(
            zip(original.hashes, original.labels, strict=True)
        )
    assert sorted(given.rglob("*")) == before
    assert [path.name for path in out.parent.iterdir()] == ["cifar10"]


def test_what_cannot_be_read_or_downloaded_is_one_line_and_leaves_nothing(
    download: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "data" / "cifar10"

    def is_refused(given: Path | None, why: str) -> None:
        with pytest.raises(ValueError, match=why):
            Fetch(source="cifar10", out=out, download=given).execute()
        assert list(out.parent.iterdir()) == []

    is_refused(None, r"^CIFAR-10 cannot be downloaded: [^\n]*elsewhere and give its folder by --from$")
    is_refused(tmp_path / "nothing", f"expected {CIFAR10_FOLDER}/ or {CIFAR10_ARCHIVE}, found neither")
    packed = pack(download, monkeypatch)
    (packed / CIFAR10_ARCHIVE).write_bytes(b"half of it")
    is_refused(packed, "expected an undamaged download of CIFAR-10, got another MD5 sum")
    (download / CIFAR10_FOLDER / "test_batch").write_bytes(b"half of it")
    is_refused(download, "expected an undamaged download")


def test_a_recipe_without_its_data_says_what_makes_it(download: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone: expected train/ .* --out \S*gone` makes the folders"):
        load_cifar10(tmp_path / "gone")
    assert not (tmp_path / "gone").exists()


def test_a_folder_with_files_is_not_written_into(download: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="expected a folder that is new or empty"):
        Fetch(source="cifar10", out=tmp_path / "full", download=download).execute()
