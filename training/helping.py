"""The help of commands and groups, laid out for a screen of 100 columns; no boxes."""

import inspect
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence

from training.parameters import Parameter

WIDEST = 100  # columns
_MOST_LEFT = 26  # columns of names; longer ones have a line of their own
_EXAMPLE = "Example"


def command_help(
    path: str,
    description: str,
    parameters: Sequence[Parameter],
    sections: Mapping[str, Sequence[str]],
    *,
    width: int = WIDEST,
) -> str:
    """Return the help of one command.

    Args:
        path: what is typed, such as "saucier adapt search".
        description: paragraphs; those that begin with "Example" can be copied into a shell.
        parameters: hidden ones are left out.
        sections: fields of the options under a title; the others come first.
        width: columns.
    """
    shown = [one for one in parameters if not one.is_hidden]
    arguments = [one for one in shown if not one.flags]
    options = {one.field: one for one in shown if one.flags}
    words = [path, *(one.metavar if one.is_required else f"[{one.metavar}]" for one in arguments)]
    words += [f"{one.flags[0]} {one.metavar}" for one in options.values() if one.is_required]
    usage = _wrapped(f"Usage: {' '.join(words)} [OPTIONS]", width, indent="       ")
    titled = {title: [options.pop(name) for name in fields if name in options] for title, fields in sections.items()}
    blocks = [("Arguments", arguments), ("Options", [*options.values()]), *titled.items()]
    rows = [_row(one) for one in shown] + [("-h, --help", "show this help and exit")]
    left = min(_MOST_LEFT, max(len(name) for name, _ in rows if len(name) <= _MOST_LEFT))
    text = [usage, *_paragraphs(description, width)]
    for title, block in blocks:
        lines = [line for one in block for line in _item(*_row(one), left, width)]
        if title == "Options":
            lines += _item("-h, --help", "show this help and exit", left, width)
        if lines:
            text.append("\n".join([f"{title}:", *lines]))
    return "\n\n".join(text) + "\n"


def group_help(path: str, summary: str, commands: Mapping[str, str], *, width: int = WIDEST) -> str:
    """Return the help of a group, `width` columns wide: its commands with a line each."""
    left = max(map(len, commands))
    lines = [line for name, summary in commands.items() for line in _item(name, summary, left, width)]
    end = f"`{path} COMMAND --help` says more."
    return (
        "\n\n".join(
            [f"Usage: {path} COMMAND", _wrapped(_sentence(summary), width), "\n".join(["Commands:", *lines]), end]
        )
        + "\n"
    )


def screen_width() -> int:
    """Return how wide help is on this terminal."""
    return max(40, min(WIDEST, shutil.get_terminal_size((WIDEST, 50)).columns))


def described(parameter: Parameter) -> str:
    """Return what help says of a parameter: its description, then whether it is required, or its default."""
    end = ""
    if parameter.is_required and parameter.flags:
        end = " [required]"
    elif parameter.default and not parameter.negative:
        end = f" [default: {parameter.default}]"
    return parameter.help + end


def _row(one: Parameter) -> tuple[str, str]:
    flags = [*one.flags, one.negative] if one.negative else one.flags
    name = " ".join([", ".join(flags), one.metavar]).strip()
    return name, described(one)


def _item(name: str, text: str, left: int, width: int) -> Iterator[str]:
    margin = " " * (left + 4)
    lines = textwrap.wrap(text, width - len(margin), break_on_hyphens=False) or [""]
    if len(name) > left:
        yield f"  {name}"
        yield f"{margin}{lines[0]}"
    else:
        yield f"  {name:{left}}  {lines[0]}"
    yield from (margin + line for line in lines[1:])


def _paragraphs(description: str, width: int) -> Iterator[str]:
    for paragraph in inspect.cleandoc(description).split("\n\n"):
        text = " ".join(paragraph.split())
        yield _example(text, width) if text.startswith(_EXAMPLE) else _wrapped(text, width)


def _example(text: str, width: int) -> str:
    """Wrap a command line so that it can still be copied into a shell."""
    lines = textwrap.wrap(text, width - 2, subsequent_indent="    ", break_on_hyphens=False, break_long_words=False)
    return " \\\n".join(lines)


def _wrapped(text: str, width: int, *, indent: str = "") -> str:
    return textwrap.fill(text, width, subsequent_indent=indent, break_on_hyphens=False)


def _sentence(summary: str) -> str:
    return f"{summary[:1].upper()}{summary[1:].removesuffix('.')}."
