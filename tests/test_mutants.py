from pathlib import Path

import pytest

from tests.mutants import running
from tests.mutants.entries import Mutant, all_mutants
from tests.mutants.running import run_mutants

MUTANTS = all_mutants()


def test_every_entry_still_fits_the_code() -> None:
    assert [problem for mutant in MUTANTS if (problem := mutant.problem()) is not None] == []


def test_entries_have_names_of_their_own_and_reasons() -> None:
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names) >= 25
    assert all(mutant.why for mutant in MUTANTS)


TESTS = """
import area
def test_double():
    assert area.double(3) == 6
def test_error():
    area.error()
"""


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_area.py").write_text(TESTS)
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "area.py").write_text(
        "def double(x):\n    return 2 * x  # twice\ndef error():\n    pass\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\npythonpath = training\n")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # or each run takes seconds to begin
    monkeypatch.setattr(running, "ROOT", tmp_path)
    monkeypatch.setattr(Mutant, "problem", lambda mutant: None)
    return tmp_path


def mutant(old: str, new: str, test: str = "double") -> Mutant:
    return Mutant(new, "training/area.py", old, new, (f"tests/test_area.py::test_{test}",), "a reason")


def test_mutants_are_killed_survive_or_break(tree: Path) -> None:
    before = (tree / "training" / "area.py").read_bytes()
    outcomes = run_mutants(
        [mutant("2 * x", "3 * x"), mutant("twice", "two"), mutant("    pass", "    raise KeyError", "error"),
         mutant("def double", "def double(")],
        jobs=2,
    )  # fmt: skip
    assert [outcome.verdict for outcome in outcomes] == ["killed", "survived", "error", "broken"]
    assert outcomes[0].by == "tests/test_area.py::test_double"
    assert (tree / "training" / "area.py").read_bytes() == before


def die(*args: object) -> None:
    raise SystemExit(1)


def test_a_process_that_dies_before_the_tests_kills_nothing(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / ".output").write_text("FAILED tests/test_area.py::test_double - assert 1 == 2")  # of the mutant before
    monkeypatch.setattr(running, "_test", die)
    code, output = running._pytest(tree, ["tests/test_area.py"], timeout=60)
    assert (code, output) == (125, "the process ended before pytest began")


def test_tests_that_fail_by_themselves_prove_nothing(tree: Path) -> None:
    (tree / "tests" / "test_area.py").write_text("def test_double():\n    assert False\n")
    with pytest.raises(ValueError, match="expected the tests to pass without a fault, got"):
        run_mutants([mutant("2 * x", "3 * x")])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"old": "import"}, "expected the old text once in training/cli.py, found it"),
        ({"old": "no such text"}, "found it 0 times: follow the code"),
        ({"file": "training/none.py"}, "found it 0 times"),
        ({"new": "EXIT_DONE, EXIT_CLAIM"}, "the new text is the old one"),
        ({"tests": ("tests/test_none.py::test_a",)}, "found none of the names"),
        ({"tests": ("tests/test_mutants.py::test_that_was_renamed",)}, "found none of the names"),
        ({"tests": ()}, "expected the tests"),
    ],
)
def test_an_entry_that_does_not_fit_is_named(changes: dict[str, object], message: str) -> None:
    fields = {
        "name": "training/x", "file": "training/cli.py", "old": "EXIT_DONE, EXIT_CLAIM", "new": "x",
        "tests": ("tests/test_mutants.py",), "why": "y",
    }  # fmt: skip
    assert Mutant(**fields).problem() is None
    problem = Mutant(**(fields | changes)).problem()
    assert problem is not None
    assert message in problem
    assert problem.startswith("training/x: ")
