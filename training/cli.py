"""One frame for every command line: `--json`, `--seed`, exit codes, one-line errors."""

import inspect
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import Field, ValidationError

from training.documents import first_error
from training.parameters import Arg, Parameter
from training.parsing import CommandParser, Entry, Group, GroupParser, Options, parse

EXIT_DONE, EXIT_CLAIM_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130
OURS = ("training", "adapt", "deploy", "service")  # packages
EXTRAS = {"psycopg": "postgres", "s3fs": "s3", "tensorboard": "tracking", "opentelemetry": "otel"}  # by module
_LAST = ("print_json", "seed")  # what every command has comes last in its help


class Result(NamedTuple):
    """What a command found."""

    data: Mapping[str, Any]  # printed as one JSON object with --json
    text: str  # printed otherwise
    exit_code: int = EXIT_DONE


class Command(Options):
    """A command: its fields are the options, its docstring is the help (with an example), `execute` does the work.

    Every command takes `--json` and `--seed`, so that scripts may always give them; help shows them where they matter.
    """

    name: ClassVar[str]
    unused: ClassVar[tuple[str, ...]] = ()  # fields that change nothing, such as the seed where nothing is random

    print_json: Annotated[bool, Arg(name="json")] = Field(
        default=False, description="print one JSON object on stdout, everything else on stderr"
    )
    seed: int = Field(default=0, ge=0, description="seed of every random choice")

    @classmethod
    def parameters(cls) -> tuple[Parameter, ...]:
        """Return its arguments and options, those of every command last."""
        found = {one.field: one for one in super().parameters()}
        for name in cls.unused:
            found[name] = replace(found[name], is_hidden=True)
        last = [found.pop(name) for name in _LAST]
        return (*found.values(), *last)

    def execute(self) -> Result:
        """Do the work."""
        raise NotImplementedError


def run(
    commands: Group | Sequence[type[Command]], *, prog: str, description: str = "", args: Sequence[str] | None = None
) -> int:
    """Parse the arguments, run one command, print its result and return the exit code.

    0 done; 1 the measured claim does not hold; 2 bad input, with one line on stderr; 130 interrupted.

    Args:
        commands: a group; or classes, of which a single one needs no name on the command line.
        prog: what is typed before the arguments.
        description: of several classes.
        args: of `sys.argv` if not given.
    """
    try:
        command = parse(_parser(commands, prog, description), sys.argv[1:] if args is None else args, prog=prog)
        if command is None:
            return EXIT_DONE
        assert isinstance(command, Command)
        # Not before: what is imported for a command has nothing to tell.
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
        result = command.execute()
    except ValidationError as error:
        return _fail(first_error(error))
    except (ValueError, OSError, FloatingPointError) as error:
        return _fail(" ".join(str(error).split()))
    except ModuleNotFoundError as error:
        return _fail(_not_installed(error))
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return EXIT_INTERRUPTED
    sys.stdout.write((json.dumps(result.data) if command.print_json else result.text) + "\n")
    return result.exit_code


def _parser(commands: Group | Sequence[type[Command]], prog: str, description: str) -> CommandParser | GroupParser:
    if isinstance(commands, Group):
        return GroupParser(prog, commands)
    if len(commands) == 1:
        return CommandParser(prog, commands[0])
    return GroupParser(
        prog, Group(description, {command.name: Entry(command, _first(command)) for command in commands})
    )


def _first(command: type[Command]) -> str:
    """Return the first paragraph of a command's help."""
    return (inspect.getdoc(command) or "").partition("\n\n")[0]


def _not_installed(error: ModuleNotFoundError) -> str:
    """Say what to install.

    Raises:
        ModuleNotFoundError: the module is one of ours.
    """
    module = (error.name or "").partition(".")[0]
    if module in ("", *OURS):
        raise error
    what = f"'saucier[{EXTRAS[module]}]'" if module in EXTRAS else "saucier"
    return f"expected the module {module!r}, which is not installed here: `pip install {what}` installs it"


def _fail(message: str) -> int:
    sys.stderr.write(f"error: {message}\n")
    return EXIT_BAD_INPUT
