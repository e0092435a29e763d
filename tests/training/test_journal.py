from pathlib import Path

import pytest

from training.journal import Journal

SETTINGS = {"seed": 1, "eps": 8 / 255, "losses": ("ce",)}


def test_pieces_are_found_again(tmp_path: Path) -> None:
    path = tmp_path / "state" / "linf.jsonl"
    journal = Journal(path, SETTINGS)
    journal.put("a", [1, 2])
    journal.put("b", [])
    again = Journal(path, SETTINGS)
    assert (again.get("a"), again.get("b"), again.get("c")) == ([1, 2], [], None)


def test_without_a_file_pieces_live_in_memory(tmp_path: Path) -> None:
    journal = Journal(None, SETTINGS)
    journal.put("a", [1])
    assert journal.get("a") == [1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_line_that_was_not_finished_is_dropped_and_written_anew(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "state.jsonl"
    journal = Journal(path, SETTINGS)
    journal.put("a", [1, 2])
    journal.put("b", [3, 4, 5])
    path.write_bytes(path.read_bytes()[:-cut])
    again = Journal(path, SETTINGS)
    assert (again.get("a"), again.get("b")) == ([1, 2], None)
    again.put("b", [3])
    assert Journal(path, SETTINGS).get("b") == [3]


def test_a_process_killed_while_it_wrote_the_first_line_left_nothing(tmp_path: Path) -> None:
    path = tmp_path / "state.jsonl"
    Journal(path, SETTINGS)
    path.write_bytes(path.read_bytes()[:10])
    Journal(path, SETTINGS).put("a", [1])
    assert Journal(path, SETTINGS).get("a") == [1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"format_version": 1, "seed": 2}\n', "seed 2 instead of 1; choose another folder"),
        (b"[1, 2]\n", "expected the state of an evaluation"),
        (b"hello\n", "expected the state of an evaluation"),
        (b"\xff\xff\n", "expected the state of an evaluation"),
    ],
)
def test_a_file_of_something_else_is_refused_and_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "state.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        Journal(path, SETTINGS)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == content
