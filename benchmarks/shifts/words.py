"""What is typed after an option: names and numbers between commas and blanks."""

from collections.abc import Sequence
from pathlib import Path

CIFAR10 = Path(".data/cifar10")  # where no data are named


def counts_of(option: str, words: Sequence[str]) -> tuple[int, ...]:
    """Return different numbers from 1, ascending.

    Raises:
        ValueError: something else (says of which option).
    """
    parts = split_words(words)
    if not parts or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"{option}: expected whole numbers from 1, as 20,100, got {','.join(words)!r}")
    return tuple(sorted({int(part) for part in parts}))


def known_names(option: str, words: Sequence[str] | None, known: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names asked for in the order of `known`; all if none were.

    Raises:
        ValueError: an unknown one, or none (says of which option).
    """
    names = known if words is None else split_words(words)
    if not names or (unknown := [name for name in names if name not in known]):
        raise ValueError(f"{option}: expected some of {', '.join(known)}, got {unknown if names else 'none'}")
    return tuple(name for name in known if name in names)


def split_words(words: Sequence[str]) -> list[str]:
    """Return what stands between commas and blanks."""
    return [part for word in words for part in word.replace(",", " ").split()]
