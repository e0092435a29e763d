"""`python -m service serve`, `python -m service db|keys|reference COMMAND`."""

import sys
from collections.abc import Sequence

from service.commands import COMMANDS
from training.cli import run


def main(args: Sequence[str] | None = None) -> int:
    """Run one command (of `sys.argv` unless `args` are given) and return the exit code."""
    return run(COMMANDS, prog="python -m service", args=args)


if __name__ == "__main__":
    sys.exit(main())
