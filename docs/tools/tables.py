"""Markdown: templates, paragraphs, tables."""

from collections.abc import Iterable, Sequence
from pathlib import Path

TEMPLATES = Path(__file__).with_name("templates")


def filled(page: str, **parts: str) -> str:
    """Return the template of a page with each `<!-- name -->` replaced by the part of that name."""
    text = (TEMPLATES / f"{page}.template").read_text()
    for name, part in parts.items():
        text = text.replace(f"<!-- {name} -->\n", part.rstrip("\n") + "\n")
    return text


def paragraphs(parts: Iterable[str]) -> str:
    """Return parts with an empty line between them."""
    return "\n\n".join(part.rstrip("\n") for part in parts)


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table with a line per row; bars within cells are escaped."""
    lines = [_line(titles), "|" + "---|" * len(titles), *map(_line, rows)]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    shown = [" ".join(cell.split()).replace("|", "\\|") for cell in cells]
    return "".join(f"| {cell} " if cell else "| " for cell in shown) + "|"
