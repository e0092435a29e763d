"""The tree of commands as a parser (click) reads it: groups import a command when it is asked for; one-line errors."""

import importlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import NoneType
from typing import Any, ClassVar

import click
from pydantic import BaseModel, ConfigDict, ValidationError

from training.helping import command_help, group_help, screen_width
from training.nearest import meant
from training.parameters import Parameter, click_parameters, parameters_of, take_lists, without_value


class Options(BaseModel):
    """What a command line fills in: its fields are the options, its docstring is the help (with an example)."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)
    sections: ClassVar[Mapping[str, Sequence[str]]] = {}  # fields of options that help shows under a title

    @classmethod
    def parameters(cls) -> tuple[Parameter, ...]:
        """Return its arguments and options."""
        return parameters_of(cls)


@dataclass(frozen=True)
class Entry:
    """A command of a group: where its class is, which is imported when it is asked for, and a line for the group."""

    target: str | type[Options]  # "module:Class", or the class
    summary: str

    def load(self) -> type[Options]:
        """Return the class, imported if need be."""
        if not isinstance(self.target, str):
            return self.target
        module, _, name = self.target.partition(":")
        found: type[Options] = getattr(importlib.import_module(module), name)
        return found


@dataclass(frozen=True)
class Group:
    """Commands below one word."""

    summary: str
    commands: Mapping[str, "Entry | Group"]
    version: str | None = None  # what `--version` prints, of the whole program

    def walk(self, path: str) -> Iterator[tuple[str, Entry]]:
        """Yield every command below, with what is typed for it."""
        for name, item in self.commands.items():
            if isinstance(item, Group):
                yield from item.walk(f"{path} {name}")
            else:
                yield f"{path} {name}", item


class CommandParser(click.Command):
    """Parses the options of one command; invoked, it returns them as a model."""

    def __init__(self, name: str, options: type[Options]) -> None:
        self._options = options
        self._parameters = options.parameters()
        settings = {**_SETTINGS, "allow_extra_args": True}  # to say itself what was expected
        super().__init__(name, params=list(click_parameters(self._parameters)), context_settings=settings)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse; options with several values are taken out before, as the parser does not have them."""
        rest, lists = take_lists(args, self._parameters)
        if (flag := without_value(rest, self._parameters)) is not None:
            raise click.BadOptionUsage(flag, "", ctx)
        with _blamed_on(ctx):
            extra = super().parse_args(ctx, rest)
        if extra and not ctx.resilient_parsing:
            names = [one.metavar for one in self._parameters if not one.flags]
            raise click.UsageError(f"expected no more than {' '.join(names) or 'options'}, got {extra[0]!r}", ctx)
        single = {name: value for name, value in ctx.params.items() if not isinstance(value, tuple | NoneType)}
        ctx.params = single | lists
        return extra

    def invoke(self, ctx: click.Context) -> Options:
        """Return the options.

        Raises:
            click.UsageError: one is missing, or has a value that it cannot have.
        """
        try:
            return self._options.model_validate(ctx.params)
        except ValidationError as error:
            raise click.UsageError(_problem(error, self._parameters), ctx) from None

    def get_help(self, ctx: click.Context) -> str:
        """Return the help."""
        description = inspect.getdoc(self._options) or ""
        sections, width = self._options.sections, screen_width()
        return command_help(ctx.command_path, description, self._parameters, sections, width=width).rstrip()


class GroupParser(click.Group):
    """Parses the name of a command; the command itself parses the rest."""

    def __init__(self, name: str, group: Group) -> None:
        self._group = group
        super().__init__(name, context_settings=_SETTINGS, no_args_is_help=False)
        if group.version is not None:
            self.params.append(_version_option(name, group.version))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse; without a word, say which there are."""
        if not args and not ctx.resilient_parsing:
            raise click.UsageError(f"expected a command: {', '.join(self._group.commands)}", ctx)
        with _blamed_on(ctx):
            return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order in which they are needed."""
        return list(self._group.commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a parser for a command; its class is imported now."""
        found = self._group.commands.get(cmd_name)
        if isinstance(found, Group):
            return GroupParser(cmd_name, found)
        return None if found is None else CommandParser(cmd_name, found.load())

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or say which there are."""
        if args[0] not in self._group.commands and not args[0].startswith("-"):
            raise click.exceptions.NoSuchCommand(args[0], possibilities=self._group.commands, ctx=ctx)
        return super().resolve_command(ctx, args)

    def get_help(self, ctx: click.Context) -> str:
        """Return the help."""
        summaries = {name: item.summary for name, item in self._group.commands.items()}
        return group_help(ctx.command_path, self._group.summary, summaries, width=screen_width()).rstrip()


_SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"]}


def _version_option(name: str, version: str) -> click.Option:
    def show(context: click.Context, _option: click.Parameter, is_asked: bool) -> None:
        if is_asked and not context.resilient_parsing:
            click.echo(f"{name} {version}")
            context.exit()

    return click.Option(["--version"], is_flag=True, is_eager=True, expose_value=False, callback=show)


@contextmanager
def _blamed_on(context: click.Context) -> Iterator[None]:
    """Give an error of the parser its command, which some of them lack."""
    try:
        yield
    except click.UsageError as error:
        error.ctx = error.ctx or context
        raise


def parse(parser: click.Command, args: Sequence[str], *, prog: str) -> Options | None:
    """Return the options of the command that was asked for; None if help or a version was asked for, and printed.

    Raises:
        ValueError: the words cannot be understood; one line that says what was expected.
    """
    try:
        found = parser.main(list(args), prog_name=prog, standalone_mode=False)
    except click.UsageError as error:
        raise ValueError(_line(error)) from None
    except click.Abort:  # Ctrl-C while a command was imported, which can take seconds
        raise KeyboardInterrupt from None
    return found if isinstance(found, Options) else None


def _line(error: click.UsageError) -> str:
    """Return what is wrong with a command line in one line, with the nearest name and where help is."""
    context = error.ctx
    assert context is not None
    where = f" (see {context.command_path} --help)"
    if isinstance(error, click.NoSuchOption):
        shown = [one for one in context.command.get_params(context) if not getattr(one, "hidden", False)]
        flags = [flag for one in shown for flag in (*one.opts, *one.secondary_opts) if flag.startswith("--")]
        return f"there is no option {error.option_name}{meant(error.option_name, flags)}{where}"
    if isinstance(error, click.exceptions.NoSuchCommand) and isinstance(context.command, click.Group):
        known = context.command.list_commands(context)
        return f"there is no command {error.command_name!r}{meant(error.command_name, known)}{where}"
    if isinstance(error, click.BadOptionUsage):
        switches = [one for one in context.command.params if isinstance(one, click.Option) and one.is_flag]
        is_flag = any(error.option_name in [*one.opts, *one.secondary_opts] for one in switches)
        return f"{error.option_name}: expected {'no value, got one' if is_flag else 'a value, got none'}{where}"
    return f"{error.message}{where}"


def _problem(error: ValidationError, parameters: Sequence[Parameter]) -> str:
    """Return what is wrong with the values: all that are missing, else the first that cannot be."""
    by_field = {one.field: one for one in parameters}
    found: list[Any] = error.errors(include_url=False)
    missing = [by_field[one["loc"][0]] for one in found if one["type"] == "missing" and len(one["loc"]) == 1]
    if missing:
        return f"expected {', '.join(_spelled(one) for one in missing)}"
    first = found[0]
    message: str = (
        first["msg"].removeprefix("Value error, ").replace("Input should be", "expected").partition(", unable")[0]
    )
    one = by_field.get(first["loc"][0]) if first["loc"] else None
    if one is None:
        return message
    if first["type"] in ("missing", "too_long") and one.count:
        return f"{one.shown}: expected {one.count} values, got {' '.join(map(str, first['input']))!r}"
    if first["type"] != "value_error":
        message += f", got {first['input']!r}"
    return f"{one.shown}: {message}{meant(first['input'], one.choices)}"


def _spelled(one: Parameter) -> str:
    return f"{one.shown} {one.metavar}" if one.flags else one.metavar
