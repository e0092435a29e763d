"""Every entry of the experiments begins with its question, the verdict and the number."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOGS = [ROOT / "EXPERIMENTS.md", *sorted((ROOT / "docs" / "experiments").glob("*.md"))]


def entries(log: Path) -> list[str]:
    return re.split(r"^## ", log.read_text(), flags=re.MULTILINE)[1:]


@pytest.mark.parametrize("log", LOGS, ids=lambda log: log.stem)
def test_entries_begin_with_question_verdict_and_number(log: Path) -> None:
    found = entries(log)
    assert found
    for entry in found:
        title, _, text = entry.partition("\n")
        first = text.strip().partition("\n\n")[0]
        parts = re.findall(r"\*\*(Question|Verdict|Number):\*\* ", first)
        assert parts == ["Question", "Verdict", "Number"], title
        assert re.search(r"\*\*Number:\*\* .*(\d|[Oo]ne|[Tt]welve)", first, re.DOTALL), title


@pytest.mark.parametrize("log", LOGS, ids=lambda log: log.stem)
def test_entries_are_dated_newest_first_and_in_the_right_file(log: Path) -> None:
    dates = [entry[:10] for entry in entries(log)]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", date) for date in dates)
    assert dates == sorted(dates, reverse=True)
    if log.parent.name == "experiments":
        assert {date[:7] for date in dates} == {log.stem}
