"""`python -m service serve`, and `python -m service db|keys|reference COMMAND`."""

import sys
from collections.abc import Mapping, Sequence

from service.db import COMMANDS as DATABASE_COMMANDS
from service.keys import COMMANDS as KEYS_COMMANDS
from service.references import COMMANDS as REFERENCE_COMMANDS
from service.start import ServeCommand
from training.cli import EXIT_BAD_INPUT, Command, run

GROUPS: Mapping[str, tuple[Sequence[type[Command]], str]] = {
    "db": (
        DATABASE_COMMANDS,
        "The registry: upgrade it, check it, back it up, move it to new weights, tell a copy from the original.",
    ),
    "reference": (REFERENCE_COMMANDS, "Trusted images that a promoted soup must stay good on."),
    "keys": (KEYS_COMMANDS, "The API keys: make one, list them, take one back."),
}
USAGE = (
    f"usage: python -m service serve [OPTIONS], or python -m service {{{','.join(GROUPS)}}} COMMAND [OPTIONS]; "
    "for example python -m service db check --help"
)


def main(args: Sequence[str] | None = None) -> int:
    """Run one command (of `sys.argv` unless `args` are given) and return the exit code."""
    group, *rest = [*(sys.argv[1:] if args is None else args), ""]
    if group in ("-h", "--help"):
        sys.stdout.write(USAGE + "\n")
        return 0
    if group == ServeCommand.name:
        return run([ServeCommand], prog="python -m service serve", description="Serve the base sets.", args=rest[:-1])
    if group not in GROUPS:
        known = ", ".join((ServeCommand.name, *GROUPS))
        sys.stderr.write(f"error: expected one of {known}, got {group!r}\n{USAGE}\n")
        return EXIT_BAD_INPUT
    commands, description = GROUPS[group]
    return run(commands, prog=f"python -m service {group}", description=description, args=rest[:-1])


if __name__ == "__main__":
    sys.exit(main())
