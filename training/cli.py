"""One frame for every command line: `--json`, `--seed`, exit codes, one-line errors."""

import contextlib
import io
import json
import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, NamedTuple

import tyro
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from training.documents import first_error

_BOX = re.compile("[\u2500-\u257f]+|-{4,}")  # what boxes are drawn with

EXIT_DONE, EXIT_CLAIM_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130


class Result(NamedTuple):
    """What a command found."""

    data: Mapping[str, Any]  # printed as one JSON object with --json
    text: str  # printed otherwise
    exit_code: int = EXIT_DONE


class Command(BaseModel):
    """A command: its fields are the options, its docstring is the help (with an example), `execute` does the work."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)
    name: ClassVar[str]

    print_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = Field(
        default=False, description="print one JSON object on stdout, everything else on stderr"
    )
    seed: int = Field(default=0, ge=0, description="seed of every random choice")

    def execute(self) -> Result:
        """Do the work."""
        raise NotImplementedError


def run(commands: Sequence[type[Command]], *, prog: str, description: str, args: Sequence[str] | None = None) -> int:
    """Parse the arguments, run one command, print its result and return the exit code.

    0 done; 1 the measured claim does not hold; 2 bad input, with one line on stderr; 130 interrupted.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        command = _parse(commands, prog=prog, description=description, args=args)
        result = command.execute()
    except ValidationError as error:
        return _fail(first_error(error))
    except (ValueError, OSError, FloatingPointError) as error:
        return _fail(" ".join(str(error).split()))
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return EXIT_INTERRUPTED
    sys.stdout.write((json.dumps(result.data) if command.print_json else result.text) + "\n")
    return result.exit_code


def _parse(commands: Sequence[type[Command]], *, prog: str, description: str, args: Sequence[str] | None) -> Command:
    """Parse the arguments; what the parser says of bad ones, in a box of several lines, becomes one line."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return _parse_with_tyro(commands, prog=prog, description=description, args=args)
    except SystemExit as stop:
        if stop.code in (0, None):  # --help
            raise
        raise ValueError(_condense(said.getvalue())) from None


def _condense(box: str) -> str:
    text = " ".join(_BOX.sub(" ", box).split())
    text = text.partition(" For further information")[0].partition(" For full helptext")[0]
    text = re.sub(r"\[type=\w+,|input_type=\w+\]|\(type=[^)]*\)", "", text)
    return " ".join(text.split()).removeprefix("Value error ").rstrip(" ,")


def _parse_with_tyro(
    commands: Sequence[type[Command]], *, prog: str, description: str, args: Sequence[str] | None
) -> Command:
    if len(commands) == 1:
        return tyro.cli(commands[0], prog=prog, args=args)
    by_name: dict[str, Callable[..., Command]] = {command.name: command for command in commands}
    command: Command = tyro.extras.subcommand_cli_from_dict(by_name, prog=prog, description=description, args=args)
    return command


def _fail(message: str) -> int:
    sys.stderr.write(f"error: {message}\n")
    return EXIT_BAD_INPUT
