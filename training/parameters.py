"""From the fields of a command's model to the parameters of the command line, and back to the model.

The parser (click) only splits words; every value stays text until pydantic reads it, so that types, ranges and defaults
are written once, in the model.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
from click.shell_completion import CompletionItem
from pydantic import BaseModel
from pydantic.fields import FieldInfo

_METAVARS: Mapping[type, str] = {int: "INT", float: "NUMBER", Path: "PATH", str: "TEXT"}
_NUMBER = re.compile(r"-\.?\d")  # a value that begins with a dash


@dataclass(frozen=True)
class Arg:
    """How a field is spelled where its name and type do not say it: `Annotated[Path, Arg(...)]`."""

    is_positional: bool = False
    name: str | None = None  # without dashes
    aliases: tuple[str, ...] = ()
    metavar: str | None = None
    is_hidden: bool = False  # accepted, not shown


Positional = Arg(is_positional=True)


@dataclass(frozen=True)
class Parameter:
    """One argument or option of a command, as the command line and its documents show it."""

    field: str  # of the model
    flags: tuple[str, ...]  # "--out"; none for a positional argument
    metavar: str  # "" for a flag
    choices: tuple[str, ...]
    count: int | None  # values it takes: 0 for a flag, None for any number
    is_path: bool
    is_required: bool
    default: str  # as it is typed; "" where there is none
    help: str
    is_hidden: bool

    @property
    def negative(self) -> str:
        """Return the flag that turns off one that is on by default; "" for all others."""
        return f"--no-{self.flags[0][2:]}" if self.count == 0 and self.default else ""

    @property
    def shown(self) -> str:
        """Return what stands for it in help and messages: its flag, or the name of the argument."""
        return self.flags[0] if self.flags else self.metavar


def parameters_of(model: type[BaseModel]) -> tuple[Parameter, ...]:
    """Return the parameters of a model, in the order of its fields."""
    return tuple(_parameter(name, field) for name, field in model.model_fields.items())


def click_parameters(parameters: Sequence[Parameter]) -> Iterator[click.Parameter]:
    """Yield the parser's own; it checks neither types nor what is missing, the model does."""
    for one in parameters:
        if not one.flags:
            yield click.Argument([one.field], required=False, type=click.STRING, shell_complete=_completer(one))
        elif one.count == 0:
            switch = f"{one.flags[0]}/{one.negative}" if one.negative else one.flags[0]
            yield click.Option([one.field, switch, *one.flags[1:]], is_flag=True, default=None, hidden=one.is_hidden)
        else:
            yield click.Option(
                [one.field, *one.flags],
                type=click.STRING,
                multiple=one.count != 1,
                shell_complete=_completer(one),
                hidden=one.is_hidden,
            )


def take_lists(args: Sequence[str], parameters: Sequence[Parameter]) -> tuple[list[str], dict[str, tuple[str, ...]]]:
    """Take the options that have several values, as in `--n 20 100`, out of the words of a command line.

    Values end at the next option, or at the number that the field takes. An option without values is an empty list.

    Returns:
        The other words, and the values by field.
    """
    lists = {flag: one for one in parameters if one.count not in (0, 1) for flag in one.flags}
    rest, values, words = list[str](), dict[str, tuple[str, ...]](), list(args)
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        if word == "--":
            return [*rest, word, *words], values
        if (one := lists.get(flag)) is None:
            rest.append(word)
            continue
        found = [value] if equals else []
        while not equals and words and not _is_option(words[0]) and (one.count is None or len(found) < one.count):
            found.append(words.pop(0))
        values[one.field] = (*values.get(one.field, ()), *found)
    return rest, values


def without_value(words: Sequence[str], parameters: Sequence[Parameter]) -> str | None:
    """Return the first option with one value that another option of the command follows; None if there is none.

    The parser would take the other option for the value, as in `--out --json`. `--out=--json` means it.
    """
    known = {"-h", "--help", *(flag for one in parameters for flag in (*one.flags, one.negative) if flag)}
    single = {flag for one in parameters if one.count == 1 for flag in one.flags}
    for word, following in pairwise(words):
        if word == "--":
            return None
        if word in single and following.partition("=")[0] in known:
            return word
    return None


def _is_option(word: str) -> bool:
    return word.startswith("-") and len(word) > 1 and not _NUMBER.match(word)


def _parameter(name: str, field: FieldInfo) -> Parameter:
    arg = next((item for item in field.metadata if isinstance(item, Arg)), Arg())
    inner, count = _inner(field.annotation)
    choices = tuple(map(str, get_args(inner))) if get_origin(inner) is Literal else ()
    word = (arg.name or name).replace("_", "-")
    metavar = arg.metavar or (word.upper() if arg.is_positional else "|".join(choices) or _METAVARS.get(inner, "TEXT"))
    if count == 0:
        metavar = ""
    elif count is None:
        metavar += " ..."
    elif count > 1:
        metavar = " ".join([metavar] * count)
    return Parameter(
        field=name,
        flags=() if arg.is_positional else tuple(f"--{flag}" for flag in (word, *arg.aliases)),
        metavar=metavar,
        choices=choices,
        count=count,
        is_path=inner is Path,
        is_required=field.is_required(),
        default="" if field.is_required() else _typed(field.get_default(call_default_factory=True, validated_data={})),
        help=field.description or "",
        is_hidden=arg.is_hidden,
    )


def _inner(annotation: Any) -> tuple[Any, int | None]:
    """Return the type of one value, and how many values there are: 0 for a flag, None for any number."""
    if get_origin(annotation) in (Union, UnionType):
        (annotation,) = (part for part in get_args(annotation) if part is not NoneType)
    if get_origin(annotation) is tuple:
        first, *others = get_args(annotation)
        return _bare(first), None if others == [...] else 1 + len(others)
    return _bare(annotation), 0 if annotation is bool else 1


def _bare(annotation: Any) -> Any:
    """Return a type without what `Annotated` adds."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _typed(value: object) -> str:
    """Return a default as one would type it."""
    if value is None or value is False:
        return ""
    if isinstance(value, tuple):
        return " ".join(map(_typed, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _completer(one: Parameter) -> Any:
    """Return what completes a value in a shell: files, choices, or nothing."""

    def complete(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        if one.is_path:
            return [CompletionItem(incomplete, type="file")]
        return [CompletionItem(choice) for choice in one.choices if choice.startswith(incomplete)]

    return complete
