"""Runs mutants: a copy of the tree, one fault at a time in it, and the tests of that fault alone."""

import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Literal, NamedTuple

import pytest

from tests.mutants.entries import ROOT, Mutant

CODE = ("training", "adapt", "deploy", "service", "benchmarks", "examples", "tests")  # copied; all else is linked
LIBRARIES = ("torch", "torchvision", "timm.layers", "timm.optim", "accelerate", "hypothesis")
TIMEOUT = 600.0  # seconds per mutant
# How pytest's summary begins for a test that noticed, rather than ran into an error.
ASSERTIONS = re.compile(r"^FAILED (?P<test>.+?) - (?P<reason>assert .*|AssertionError.*|Failed: .*)$", re.MULTILINE)

# killed: an assertion failed. error: the tests failed, but otherwise. broken: pytest could not run them.
Verdict = Literal["killed", "survived", "error", "broken"]


class Outcome(NamedTuple):
    """What became of a mutant."""

    mutant: Mutant
    verdict: Verdict
    by: str  # the test that noticed, or the end of pytest's output
    seconds: float


def run_mutants(
    mutants: Sequence[Mutant], *, jobs: int = 1, on_outcome: Callable[[Outcome], object] = lambda outcome: None
) -> list[Outcome]:
    """Run the tests of every mutant, in copies of the tree; the tree itself is not touched.

    Raises:
        ValueError: an entry no longer fits the code, or its tests fail without the fault.
    """
    if problems := [problem for mutant in mutants if (problem := mutant.problem()) is not None]:
        raise ValueError("; ".join(problems))
    trees: SimpleQueue[Path] = SimpleQueue()
    with _copies(jobs) as copies, ThreadPoolExecutor(jobs) as pool:
        every_test = sorted({test for mutant in mutants for test in mutant.tests})
        code, output = _pytest(copies[0], every_test, timeout=10 * TIMEOUT)
        if code != 0:
            raise ValueError(f"expected the tests to pass without a fault, got {_last_line(output)}")
        for copy in copies:
            trees.put(copy)

        def run(mutant: Mutant) -> Outcome:
            tree = trees.get()
            try:
                outcome = _run(mutant, tree)
            finally:
                trees.put(tree)
            on_outcome(outcome)
            return outcome

        return list(pool.map(run, mutants))


@contextmanager
def _copies(count: int) -> Iterator[list[Path]]:
    with tempfile.TemporaryDirectory(prefix="saucier-mutants-") as folder:
        trees = [Path(folder) / str(number) for number in range(count)]
        for tree in trees:
            tree.mkdir()
            for path in ROOT.iterdir():
                if path.name in CODE:
                    shutil.copytree(path, tree / path.name, ignore=shutil.ignore_patterns("__pycache__"))
                elif not path.name.startswith("."):
                    (tree / path.name).symlink_to(path)
        yield trees


def _run(mutant: Mutant, tree: Path) -> Outcome:
    path = tree / mutant.file
    whole = path.read_text(encoding="utf-8")
    started = time.monotonic()
    try:
        path.write_text(whole.replace(mutant.old, mutant.new), encoding="utf-8")
        code, output = _pytest(tree, mutant.tests, timeout=TIMEOUT)
    finally:
        path.write_text(whole, encoding="utf-8")
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):  # or the fault might outlive its text
            compiled.unlink()
    seconds = round(time.monotonic() - started, 1)
    if code == 0:
        return Outcome(mutant, "survived", _last_line(output), seconds)
    if code == 1 and (found := ASSERTIONS.search(output)):
        return Outcome(mutant, "killed", found["test"], seconds)
    return Outcome(mutant, "error" if code == 1 else "broken", _last_line(output, "FAILED", "ERROR"), seconds)


def _pytest(tree: Path, tests: Sequence[str], *, timeout: float) -> tuple[int, str]:
    """Return exit code and output; a mutant that never ends counts as one that could not run.

    The tests run in a fork of a process that has imported the libraries: their imports take longer than most tests.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(LIBRARIES))
    log = tree / ".output"
    log.unlink(missing_ok=True)
    process = context.Process(target=_test, args=(tree, list(tests), log, dict(os.environ)))
    process.start()
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        process.join()
        return 124, f"no end after {timeout:g} seconds"
    if not log.exists():
        return 125, "the process ended before pytest began"
    return process.exitcode, log.read_text(encoding="utf-8", errors="replace")


def _test(tree: Path, tests: list[str], log: Path, environment: dict[str, str]) -> None:
    """Run pytest on a tree, in a process of its own that has imported no code of ours from elsewhere."""
    for name in [name for name in sys.modules if name.partition(".")[0] in CODE]:
        del sys.modules[name]
    sys.path[:] = [str(tree), *(path for path in sys.path if Path(path or ".").resolve() != ROOT)]
    os.environ.update(environment, COLUMNS="500")  # wide: reasons are not cut off
    os.chdir(tree)
    with log.open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        code = pytest.main(
            [
                "-x",
                "-q",
                "-rfE",
                "-W",
                "ignore::pytest.PytestAssertRewriteWarning",
                "-p",
                "no:cacheprovider",
                "--tb=short",
                *tests,
            ]
        )
        sys.stdout.flush()
    os._exit(int(code))


def _last_line(output: str, *beginnings: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()]
    chosen = [line for line in lines if beginnings and line.startswith(beginnings)] or lines
    return chosen[-1][:300] if chosen else "no output"
