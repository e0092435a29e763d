"""The name that was probably meant, for messages about one that does not exist. Imports no torch."""

import difflib
from collections.abc import Iterable

MOST_CHARACTERS = 100  # of a word that is compared: comparing takes time with the square of its length


def meant(word: object, known: Iterable[str]) -> str:
    """Return "; did you mean NAME?" with the known name that is most like a word; "" where none is."""
    found = difflib.get_close_matches(str(word)[:MOST_CHARACTERS], list(known), 1)
    return f"; did you mean {found[0]}?" if found else ""
