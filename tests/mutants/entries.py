"""The form of an entry, and the list of all: `MUTANTS` of the other modules here, one module for each package."""

import importlib
import pkgutil
from dataclasses import dataclass
from pathlib import Path

import tests.mutants

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Mutant:
    """One fault: a text of a file that another one replaces, and the tests that must fail by an assertion then."""

    name: str  # unique; begins with the package: "training/no-average"
    file: str  # from the repository's root
    old: str  # found exactly once in it
    new: str
    tests: tuple[str, ...]  # what pytest runs: files or node ids, fast ones
    why: str  # what the fault would do to a user
    survives: str = ""  # for a known survivor: the reason why no test can notice it

    def problem(self, root: Path = ROOT) -> str | None:
        """Return what is wrong with the entry, None if nothing is."""
        path = root / self.file
        count = path.read_text(encoding="utf-8").count(self.old) if path.is_file() else 0
        if count != 1:
            return f"{self.name}: expected the old text once in {self.file}, found it {count} times: follow the code"
        if self.old == self.new:
            return f"{self.name}: the new text is the old one"
        missing = [test for test in self.tests if not _exists(root, test)]
        if missing or not self.tests:
            return f"{self.name}: expected the tests {list(self.tests)}, found none of the names {missing}"
        return None


def _exists(root: Path, test: str) -> bool:
    """Say if there is such a file or folder and, behind its name, such a function."""
    file, _, function = test.partition("::")
    path = root / file
    if not function:
        return path.exists()
    return path.is_file() and f"def {function.partition('[')[0]}(" in path.read_text(encoding="utf-8")


def all_mutants() -> list[Mutant]:
    """Return the entries of all modules."""
    modules = [module.name for module in pkgutil.iter_modules(tests.mutants.__path__)]
    found: list[Mutant] = []
    for name in sorted(set(modules) - {"entries", "running", "__main__"}):
        found += importlib.import_module(f"tests.mutants.{name}").MUTANTS
    return found
