"""All that a tree of commands can be asked, as data: for the reference pages, and for tests of every help."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass

from training.helping import command_help
from training.parameters import Parameter
from training.parsing import Group


@dataclass(frozen=True)
class CommandReference:
    """One command."""

    path: str  # what is typed, such as "saucier adapt search"
    summary: str  # a line, as its group shows it
    description: str  # paragraphs; the one that begins with "Example" can be copied into a shell
    parameters: tuple[Parameter, ...]  # arguments, then options, in the order of its help; hidden ones left out
    help: str  # what --help prints


def references(group: Group, path: str) -> Iterator[CommandReference]:
    """Yield every command of a tree, in order; each is imported.

    Args:
        group: of commands.
        path: what is typed for it, such as "saucier".
    """
    for command_path, entry in group.walk(path):
        options = entry.load()
        description, parameters = inspect.getdoc(options) or "", options.parameters()
        shown = tuple(one for one in parameters if not one.is_hidden)
        yield CommandReference(
            path=command_path,
            summary=entry.summary,
            description=description,
            parameters=tuple(sorted(shown, key=lambda one: bool(one.flags))),
            help=command_help(command_path, description, parameters, options.sections),
        )
