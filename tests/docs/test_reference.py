"""The generated pages are what their script makes, and hold everything there is."""

import re
from pathlib import Path

import pytest

from docs.tools import reference
from docs.tools.tables import table
from service import saucier
from service.http.roles import NEEDS
from service.settings import Settings


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return reference.pages()


def test_committed_pages_are_what_the_script_makes(made: dict[str, str]) -> None:
    differing = [name for name, text in made.items() if (reference.FOLDER / name).read_text() != text]
    assert not differing, "run .venv/bin/python -m docs.tools.reference"


def test_every_setting_has_a_line(made: dict[str, str]) -> None:
    rows = [line.split("`")[1] for line in made["settings.md"].splitlines() if line.startswith("| `SAUCIER_")]
    assert rows == [f"SAUCIER_{name.upper()}" for name in Settings.model_fields]


def test_every_route_is_in_the_table_of_roles(made: dict[str, str]) -> None:
    rows = dict(
        line[2:-2].split(" | ")
        for line in made["reference/http.md"].splitlines()
        if line.startswith("| ") and "`GET" in line
    )
    for path, needs in NEEDS.items():
        for method, role in needs.items():
            row = rows["no key" if role == "open" else f"`{role}`"] if role != "admin" else made["reference/http.md"]
            assert f"`{method} {path}`" in row, (method, path, role)


def test_every_command_has_its_section_and_options(made: dict[str, str]) -> None:
    page = made["reference/cli.md"]
    found = list(saucier.reference())
    assert len(found) > 15
    for command in found:
        _, _, section = page.partition(f"\n## `{command.path}`\n")
        section = section.partition("\n## ")[0]
        for parameter in command.parameters:
            assert parameter.field in ("print_json", "seed") or f"| `{parameter.shown}" in section, command.path


def test_required_options_and_defaults_are_shown(made: dict[str, str]) -> None:
    assert re.search(r"^\| `--role predict\\\|adapt\\\|admin` \| required \|", made["reference/cli.md"], re.MULTILINE)
    assert re.search(r"^\| `--effort quick\\\|full\\\|auto` \| `auto` \|", made["reference/cli.md"], re.MULTILINE)


def test_check_names_a_page_that_is_out_of_date(
    tmp_path: Path, made: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "reference").mkdir()
    for name, text in made.items():
        (tmp_path / name).write_text(text if name != "reference/cli.md" else f"{text}\nretyped\n")
    monkeypatch.setattr(reference, "FOLDER", tmp_path)
    monkeypatch.setattr("sys.argv", ["reference", "--check"])
    assert reference.main() == 1
    assert capsys.readouterr().err == "docs/reference/cli.md is out of date: run python -m docs.tools.reference\n"
    monkeypatch.setattr("sys.argv", ["reference"])
    assert reference.main() == 0
    assert (tmp_path / "reference/cli.md").read_text() == made["reference/cli.md"]


def test_bars_within_cells_do_not_end_them() -> None:
    assert table(("a",), [("x|y",)]) == "| a |\n|---|\n| x\\|y |\n"
