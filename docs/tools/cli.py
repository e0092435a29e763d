"""The reference page of the command line, from the commands' own options and help."""

from collections.abc import Iterable, Iterator
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import adapt.__main__  # noqa: F401  (commands are found as subclasses once their modules are imported)
import deploy.__main__  # noqa: F401
import training.__main__  # noqa: F401
from docs.tools.tables import filled, paragraphs, table
from service.__main__ import GROUPS
from training.cli import Command

_COMMON = {"print_json", "seed"}


class Option(NamedTuple):
    """One option or argument of a command."""

    name: str
    metavar: str
    default: str
    required: bool
    help: str


class Entry(NamedTuple):
    """One command."""

    path: str
    help: str
    options: tuple[Option, ...]


def cli_page() -> str:
    """Return the page of all commands."""
    return filled("cli.md", commands=paragraphs(_entries(commands())))


def commands() -> list[Entry]:
    """Return every command of the four folders."""
    found = [
        _entry(f"python -m {command.__module__.partition('.')[0]} {command.name}", command)
        for folder in ("training", "adapt", "deploy")
        for command in sorted(_subclasses(Command), key=lambda command: command.name)
        if command.__module__.partition(".")[0] == folder
    ]
    found += [
        _entry(f"python -m service {group} {command.name}", command)
        for group, (members, _) in GROUPS.items()
        for command in members
    ]
    return found


def _subclasses(command: type[Command]) -> Iterator[type[Command]]:
    for child in command.__subclasses__():
        if "name" in vars(child):
            yield child
        yield from _subclasses(child)


def _entry(path: str, command: type[Command]) -> Entry:
    options = [_option(name, field) for name, field in command.model_fields.items() if name not in _COMMON]
    return Entry(path, command.__doc__ or "", tuple(options))


def _option(name: str, field: FieldInfo) -> Option:
    renamed = next((found.name for found in field.metadata if hasattr(found, "metavar") and found.name), None)
    is_positional = any(repr(found) == "Positional" for found in field.metadata)
    shown = (renamed or name).replace("_", "-")
    default = "" if field.default in (None, (), PydanticUndefined) else f"`{_plain(field.default)}`"
    is_flag = field.annotation is bool
    return Option(
        name=shown.upper() if is_positional else f"--{shown}",
        metavar="" if is_flag or is_positional else _metavar(field.annotation),
        default="" if is_flag else default,
        required=field.is_required(),
        help=field.description or "",
    )


def _plain(default: object) -> str:
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _metavar(annotation: Any) -> str:
    arguments = [found for found in get_args(annotation) if found is not type(None)]
    if get_origin(annotation) is Literal:
        return "|".join(map(str, arguments))
    if get_origin(annotation) in (Union, UnionType):
        return "|".join(dict.fromkeys(map(_metavar, arguments)))
    if get_origin(annotation) is tuple:
        return f"{_metavar(arguments[0])} ..."
    if hasattr(annotation, "__value__"):
        return _metavar(annotation.__value__)
    return {"int": "INT", "float": "FLOAT", "str": "TEXT", "Path": "PATH"}.get(
        getattr(annotation, "__name__", ""), "VALUE"
    )


def _entries(found: Iterable[Entry]) -> Iterator[str]:
    for entry in found:
        yield f"## `{entry.path}`"
        text, _, example = entry.help.partition("Example:")
        yield "\n\n".join(" ".join(part.split()) for part in text.split("\n\n") if part.strip())
        if example.strip():
            yield f"```sh\n{' '.join(example.split(chr(10) * 2)[0].split())}\n```"
        if entry.options:
            rows = [
                (
                    f"`{one.name}{' ' + one.metavar if one.metavar else ''}`",
                    "required" if one.required else one.default,
                    one.help,
                )
                for one in entry.options
            ]
            yield table(("option", "default", "meaning"), rows)
