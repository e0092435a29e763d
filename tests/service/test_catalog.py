import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from service.prediction.catalog import read_catalog
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
