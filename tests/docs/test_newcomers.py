"""Files for newcomers: they parse, name the version, and lead somewhere."""

import re
from pathlib import Path

import yaml

from training.version import VERSION

ROOT = Path(__file__).parents[2]


def test_citation_names_the_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == VERSION
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()


def test_issue_forms_have_what_a_forge_needs() -> None:
    forms = [path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config"]
    assert len(forms) == 2
    for path in forms:
        form = yaml.safe_load(path.read_text())
        assert form["name"]
        assert form["description"]
        assert all(field["attributes"]["label"] for field in form["body"])


def test_the_map_answers_twenty_questions_with_places_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| (.+\?) \| (.+) \|$", text, re.MULTILINE)
    assert len(rows) >= 20
    for question, place in rows:
        named = re.findall(r"`([\w-]*[./][\w./-]*)`", place)
        folder = Path(f"{named[0]}x").parent if named else Path()
        for name in named:
            assert (ROOT / name).exists() or (ROOT / folder / name).exists(), f"{question}: {name}"


def test_make_lint_checks_prose() -> None:
    assert "-m docs.tools.prose" in (ROOT / "Makefile").read_text()
