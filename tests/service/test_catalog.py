import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from service.prediction.catalog import choose_default, read_catalog
from service.settings import PACKAGE_ROOT, Settings
from service.start import check_working_directory
from training.manifest import BaseSetError


def test_a_base_set_with_nothing_to_mix_is_passed_over(
    base_set_factory: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base_set_factory(tmp_path / "imported", names=("linf",), name="imported")
    with pytest.raises(BaseSetError, match="expected at least 2 ingredients to mix, it has only 'linf'"):
        read_catalog(tmp_path / "imported", check_files=True)
    base_set_factory(tmp_path / "other", names=("l2",), name="other")
    with pytest.raises(BaseSetError, match="with ingredients to mix, found none"):
        read_catalog(tmp_path, check_files=True)
    base_set_factory(tmp_path / "tiny")
    with caplog.at_level(logging.WARNING, "service.prediction.catalog"):
        assert list(read_catalog(tmp_path, check_files=True)) == ["tiny"]
    assert [record.args[0].name for record in caplog.records[-2:]] == ["imported", "other"]  # type: ignore[index,union-attr]


@pytest.fixture
def folders(base_set_factory: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path]:
    """Two folders: one's own base sets, and others, of which one has the name of an own one."""
    base_set_factory(tmp_path / "own" / "first", name="mine")
    for name in ("mine", "small"):
        base_set_factory(tmp_path / "others" / name, name=name)
    return tmp_path / "own", tmp_path / "others"


def test_of_two_base_sets_with_one_name_the_own_one_counts(folders: tuple[Path, Path]) -> None:
    catalog = read_catalog(*folders, check_files=True)
    assert {name: base.folder.parent.name for name, base in catalog.items()} == {"mine": "own", "small": "others"}
    assert choose_default(catalog, Settings()).manifest.name == "mine"
    assert choose_default(catalog, Settings(base_set="small")).manifest.name == "small"
    with pytest.raises(BaseSetError, match=r"expected a base set named 'none' \(SAUCIER_BASE_SET\), found"):
        choose_default(catalog, Settings(base_set="none"))
    without_own = read_catalog(folders[0] / "nothing", folders[1], check_files=False)
    with pytest.raises(BaseSetError, match=r"others: expected one base set .* set SAUCIER_BASE_SET"):
        choose_default(without_own, Settings())


def test_base_sets_are_looked_for_in_the_working_directory_of_the_start_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # as BentoML does
    assert settings.bases_folders == (tmp_path / "bases", PACKAGE_ROOT / "bases")
    assert Settings(bases=tmp_path).bases_folders == (tmp_path,)
    monkeypatch.chdir(PACKAGE_ROOT)
    assert Settings().bases_folders == (PACKAGE_ROOT / "bases",)


def test_a_working_directory_with_modules_of_our_names_is_refused(tmp_path: Path) -> None:
    check_working_directory(PACKAGE_ROOT)
    (tmp_path / "training").mkdir()  # a folder without code is none
    check_working_directory(tmp_path)
    (tmp_path / "service.py").touch()
    with pytest.raises(ValueError, match=r"without a module named 'service', .*: \S*service.py$"):
        check_working_directory(tmp_path)
