"""The reference page of the command line, from the tree of commands."""

from collections.abc import Iterable, Iterator

from docs.tools.tables import filled, paragraphs, table
from service.saucier import reference
from training.parameters import Parameter
from training.reference import CommandReference

_COMMON = ("print_json", "seed")  # described once, above all commands


def cli_page() -> str:
    """Return the page of all commands."""
    found = list(reference())
    rows = [(f"[`{one.path}`](#{one.path.replace(' ', '-')})", one.summary) for one in found]
    return filled("cli.md", summaries=table(("command", "does"), rows), commands=paragraphs(_commands(found)))


def _commands(found: Iterable[CommandReference]) -> Iterator[str]:
    for one in found:
        yield f"## `{one.path}`"
        yield from map(_paragraph, one.description.split("\n\n"))
        rows = [_row(parameter) for parameter in one.parameters if parameter.field not in _COMMON]
        if rows:
            yield table(("argument or option", "default", "meaning"), rows)


def _paragraph(text: str) -> str:
    words = " ".join(text.split())
    label, colon, example = words.partition(": ")
    return f"```sh\n{example}\n```" if label == "Example" and colon else words


def _row(parameter: Parameter) -> tuple[str, str, str]:
    shown = f"{parameter.shown} {parameter.metavar}" if parameter.flags and parameter.metavar else parameter.shown
    default = "required" if parameter.is_required else f"`{parameter.default}`" if parameter.default else ""
    return f"`{shown}`", default, parameter.help
