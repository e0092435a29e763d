"""The one command `saucier`: every command of its tree, and what `python -m` has of it."""

import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from adapt.__main__ import main as adapt
from adapt.commands.tree import COMMANDS as ADAPT
from deploy.__main__ import main as deploy
from deploy.commands import COMMANDS as DEPLOY
from service.__main__ import main as service
from service.commands import COMMANDS as SERVICE
from service.saucier import COMMANDS, main, reference
from training.cli import Command
from training.commands import COMMANDS as TRAINING
from training.parsing import Entry, Group
from training.reference import CommandReference
from training.version import VERSION

ROOT = Path(__file__).parents[1]
TREE = {one.path: one for one in reference()}
GROUPS = {
    "saucier": COMMANDS,
    **{f"saucier {name}": item for name, item in COMMANDS.commands.items() if isinstance(item, Group)},
}
STAGES: Mapping[str, Group] = {"training": TRAINING, "adapt": ADAPT, "deploy": DEPLOY, "service": SERVICE}


def entry_of(path: str) -> Entry:
    found = dict(COMMANDS.walk("saucier"))[path]
    assert isinstance(found, Entry)
    return found


def call(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    code = main(args)
    out, err = capsys.readouterr()
    return code, out, err


def check_refused(code: int, out: str, err: str) -> None:
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "--help)" in err


every_command = pytest.mark.parametrize("command", TREE.values(), ids=lambda one: one.path.replace(" ", "-"))
every_group = pytest.mark.parametrize("path", GROUPS)


@every_command
def test_help_fits_on_a_screen_and_shows_an_example(command: CommandReference) -> None:
    lines = command.help.splitlines()
    assert len(lines) <= 50
    assert max(map(len, lines)) <= 100
    assert re.search(r"^Example: .*saucier", command.help, re.MULTILINE)
    assert "None" not in command.help
    assert "[[" not in command.help


@every_command
def test_every_option_is_described_with_what_it_takes(command: CommandReference) -> None:
    for one in command.parameters:
        assert one.help, one.shown
        shown = re.search(rf"^  {re.escape(one.shown)}\b.*?(?=^\S|^  \S|\Z)", command.help, re.MULTILINE | re.DOTALL)
        assert shown is not None, one.shown
        text = " ".join(shown[0].split())
        assert (one.is_required and bool(one.flags)) == ("[required]" in text)
        if one.default and one.count != 0:
            assert f"[default: {one.default}]" in text


@every_command
def test_the_help_that_is_printed_is_the_reference(
    command: CommandReference, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")  # wider than help ever is
    assert call(capsys, *command.path.split()[1:], "--help") == (0, command.help, "")


@every_command
def test_one_thing_has_one_name(command: CommandReference) -> None:
    options = {flag: one for one in command.parameters for flag in one.flags}
    assert not {"--num-steps", "--threats", "--norm", "--eps"} & options.keys()
    if "--device" in options:
        assert (options["--device"].metavar, options["--device"].default) == ("DEVICE", "auto")
    for flag in {"--threat-model", "--threat-models"} & options.keys():
        assert options[flag].metavar.startswith("NORM:EPS")


@every_command
def test_a_seed_is_shown_where_it_is_used(command: CommandReference) -> None:
    options = entry_of(command.path).load()
    bases = [one for one in options.__mro__ if issubclass(one, Command) and one is not Command]
    is_used = any(re.search(r"(self|options)\.seed", inspect.getsource(sys.modules[one.__module__])) for one in bases)
    assert is_used == any("--seed" in one.flags for one in command.parameters) or command.path in (
        "saucier export",  # in one module with `check`, which has a seed
        "saucier bundle",
    )


@every_command
def test_what_is_unknown_is_refused_in_one_line(command: CommandReference, capsys: pytest.CaptureFixture[str]) -> None:
    words = command.path.split()[1:]
    check_refused(*call(capsys, *words, "--no-such-option"))
    check_refused(*call(capsys, *words, "a", "b", "c", "d"))
    if any(one.is_required for one in command.parameters):
        code, out, err = call(capsys, *words)
        check_refused(code, out, err)
        assert all(one.shown in err for one in command.parameters if one.is_required)


@every_command
def test_numbers_and_choices_are_checked_before_anything_happens(
    command: CommandReference, capsys: pytest.CaptureFixture[str]
) -> None:
    for one in command.parameters:
        if one.flags and (one.choices or one.metavar.startswith(("INT", "NUMBER"))):
            needed = [word for other in command.parameters if other.is_required for word in (*other.flags, "x")]
            code, out, err = call(capsys, *command.path.split()[1:], *needed, one.flags[0], "zzz")
            check_refused(code, out, err)
            assert f"{one.flags[0]}: expected" in err
            assert "'zzz'" in err or "'x'" in err


@every_group
def test_a_group_shows_its_commands_and_names_the_nearest(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = path.split()[1:]
    code, out, err = call(capsys, *words, "--help")
    assert (code, err) == (0, "")
    assert len(out.splitlines()) <= 50
    assert max(map(len, out.splitlines())) <= 100
    for name, item in GROUPS[path].commands.items():
        assert re.search(rf"^  {name} +{re.escape(item.summary[:40])}", out, re.MULTILINE)
        assert item.summary == item.summary.strip().rstrip(".")
        code, out_of_it, err = call(capsys, *words, f"{name}x")
        check_refused(code, out_of_it, err)
        assert "did you mean" in err
    check_refused(*call(capsys, *words))
    check_refused(*call(capsys, *words, "--no-such-option"))


@pytest.mark.parametrize("stage", STAGES)
def test_python_m_and_saucier_have_the_same_commands(stage: str) -> None:
    ours = {item.target for _, item in COMMANDS.walk("saucier")}
    for path, item in STAGES[stage].walk(f"python -m {stage}"):
        assert item.target in ours, path
        if isinstance(command := item.load(), type) and issubclass(command, Command):
            assert command.name == path.split()[-1]


@pytest.mark.parametrize(
    ("stage", "words", "same"),
    [
        (adapt, ["plot"], ["report"]),
        (adapt, ["search"], ["adapt", "search"]),
        (deploy, ["export"], ["export"]),
        (service, ["keys", "add"], ["keys", "add"]),
    ],
)
def test_python_m_and_saucier_say_the_same(
    stage: object, words: list[str], same: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for more in (["--help"], ["--bad"], []):
        codes, texts = [], []
        for run, args in ((stage, words), (main, same)):
            codes.append(run([*args, *more]))  # type: ignore[operator]
            found = "".join(capsys.readouterr())
            texts.append(" ".join(re.sub(r"(python -m \w+|saucier)( [a-z]+)+(?= [A-Z\[-])", "", found).split()))
        assert codes[0] == codes[1]
        assert texts[0] == texts[1]


def test_a_seed_and_json_are_accepted_by_every_command() -> None:
    for path, item in COMMANDS.walk("saucier"):
        flags = {flag for one in item.load().parameters() for flag in one.flags}
        assert {"--json", "--seed"} <= flags, path


def test_it_works_on_files(tiny_base_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "list", str(tiny_base_set.parent), "--json", "--seed", "3")
    assert code == 0
    assert json.loads(out)["bases"][0]["name"] == "tiny"
    code, out, err = call(capsys, "export", str(tiny_base_set), "--out", "soup.onnx", "--coefficients", "linf")
    assert (code, out) == (2, "")
    assert err == "error: --coefficients: expected name=number,... with each name once, got 'linf'\n"


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=60
    )


def test_help_and_mistakes_are_fast_as_nothing_is_imported() -> None:
    code = "import sys; from service.saucier import main; code = main({}); "
    code += "assert not {{'torch', 'timm', 'bentoml', 'numpy'}} & sys.modules.keys(); sys.exit(code)"
    done = python(code.format(["--help"]))
    assert (done.returncode, done.stderr) == (0, "")
    assert python(code.format(["trian"])).stderr == (
        "error: there is no command 'trian'; did you mean train? (see saucier --help)\n"
    )


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "--version") == (0, f"saucier {VERSION}\n", "")


@pytest.mark.parametrize(
    ("words", "completions"),
    [
        ("saucier exp", ["plain,export"]),
        ("saucier keys ", ["plain,add", "plain,list", "plain,revoke"]),
        ("saucier keys add --role ad", ["plain,adapt", "plain,admin"]),
        ("saucier db identity ", ["plain,copy", "plain,moved"]),
        ("saucier serve --bas", ["plain,--bases", "plain,--base-set"]),
        ("saucier db backup regis", ["file,regis"]),
    ],
)
def test_shells_complete_commands_options_choices_and_files(words: str, completions: list[str]) -> None:
    done = python(
        "from service.saucier import main; main()",
        _SAUCIER_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=str(words.count(" ")),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == completions


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell_is_printed(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "completion", shell)
    assert (code, err) == (0, "")
    assert f"_SAUCIER_COMPLETE={shell}_complete" in out
