"""`python -m adapt search|evaluate|default|plot|fronts|attack`."""

import sys
from collections.abc import Sequence

from adapt.commands.tree import COMMANDS
from training.cli import run


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line (default: the process's own arguments); returns the exit code."""
    return run(COMMANDS, prog="python -m adapt", args=args)


if __name__ == "__main__":
    sys.exit(main())
