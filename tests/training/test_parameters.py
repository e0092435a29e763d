"""How words of a command line become values of a model."""

import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest
from pydantic import Field

from training.cli import Command, Result, run
from training.nearest import meant
from training.parameters import Arg, Positional, take_lists


class Everything(Command):
    """Show every kind of option.

    Example: everything images --n 3
    """

    name: ClassVar[str] = "everything"
    folder: Annotated[Path, Positional] = Field(description="a folder")
    other: Annotated[Path | None, Positional] = Field(default=None, description="another folder")
    n: int = Field(default=2, ge=1, description="how many")
    level: float | None = Field(default=None, description="how much")
    kind: Literal["plain", "wavy"] = Field(default="plain", description="what it is like")
    names: tuple[str, ...] = Field(default=("a", "b"), description="what they are called")
    sizes: tuple[int, ...] | None = Field(default=None, description="how large")
    mean: tuple[float, float, float] | None = Field(default=None, description="three numbers")
    cached: bool = Field(default=True, description="whether it is kept")
    batch_size: Annotated[int, Arg(aliases=("batch",))] = Field(default=4, description="at once")
    start: Annotated[str | None, Arg(name="from", metavar="PLACE")] = Field(default=None, description="where from")
    is_secret: Annotated[bool, Arg(is_hidden=True)] = Field(default=False, description="not shown")

    def execute(self) -> Result:
        return Result(self.model_dump(mode="json"), str(self))


def everything(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    code = run([Everything], prog="everything", args=args)
    return code, "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["x"], {}),
        (["x", "y"], {"other": Path("y")}),
        (["--n", "5", "x"], {"n": 5}),
        (["x", "--n=5", "--level", "-0.5"], {"n": 5, "level": -0.5}),
        (["x", "--names"], {"names": ()}),
        (["x", "--names", "c", "d", "--n", "1"], {"names": ("c", "d"), "n": 1}),
        (["x", "--names=c", "y"], {"names": ("c",), "other": Path("y")}),
        (["x", "--names", "c", "--names", "d"], {"names": ("c", "d")}),
        (["x", "--sizes", "1", "2"], {"sizes": (1, 2)}),
        (["--mean", "-1", "-.5", "0", "x"], {"mean": (-1.0, -0.5, 0.0)}),
        (["x", "--no-cached"], {"cached": False}),
        (["x", "--batch-size", "8"], {"batch_size": 8}),
        (["x", "--batch", "8"], {"batch_size": 8}),
        (["x", "--from", "here"], {"start": "here"}),
        (["x", "--from=--json"], {"start": "--json"}),
        (["x", "--is-secret"], {"is_secret": True}),
        (["--", "--n"], {"folder": Path("--n")}),
    ],
)
def test_words_become_values(args: list[str], expected: dict[str, object], capsys: pytest.CaptureFixture[str]) -> None:
    wanted = Everything(**{"folder": Path("x")} | expected)  # type: ignore[arg-type]
    assert everything(capsys, *args) == (0, f"{wanted}\n")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "expected FOLDER (see everything --help)"),
        (["x", "--n", "0"], "--n: expected greater than or equal to 1, got '0' (see everything --help)"),
        (["x", "--n", "few"], "--n: expected a valid integer, got 'few' (see everything --help)"),
        (["x", "--n"], "--n: expected a value, got none (see everything --help)"),
        (["x", "--from", "--json"], "--from: expected a value, got none (see everything --help)"),
        (["x", "--from", "--sizes", "1"], "--from: expected a value, got none (see everything --help)"),
        (["--n", "--no-cached", "x"], "--n: expected a value, got none (see everything --help)"),
        (["x", "--level", "nan"], "--level: expected a finite number, got 'nan' (see everything --help)"),
        (
            ["x", "--kind", "wav"],
            "--kind: expected 'plain' or 'wavy', got 'wav'; did you mean wavy? (see everything --help)",
        ),
        (["x", "--sizes", "1", "b"], "--sizes: expected a valid integer, got 'b' (see everything --help)"),
        (["x", "--mean", "1", "2"], "--mean: expected 3 values, got '1 2' (see everything --help)"),
        (["x", "--json=yes"], "--json: expected no value, got one (see everything --help)"),
        (["x", "y", "z"], "expected no more than FOLDER OTHER, got 'z' (see everything --help)"),
        (["x", "--kid", "z"], "there is no option --kid; did you mean --kind? (see everything --help)"),
        (["x", "--is-secre"], "there is no option --is-secre; did you mean --seed? (see everything --help)"),
    ],
)
def test_what_cannot_be_is_one_line(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert everything(capsys, *args) == (2, f"error: {message}\n")


def test_help_shows_what_each_takes_and_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = everything(capsys, "--help")
    assert code == 0
    assert text.startswith("Usage: everything FOLDER [OTHER] [OPTIONS]\n")
    for line in (
        "--level NUMBER how much",
        "--kind plain|wavy what it is like [default: plain]",
        "--names TEXT ... what they are called [default: a b]",
        "--from PLACE where from",
        "--cached, --no-cached whether it is kept --batch-size",
    ):
        assert line in " ".join(text.split())
    assert re.search(r"^  --mean NUMBER NUMBER NUMBER$", text, re.MULTILINE)
    assert "secret" not in text


def test_lists_are_taken_out_of_the_words() -> None:
    words = ["a", "--sizes", "1", "-2", "--n", "3", "--names", "--", "--sizes", "4"]
    rest, lists = take_lists(words, Everything.parameters())
    assert rest == ["a", "--n", "3", "--", "--sizes", "4"]
    assert lists == {"sizes": ("1", "-2"), "names": ()}


def test_the_nearest_name_is_the_one_that_was_meant() -> None:
    assert meant("evalute", ["train", "evaluate"]) == "; did you mean evaluate?"
    assert meant("xyz", ["train", "evaluate"]) == ""
    assert meant(3, ()) == ""
