"""Names as file systems and archivers leave them: accents apart, UTF-8 that is not announced, folders of no class."""

import io
import shutil
import subprocess
import unicodedata
import zipfile
from pathlib import Path

import pytest

from adapt.images.archive import UTF8_FLAG
from adapt.images.support import SupportError, from_archive, from_folder, from_images
from tests.conftest import INPUT
from tests.hostile.archives import CENTRAL, LOCAL, tarred, zipped
from tests.hostile.pictures import picture, saved
from training.bases import BaseSet
from training.data import find_files
from training.folders import class_folders, files_in, is_ignored
from training.manifest import Manifest

TOGETHER = "café crème"
APART = unicodedata.normalize("NFD", TOGETHER)
NAMES = (TOGETHER, "dog", "Größe")
FILES = {f"{name}/{name}.png": saved(picture(index)) for index, name in enumerate(NAMES)}


@pytest.fixture(params=[TOGETHER, APART], ids=["composed", "decomposed"])
def manifest(request: pytest.FixtureRequest, base: BaseSet) -> Manifest:
    return base.manifest.model_copy(update={"class_names": (request.param, *NAMES[1:])})


def renamed(form: str) -> dict[str, bytes]:
    return {unicodedata.normalize(form, name): file for name, file in FILES.items()}


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def unannounced(files: dict[str, bytes]) -> bytes:
    """Return a zip of UTF-8 names that lack the flag which says so, as Debian's zip writes it."""
    data = bytearray(zipped(files))
    for signature, offset in ((LOCAL, 6), (CENTRAL, 8)):
        at = data.find(signature)
        while at >= 0:
            data[at + offset + 1] &= ~(UTF8_FLAG >> 8)
            at = data.find(signature, at + 4)
    return bytes(data)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_accents_are_compared_composed(form: str, manifest: Manifest, tmp_path: Path) -> None:
    files = renamed(form)
    labels = [name.split("/")[0] for name in files]
    found = [
        from_folder(write(tmp_path, files), manifest),
        from_archive(zipped(files), manifest),
        from_archive(tarred(files.items()), manifest),
        from_archive(unannounced(files), manifest),
        from_images(list(files.values()), labels, manifest),
    ]
    for support in found:
        assert support.class_names == manifest.class_names
        assert sorted(support.labels.tolist()) == [0, 1, 2]
    data = find_files(tmp_path, INPUT, manifest.class_names)
    assert sorted(data.labels.tolist()) == [0, 1, 2]
    assert find_files(tmp_path, INPUT).class_names == tuple(sorted(NAMES))


def test_folders_of_both_forms_are_one_class(tmp_path: Path) -> None:
    write(tmp_path, {f"{TOGETHER}/a.png": saved(picture(1)), f"{APART}/b.png": saved(picture(2)), **FILES})
    data = find_files(tmp_path, INPUT)
    assert data.class_names == tuple(sorted(NAMES))
    assert data.labels.tolist().count(data.class_names.index(TOGETHER)) == 3


def test_letters_that_only_look_the_same_are_another_class(manifest: Manifest) -> None:
    with pytest.raises(SupportError, match="expected a folder named"):
        from_archive(zipped({"d\u043eg/a.png": saved(picture(1))}), manifest)


@pytest.mark.skipif(shutil.which("zip") is None, reason="needs Debian's zip")
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_the_zip_of_debian_is_read(form: str, manifest: Manifest, tmp_path: Path) -> None:
    write(tmp_path / "images", renamed(form))
    command = ["zip", "-q", "-r", "../images.zip", "."]
    subprocess.run(command, cwd=tmp_path / "images", check=True, env={"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"})
    support = from_archive(tmp_path / "images.zip", manifest)
    assert sorted(support.labels.tolist()) == [0, 1, 2]


def test_names_of_old_zips_are_code_page_437(base: BaseSet) -> None:
    """What is no UTF-8 keeps its old reading: é is the byte 130."""
    manifest = base.manifest.model_copy(update={"class_names": ("café", "dog", "ship")})
    file = zipped({"cafe/a.png": saved(picture(1))}).replace(b"cafe", b"caf\x82")
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        assert not archive.infolist()[0].flag_bits & UTF8_FLAG
    assert from_archive(file, manifest).per_class == {"café": 1}


RUBBISH = {
    "__MACOSX/cat/._a.png": b"x",
    "@eaDir/a.png": b"x",
    "lost+found/#123.png": b"x",
    "#recycle/a.png": b"x",
    "$RECYCLE.BIN/a.png": b"x",
    "System Volume Information/a.png": b"x",
    ".Trash-1000/a.png": b"x",
    "dog/@eaDir/dog.png/SYNOPHOTO_THUMB_M.png": saved(picture(9)),
    "dog/Thumbs.db": b"x",
    "only rubbish/.DS_Store": b"x",
}


def test_folders_that_no_person_made_are_no_classes(tmp_path: Path) -> None:
    write(tmp_path, FILES | RUBBISH)
    (tmp_path / "empty" / "within").mkdir(parents=True)
    assert [folder.name for folder in class_folders(tmp_path)] == sorted(NAMES)
    data = find_files(tmp_path, INPUT)
    assert data.class_names == tuple(sorted(NAMES))
    assert len(data) == len(FILES)
    assert len(find_files(tmp_path, INPUT, NAMES)) == len(FILES)
    assert [path.relative_to(tmp_path).as_posix() for path in files_in(tmp_path)] == sorted(FILES)
    assert all(map(is_ignored, RUBBISH))


def test_a_folder_of_texts_is_still_a_mistake(tmp_path: Path) -> None:
    write(tmp_path, FILES | {"notes/a.txt": b"text"})
    with pytest.raises(ValueError, match="expected images of class 'notes', found none"):
        find_files(tmp_path, INPUT)
