"""`python -m deploy bundle|export|check`."""

import sys
from collections.abc import Sequence

from deploy.commands import COMMANDS
from training.cli import run


def main(args: Sequence[str] | None = None) -> int:
    """Run one command (of `sys.argv` unless `args` are given) and return the exit code."""
    return run(COMMANDS, prog="python -m deploy", args=args)


if __name__ == "__main__":
    sys.exit(main())
