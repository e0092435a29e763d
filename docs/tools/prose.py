"""Check that documents and docstrings are plain English: `python -m docs.tools.prose [FILE ...]`.

Exit code 1 if a rule of `docs/tools/prose_rules.py` finds something, with a line for each sentence.
"""

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from docs.tools.prose_rules import MAX_CELL, RULES

ROOT = Path(__file__).resolve().parents[2]
PATTERNS = (
    "*.md",
    "docs/**/*.md",
    "docs/tools/templates/*",
    "bases/*/README.md",
    "deploy/**/*.md",
    "training/**/*.py",
    "adapt/**/*.py",
    "deploy/**/*.py",
    "service/**/*.py",
    "docs/**/*.py",
)
UNCHECKED = ("EXPERIMENTS.md", "docs/experiments/*", "docs/results/**/*")
_END = re.compile(r"(?<=[.!?:])\s+(?=[A-Z0-9`*\[\"'(])")
_ABBREVIATION = re.compile(r"(?:\be\.g|\bi\.e|\bal|\bvs|\bno)\.$")


class Finding(NamedTuple):
    """A sentence that a rule matches."""

    path: Path
    line: int
    sentence: str
    rule: str
    advice: str

    def __str__(self) -> str:
        """Return it as one line."""
        return f"{self.path}:{self.line}: {self.rule}: {self.sentence[:160]!r}: {self.advice}"


def main() -> int:
    """Check the files that the command line names, or all; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m docs.tools.prose", description="Check that prose is plain English."
    )
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="documents or modules; default: all")
    findings = [finding for path in parser.parse_args().files or files() for finding in check(path)]
    for finding in findings:
        sys.stderr.write(f"{finding}\n")
    return int(bool(findings))


def files() -> list[Path]:
    """Return every file whose prose is checked."""
    found = {path for pattern in PATTERNS for path in ROOT.glob(pattern)}
    skipped = {path for pattern in UNCHECKED for path in ROOT.glob(pattern)}
    return sorted(path for path in found - skipped if not any(part.startswith(".") for part in path.parts))


def check(path: Path) -> list[Finding]:
    """Return what the rules find in one file."""
    text = path.read_text()
    blocks = _docstrings(text) if path.suffix == ".py" else _blocks(text)
    shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    headless = [] if path.suffix == ".py" else _headless(text)
    return [
        *(Finding(shown, line, text, "no-subject", "begin with the subject: 'The command'") for line, text in headless),
        *(
            Finding(shown, line, sentence, rule, advice)
            for line, text in blocks
            for sentence in sentences(text)
            for rule, advice in faults(sentence, is_docstring=path.suffix == ".py")
        ),
    ]


def faults(sentence: str, *, is_docstring: bool = False) -> list[tuple[str, str]]:
    """Return name and advice of every rule that matches a sentence, or a whole cell (with `| ` before it)."""
    plain = _plain(sentence)
    if sentence.startswith("| "):
        advice = f"a cell of more than {MAX_CELL} characters: put the text below the table"
        return [("cell", advice)] if len(plain) > MAX_CELL else []
    rules = (rule for rule in RULES if rule.in_docstrings or not is_docstring)
    return [(rule.name, rule.advice) for rule in rules if rule.matches(plain)]


def sentences(text: str) -> Iterator[str]:
    """Split a paragraph into sentences; a cell of a table (with `| ` before it) stays whole, too."""
    if text.startswith("| "):
        yield text
        text = text[2:]
    begun = ""
    for part in _END.split(" ".join(text.split())):
        begun = f"{begun} {part}".strip()
        if not _ABBREVIATION.search(begun):
            yield begun
            begun = ""
    if begun:
        yield begun


def _plain(text: str) -> str:
    text = re.sub(r"`[^`]*`", "`X`", " ".join(text.split()).removeprefix("| "))
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return text.replace("**", "").replace("*", "").strip()


def _blocks(text: str) -> Iterator[tuple[int, str]]:
    """Yield the first line and the text of each paragraph, entry of a list and cell of a table."""
    start, is_code = 0, False
    lines: list[str] = []
    for number, line in enumerate([*text.split("\n"), ""], 1):
        if line.lstrip().startswith("```"):
            is_code = not is_code
            line = ""
        entry = re.match(r"\s*(?:[-*]|\d+\.) +(.*)", line)
        is_break = is_code or not line.strip() or line.startswith(("#", "|", "<!--", "[", "!["))
        if lines and (is_break or entry) and not (line.startswith("[") and not is_code):
            yield start, "\n".join(lines)
            lines = []
        if is_code or not line.strip() or line.startswith(("#", "<!--", "![")):
            continue
        if line.startswith("|"):
            yield from (
                (number, f"| {cell.strip()}") for cell in re.split(r"(?<!\\)\|", line)[1:-1] if cell.strip("- ")
            )
            continue
        if not lines:
            start = number
        lines.append(entry[1] if entry else line)


def _headless(text: str) -> Iterator[tuple[int, str]]:
    """Yield paragraphs that continue a block of code instead of beginning with a subject."""
    for match in re.finditer(r"^ *```\n\n([a-z].*)$", text, re.MULTILINE):
        yield text.count("\n", 0, match.start(1)) + 1, match[1]


def _docstrings(text: str) -> Iterator[tuple[int, str]]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, kinds) and (docstring := ast.get_docstring(node)):
            first = node.body[0].lineno
            for line, block in _blocks(_without_sections(docstring)):
                yield first + line - 1, block


def _without_sections(docstring: str) -> str:
    """Blank the titles of sections, and set each entry of a section apart."""
    lines = docstring.split("\n")
    titles = re.compile(r"(Args|Returns|Raises|Attributes|Yields|Source|Example|Examples|Note):\s*$")
    return "\n".join("" if titles.match(line) else re.sub(r"^ {4}(\w+): ", r"- \1: ", line) for line in lines)


if __name__ == "__main__":
    sys.exit(main())
