"""The documents say what is there."""

import io
import re
import runpy
import shlex
import sys
import warnings
from contextlib import redirect_stdout
from functools import cache
from itertools import takewhile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from service.http.openapi import openapi_document
from service.saucier import reference as saucier_reference
from training.recipe import load_recipe

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "bases").rglob("*.md"),
        *(ROOT / "deploy").rglob("*.md"),
        *ROOT.glob("benchmarks/*/*.md"),
    ]
)
MODULES = "training|adapt|deploy|service|benchmarks|examples|docs"
COMMAND = re.compile(rf"(?:\.venv/bin/)?python -m ((?:{MODULES})[\w.]*(?: [^`#\n]*)?)")
DEPTH = {"training": 1, "adapt": 1, "deploy": 1, "service": 2}  # how many words name a command
SAUCIER = re.compile(r"(?<![\w./-])(?:\.venv/bin/)?saucier ([a-z][a-z|-]*(?: [^`#\n]*)?)")
LINK = re.compile(r"\]\((?!https?://)([^)#]+)")
FOLDERS = "training|adapt|deploy|service|docs|examples|benchmarks|tests|bases"
PATH = re.compile(rf"`((?:{FOLDERS})/[\w./-]*)`")


def commands() -> list[tuple[str, str]]:
    """Every command line in the documents, with alternatives such as run|evaluate spelled out."""
    found = []
    for document in DOCUMENTS:
        for line in COMMAND.findall(document.read_text().replace("\\\n", " ")):
            module, *words = shlex.split(line.replace("[", "").replace("]", ""))
            last = DEPTH.get(module, 1) - 1
            alternatives = words[last].split("|") if len(words) > last else [""]
            found += [
                (document.name, " ".join([module, *words[:last], word, *words[last + 1 :]]).strip())
                for word in alternatives
            ]
    return sorted(set(found))


@cache
def help_of(module: str, *words: str) -> str:
    """What `python -m module words --help` prints; in this process, as each of its own would import torch again."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed, warnings.catch_warnings():
        patch.setattr(sys, "argv", [module, *words, "--help"])
        # What runpy compiles here has the checks of these tests in it; kept, every process would run it.
        patch.setattr(sys, "dont_write_bytecode", True)
        warnings.filterwarnings("ignore", "'.*' found in sys.modules", RuntimeWarning)
        with pytest.raises(SystemExit) as stopped:
            runpy.run_module(module, run_name="__main__")
    assert stopped.value.code in (0, None), f"{module} {words}"
    return printed.getvalue()


@pytest.mark.parametrize(("document", "line"), commands(), ids=lambda value: value.replace("/", "-"))
def test_every_command_and_flag_exists(document: str, line: str) -> None:
    module, *words = shlex.split(line)
    named = takewhile(lambda word: not word.startswith("-"), words[: DEPTH.get(module, 0)])
    text = help_of(module, *named)
    for flag in (word for word in words if word.startswith("--") and word != "--help"):
        assert re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", text), f"{document}: {module} has no {flag}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)).replace("/", "-"))
def test_every_saucier_command_and_flag_exists(document: Path) -> None:
    tree = {tuple(one.path.split()[1:]): one for one in saucier_reference()}
    for line in SAUCIER.findall(document.read_text().replace("\\\n", " ")):
        words = re.findall(r"[^\s\[\]]+", line)
        is_group = any(name[0] == words[0] and len(name) == 2 for name in tree)
        if is_group and len(words) == 1:
            continue
        path = tuple(words[:2]) if is_group else (words[0],)
        for last in path[-1].split("|"):
            found = tree.get((*path[:-1], last))
            assert found is not None, line
            flags = {flag for one in found.parameters for flag in one.flags} | {"--help"}
            assert {word.partition("=")[0] for word in words if word.startswith("--")} <= flags, line


def test_recipes_shown_are_recipes(tmp_path: Path) -> None:
    shown = [
        block for document in DOCUMENTS for block in re.findall(r"```yaml\n(.*?)```", document.read_text(), re.DOTALL)
    ]
    recipes = [block for block in shown if "ingredients:" in block]
    assert recipes
    for recipe in recipes:
        (tmp_path / "shown.yaml").write_text(recipe)
        load_recipe(tmp_path / "shown.yaml")


def test_there_are_commands_to_check() -> None:
    documents = {document for document, _ in commands()}
    assert {"README.md", "CONTRIBUTING.md", "EXPERIMENTS.md", "CHANGELOG.md"} <= documents


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)).replace("/", "-"))
def test_links_and_paths_lead_somewhere(document: Path) -> None:
    text = document.read_text()
    missing = [link for link in LINK.findall(text) if not (document.parent / link).exists()]
    missing += [path for path in PATH.findall(text) if not (ROOT / path).exists()]
    assert not missing


def test_every_make_target_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for document in [*DOCUMENTS, ROOT / ".ci" / "run", ROOT / ".pre-commit-config.yaml"]:
        named = set(re.findall(r"(?:`|^|step |entry: )make ([a-z-]+)", document.read_text(), re.MULTILINE))
        assert named <= targets, f"{document.name}: no target {sorted(named - targets)}"
    phony = set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split())  # type: ignore[index]
    assert phony == targets


def test_routes_of_the_changelog_and_the_tour_exist() -> None:
    routes = {"/" + path.split("/")[1] for path in openapi_document()["paths"]} | {"/docs", "/metrics", "/ui"}
    for name in ("README.md", "CHANGELOG.md"):
        named = re.findall(r"(?<=[`0])(/[a-z]+[0-9]?)", (ROOT / name).read_text())
        assert named
        assert set(named) <= routes, name


def test_every_package_pinned_once_and_no_host_named() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9-]*==[A-Za-z0-9.!]+", line) for line in lines)
    names = [line.partition("==")[0] for line in lines]
    assert names == sorted(set(names))


def test_every_direct_requirement_is_pinned() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *project["optional-dependencies"]["test"],
        *project["optional-dependencies"]["dev"],
        *project["optional-dependencies"]["docs"],
        *project["optional-dependencies"]["reference"],
    ]
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    here = [found for found in map(Requirement, wanted) if found.marker is None or found.marker.evaluate()]
    assert {found.name.lower() for found in here} - {"saucier"} <= pinned
