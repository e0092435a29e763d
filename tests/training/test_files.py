from pathlib import Path

import pytest
import safetensors.torch
import torch

from training.files import replace_file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "a.txt"
    file.write_text("before")
    return file


def test_a_file_is_made_and_replaced(path: Path) -> None:
    new = path.with_name("new.txt")
    for file in (path, new):
        replace_file(file, lambda partial: partial.write_text("after"))
        assert file.read_text() == "after"
    assert sorted(path.parent.iterdir()) == [path, new]
    assert new.stat().st_mode & 0o777 == path.stat().st_mode & 0o777  # those of any new file


def test_the_file_before_stands_until_the_new_one_is_whole(path: Path) -> None:
    def write(partial: Path) -> None:
        partial.write_text("half")
        assert path.read_text() == "before"
        assert partial.parent == path.parent  # another file system could not be moved from in one step
        assert partial.name.startswith(".")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        replace_file(path, write)
    assert path.read_text() == "before"
    assert list(path.parent.iterdir()) == [path]


def test_nobody_else_can_read_a_secret_at_any_time(path: Path) -> None:
    seen: list[int] = []

    def write(partial: Path) -> None:
        seen.append(partial.stat().st_mode & 0o777)
        partial.write_text("secret")

    replace_file(path, write, mode=0o600)
    assert [*seen, path.stat().st_mode & 0o777] == [0o600, 0o600]


def test_a_writer_that_makes_its_own_file_gets_the_mode_too(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {"a": torch.arange(3)}
    replace_file(path, lambda partial: safetensors.torch.save_file(tensors, partial), mode=0o644)
    assert path.stat().st_mode & 0o777 == 0o644
    assert torch.equal(safetensors.torch.load_file(path)["a"], tensors["a"])
