"""The generated pages are what their script makes, and hold everything there is."""

from pathlib import Path

import pytest

from docs.tools import reference
from docs.tools.cli import commands
from docs.tools.tables import table
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
        line[2:-2].split(" | ") for line in made["http.md"].splitlines() if line.startswith("| ") and "`GET" in line
    )
    for path, needs in NEEDS.items():
        for method, role in needs.items():
            row = rows["no key" if role == "open" else f"`{role}`"] if role != "admin" else made["http.md"]
            assert f"`{method} {path}`" in row, (method, path, role)


def test_commands_of_every_folder_are_listed() -> None:
    paths = {entry.path for entry in commands()}
    assert {"python -m training run", "python -m adapt search", "python -m deploy export"} <= paths
    assert {"python -m service db check", "python -m service keys add"} <= paths


def test_options_say_what_is_required_and_what_is_the_default() -> None:
    (export,) = (entry for entry in commands() if entry.path == "python -m deploy export")
    options = {option.name: option for option in export.options}
    assert options["BASES"].required
    assert options["--out"].required
    assert options["--temperature"] == ("--temperature", "FLOAT", "`1.0`", False, options["--temperature"].help)


def test_check_names_a_page_that_is_out_of_date(
    tmp_path: Path, made: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in made.items():
        (tmp_path / name).write_text(text if name != "cli.md" else f"{text}\nretyped\n")
    monkeypatch.setattr(reference, "FOLDER", tmp_path)
    monkeypatch.setattr("sys.argv", ["reference", "--check"])
    assert reference.main() == 1
    assert capsys.readouterr().err == "docs/reference/cli.md is out of date: run python -m docs.tools.reference\n"
    monkeypatch.setattr("sys.argv", ["reference"])
    assert reference.main() == 0
    assert (tmp_path / "cli.md").read_text() == made["cli.md"]


def test_bars_within_cells_do_not_end_them() -> None:
    assert table(("a",), [("x|y",)]) == "| a |\n|---|\n| x\\|y |\n"
