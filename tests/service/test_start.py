"""What stops a start: one line that says which file or setting, and what was expected."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text

from deploy.layout import BundleError
from service.prediction.catalog import check_bundles, read_catalog
from service.store.database import Database
from service.store.migrate import upgrade

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.e2e


def edit_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"dog"', '"hog"'))


def flip_a_byte(folder: Path) -> None:
    path = folder / "l2.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def corrupt_bundle(folder: Path) -> None:
    (path,) = folder.glob("bundle/*/rows_folded.bin")
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "corrupt weights": (flip_a_byte, r"l2.safetensors: expected sha256 \w+, got \w+"),
    "missing weights": (lambda folder: (folder / "l1.safetensors").unlink(), "l1.safetensors: expected an ingredient"),
    "edited manifest": (edit_manifest, "manifest.json: edited"),
    "missing manifest": (lambda folder: (folder / "manifest.json").unlink(), "manifest.json: expected the manifest"),
    "text manifest": (lambda folder: (folder / "manifest.json").write_text("x"), "manifest.json: expected .* in JSON"),
    "old format": (
        lambda folder: (folder / "manifest.json").write_text(json.dumps({"format_version": 0})),
        "manifest.json: expected format_version 1, got 0",
    ),
    "no base sets": (shutil.rmtree, "expected at least one base set"),
    "corrupt bundle": (
        corrupt_bundle,
        r"rows_folded.bin: expected sha256 \w+, got \w+: .*; run `saucier bundle ",
    ),
}


def start(tmp_path: Path, bases: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("SAUCIER_", "BENTOML_"))}
    environment |= {
        "SAUCIER_HOME": str(tmp_path / "home"),
        "SAUCIER_BASES": str(bases),
        "SAUCIER_PORT": "1",  # nobody may listen there without asking
        "BENTOML_HOME": str(tmp_path / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
        **{f"SAUCIER_{key}": value for key, value in settings.items()},
    }
    command = [str(Path(sys.executable).parent / "bentoml"), "serve", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("saucier: ")
    return line


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_base_set_stops_the_start(kind: str, prebuilt_bases: Path, tmp_path: Path) -> None:
    bases = tmp_path / "bases"
    shutil.copytree(prebuilt_bases / "tiny", bases / "tiny")
    harm, expected = BROKEN[kind]
    harm(bases / "tiny")
    line = refusal(start(tmp_path, bases))
    assert re.search(expected, line), line
    assert str(bases) in line


def test_corrupt_bundle_in_the_home_is_removed_to_be_built_again(
    prebuilt_bases: Path, tiny_base_set: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bases, home = tmp_path / "bases", tmp_path / "home"
    shutil.copytree(tiny_base_set, bases / "tiny")
    (built,) = (prebuilt_bases / "tiny" / "bundle").iterdir()
    catalog = read_catalog(bases, check_files=False)
    for harm in (
        lambda folder: (folder / "rows_raw.bin").write_bytes(b"short"),
        lambda folder: (folder / "skeleton.onnx").unlink(),
        lambda folder: (folder / "bundle.json").write_text("{}"),
    ):
        folder = shutil.copytree(built, home / "bundles" / built.name)
        check_bundles(catalog, home)
        assert catalog["tiny"].bundle(home) == folder
        harm(folder)
        check_bundles(catalog, home)
        assert catalog["tiny"].bundle(home) is None
        assert list((home / "bundles").iterdir()) == []
        assert "the serving bundle of tiny is built again: " in caplog.text
        caplog.clear()
    # A sound one beside the base set serves in its place; a corrupt one there does not go unnoticed.
    shutil.copytree(built, bases / "tiny" / "bundle" / built.name)
    harm(shutil.copytree(built, home / "bundles" / built.name))
    check_bundles(catalog, home)
    assert catalog["tiny"].bundle(home) == bases / "tiny" / "bundle" / built.name
    corrupt_bundle(bases / "tiny")
    with pytest.raises(BundleError, match="run `saucier bundle"):
        check_bundles(catalog, home)


def test_ambiguous_default_stops_the_start(prebuilt_bases: Path, tmp_path: Path) -> None:
    assert "set SAUCIER_BASE_SET" in refusal(start(tmp_path, prebuilt_bases))
    assert "expected a base set named 'none'" in refusal(start(tmp_path, prebuilt_bases, BASE_SET="none"))


def test_unusable_setting_stops_the_start(prebuilt_bases: Path, tmp_path: Path) -> None:
    assert "SAUCIER_WORKERS: " in refusal(start(tmp_path, prebuilt_bases, WORKERS="many"))


@pytest.mark.parametrize(
    ("arguments", "settings"), [((), {"HOST": "0.0.0.0"}), ((), {"HOST": "::"}), (("--host", "0.0.0.0"), {})]
)
def test_public_address_without_keys_stops_the_start(
    arguments: tuple[str, ...], settings: dict[str, str], prebuilt_bases: Path, tmp_path: Path
) -> None:
    line = refusal(start(tmp_path, prebuilt_bases / "tiny", *arguments, **settings))
    assert "SAUCIER_API_KEYS_FILE: expected a file of API keys" in line


def test_public_address_without_keys_is_let_through_on_demand(tmp_path: Path) -> None:
    settings = {"HOST": "0.0.0.0", "PUBLIC_WITHOUT_KEYS": "true"}
    assert "at least one base set" in refusal(start(tmp_path, tmp_path, **settings))  # stopped by what comes next


@pytest.mark.parametrize("text", [None, "{}"])
def test_unusable_keys_stop_the_start(text: str | None, prebuilt_bases: Path, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    if text is not None:
        path.write_text(text)
    assert f"{path}: expected " in refusal(start(tmp_path, prebuilt_bases / "tiny", API_KEYS_FILE=str(path)))


def test_registry_of_a_newer_version_stops_the_start(prebuilt_bases: Path, tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    with closing(Database(f"sqlite:///{path}")) as database:
        upgrade(database)
        with database.write() as session:
            session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    assert "found 9999" in refusal(start(tmp_path, prebuilt_bases / "tiny", DATABASE_URL=f"sqlite:///{path}"))


def test_home_that_cannot_be_made_stops_the_start(prebuilt_bases: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    line = refusal(start(tmp_path, prebuilt_bases / "tiny", HOME=str(tmp_path / "file" / "home")))
    assert str(tmp_path / "file" / "home") in line
