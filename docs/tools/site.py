"""Hooks of the site: documents outside of docs/ become pages, and links between all of them lead to pages.

The sources stay readable on any forge, because their links name files of the repository.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
PROJECT = "project"  # folder of the site for documents outside of docs/
PATTERNS = (
    "*.md",
    "bases/*/README.md",
    "deploy/**/*.md",
    "bases/*/*.png",
)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the decisions in the navigation, in their order."""
    for section in config.nav or []:
        if "Explanation" in section:
            section["Explanation"] += [{"Decisions": _pages("decisions")}, {"Older experiments": _pages("experiments")}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the documents outside of docs/, and the pictures of reports."""
    for path in _outside():
        source = f"{PROJECT}/{path.relative_to(ROOT)}"
        files.append(File.generated(config, source, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let the links of a page lead to pages; a link to other files of the repository becomes plain text."""
    source = page.file.src_uri
    known = set(files.src_uris)

    def replace(match: re.Match[str]) -> str:
        bang, text, target, anchor = match[1], match[2], match[3], match[4] or ""
        if re.match(r"[a-z]+:", target):
            return match[0]
        path = (ROOT / _place(source)).parent / target
        if not path.exists():
            return match[0]  # MkDocs names it
        uri = _uri(path.resolve())
        if uri not in known:
            return text if not bang else match[0]
        return f"{bang}[{text}]({os.path.relpath(uri, Path(source).parent)}{anchor})"

    return LINK.sub(replace, markdown)


def _pages(folder: str) -> list[str]:
    """Return the pages of a folder of docs/, its README first."""
    names = sorted(path.name for path in (ROOT / "docs" / folder).glob("*.md"))
    return [f"{folder}/{name}" for name in sorted(names, key=lambda name: name != "README.md")]


def _outside() -> Iterator[Path]:
    for pattern in PATTERNS:
        yield from sorted(path for path in ROOT.glob(pattern) if not any(part.startswith(".") for part in path.parts))


def _place(source: str) -> str:
    """Return where a page of the site lies in the repository."""
    return source.removeprefix(f"{PROJECT}/") if source.startswith(f"{PROJECT}/") else f"docs/{source}"


def _uri(path: Path) -> str:
    """Return where a file of the repository lies in the site."""
    place: Any = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    return str(place).removeprefix("docs/") if str(place).startswith("docs/") else f"{PROJECT}/{place}"
