"""`python -m benchmarks.shifts`, with or without a subcommand."""

import sys
from collections.abc import Sequence

from benchmarks.shifts.attacked import Attack
from benchmarks.shifts.command import Report, Shifts
from benchmarks.shifts.domains.settings import CompareSettings
from benchmarks.shifts.preview import List, Preview
from benchmarks.shifts.tune_command import Tune
from training.cli import Command, run

SUBCOMMANDS: tuple[type[Command], ...] = (Report, Attack, Tune, CompareSettings, Preview, List)


def main(args: Sequence[str]) -> int:
    """Run a subcommand if there is one, else the comparison."""
    if args and args[0] in {command.name for command in SUBCOMMANDS}:
        return run(SUBCOMMANDS, prog="python -m benchmarks.shifts", description="The shift suite.", args=args)
    return run([Shifts], prog="python -m benchmarks.shifts", description="Methods on shifts.", args=args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
