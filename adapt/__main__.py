"""`python -m adapt search|evaluate|default|plot|fronts|attack`."""

import sys
from collections.abc import Sequence

from adapt.commands.default import DefaultCommand
from adapt.commands.evaluate import EvaluateCommand
from adapt.commands.plot import PlotCommand
from adapt.commands.search import SearchCommand
from adapt.robustness.attack import Attack
from adapt.robustness.fronts import FrontsCommand
from training.cli import run


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line (default: the process's own arguments); returns the exit code."""
    return run(
        [SearchCommand, EvaluateCommand, DefaultCommand, PlotCommand, FrontsCommand, Attack],
        prog="python -m adapt",
        description="Find the soup that suits a few labelled images.",
        args=args,
    )


if __name__ == "__main__":
    sys.exit(main())
