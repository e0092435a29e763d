import json
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import Field

from training.cli import Command, Result, run
from training.listing import BUNDLED, List
from training.parsing import Entry


class Divide(Command):
    """Divide two numbers.

    Example: divide --number 4 --by 2
    """

    name: ClassVar[str] = "divide"
    number: float = Field(default=1.0, description="what is divided")
    by: int = Field(default=2, ge=0, le=10, description="what divides")

    def execute(self) -> Result:
        if self.by == 0:
            raise ValueError("expected a divisor that is not 0,\ngot 0")
        if self.by == 10:
            raise KeyboardInterrupt
        quotient = self.number / self.by
        return Result({"quotient": quotient}, f"it is {quotient}", 1 if quotient > 100 else 0)


class Other(Command):
    """Something else."""

    name: ClassVar[str] = "other"


def call(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    code = run([Divide, Other], prog="prog", description="Numbers.", args=args)
    out, err = capsys.readouterr()
    return code, out, err


def test_results_are_text_or_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "divide", "--number", "8") == (0, "it is 4.0\n", "")
    code, out, err = call(capsys, "divide", "--number", "8", "--json")
    assert (code, json.loads(out), err) == (0, {"quotient": 4.0}, "")


def test_a_claim_that_does_not_hold_is_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "divide", "--number", "1000")[0] == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["divide", "--by", "0"], "expected a divisor that is not 0, got 0"),
        (["divide", "--by", "11"], "less than or equal to 10"),
        (["divide", "--by", "two"], "two"),
        (["divide", "--many", "2"], "--many"),
        (["divide", "--seed", "-1"], "greater than or equal to 0"),
        (["multiply"], "multiply"),
        ([], "divide"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    code, out, err = call(capsys, *args)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert "https://" not in err


def test_help_shows_the_example_and_exits_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "divide", "--help")
    assert (code, err) == (0, "")
    assert "Example: divide --number 4 --by 2" in out


def test_ctrl_c_is_exit_code_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "divide", "--by", "10") == (130, "", "interrupted\n")


def test_ctrl_c_while_a_command_is_imported_is_exit_code_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: Entry) -> type[Command]:
        raise KeyboardInterrupt

    monkeypatch.setattr(Entry, "load", interrupted)
    code, _, err = call(capsys, "divide")
    assert (code, err.strip()) == (130, "interrupted")


def test_what_an_extra_installs_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: Command) -> Result:
        raise ModuleNotFoundError("No module named 'psycopg'", name="psycopg")

    monkeypatch.setattr(Divide, "execute", missing)
    code, _, err = call(capsys, "divide")
    assert (code, err.count("\n")) == (2, 1)
    assert "pip install 'saucier[postgres]'" in err


def test_list_names_the_folders_of_own_and_bundled_base_sets(
    tiny_base_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bundled = List().execute()
    assert bundled.text.startswith(str(BUNDLED))
    (tmp_path / "bases").mkdir()
    (tmp_path / "bases" / "mine").symlink_to(tiny_base_set)
    both = List().execute()
    assert both.text.startswith(str(tmp_path / "bases"))
    assert [base["name"] for base in both.data["bases"]] == ["tiny", *(base["name"] for base in bundled.data["bases"])]
